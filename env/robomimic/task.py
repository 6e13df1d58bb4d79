"""What the four robomimic tasks have in common: robosuite's model without what physics does not see, arms that begin with
noisy joints, objects that begin where robosuite places them.

A *start* is ``[extra numbers, 7 joints per arm (rad), 7 numbers per object: position (m), orientation (w x y z)]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import mujoco
import numpy as np

from env.engine import osc
from env.robomimic import suite
from env.robomimic.placement import Placement, placements

_AWAY = (10.0, 10.0, 10.0, 1.0, 0.0, 0.0, 0.0)  # robosuite's clear_objects


class SuiteTask:
    """A robosuite task as an ``env.engine.family.Family``; builds robosuite's own once, for its facts (about 2 s).

    Subclasses name the task and its robots, the free objects, the objects the task never uses, and supply kernels, layout,
    ids and facts.

    robosuite throws the objects it does not use to (10, 10, 10) and simulates them all the same. Here they are left out,
    unless asked for: 1.4 (Can) to 1.6 (Square) times faster, and as near to robosuite as robosuite is to itself
    (``tests/env/test_parity_tasks.py``); the solver's tolerance, which depends on the model's size, is kept.

    Args:
        suite_env: an existing robosuite environment to take the facts from (as ``suite.make_suite_env`` makes it).
        leave_out_unused: drop the objects that the task never uses.

    Raises:
        MissingSimulatorError: robosuite or mujoco are absent or of the wrong version.
    """

    suite_task: ClassVar[str]
    robots: ClassVar[Sequence[str]] = ("Panda",)
    objects: ClassVar[Sequence[str]]  # robosuite's names of the free objects, in the order of their parts of a start
    unused: ClassVar[Sequence[str]] = ()
    n_extra: ClassVar[int] = 0  # numbers of a start before the joints
    own_models: ClassVar[bool] = False
    camera: ClassVar[str] = "agentview"  # for videos

    def __init__(self, suite_env: Any = None, leave_out_unused: bool = True) -> None:
        env = suite_env or suite.make_suite_env(self.suite_task, self.robots, seed=0)
        everything = {thing.name: thing for thing in env.model.mujoco_objects}
        leave_out = [everything[name].root_body for name in self.unused] if leave_out_unused else []
        self._xml = suite.full_xml(env, leave_out)
        self.model = mujoco.MjModel.from_xml_string(suite.physics_xml(self._xml))
        if leave_out:
            suite.keep_solver_tolerance(self.model, env.sim.model._model)
        self._home = np.array([robot.init_qpos for robot in env.robots], np.float64)
        self._noise = float(env.robots[0].initialization_noise["magnitude"])
        self._fingers = np.array([robot.gripper["right"].init_qpos for robot in env.robots], np.float64)
        self._placements = placements(env.placement_initializer)
        self._object_at = [int(self.model.joint(everything[name].joints[0]).qposadr[0]) for name in self.objects]
        away = () if leave_out else self.unused
        self._away_at = [int(self.model.joint(everything[name].joints[0]).qposadr[0]) for name in away]
        self._arm_ids = suite.arm_ids(env, self.model)
        self._arm_facts = suite.arm_facts(env)
        n = self.n_extra
        self._joints = slice(n, n + osc.N_JOINTS * len(self._home))
        self._objects = slice(self._joints.stop, self._joints.stop + 7 * len(self.objects))
        self._find(env)

    def _find(self, env: Any) -> None:
        """Set ``ids`` and ``facts`` (and whatever else the task takes from robosuite's ``env``)."""
        raise NotImplementedError

    def body(self, name: str) -> int:
        """Id of a body of the model."""
        return suite.element_id(self.model, mujoco.mjtObj.mjOBJ_BODY, name)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A start: robosuite's distributions, in its order."""
        extra = self._draw_extra(rng)
        joints = [home + rng.standard_normal(osc.N_JOINTS) * self._noise for home in self._home]
        placed: list[tuple[Placement, np.ndarray]] = []
        for placement in self._placements:
            placed.append((placement, placement.draw(rng, placed)))
            if placement.name == self.objects[-1]:
                break  # whatever robosuite draws later is not part of this task
        poses = self._arrange({placement.name: pose for placement, pose in placed}, extra)
        return np.concatenate([extra, *joints, *(poses[name] for name in self.objects)])

    def _draw_extra(self, rng: np.random.Generator) -> np.ndarray:
        return np.zeros(0)

    def _arrange(self, poses: dict[str, np.ndarray], extra: np.ndarray) -> dict[str, np.ndarray]:
        """What the task changes of the drawn poses (7,)."""
        return poses

    def start_of(self, suite_env: Any) -> np.ndarray:
        """The start of the episode robosuite's ``suite_env`` has just begun."""
        data, model = suite_env.sim.data._data, suite_env.sim.model._model
        names = {thing.name: thing.joints[0] for thing in suite_env.model.mujoco_objects if thing.joints}
        at = [int(model.joint(names[name]).qposadr[0]) for name in self.objects]
        joints = [robot.part_controllers["right"].initial_joint for robot in suite_env.robots]
        return np.concatenate([self._extra_of(suite_env), *joints, *(data.qpos[i : i + 7] for i in at)])

    def _extra_of(self, suite_env: Any) -> np.ndarray:
        return np.zeros(0)

    def patch(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray) -> None:
        """See ``Family.patch``: nothing differs between the models of most tasks' episodes."""

    def begin(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray, memory: np.ndarray) -> None:
        """Place arms and objects; see ``suite.begin_arms`` for the controllers' part."""
        suite.begin_arms(model, data, self.ids, start[self._joints].reshape(-1, osc.N_JOINTS), memory)
        for arm, fingers in enumerate(self._fingers):
            at = self.ids[osc.FIRST_ARM + osc.N_ARM_IDS * arm + 5]
            data.qpos[at : at + 2] = fingers
        for at, pose in zip(self._object_at, start[self._objects].reshape(-1, 7), strict=True):
            data.qpos[at : at + 7] = pose
        for at in self._away_at:
            data.qpos[at : at + 7] = _AWAY
        mujoco.mj_forward(model, data)

    def render_model(self) -> mujoco.MjModel:
        """robosuite's model with all its meshes (but for objects that are left out)."""
        return mujoco.MjModel.from_xml_string(self._xml)


def arm_layout(n_arms: int, n_object: int) -> dict[str, slice]:
    """The published observation keys of ``n_arms`` arms and ``n_object`` numbers about the objects, in their order."""
    layout, at = {}, 0
    for arm in range(n_arms):
        for key, size in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2)):
            layout[f"robot{arm}_{key}"] = slice(at, at + size)
            at += size
    return {**layout, "object": slice(at, at + n_object)}
