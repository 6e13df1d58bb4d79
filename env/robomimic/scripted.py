"""What the scripted experts of Can, Square and Transport share: an arm seen through observations, its servo law, and
its elementary movements.

A task's ``Player`` acts out one episode in one slot. Its ``script`` is one generator per arm that yields actions of
seven numbers; a step of the plan is one ``yield from arm.move(...)``, ``arm.grip(...)`` or ``arm.wait(...)``, which
returns when its condition holds or its budget of control steps is spent. All is closed loop: only the observation of
the moment is read. Everything here is plain floats: on three numbers, numpy is several times slower.

Control (OSC, deltas in the world frame, 20 Hz): the goal of each step is the present pose plus the delta (0.05 m or
0.5 rad at action 1), so a delta of the remaining error settles without overshoot. Of the gripper's action only the sign
counts: -1 opens, +1 closes; it starts half shut and needs some ten steps either way.

Angles: ``yaw`` is that of the hand's x axis seen from above, gripper down; the fingers open across it. The wrist can
turn to about [-2.1, 3.6] rad from the bearing base -> gripper, so yaw is commanded unwrapped and slowly, never by the
shortest rotation.

Human-like variety: every episode draws a speed, how much its motion is disturbed, how often it hesitates, how often it
first misses, and where and how it grasps, lifts and lets go.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

Point = tuple[float, float, float]
Pose = tuple[Point, float]  # where, yaw
Script = Iterator[list[float]]

OPEN, CLOSE = -1.0, 1.0
ARM_OBS = 9  # observations of an arm: position 3, orientation 4, fingers 2
ARM_ACTION = 7
METRES, RADIANS = 0.05, 0.5  # moved by an action of 1
_TURN, _MAX_TURN = 0.09, 0.6  # rad per step of commanded yaw; largest rotation action
_SMOOTHING = 0.4  # share of the last command kept
_MEMORY, _KICK = 0.8, 0.6  # the disturbance: share kept from step to step, size of what is added
_TURN_DISTURBANCE = 0.3  # rotation is disturbed this much less than translation
_TILT_SLOPE, _MAX_TILT = 3.0, 0.45  # rad per metre beyond ``Arm.reach``; rad


def wrap(angle: float, period: float = math.tau) -> float:
    """The same angle in [-period / 2, period / 2)."""
    return (angle + period / 2) % period - period / 2


def yaw_of(x: float, y: float, z: float, w: float) -> float:
    """Direction of the x axis of an orientation, seen from above."""
    return math.atan2(2 * (x * y + z * w), 1 - 2 * (y * y + z * z))


def above(point: Point, height: float) -> Point:
    """The point ``height`` metres higher."""
    return point[0], point[1], point[2] + height


def at_height(point: Point, z: float) -> Point:
    """The point brought to height ``z``."""
    return point[0], point[1], z


@dataclass(frozen=True)
class Style:
    """How one episode goes about it."""

    speed: float  # largest translation action
    noise: float  # size of the disturbance, action
    pause: float  # chance of a hesitation where one may come
    slip: float  # chance of a miss, corrected, where one may come

    @classmethod
    def draw(cls, rng: random.Random, noise: float) -> Style:
        """``noise`` scales all that is clumsy; 1 is human-like."""
        return cls(
            speed=rng.uniform(0.7, 1.0),
            noise=noise * rng.uniform(0.0, 0.12),
            pause=noise * rng.uniform(0.0, 0.3),
            slip=noise * rng.uniform(0.0, 0.5),
        )


class Arm:
    """One arm: its pose, its servo law, and what it can do.

    Args:
        rng: the episode's.
        style: the episode's.
        base: where the robot stands, (x, y) in metres.
        first: the arm's first column in the observation.
        row: the episode's first observation.
    """

    def __init__(
        self, rng: random.Random, style: Style, base: tuple[float, float], first: int, row: list[float]
    ) -> None:
        self._rng, self.style, self.base, self._first = rng, style, base, first
        self._last, self._disturbance = [0.0] * 6, [0.0] * 6
        self.grasp = OPEN
        self.reach = 0.74  # m from the base from where on the gripper tilts outwards
        self.lean = 0.0  # rad, least outward tilt
        self.yaw = 0.0  # commanded
        self.see(row)
        self.goal: Point = self.pos
        self.yaw = self.heading

    def see(self, row: list[float]) -> None:
        """Take in an observation."""
        k = self._first
        self.pos: Point = (row[k], row[k + 1], row[k + 2])
        self._quat = row[k + 3 : k + 7]

    @property
    def heading(self) -> float:
        """Measured yaw, unwrapped next to the commanded one."""
        return self.yaw + wrap(yaw_of(*self._quat) - self.yaw)

    def distance(self, point: Point) -> float:
        """From the grip site, m."""
        return math.dist(self.pos, point)

    def _turn(self) -> list[float]:
        """Rotation vector (rad, world) that remains to the goal: gripper down at the commanded yaw, tilted outwards
        near the end of reach.
        """
        out_x, out_y = self.goal[0] - self.base[0], self.goal[1] - self.base[1]
        r = math.hypot(out_x, out_y)
        half = min(max(_TILT_SLOPE * (r - self.reach), self.lean), _MAX_TILT) / 2
        sine = math.sin(half) / max(r, 1e-6)
        tw, tx, ty = math.cos(half), sine * out_y, -sine * out_x
        c, s = math.cos(self.yaw / 2), math.sin(self.yaw / 2)
        gw, gx, gy, gz = -tx * c - ty * s, tw * c, tw * s, tx * s - ty * c  # the goal: tilt after yaw after down
        x, y, z, w = self._quat
        ew = gw * w + gx * x + gy * y + gz * z  # goal times the inverse of the present orientation
        ex = -gw * x + gx * w - gy * z + gz * y
        ey = -gw * y + gx * z + gy * w - gz * x
        ez = -gw * z - gx * y + gy * x + gz * w
        size = math.sqrt(ex * ex + ey * ey + ez * ez)
        if size < 1e-9:
            return [0.0, 0.0, 0.0]
        factor = 2.0 * math.atan2(size, abs(ew)) / math.copysign(size, ew)
        return [factor * ex, factor * ey, factor * ez]

    def act(self, pos: Point, yaw: float, speed: float = 1.0, gain: float = 1.0, fine: bool = False) -> list[float]:
        """One action towards a pose: proportional, limited to ``speed``, smoothed, disturbed (less when ``fine``)."""
        self.goal = pos
        step = _TURN * speed
        self.yaw += min(max(yaw - self.yaw, -step), step)
        scale = gain / METRES
        command = [min(max(scale * (goal - here), -speed), speed) for goal, here in zip(pos, self.pos)]
        turn = self._turn()
        size = math.sqrt(turn[0] * turn[0] + turn[1] * turn[1] + turn[2] * turn[2]) / RADIANS
        scale = min(1.0, _MAX_TURN / (size + 1e-9)) / RADIANS
        command += [scale * turn[0], scale * turn[1], scale * turn[2]]
        kick, gauss, share = _KICK * self.style.noise, self._rng.gauss, 0.25 if fine else 1.0
        action = []
        for i in range(6):
            if kick:
                added = kick if i < 3 else kick * _TURN_DISTURBANCE
                self._disturbance[i] = _MEMORY * self._disturbance[i] + added * gauss(0.0, 1.0)
            self._last[i] = _SMOOTHING * self._last[i] + (1.0 - _SMOOTHING) * command[i]
            action.append(min(max(self._last[i] + share * self._disturbance[i], -1.0), 1.0))
        action.append(self.grasp)
        return action

    def hold(self) -> list[float]:
        """One action that stays at the present goal."""
        return self.act(self.goal, self.yaw, 0.5, fine=True)

    # -------------------------------------------------------------------------------------------- movements

    def move(
        self,
        target: Pose | Callable[[], Pose],
        tol: float = 0.01,
        turn_tol: float = 0.1,
        speed: float = 1.0,
        steps: int = 120,
        gain: float = 1.0,
        fine: bool = False,
        until: Callable[[], bool] | None = None,
    ) -> Script:
        """Go to a pose, or to where a function says at each step, until within ``tol`` m and ``turn_tol`` rad of it or
        until ``until`` holds (true), or for ``steps`` control steps (false).
        """
        speed *= self.style.speed * self._rng.uniform(0.85, 1.1)
        for _ in range(steps):
            pos, yaw = target() if callable(target) else target
            if until is not None and until():
                return True
            if self.distance(pos) < tol and abs(yaw - self.yaw) < turn_tol:
                return True
            yield self.act(pos, yaw, speed, gain, fine)
        return False

    def wait(self, steps: int | None = None, until: Callable[[], bool] | None = None) -> Script:
        """Stay for some steps, or until a condition holds."""
        waited = 0
        while (until is None or not until()) and (steps is None or waited < steps):
            waited += 1
            yield self.hold()

    def grip(self, grasp: float, fewest: int, most: int) -> Script:
        """Open or close, for ``fewest`` to ``most`` steps."""
        self.grasp = grasp
        yield from self.wait(self._rng.randint(fewest, most))

    def pause(self) -> Script:
        """Hesitate, now and then."""
        if self._rng.random() < self.style.pause:
            yield from self.wait(self._rng.randint(3, 11))

    def hover(self, target: Callable[[], Pose], spread: float = 0.02, **how: float) -> Script:
        """``move``; now and then first to a place beside it (``spread`` m), then corrected."""
        if self._rng.random() < self.style.slip:
            pos, yaw = target()
            gauss = self._rng.gauss
            beside = (pos[0] + gauss(0, spread), pos[1] + gauss(0, spread), pos[2] + gauss(0, spread / 2))
            yield from self.move((beside, yaw), **{**how, "tol": 0.02})
            yield from self.pause()
        return (yield from self.move(target, **how))


class Player:
    """One episode in one slot. A task sets ``bases`` (where each of its robots stands) and ``script``."""

    bases: ClassVar[tuple[tuple[float, float], ...]]

    def __init__(self, rng: random.Random, noise: float, retry: bool, row: list[float]) -> None:
        self.rng, self.retry, self.row = rng, retry, row
        style = Style.draw(rng, noise)
        self.arms = [Arm(rng, style, base, ARM_OBS * k, row) for k, base in enumerate(self.bases)]
        self._scripts = [self.script(k) for k in range(len(self.arms))]

    def script(self, k: int) -> Script:
        """The plan of arm ``k``, action by action."""
        raise NotImplementedError

    def point(self, first: int) -> Point:
        """Three observations from column ``first`` on."""
        return tuple(self.row[first : first + 3])

    def act(self, row: list[float]) -> list[float]:
        """The action for an observation; all arms, one after another."""
        self.row = row
        for arm in self.arms:
            arm.see(row)
        action: list[float] = []
        for arm, script in zip(self.arms, self._scripts):
            action += next(script, None) or arm.hold()
        return action


class ScriptedExpert:
    """``n`` slots of a task's ``player``, called at every control step with raw observations.

    Args:
        n: slots.
        rng: source of every episode's own generator.
        noise: scale of all that is clumsy (disturbed motion, hesitations, misses): 0 none, 1 human-like.
        retry: try again after a miss, as long as the episode lasts.
    """

    player: ClassVar[type[Player]]
    obs_dim: ClassVar[int]

    def __init__(self, n: int, rng: np.random.Generator, noise: float = 1.0, retry: bool = True) -> None:
        self._rng, self._noise, self._retry = rng, noise, retry
        self._players: list[Player | None] = [None] * n

    def reset_rows(self, mask: np.ndarray) -> None:
        """Begin a new episode, with a new style, where ``mask (n,)`` is true."""
        for i in np.flatnonzero(mask):
            self._players[i] = None

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions (n, Da) in [-1, 1] for observations (n, Do) in the published order; moves the scripts on."""
        if np.ndim(obs) != 2 or obs.shape != (len(self._players), self.obs_dim):
            raise ValueError(
                f"{type(self).__name__}: observations must have shape ({len(self._players)}, {self.obs_dim}), found "
                f"{np.shape(obs)}"
            )
        actions = []
        for i, row in enumerate(np.asarray(obs, np.float64).tolist()):
            player = self._players[i]
            if player is None:
                episode = random.Random(int(self._rng.integers(2**63)))
                player = self._players[i] = self.player(episode, self._noise, self._retry, row)
            actions.append(player.act(row))
        return np.array(actions)
