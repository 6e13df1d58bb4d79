"""The pure stages of the safety layer, in the order in which an action meets them; each says whether it acted.

1. finite  2. clip and scale  3. goal: tilt, yaw, workspace, table  4. caps and 5. leash are the reference model's own (``reference.py``)
6. joints. What watches rather than changes (contact, ages, the operator) is ``safety.py``'s. Base frame; leading dimensions broadcast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from env.franka import frames, kinematics
from env.franka.types import DeploymentError, RobotLimits

_DOWN = np.array([0.0, 0.0, -1.0])


@dataclass(frozen=True)
class SafetySettings:
    """What the safety layer allows. The defaults are for a first run."""

    low: tuple[float, float, float] = (0.25, -0.4, 0.0)  # m: the box the grip site stays in, base frame
    high: tuple[float, float, float] = (0.75, 0.4, 0.6)
    table: float | None = 0.0  # m: height of the table, which no fingertip touches; None: there is none
    clearance: float = 0.005  # m above it where goals end, and braking with them
    tilt: float = math.radians(45)  # of the hand from straight down
    yaw: tuple[float, float] = (-2.0, 2.0)  # of the hand's x axis about the vertical, from the base's x axis
    joint_soft: float = 0.2  # rad from a joint's end: slow
    joint_hard: float = 0.1  # rad: no further
    singular_soft: float = 0.08  # smallest singular value of the Jacobian: slow
    singular_hard: float = 0.03
    slow: float = 0.3  # what "slow" multiplies the action with
    force_hold: float = 25.0  # N at the grip site
    force_stop: float = 40.0
    state_age: float = 0.05  # s
    camera_hold: float = 0.15
    camera_stop: float = 0.5
    chunk_times: float = 2.0  # so many chunks' time without one: HOLD
    servo_hold: float = 0.05  # s between two ticks of the servo
    servo_stop: float = 0.5
    success_warn: float = 0.9  # of commands that the robot got in time
    success_stop: float = 0.8
    bad_chunks: int = 2  # in a row: STOP
    recoveries: int = 3  # per episode

    def __post_init__(self) -> None:
        low, high = np.array(self.low, float), np.array(self.high, float)
        if low.shape != (3,) or high.shape != (3,) or not (low < high).all():
            raise DeploymentError(
                f"safety.low and safety.high: three numbers each, low below high; found {low}, {high}."
            )
        for lower, upper in (
            ("joint_hard", "joint_soft"),
            ("singular_hard", "singular_soft"),
            ("force_hold", "force_stop"),
            ("camera_hold", "camera_stop"),
            ("servo_hold", "servo_stop"),
            ("success_stop", "success_warn"),
        ):
            if not 0 < getattr(self, lower) <= getattr(self, upper):
                raise DeploymentError(
                    f"safety.{lower} must be positive and at most safety.{upper}; "
                    f"found {getattr(self, lower)} and {getattr(self, upper)}."
                )
        if not self.yaw[0] < self.yaw[1] or not 0 < self.tilt < math.pi or not 0 < self.slow <= 1:
            raise DeploymentError(
                f"safety.yaw must be (low, high), safety.tilt within (0, pi), safety.slow within (0, 1]; "
                f"found {self.yaw}, {self.tilt}, {self.slow}."
            )


class Acted(NamedTuple):
    """A stage that changed something: whose (...) it was, what it found there and what it allows."""

    name: str
    where: Any
    found: Any
    limit: Any


def finite_chunk(chunk: Any, action_dim: int) -> str | None:
    """What is wrong with a policy's chunk, which should be ``(T, action_dim)`` finite numbers; None: nothing."""
    try:
        array = np.asarray(chunk, np.float64)
    except (TypeError, ValueError):
        return f"{type(chunk).__name__} instead of numbers"
    if array.ndim != 2 or array.shape[1] != action_dim or not len(array):
        return f"shape {array.shape} instead of (T, {action_dim})"
    bad = int((~np.isfinite(array)).sum())
    return f"{bad} of {array.size} numbers are not finite" if bad else None


def clip_action(action: np.ndarray, scale: float) -> tuple[np.ndarray, list[Acted]]:
    """``action (..., Da)`` within [-1, 1], motion (all columns but the gripper's, the last) times ``scale``."""
    clipped = np.clip(action, -1.0, 1.0)
    worst = np.abs(action).max(-1)
    acted = [Acted("clip", worst > 1.0, worst, 1.0)]
    return clipped * np.concatenate([np.full(clipped.shape[-1] - 1, scale), [1.0]]), acted


def clamp_goal(
    position: np.ndarray, quaternion: np.ndarray, width: np.ndarray | float, settings: SafetySettings
) -> tuple[np.ndarray, np.ndarray, list[Acted]]:
    """A goal (..., 3), (..., 4) that is inside of all that is allowed, the nearest in each respect; the hand is open by ``width``."""
    quaternion, tilted = _within_cone(quaternion, settings.tilt)
    quaternion, turned = _within_yaw(quaternion, settings.yaw)
    low, high = walls(quaternion, width, settings)
    inside = np.clip(position, low, high)
    beyond = np.abs(inside - position)
    over_table = low[..., 2] > settings.low[2]
    at_table = over_table & (position[..., 2] < low[..., 2])
    out = (beyond[..., :2] > 0).any(-1) | ((beyond[..., 2] > 0) & ~at_table)
    return (
        inside,
        quaternion,
        [
            tilted,
            turned,
            Acted("workspace", out, np.linalg.norm(beyond, axis=-1), 0.0),
            Acted("table", at_table, position[..., 2], low[..., 2]),
        ],
    )


