"""Square: a Panda arm puts a square nut over a square peg (robosuite 1.5.2's NutAssemblySquare).

Observation (23): ``robot0_eef_pos`` (3, m), ``robot0_eef_quat`` (4, x y z w), ``robot0_gripper_qpos`` (2, m) and ``object``
(14: nut position, nut orientation, and both in the gripper's frame; order and freshness are robosuite 1.4's, as in Can).

Action (7) as in Lift. Reward 1 per control step (20 Hz) in which the nut is within 3 cm of the peg in x and in y, less
than 5 cm above the table, and the gripper more than 42 mm from its centre; nothing ends an episode but time.

robosuite also simulates the round nut, thrown to (10, 10, 10): it is left out (nv 21 -> 15), as in Can.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from env.engine import osc
from env.engine.library import N_HANDLES, SOLVED, XPOS, control_kernel, floats, integers, observe_kernel
from env.robomimic import poses
from env.robomimic.task import SuiteTask, arm_layout

N_OBS, N_MEMORY = 23, osc.memory_size(1)
NUT, PEG, N_IDS = osc.first_task_id(1), osc.first_task_id(1) + 1, osc.first_task_id(1) + 2
HEIGHT, N_FACTS = osc.N_ARM_FACTS, osc.N_ARM_FACTS + 1
ALIGNED, LOW = 0.03, 0.05  # m: robosuite's NutAssembly.on_peg


@control_kernel(__file__)
def _control(handles, memory, ids, facts, action, reward):
    h, own, numbers = integers(handles, N_HANDLES), floats(memory, N_MEMORY), integers(ids, N_IDS)
    known = floats(facts, N_FACTS)
    osc.control_arms(h, own, numbers, known, floats(action, 7))
    nut, peg = floats(h[XPOS] + 24 * numbers[NUT], 3), floats(h[XPOS] + 24 * numbers[PEG], 3)
    on_peg = math.fabs(nut[0] - peg[0]) < ALIGNED and math.fabs(nut[1] - peg[1]) < ALIGNED and nut[2] < known[HEIGHT]
    solved = on_peg and poses.let_go(h, numbers, numbers[NUT])
    floats(reward, 1)[0] = 1.0 if solved else 0.0
    return SOLVED if solved else 0


@observe_kernel(__file__)
def _observe(handles, memory, ids, facts, obs):
    h, numbers = integers(handles, N_HANDLES), integers(ids, N_IDS)
    poses.observe_arm_and_object(h, numbers, numbers[NUT], floats(obs, N_OBS))


class Square(SuiteTask):
    """The task; see the module docstring and ``SuiteTask``."""

    name, action_dim, memory_size = "square", 7, N_MEMORY
    suite_task, objects, unused = "NutAssemblySquare", ("SquareNut",), ("RoundNut",)
    control_kernel, observe_kernel = _control, _observe
    layout: ClassVar[dict[str, slice]] = arm_layout(1, 14)

    def _find(self, env: Any) -> None:
        nut = next(nut for nut in env.nuts if nut.name == "SquareNut")
        self.ids = np.array([*self._arm_ids, self.body(nut.root_body), self.body("peg1")], np.int64)
        self.facts = np.array([*self._arm_facts, float(env.table_offset[2]) + LOW])
