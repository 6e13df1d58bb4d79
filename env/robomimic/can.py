"""Can: a Panda arm carries a can from one bin into a compartment of another (robosuite 1.5.2's PickPlaceCan).

Observation (23): ``robot0_eef_pos`` (3, m), ``robot0_eef_quat`` (4, x y z w), ``robot0_gripper_qpos`` (2, m) and ``object``
(14: can position, can orientation, and both in the gripper's frame, that orientation with w >= 0). The order within
``object`` and the fresh relative pose are robosuite 1.4's, in which the published datasets were made; 1.5 puts the
relative pose first and computes it from the can's pose of one control step ago.

Action (7) as in Lift. Reward 1 per control step (20 Hz) in which the can is inside its compartment's box, 0 to 0.1 m above
the bin, and the gripper more than 42 mm from its centre; nothing ends an episode but time.

robosuite also throws milk, bread and cereal to (10, 10, 10) and simulates them there, never to be used: they are left
out (nv 33 -> 15), unless asked for; see ``SuiteTask``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from env.engine import osc
from env.engine.library import N_HANDLES, SOLVED, XPOS, control_kernel, floats, integers, observe_kernel
from env.robomimic import poses
from env.robomimic.task import SuiteTask, arm_layout

N_OBS, N_MEMORY = 23, osc.memory_size(1)
CAN, N_IDS = osc.first_task_id(1), osc.first_task_id(1) + 1
BOX, N_FACTS = osc.N_ARM_FACTS, osc.N_ARM_FACTS + 6  # x, y, z from; x, y, z to (m)


@control_kernel(__file__)
def _control(handles, memory, ids, facts, action, reward):
    h, own, numbers = integers(handles, N_HANDLES), floats(memory, N_MEMORY), integers(ids, N_IDS)
    known = floats(facts, N_FACTS)
    osc.control_arms(h, own, numbers, known, floats(action, 7))
    can, inside = floats(h[XPOS] + 24 * numbers[CAN], 3), True
    for r in range(3):
        inside = inside and known[BOX + r] < can[r] < known[BOX + 3 + r]
    solved = inside and poses.let_go(h, numbers, numbers[CAN])
    floats(reward, 1)[0] = 1.0 if solved else 0.0
    return SOLVED if solved else 0


@observe_kernel(__file__)
def _observe(handles, memory, ids, facts, obs):
    h, numbers = integers(handles, N_HANDLES), integers(ids, N_IDS)
    poses.observe_arm_and_object(h, numbers, numbers[CAN], floats(obs, N_OBS))


class Can(SuiteTask):
    """The task; see the module docstring and ``SuiteTask``."""

    name, action_dim, memory_size = "can", 7, N_MEMORY
    suite_task, objects, unused = "PickPlaceCan", ("Can",), ("Milk", "Bread", "Cereal")
    control_kernel, observe_kernel = _control, _observe
    layout: ClassVar[dict[str, slice]] = arm_layout(1, 14)

    def _find(self, env: Any) -> None:
        low = np.array(env.bin2_pos, np.float64)
        high = low + [env.bin_size[0] / 2, env.bin_size[1] / 2, 0.1]
        self.ids = np.array([*self._arm_ids, self.body(env.objects[env.object_id].root_body)], np.int64)
        self.facts = np.array([*self._arm_facts, *low, *high])
