"""What the scripted experts of the three tasks share: the hand seen through observations, and its servo law. ``handling.py`` has the moves of
which assembling consists.

A task's ``Assembler`` acts out one episode in one slot: its ``script`` is a generator that yields actions (``env.robomimic.scripted`` has
the same idea for robosuite's tasks, and the class that runs many slots). All is closed loop: only the observation of the moment is read.

Control: the hand goes about two fifths of the way to a goal in a control step, so a goal of twice the remaining way is reached in a few
steps without overshoot. ``DOWN`` is the hand pointing down, its fingers open along y.

Human-like variety, scaled by ``noise``: every episode draws a speed, how much its motion is disturbed, how often it hesitates and misses, how hard it tilts and
where it grasps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from env.furniture.facts import FURNITURE, POSE, ROBOT_STATE, TAG_TO_ROBOT, Furniture
from env.furniture.parts import PARTS
from env.furniture.spatial import (
    Pose,
    Rotation,
    Vector,
    about,
    about_z,
    add,
    cross,
    dot,
    from_quaternion,
    rows_of,
    times,
    transpose,
    turned,
    vector_of,
    wrap,
)

Script = Iterator[list[float]]
OPEN, CLOSE = -1.0, 1.0
FAST, SLOW = 0.11, 0.05  # m, rad below: how far beyond the hand a goal may be
CAREFUL, BRISK, LEANING = (math.radians(a) for a in (25.0, 75.0, 10.0))
WRIST = math.radians(50.0)  # yaw from which the wrist can turn far either way
DOWN: Rotation = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
CLEAR = 0.12  # m: nothing that stands about is as high
_GAIN = 2.0  # of a goal beyond the hand, in remaining ways
_STRAIGHT = 0.96  # cosine from which a hand does not lean
_MEMORY, _KICK = 0.7, 0.0022  # the disturbance: share kept from step to step, m added per step at noise 1
_WORKSPACE = (0.2, 0.75), (-0.4, 0.4), (0.0, 0.35)  # m: no goal is beyond, whatever a part does that is followed


@dataclass(frozen=True)
class Style:
    """How one episode goes about it."""

    speed: float  # share of the largest step
    noise: float  # of the disturbance
    aim: float  # m: how far off a goal is, standard deviation
    pause: float  # chance of a hesitation where one may come
    slip: float  # chance of a miss, corrected, where one may come

    @classmethod
    def draw(cls, rng: random.Random, noise: float) -> Style:
        """``noise`` scales all that is clumsy; 1 is human-like."""
        return cls(
            speed=rng.uniform(0.75, 1.0),
            noise=noise * rng.uniform(0.2, 1.0),
            aim=0.0015 * noise,
            pause=noise * rng.uniform(0.0, 0.25),
            slip=noise * rng.uniform(0.0, 0.3),
        )


class Assembler:
    """One episode in one slot. A task sets ``furniture`` and ``script``."""

    furniture: ClassVar[Furniture]

    def __init__(self, rng: random.Random, noise: float, retry: bool, row: list[float]) -> None:
        self.rng, self.retry, self.style = rng, retry, Style.draw(rng, noise)
        self.grip, self._disturbance = OPEN, [0.0, 0.0, 0.0]
        self._see(row)
        self.goal: Pose = self.pos, self.rot
        self._script = self.script()

    def script(self) -> Script:
        """The plan, action by action."""
        raise NotImplementedError

    def act(self, row: list[float]) -> list[float]:
        """The action for an observation."""
        self._see(row)
        return next(self._script, None) or self._hold()

    # ------------------------------------------------------------------------------------------------ seeing

    def _see(self, row: list[float]) -> None:
        self.row = row
        self.pos: Vector = (row[0], row[1], row[2])
        a, b = (row[3], row[4], row[5]), (row[6], row[7], row[8])
        self.rot: Rotation = (a, b, cross(a, b))

    def part(self, k: int) -> Pose:
        """Pose of part ``k`` in the robot's frame (the front obstacle follows the parts)."""
        at = ROBOT_STATE + POSE * k
        x, y, z, *quat = self.row[at : at + POSE]
        first, second, third = from_quaternion(*quat)
        return (y + TAG_TO_ROBOT[0][0], x, -z), (second, first, (-third[0], -third[1], -third[2]))

    def hole(self, pair: int, place: int) -> Pose:
        """Where the second part of ``pair`` is to be, in the robot's frame."""
        wanted = self.furniture.pairs[pair]
        at, turn = self.part(wanted.first)
        home = _HOMES[id(wanted)]
        return add(at, turned(turn, home[0][place])), times(turn, home[1])

    def left(self, pair: int, place: int) -> tuple[float, float, float]:
        """How far the pair's second part has to go (m), how far off the axis it is (m), cosine of its tilt."""
        wanted = self.furniture.pairs[pair]
        goal, turn = self.hole(pair, place)
        at, mine = self.part(wanted.second)
        axis = PARTS[self.furniture.parts[wanted.second]].axis
        into, gap = turned(turn, axis), add(goal, at, -1.0)
        rest = dot(gap, into)
        return rest, math.sqrt(max(dot(gap, gap) - rest * rest, 0.0)), dot(into, turned(mine, axis))

    # ------------------------------------------------------------------------------------------------ moving

    def _towards(self, goal: Pose, step: float, slew: float, fine: bool) -> list[float]:
        """One action towards a pose, at most ``step`` m and ``slew`` rad beyond the hand."""
        place = tuple(min(max(x, low), high) for x, (low, high) in zip(goal[0], _WORKSPACE, strict=True))
        goal = self.goal = place, goal[1]
        limit, kick = step * self.style.speed, _KICK * self.style.noise * (0.25 if fine else 1.0)
        to = []
        for i in range(3):
            self._disturbance[i] = _MEMORY * self._disturbance[i] + kick * self.rng.gauss(0.0, 1.0)
            ahead = min(max(_GAIN * (goal[0][i] - self.pos[i]), -limit), limit)
            to.append(self.pos[i] + ahead + self._disturbance[i])
        turn = vector_of(times(goal[1], transpose(self.rot)))
        angle = math.sqrt(dot(turn, turn))
        rows = goal[1] if angle <= slew else times(about(add((0.0, 0.0, 0.0), turn, slew / angle)), self.rot)
        return [*to, *rows[0], *rows[1], self.grip]

    def _hold(self) -> list[float]:
        return self._towards(self.goal, SLOW, math.pi, True)

    def _near(self, goal: Pose, tol: float, turn: float) -> bool:
        """As the published experts judge it: the sums of the absolute differences."""
        far = sum(abs(a - b) for a, b in zip(goal[0], self.pos, strict=True))
        return (
            far < tol
            and sum(abs(a - b) for g, r in zip(goal[1], self.rot, strict=True) for a, b in zip(g, r, strict=True))
            < turn
        )

    def move(
        self,
        target: Pose | Callable[[], Pose],
        tol: float = 0.012,
        turn: float = 0.25,
        steps: int = 25,
        step: float = FAST,
        slew: float = BRISK,
        fine: bool = False,
        until: Callable[[], bool] | None = None,
    ) -> Script:
        """Go to a pose, or to where a function says at each step, until near (true), ``until`` holds (true) or for ``steps`` (false).

        A fixed pose is aimed at imprecisely.
        """
        if not callable(target):
            off = 0.0 if fine else self.style.aim
            target = (tuple(x + off * self.rng.gauss(0.0, 1.0) for x in target[0]), target[1])
        for _ in range(steps):
            goal = target() if callable(target) else target
            if (until is not None and until()) or self._near(goal, tol, turn):
                return True
            yield self._towards(goal, step, slew, fine)
        return False

    def set_grip(self, grip: float, steps: int = 6) -> Script:
        """Open or close where the hand is."""
        self.grip, here = grip, (self.pos, self.rot)
        for _ in range(steps + self.rng.randint(0, 1)):
            yield self._towards(here, SLOW, math.pi, True)

    def pause(self) -> Script:
        """Hesitate, now and then."""
        if self.rng.random() < self.style.pause:
            here = self.pos, self.rot
            for _ in range(self.rng.randint(2, 7)):
                yield self._towards(here, SLOW, math.pi, True)

    def approach(self, over: Callable[[], Pose], **how: float) -> Script:
        """``move``, above all that stands about; now and then first to a place beside it, then corrected."""
        if self.pos[2] < CLEAR:
            yield from self.rise(CLEAR + 0.01, steps=15)
        if self.rng.random() < self.style.slip:
            (x, y, z), turn = over()
            gauss = self.rng.gauss
            yield from self.move(
                ((x + gauss(0, 0.015), y + gauss(0, 0.015), z + abs(gauss(0, 0.01))), turn), tol=0.03, steps=20
            )
            yield from self.pause()
        yield from self.move(over, **how)

    def facing(self, yaw: float) -> Rotation:
        """The hand pointing down at ``yaw`` rad, or as near to that as it may be asked to turn at once: the way on which the wrist does not
        come to its end, be it the longer one. A hand that leans is straightened first: its turn would be one of the whole arm.
        """
        now, to = (wrap(a - WRIST) for a in (math.atan2(self.rot[1][0], self.rot[0][0]), yaw))
        most = BRISK if self.rot[2][2] < -_STRAIGHT else LEANING
        return times(about_z(WRIST + now + min(max(to - now, -most), most)), DOWN)

    def rise(self, height: float, **how: float) -> Script:
        """Straight up."""
        yield from self.move(((self.pos[0], self.pos[1], height), self.rot), tol=0.02, turn=0.4, **how)


_HOMES = {  # of each pair of each task: places, rotation, in plain floats
    id(pair): (pair.places, rows_of([[1, 0, 0], [0, 1, 0], [0, 0, 1]] if pair.rotation is None else pair.rotation))
    for furniture in FURNITURE.values()
    for pair in furniture.pairs
}
