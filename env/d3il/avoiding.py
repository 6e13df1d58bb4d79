"""D3IL's "avoiding": a Panda pushes a rod through a field of six cylinders (``field.py``) to the other side.

Observation (4): ``desired`` (2, m: where the hand is told to be, x y) and ``position`` (2, m: where it is). Action (2, m): what
is added to ``desired``; demonstrations stay within 0.0125. One control step is 35 ms (``ik.py``), height and orientation
are held. Every episode begins in the same state; nothing ends it but time.

Reward per control step of ``avoiding-m<k>`` (k = 5 .. 8): -0.1 once the rod has touched a cylinder (for good) or while x is outside
[0.2, 0.8]; else 1 if flag k was raised in this episode, plus 1 where y > 0.4. The task is solved where both hold. ``avoiding``
itself asks for no flag. A flag is decided once per row of cylinders, see ``field.py``.

As published, what a step returns is older than the step: observation and reward are those of its beginning, before the
35 ms. ``delay`` says otherwise:

* ``published``: [desired, position] of the beginning of the step (a chunk's last observation does not know its last action);
* ``demonstrations``: the desired position after it, the actual one before it, which is how D3IL's own demonstrations pair them;
* ``none``: both after it, and the reward, too.

D3IL itself starts a later episode's inverse kinematics from where that of the last episode ended (its controller is not reset,
read in its source); here an episode does not depend on others.
"""

from __future__ import annotations

import functools
import re
from typing import ClassVar

import mujoco
import numpy as np

from env.d3il import ik
from env.d3il.field import BAND, FIRST_FLAG, GOAL, N_FLAGS, PASSAGES, ROWS, X_RANGE
from env.d3il.panda import HEIGHT, START_JOINTS, scene
from env.engine.family import Family
from env.engine.library import (
    N_HANDLES,
    NCON,
    SITE_XPOS,
    SOLVED,
    control_kernel,
    floats,
    int32s,
    integers,
    observe_kernel,
)
from env.errors import EnvError

SUBSTEPS = 35
PENALTY = -0.1
DELAYS = ("published", "demonstrations", "none")
STABLE_LIMIT = 1e3  # rad, rad/s
# ids: [site, substeps, flag that is rewarded or -1, delay]
SITE, N_SUBSTEPS, TARGET, DELAY, N_IDS = range(5)
PUBLISHED, DEMONSTRATIONS, FRESH = range(3)
# memory: desired (2), desired joints (7), touched, flags (9), rows passed (3), observation (4); and what MuJoCo computed in its last
# step and the next one begins with, which its state does not hold: position (2), bias (7)
DESIRED, JOINTS, TOUCHED, FLAGS, PASSED, SEEN, POSITION, BIAS = 0, 2, 9, 10, 19, 22, 26, 28
N_MEMORY = 35
_LIMITS = (*(x for row in PASSAGES for x in row),)  # of the cylinders, row by row
_ROW_Y, _FIRST_LIMIT = (*ROWS,), (0, 1, 3, 6)


@ik.numba.njit
def raise_flags(x, y, own):
    """Decide on the flags of the rows that position (x, y) is the first to be near."""
    for row in range(3):
        near = y >= _ROW_Y[row] if row == 2 else abs(y - _ROW_Y[row]) <= BAND
        if own[PASSED + row] != 0.0 or not near:
            continue
        own[PASSED + row] = 1.0
        flag, on_boundary = FIRST_FLAG[row], False
        for k in range(_FIRST_LIMIT[row], _FIRST_LIMIT[row + 1]):
            flag += x > _LIMITS[k]
            on_boundary |= x == _LIMITS[k]
        if not on_boundary:
            own[FLAGS + flag] = 1.0


@ik.numba.njit
def judge(x, y, target, own):
    """Reward of being at (x, y), and whether that solves the task."""
    if own[TOUCHED] != 0.0 or x < X_RANGE[0] or x > X_RANGE[1]:
        return PENALTY, False
    reward = 1.0 if y > GOAL else 0.0
    if target < 0:
        return reward, y > GOAL
    flagged = own[FLAGS + target] != 0.0
    return reward + (1.0 if flagged else 0.0), flagged and y > GOAL


