"""Lift: a Panda arm lifts a cube from a table (robosuite 1.5.2's task, with the observations of the published
robomimic datasets).

Observation (19): ``robot0_eef_pos`` (3, m), ``robot0_eef_quat`` (4, x y z w), ``robot0_gripper_qpos`` (2, m) and
``object`` (10: cube position, cube orientation x y z w, gripper minus cube position). The last three have the sign of
robosuite 1.4, in which the datasets and published checkpoints were made; robosuite 1.5 itself returns cube minus
gripper. Positions are those of the start of the last physics substep, as in robosuite.

Action (7, each in [-1, 1]): position delta (0.05 m), rotation delta (axis-angle, 0.5 rad), gripper (the sign: -1
opens, +1 closes). Reward 1 per control step (20 Hz) in which the cube is more than 4 cm above the table; nothing ends
an episode but time.

Each episode draws the cube's size, the arm's joints and the cube's pose in robosuite's own order from one generator:
``robosuite.make("Lift", seed=s)`` begins in exactly the state of our episode ``s``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import mujoco
import numpy as np

from env.engine import osc
from env.engine.library import N_HANDLES, SOLVED, XPOS, control_kernel, floats, integers, observe_kernel
from env.robomimic import suite

N_OBS, N_MEMORY = 19, osc.memory_size(1)
CUBE, N_IDS = osc.first_task_id(1), osc.first_task_id(1) + 1
HEIGHT, N_FACTS = osc.N_ARM_FACTS, osc.N_ARM_FACTS + 1
SUCCESS_MARGIN = 0.04  # m above the table top: robosuite's Lift._check_success
DENSITY = 1000.0  # kg/m^3: MuJoCo's default; robosuite gives the cube none of its own
_SIZE, _JOINTS, _POSITION, _YAW = slice(0, 3), slice(3, 10), slice(10, 12), 12  # parts of a start


@control_kernel(__file__)
def _control(handles, memory, ids, facts, action, reward):
    h, own, numbers = integers(handles, N_HANDLES), floats(memory, N_MEMORY), integers(ids, N_IDS)
    known = floats(facts, N_FACTS)
    osc.control_arms(h, own, numbers, known, floats(action, 7))
    lifted = floats(h[XPOS] + 24 * numbers[CUBE], 3)[2] > known[HEIGHT]
    floats(reward, 1)[0] = 1.0 if lifted else 0.0
    return SOLVED if lifted else 0


@observe_kernel(__file__)
def _observe(handles, memory, ids, facts, obs):
    h, numbers, out = integers(handles, N_HANDLES), integers(ids, N_IDS), floats(obs, N_OBS)
    osc.observe_arm(h, numbers, 0, out)
    cube = floats(h[XPOS] + 24 * numbers[CUBE], 3)
    osc.write_quaternion(h, numbers[CUBE], out[12:])
    for r in range(3):
        out[9 + r] = cube[r]
        out[16 + r] = out[r] - cube[r]  # robosuite 1.4's sign


class Lift:
    """The task as an ``env.engine.family.Family``. Builds robosuite's Lift once, for its facts (about 2 s).

    Args:
        suite_env: an existing robosuite Lift to take the facts from (world-frame OSC, as ``suite.make_suite_env``
            makes it).

    Raises:
        MissingSimulatorError: robosuite or mujoco are absent or of the wrong version.
    """

    name, action_dim, memory_size, own_models = "lift", 7, N_MEMORY, True
    control_kernel, observe_kernel = _control, _observe
    layout: ClassVar[dict[str, slice]] = {
        "robot0_eef_pos": slice(0, 3),
        "robot0_eef_quat": slice(3, 7),
        "robot0_gripper_qpos": slice(7, 9),
        "object": slice(9, 19),
    }

    def __init__(self, suite_env: Any = None) -> None:
        env = suite_env or suite.make_suite_env("Lift", ["Panda"], seed=0)
        self._xml = suite.full_xml(env)
        self.model = mujoco.MjModel.from_xml_string(suite.physics_xml(self._xml))
        robot, sampler = env.robots[0], env.placement_initializer
        self._home = np.array(robot.init_qpos, np.float64)
        self._noise = float(robot.initialization_noise["magnitude"])
        self._fingers = np.array(robot.gripper["right"].init_qpos, np.float64)
        self._x_range, self._y_range = tuple(sampler.x_range), tuple(sampler.y_range)
        self._table, self._clearance = np.array(env.table_offset, np.float64), float(sampler.z_offset)
        self._cube = suite.element_id(self.model, mujoco.mjtObj.mjOBJ_BODY, env.cube.root_body)
        self._cube_at = int(self.model.joint(env.cube.joints[0]).qposadr[0])
        self.ids = np.array([*suite.arm_ids(env, self.model), self._cube], np.int64)
        self.facts = np.array([*suite.arm_facts(env), self._table[2] + SUCCESS_MARGIN])

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Cube half-sizes (3, m), arm joints (7, rad), cube x and y (2, m), cube yaw (rad): robosuite's
        distributions, in its order.
        """
        size = [rng.uniform(0.020, 0.022) for _ in range(3)]
        joints = self._home + rng.standard_normal(7) * self._noise
        x, y = rng.uniform(*self._x_range), rng.uniform(*self._y_range)
        return np.array([*size, *joints, x + self._table[0], y + self._table[1], rng.uniform(0, 2 * np.pi)])

    def patch(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray) -> None:
        """Give the cube its size, exactly as if the model had been compiled with it (robosuite recompiles for every
        episode).
        """
        size, body = start[_SIZE], self._cube
        mass = DENSITY * (8.0 * size[0] * size[1] * size[2])
        model.body_mass[body] = mass
        squares = size * size
        model.body_inertia[body] = [mass * (squares[(i + 1) % 3] + squares[(i + 2) % 3]) / 3.0 for i in range(3)]
        first = model.body_geomadr[body]
        for geom in range(first, first + model.body_geomnum[body]):
            model.geom_size[geom] = size
            model.geom_aabb[geom, 3:] = size
            model.geom_rbound[geom] = np.sqrt(squares.sum())
        model.bvh_aabb[model.body_bvhadr[body], 3:] = size
        mujoco.mj_setConst(model, data)

    def begin(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray, memory: np.ndarray) -> None:
        """Place arm and cube; see ``suite.begin_arms`` for the controller's part."""
        suite.begin_arms(model, data, self.ids, start[None, _JOINTS], memory)
        finger = self.ids[osc.FIRST_ARM + 5]
        data.qpos[finger : finger + 2] = self._fingers
        at, half_yaw = self._cube_at, start[_YAW] / 2
        height = self._clearance + self._table[2] + start[2]
        data.qpos[at : at + 7] = [*start[_POSITION], height, np.cos(half_yaw), 0.0, 0.0, np.sin(half_yaw)]
        mujoco.mj_forward(model, data)

    def render_model(self) -> mujoco.MjModel:
        """robosuite's model with all its meshes."""
        return mujoco.MjModel.from_xml_string(self._xml)