def walls(
    quaternion: np.ndarray, width: np.ndarray | float, settings: SafetySettings, clearance: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The box (..., 3), (..., 3) that the grip site of a hand so turned may be in: its floor is where no fingertip meets the table.

    ``clearance``: how far above the table it ends; None: as set, for goals.
    """
    low = np.zeros((*np.shape(quaternion)[:-1], 3)) + settings.low
    high = np.zeros_like(low) + settings.high
    if settings.table is not None:
        above = settings.clearance if clearance is None else clearance
        floor = settings.table + above - frames.lowest_fingertip(quaternion, width)
        low[..., 2] = np.minimum(np.maximum(low[..., 2], floor), high[..., 2])
    return low, high


def walls_ahead(
    quaternion: np.ndarray, heading: np.ndarray, width: np.ndarray | float, settings: SafetySettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a hand that turns from ``quaternion`` to ``heading``: ``low, high`` it must not leave, and the ``ahead`` it brakes before."""
    low, high = walls(quaternion, width, settings, clearance=0.0)
    now, then = (walls(q, width, settings)[0] for q in (quaternion, heading))
    return low, high, np.maximum(now, then)


def _within_cone(quaternion: np.ndarray, widest: float) -> tuple[np.ndarray, Acted]:
    axis = frames.quat_rotate(quaternion, np.array([0.0, 0.0, 1.0]))
    tilt = np.arccos(np.clip(axis @ _DOWN, -1.0, 1.0))
    hinge = np.cross(axis, _DOWN)
    length = np.linalg.norm(hinge, axis=-1, keepdims=True)
    # upside down every way back is the same: over the hand's own x axis
    own = frames.quat_rotate(quaternion, np.array([1.0, 0.0, 0.0]))
    hinge = np.where(length > 1e-9, hinge / np.maximum(length, 1e-9), own)
    back = frames.exp_quat(hinge * np.maximum(tilt - widest, 0.0)[..., None])
    return frames.quat_multiply(back, quaternion), Acted("tilt", tilt > widest, tilt, widest)


def _within_yaw(quaternion: np.ndarray, bounds: tuple[float, float]) -> tuple[np.ndarray, Acted]:
    own = frames.quat_rotate(quaternion, np.array([1.0, 0.0, 0.0]))
    yaw, middle, half = np.arctan2(own[..., 1], own[..., 0]), sum(bounds) / 2, (bounds[1] - bounds[0]) / 2
    off = (yaw - middle + np.pi) % (2 * np.pi) - np.pi
    back = np.clip(off, -half, half) - off
    turn = frames.exp_quat(np.stack([0 * back, 0 * back, back], -1))
    return frames.quat_multiply(turn, quaternion), Acted("yaw", back != 0, yaw, half)


@dataclass(frozen=True)
class JointVerdict:
    """What the joints say to a step: go on with ``scale`` of it (1, ``slow`` or 0); ``refused`` where it is 0."""

    scale: float
    acted: list[Acted] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        return self.scale == 0.0


def joint_guard(q: np.ndarray, step: np.ndarray, settings: SafetySettings, limits: RobotLimits) -> JointVerdict:
    """Whether an arm at ``q (7,)`` may move its grip site by ``step (6,)`` (m, rad): towards no joint's end, into no singular posture.

    What leads away from either is never refused: that is the way out.
    """
    J = kinematics.jacobian(q)
    dq = J.T @ np.linalg.solve(J @ J.T + 1e-4 * np.eye(6), step)
    margin = np.where(dq > 0, limits.q_max - q, q - limits.q_min)  # on the side it moves to
    nearest = float(np.where(np.abs(dq) > 1e-5, margin, np.inf).min())
    now = float(np.linalg.svd(J, compute_uv=False)[-1])
    small = dq * min(1.0, 0.01 / max(float(np.abs(dq).max()), 1e-9))  # a larger step might leap over the singularity
    then = float(np.linalg.svd(kinematics.jacobian(q + small), compute_uv=False)[-1])
    closer = then < now - 1e-6
    hard_joint, hard_singular = nearest < settings.joint_hard, closer and now < settings.singular_hard
    soft_joint, soft_singular = nearest < settings.joint_soft, closer and now < settings.singular_soft
    acted = [
        Acted("joint_limit", soft_joint, nearest, settings.joint_hard if hard_joint else settings.joint_soft),
        Acted("singular", soft_singular, now, settings.singular_hard if hard_singular else settings.singular_soft),
    ]
    if hard_joint or hard_singular:
        return JointVerdict(0.0, acted)
    return JointVerdict(settings.slow if soft_joint or soft_singular else 1.0, acted)