@control_kernel(__file__)
def _control(handles, memory, ids, facts, action, reward):
    h, own, numbers = integers(handles, N_HANDLES), floats(memory, N_MEMORY), integers(ids, N_IDS)
    added, delay, target, goal = floats(action, 2), numbers[DELAY], numbers[TARGET], np.zeros(3)
    x, y, told_x, told_y = own[POSITION], own[POSITION + 1], own[DESIRED], own[DESIRED + 1]
    value, solved = judge(x, y, target, own)
    own[DESIRED] += added[0]
    own[DESIRED + 1] += added[1]
    goal[0], goal[1], goal[2] = own[DESIRED], own[DESIRED + 1], HEIGHT
    ik.control(h, own[JOINTS : JOINTS + ik.N_JOINTS], own[BIAS : BIAS + ik.N_JOINTS], goal, numbers[N_SUBSTEPS])
    position = floats(h[SITE_XPOS] + 24 * numbers[SITE], 3)
    own[POSITION], own[POSITION + 1] = position[0], position[1]
    raise_flags(position[0], position[1], own)
    if int32s(h[NCON], 1)[0] > 0:  # nothing but the rod can touch anything
        own[TOUCHED] = 1.0
    if delay == FRESH:
        x, y = position[0], position[1]
        value, solved = judge(x, y, target, own)
    if delay != PUBLISHED:
        told_x, told_y = own[DESIRED], own[DESIRED + 1]
    own[SEEN], own[SEEN + 1], own[SEEN + 2], own[SEEN + 3] = told_x, told_y, x, y
    floats(reward, 1)[0] = value
    return SOLVED if solved else 0


@observe_kernel(__file__)
def _observe(handles, memory, ids, facts, obs):
    own, out = floats(memory, N_MEMORY), floats(obs, 4)
    for i in range(4):
        out[i] = own[SEEN + i]


class Avoiding(Family):
    """The task; see the module docstring.

    Args:
        target: the flag that is rewarded (5 to 8), or None.
        delay: one of ``DELAYS``.

    Raises:
        EnvError: another target or delay.
    """

    action_dim, memory_size = 2, N_MEMORY
    control_kernel, observe_kernel = _control, _observe
    layout: ClassVar[dict[str, slice]] = {"desired": slice(0, 2), "position": slice(2, 4)}
    control_hz: ClassVar[float] = 1000 / SUBSTEPS
    camera: ClassVar[str] = "field"  # for videos, as the following
    visual_geoms: ClassVar[tuple[int, ...]] = (1,)

    def __init__(self, target: int | None = 5, delay: str = "published") -> None:
        if target is not None and not 0 <= target < N_FLAGS:
            raise EnvError(f"avoiding: the rewarded flag must be 0 to {N_FLAGS - 1}, found {target}")
        if delay not in DELAYS:
            raise EnvError(f"env.observation_delay: expected one of {', '.join(DELAYS)}, found {delay!r}")
        self.name = "avoiding" if target is None else f"avoiding-m{target}"
        self.model = mujoco.MjModel.from_xml_string(scene())
        self.site = self.model.site("tcp").id
        self.ids = np.array([self.site, SUBSTEPS, -1 if target is None else target, DELAYS.index(delay)], np.int64)
        self.facts = np.array([STABLE_LIMIT])

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A start: nothing differs between episodes."""
        return np.zeros(0)

    def begin(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray, memory: np.ndarray) -> None:
        """The arm where D3IL leaves it before an episode, at rest; it is told to be where it is."""
        data.qpos[:] = START_JOINTS
        mujoco.mj_forward(model, data)
        at = data.site_xpos[self.site, :2]
        memory[:] = 0.0
        memory[DESIRED : DESIRED + 2] = memory[SEEN : SEEN + 2] = np.float32(
            at
        )  # D3IL's first one passes through float32
        memory[SEEN + 2 : SEEN + 4] = memory[POSITION : POSITION + 2] = at
        memory[BIAS : BIAS + ik.N_JOINTS] = data.qfrc_bias
        memory[JOINTS : JOINTS + ik.N_JOINTS] = START_JOINTS

    def render_model(self) -> mujoco.MjModel:
        """The scene with an arm, a table and cameras to look through."""
        return mujoco.MjModel.from_xml_string(scene(visual=True))

    def paths(self, qpos: np.ndarray) -> np.ndarray:
        """Where the hand is (x, y, m) in configurations ``qpos (T, 7)``: (T, 2)."""
        data, out = mujoco.MjData(self.model), np.zeros((len(qpos), 2))
        for row, q in zip(out, qpos, strict=True):
            data.qpos[:] = q
            mujoco.mj_kinematics(self.model, data)
            row[:] = data.site_xpos[self.site, :2]
        return out


@functools.cache
def family(name: str, delay: str = "published") -> Avoiding:
    """The task called ``avoiding`` or ``avoiding-m<flag>``, built once per process."""
    found = re.fullmatch(r"avoiding(?:-m(\d))?", name)
    if not found:
        raise EnvError(f"expected avoiding or avoiding-m<flag>, found {name!r}")
    return Avoiding(None if found[1] is None else int(found[1]), delay)
