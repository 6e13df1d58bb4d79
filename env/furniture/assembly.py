"""Furniture-Bench's tasks on our engine: a re-implementation in MuJoCo, from the published geometry and interface. Numbers are not
comparable with those from IsaacGym: contacts, threads and starts differ.

Observation: ``robot_state`` (16: hand position 3, first two rows of its rotation 6, velocity 3, angular velocity 3, gripper width), ``parts_poses`` (7 for each
part and then for the front obstacle: position, quaternion x y z w, in the tag's frame). Action (10): ``arm.py``. 10 control steps per second.

Reward: 1 in the control step in which a pair of parts becomes assembled (``facts.py`` says where), never taken back. The task is solved once as many
rewards as pairs were given; nothing ends an episode but time.

A quaternion's sign is that of the part's usual orientation at the start and does not jump afterwards. The lamp's bulb stays where it lies until the hand
comes near (``PIN_REACH``) or half the episode is over, as published: it would roll away.
"""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import mujoco
import numba
import numpy as np

from env.engine.family import Family
from env.engine.library import (
    DATA,
    MODEL,
    N_HANDLES,
    QPOS,
    QVEL,
    SITE_XPOS,
    SOLVED,
    control_kernel,
    floats,
    integers,
    mj_step,
    observe_kernel,
)
from env.furniture import arm, screw
from env.furniture.facts import (
    ACTION_DIM,
    AXIS_COSINE,
    CONTROL_HZ,
    POSE,
    POSITION_TOLERANCE,
    ROBOT_STATE,
    TAG_TO_ROBOT,
    Furniture,
    of_env,
)
from env.furniture.layout import pointers as _pointers
from env.furniture.parts import NUT_RADIUS, PARTS
from env.furniture.placement import HOMES, N_FIRST, SPREADS, draw, pose
from env.furniture.scene import DT, OBSTACLE_CENTRE, build, screws

SUBSTEPS = round(1 / (CONTROL_HZ * DT))
STABLE_LIMIT = 1e3
SETTLING = 2  # control steps before an episode begins
PIN_REACH = 0.03  # m, per axis
PINNED_PART = "lamp_bulb"
# ids: [site, nv, nq, parts, screws, pairs, pinned part or -1, control steps it is pinned, places of pointers (4, see
# ``layout.py``), physics steps per control step],
# qpos of each part (5), then per screw (2) its integers, per pair (2) [first, second, places, whether it has a rotation]
(SITE, NV, NQ, N_PARTS, N_SCREWS, N_PAIRS, PINNED, PINNED_STEPS, POINTERS), N_SUBSTEPS, PART_Q = range(9), 12, 13
MAX_PARTS, MAX_PAIRS, N_PAIR_IDS = 5, 2, 4
SCREW_IDS = PART_Q + MAX_PARTS
PAIR_IDS = SCREW_IDS + MAX_PAIRS * screw.N_SCREW_IDS
N_IDS = PAIR_IDS + MAX_PAIRS * N_PAIR_IDS
# facts: [stable limit], per screw its floats, per pair [places 4 x 3, rotation 9]
SCREW_FACTS, N_PAIR_FACTS = 1, 21
PAIR_FACTS = SCREW_FACTS + MAX_PAIRS * screw.N_SCREW_FACTS
N_FACTS = PAIR_FACTS + MAX_PAIRS * N_PAIR_FACTS
# memory: [gripper's sign, control steps, whether a part is pinned, rewards given, assembled (2), of each thread (2) hole, force and collar, obstacle's
# pose in the tag frame 7, sign of every part's quaternion 5, pinned pose 7]
GRIP, STEPS, PIN, GIVEN, ASSEMBLED, HOLES, OBSTACLE, SIGN, PIN_POSE = 0, 1, 2, 3, 4, 6, 12, 19, 24
N_MEMORY = 31
_DRAWS = 50
_TAG_QUAT = (0.0, np.sqrt(0.5), np.sqrt(0.5), 0.0)  # w x y z of TAG_TO_ROBOT, which is its own inverse
_ORIGIN_X = TAG_TO_ROBOT[0][0]


