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
from env.robomimic.task import SuiteTask, arm_layout

N_OBS, N_MEMORY = 19, osc.memory_size(1)
CUBE, N_IDS = osc.first_task_id(1), osc.first_task_id(1) + 1
HEIGHT, N_FACTS = osc.N_ARM_FACTS, osc.N_ARM_FACTS + 1
SUCCESS_MARGIN = 0.04  # m above the table top: robosuite's Lift._check_success
DENSITY = 1000.0  # kg/m^3: MuJoCo's default; robosuite gives the cube none of its own


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


class Lift(SuiteTask):
    """The task; see the module docstring and ``SuiteTask``."""

    name, action_dim, memory_size = "lift", 7, N_MEMORY
    suite_task, objects = "Lift", ("cube",)
    n_extra, own_models = 3, True  # the cube's half-sizes (m)
    control_kernel, observe_kernel = _control, _observe
    layout: ClassVar[dict[str, slice]] = arm_layout(1, 10)

    def _find(self, env: Any) -> None:
        self._cube = self.body(env.cube.root_body)
        self._floor = float(env.placement_initializer.z_offset) + float(env.table_offset[2])
        self.ids = np.array([*self._arm_ids, self._cube], np.int64)
        self.facts = np.array([*self._arm_facts, float(env.table_offset[2]) + SUCCESS_MARGIN])

    def _draw_extra(self, rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.uniform(0.020, 0.022) for _ in range(3)])

    def _extra_of(self, suite_env: Any) -> np.ndarray:
        return np.array(suite_env.cube.size)

    def _arrange(self, poses: dict[str, np.ndarray], extra: np.ndarray) -> dict[str, np.ndarray]:
        """A cube stands on the table whatever its size."""
        poses["cube"][2] = self._floor + extra[2]
        return poses

    def patch(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray) -> None:
        """Give the cube its size, exactly as if the model had been compiled with it (robosuite recompiles for every
        episode).
        """
        size, body = start[:3], self._cube
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