@numba.njit
def assembled(row, fact, position, rotation):
    """Whether a part at ``position``, ``rotation`` in the frame of its pair's first is where it belongs."""
    if row[3] != 0:
        for r in range(3):
            s = 0.0
            for c in range(3):
                s += rotation[r, c] * fact[12 + 3 * r + c]
            if s < AXIS_COSINE:
                return False
    for place in range(row[2]):
        near = True
        for r in range(3):
            near &= abs(position[r] - fact[3 * place + r]) <= POSITION_TOLERANCE
        if near:
            return True
    return False


@numba.njit
def judge(qpos, numbers, fact, own, w):
    """Reward of the present poses; ``own`` remembers which pairs were rewarded."""
    reward = 0.0
    for p in range(numbers[N_PAIRS]):
        row = numbers[PAIR_IDS + N_PAIR_IDS * p : PAIR_IDS + N_PAIR_IDS * (p + 1)]
        if own[ASSEMBLED + p] != 0.0:
            continue
        first, second = numbers[PART_Q + row[0]], numbers[PART_Q + row[1]]
        screw.relative(qpos[first : first + 7], qpos[second : second + 7], w[0], w[1], w[2], w[3])
        if assembled(row, fact[PAIR_FACTS + N_PAIR_FACTS * p :], w[2], w[3]):
            own[ASSEMBLED + p] = 1.0
            reward = 1.0
    own[GIVEN] += reward
    return reward


@numba.njit
def unpin(h, numbers, own):
    """Let go of the pinned part once the hand is near it or it is time."""
    at = numbers[PART_Q + numbers[PINNED]]
    hand, part = floats(h[SITE_XPOS] + 24 * numbers[SITE], 3), floats(h[QPOS] + 8 * at, 3)
    near = True
    for i in range(3):
        near &= abs(hand[i] - part[i]) < PIN_REACH
    if near or own[STEPS] >= numbers[PINNED_STEPS]:
        own[PIN] = 0.0


@numba.njit
def hold(qpos, qvel, numbers, own):
    """Put the pinned part back."""
    at = numbers[PART_Q + numbers[PINNED]]
    for i in range(7):
        qpos[at + i] = own[PIN_POSE + i]
    dof = numbers[SCREW_IDS + screw.NUT_DOF] - 6  # the part that is pinned has the first thread
    for i in range(6):
        qvel[dof + i] = 0.0


@control_kernel(__file__)
def _control(handles, memory, ids, facts, action, reward):
    h, own, numbers = integers(handles, N_HANDLES), floats(memory, N_MEMORY), integers(ids, N_IDS)
    fact, w = floats(facts, N_FACTS), screw.workspace()
    n_q, n_v, pointers = numbers[NQ], numbers[NV], numbers[POINTERS:]
    qpos, qvel = floats(h[QPOS], n_q), floats(h[QVEL], n_v)
    arm.command(h, numbers[SITE], n_v, floats(action, ACTION_DIM), own[GRIP:])
    if own[PIN] != 0.0:
        unpin(h, numbers, own)
    for _ in range(numbers[N_SUBSTEPS]):
        for k in range(numbers[N_SCREWS]):
            i, f = SCREW_IDS + screw.N_SCREW_IDS * k, SCREW_FACTS + screw.N_SCREW_FACTS * k
            row, mine = numbers[i : i + screw.N_SCREW_IDS], own[HOLES + screw.N_SCREW_MEMORY * k :]
            screw.update(h, row, fact[f : f + screw.N_SCREW_FACTS], mine, n_q, n_v, pointers, w)
        mj_step(h[MODEL], h[DATA])
        for k in range(numbers[N_SCREWS]):
            tendon = numbers[SCREW_IDS + screw.N_SCREW_IDS * k + screw.TENDON]
            screw.feel(h, tendon, own[HOLES + screw.N_SCREW_MEMORY * k :], pointers)
        if own[PIN] != 0.0:
            hold(qpos, qvel, numbers, own)
    arm.refresh(h)
    own[STEPS] += 1.0
    floats(reward, 1)[0] = judge(qpos, numbers, fact, own, w)
    return SOLVED if own[GIVEN] >= numbers[N_PAIRS] else 0


@numba.njit
def write_tag_pose(q, sign, out):
    """A part's pose ``q`` (7: position, w x y z; robot frame) in the tag's frame -> ``out`` (7: position, x y z w), times ``sign``."""
    out[0], out[1], out[2] = q[1], q[0] - _ORIGIN_X, -q[2]
    s, w, x, y, z = sign * _TAG_QUAT[1], q[3], q[4], q[5], q[6]
    out[3], out[4], out[5], out[6] = s * (w + z), s * (w - z), s * (y - x), -s * (x + y)


@observe_kernel(__file__)
def _observe(handles, memory, ids, facts, obs):
    h, own, numbers = integers(handles, N_HANDLES), floats(memory, N_MEMORY), integers(ids, N_IDS)
    n_parts = numbers[N_PARTS]
    out = floats(obs, ROBOT_STATE + POSE * (n_parts + 1))
    arm.observe_arm(h, numbers[SITE], numbers[NV], out)
    for k in range(n_parts):
        write_tag_pose(floats(h[QPOS] + 8 * numbers[PART_Q + k], 7), own[SIGN + k], out[ROBOT_STATE + POSE * k :])
    for i in range(POSE):
        out[ROBOT_STATE + POSE * n_parts + i] = own[OBSTACLE + i]


class Assembly(Family):
    """One of the tasks, with one of the randomnesses; see the module docstring."""

    action_dim, memory_size, own_models = ACTION_DIM, N_MEMORY, True
    control_kernel, observe_kernel = _control, _observe
    control_hz: ClassVar[float] = CONTROL_HZ
    camera: ClassVar[str] = "table"

    def __init__(self, furniture: Furniture, randomness: str) -> None:
        self.furniture, self.spread = furniture, SPREADS[randomness]
        self.name = f"{furniture.name}_{randomness}_dim"
        self.layout = {"robot_state": slice(0, ROBOT_STATE), "parts_poses": slice(ROBOT_STATE, furniture.obs_dim)}
        self.model = build(furniture)
        self.ids, self.facts = _ids(furniture, self.model), _facts(furniture)
        self._hand = [self.model.body(name).id for name in ("hand", "left", "right")]
        self._places = [int(self.model.joint(name).qposadr[0]) for name in furniture.parts]
        self._nuts = [(int(self.model.joint(s.slide).qposadr[0]), s.depth - screw.FREE) for s in screws(furniture)]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A start, see ``placement.draw``, in which the hand is not in the middle of a part (nor table or obstacle)."""
        for _ in range(_DRAWS):
            start = draw(self.furniture, self.spread, rng)
            if not self._touches(start):
                break
        return start

    def _touches(self, start: np.ndarray) -> bool:
        """Whether the hand would touch anything."""
        data = mujoco.MjData(self.model)
        self._place(data, start)
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_collision(self.model, data)
        return bool(np.isin(self.model.geom_bodyid[data.contact.geom], self._hand).any())

    def patch(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray) -> None:
        """The obstacles where ``start`` has them (for videos: ``begin`` places them itself)."""
        model.body("obstacles").pos[:] = np.add(OBSTACLE_CENTRE, [*start[arm.N_JOINTS : N_FIRST], 0.0])

    def begin(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray, memory: np.ndarray) -> None:
        """Arm, obstacles and parts where ``start`` says, gripper open, and everything at rest."""
        self._place(data, start)
        mujoco.mj_step(model, data, nstep=SETTLING * SUBSTEPS)
        data.qvel[:] = 0.0
        mujoco.mj_forward(model, data)
        memory[:] = 0.0
        memory[GRIP] = -1.0
        threads = memory[HOLES : HOLES + MAX_PAIRS * screw.N_SCREW_MEMORY].reshape(MAX_PAIRS, -1)
        threads[:, screw.HOLE] = -1.0
        threads[: len(self._nuts), screw.COLLAR] = [u for _, u in self._nuts]
        x, y, z = data.mocap_pos[0]
        memory[OBSTACLE : OBSTACLE + POSE] = y, x - _ORIGIN_X, -z, 1.0, 0.0, 0.0, 0.0
        names, usual = self.furniture.parts, np.zeros(4)
        for k, (name, at) in enumerate(zip(names, self._places, strict=True)):
            mujoco.mju_mat2Quat(usual, pose(HOMES[name], 0.0, 0.0, 0.0)[1].ravel())
            memory[SIGN + k] = 1.0 if usual @ data.qpos[at + 3 : at + 7] >= 0 else -1.0
        if PINNED_PART in names:
            at = self._places[names.index(PINNED_PART)]
            memory[PIN], memory[PIN_POSE : PIN_POSE + 7] = 1.0, data.qpos[at : at + 7]

    def _place(self, data: mujoco.MjData, start: np.ndarray) -> None:
        """``begin`` before anything has moved."""
        width = self.furniture.gripper_width
        data.qpos[: arm.N_JOINTS + 2] = [*start[: arm.N_JOINTS], width / 2, width / 2]
        data.ctrl[: arm.N_JOINTS + 2] = [*start[: arm.N_JOINTS], arm.GRIPPER_FORCE, arm.GRIPPER_FORCE]
        data.mocap_pos[0] = np.add(OBSTACLE_CENTRE, [*start[arm.N_JOINTS : N_FIRST], 0.0])
        for name, at, where in zip(self.furniture.parts, self._places, start[N_FIRST:].reshape(-1, 3), strict=True):
            data.qpos[at : at + 3], turned = pose(HOMES[name], *where)
            mujoco.mju_mat2Quat(data.qpos[at + 3 : at + 7], turned.ravel())
        for at, u in self._nuts:
            data.qpos[at : at + 2] = u, u * math.tau / screw.PITCH

    def render_model(self) -> mujoco.MjModel:
        """The scene with an arm, light and a camera."""
        return build(self.furniture, visual=True)


def _ids(furniture: Furniture, model: mujoco.MjModel) -> np.ndarray:
    parts = {name: int(model.joint(name).qposadr[0]) for name in furniture.parts}
    threads = screws(furniture)
    out = np.zeros(N_IDS, np.int64)
    pinned = furniture.parts.index(PINNED_PART) if PINNED_PART in furniture.parts else -1
    out[:PART_Q] = [
        model.site("ee").id, model.nv, model.nq, len(parts), len(threads), len(furniture.pairs),
        pinned, furniture.max_episode_steps // 2, *_pointers(), SUBSTEPS,
    ]  # fmt: skip
    out[PART_Q : PART_Q + len(parts)] = list(parts.values())
    for k, s in enumerate(threads):
        at = SCREW_IDS + screw.N_SCREW_IDS * k
        slide, first = model.joint(s.slide), model.equality(s.welds[0]).id
        excludes = [model.exclude(name).id for name in s.excludes]
        bodies = [sorted((model.body(s.socket).id, model.body(name).id)) for name in (s.part, f"{s.part}_nut")]
        out[at : at + screw.N_SCREW_IDS] = [
            parts[s.part], parts[s.socket], slide.qposadr[0], slide.dofadr[0], model.equality(s.tendon).id, first, len(s.welds),
            *excludes, *((low << 16) + high for low, high in bodies),
        ]  # fmt: skip
    for k, pair in enumerate(furniture.pairs):
        at = PAIR_IDS + N_PAIR_IDS * k
        out[at : at + N_PAIR_IDS] = pair.first, pair.second, len(pair.places), pair.rotation is not None
    return out


def _facts(furniture: Furniture) -> np.ndarray:
    out = np.zeros(N_FACTS)
    out[0] = STABLE_LIMIT
    for k, s in enumerate(screws(furniture)):
        pair, own = furniture.pairs[s.pair], out[SCREW_FACTS + screw.N_SCREW_FACTS * k :]
        own[screw.AXIS : screw.AXIS + 3] = PARTS[s.part].axis
        own[screw.U_MAX] = s.depth - screw.FREE
        own[screw.HOME_ROTATION : screw.HOME_ROTATION + 9] = pair.rotation.ravel()
        own[screw.HOME_POSITION : screw.HOME_POSITION + 3 * len(pair.places)] = np.ravel(pair.places)
        own[screw.COLLAR_AT], own[screw.COLLAR_RADIUS] = PARTS[s.part].collar, NUT_RADIUS
    for k, pair in enumerate(furniture.pairs):
        own = out[PAIR_FACTS + N_PAIR_FACTS * k :]
        own[: 3 * len(pair.places)] = np.ravel(pair.places)
        own[12:21] = 0.0 if pair.rotation is None else pair.rotation.ravel()
    return out


@functools.cache
def family(name: str) -> Assembly:
    """The task of an environment's published name (``one_leg_low_dim``, ...), built once per process.

    Raises:
        EnvError: no such task.
    """
    return Assembly(*of_env(name))
