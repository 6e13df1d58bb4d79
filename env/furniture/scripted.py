"""What the scripted experts of the three tasks share: the hand seen through observations, its servo law, and the moves of which assembling
consists: push into the corner, pick up what lies, put a peg into its hole, screw it home.

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
    about_y,
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
_GAIN = 2.0  # of a goal beyond the hand, in remaining ways
_FAST, _SLOW = 0.11, 0.05  # m, rad below: how far beyond the hand a goal may be
_CAREFUL, _BRISK = math.radians(25.0), math.radians(75.0)
_LEANING, _STRAIGHT = math.radians(10.0), 0.96  # the same for a hand that leans, cosine from which it does not
_WRIST = math.radians(50.0)  # yaw from which the wrist can turn far either way
_WIND = math.radians(125.0)  # yaw about which a stroke begins
PUSH, BEYOND = (
    0.05,
    0.005,
)  # m: how far beyond the hand, and in the end beyond the corner, a goal may be to which it pushes
_PUSHES, _CORNERED = 3, 0.012  # times, m to go
_PRESS = 0.003  # m below the part: how far the hand that turns it would go
_STROKE, _FACE_STROKE = 240.0, 185.0  # degrees a stroke turns, about: anything, what has faces
_MEMORY, _KICK = 0.7, 0.0022  # the disturbance: share kept from step to step, m added per step at noise 1
DOWN: Rotation = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
_UP: Vector = (0.0, 0.0, 1.0)
_WRIST_AT, _REACH = (
    (0.21, 0.088),
    0.68,
)  # m: the last but one joint, above and behind the hand's point; how far from the base it gets
_PALM = 0.045  # m: from the hand's point, and 0.1 m to either side
_SIDEWAYS = math.radians(75.0)
_UPRIGHT = 0.8  # cosine
_FREE_PLACES = tuple((x, y) for x in (0.4, 0.46) for y in (-0.14, -0.07, 0.0, 0.07))
_LEAN = math.radians(54.0)  # of the hand when it picks up what is to stand upright: the other side is left 36 degrees
_WORKSPACE = (0.2, 0.75), (-0.4, 0.4), (0.0, 0.35)  # m: no goal is beyond, whatever a part does that is followed
_SAFE = 0.17  # m, height of travel with a part in the hand
_CLEAR = 0.12  # m: nothing that stands about is as high
_DOWN = 0.04  # m: how far beyond the hand a goal may be that it descends to, among parts


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


@dataclass(frozen=True)
class Grasp:
    """How a standing part is grasped to be screwed: ``up`` m above its origin, every ``faces`` rad, ``first`` rad from its x axis (where ``faces``
    is 0 it is round, and always grasped at ``first``); ``clear``: m to rise before turning back.
    """

    up: float
    faces: float = 0.0
    first: float = 0.0
    clear: float = 0.0


class Assembler:
    """One episode in one slot. A task sets ``furniture`` and ``script``, perhaps ``tall``."""

    furniture: ClassVar[Furniture]
    tall: ClassVar[dict[int, float]] = {}  # parts that a palm may come down on, and how far they reach (m)

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
        return self._towards(self.goal, _SLOW, math.pi, True)

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
        step: float = _FAST,
        slew: float = _BRISK,
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
            yield self._towards(here, _SLOW, math.pi, True)

    def pause(self) -> Script:
        """Hesitate, now and then."""
        if self.rng.random() < self.style.pause:
            here = self.pos, self.rot
            for _ in range(self.rng.randint(2, 7)):
                yield self._towards(here, _SLOW, math.pi, True)

    def approach(self, over: Callable[[], Pose], **how: float) -> Script:
        """``move``, above all that stands about; now and then first to a place beside it, then corrected."""
        if self.pos[2] < _CLEAR:
            yield from self.rise(_CLEAR + 0.01, steps=15)
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
        now, to = (wrap(a - _WRIST) for a in (math.atan2(self.rot[1][0], self.rot[0][0]), yaw))
        most = _BRISK if self.rot[2][2] < -_STRAIGHT else _LEANING
        return times(about_z(_WRIST + now + min(max(to - now, -most), most)), DOWN)

    def rise(self, height: float, **how: float) -> Script:
        """Straight up."""
        yield from self.move(((self.pos[0], self.pos[1], height), self.rot), tol=0.02, turn=0.4, **how)

    # --------------------------------------------------------------------------------------------- assembling

    def corner(self) -> Vector:
        """Where the front and the left obstacle meet, on the table."""
        (x, y, _), _ = self.part(len(self.furniture.parts))
        return x - 0.01, y + 0.165, 0.0

    def pick_lying(self, k: int, along: float, height: float) -> Script:
        """Grasp part ``k``, which lies with its axis (+y) flat, ``along`` m from its origin, lift it and turn it upright, peg down.

        Returns whether it came along.
        """
        if self.part(k)[1][2][1] > _UPRIGHT:
            yaw = math.pi / 4 + wrap(self._heading(k, 0) - math.pi / 4, math.pi / 2)
            grasp = {"near": 0.04, "tol": 0.006, "rise": _SAFE, "along": along}
            return (yield from self.pick_standing(k, times(about_z(yaw), DOWN), along, **grasp))
        lean = _LEAN + math.radians(self.rng.uniform(-6, 4)) * min(1.0, 1e3 * self.style.aim)
        if self._awkward(k, along, lean):
            yield from self.bring(k, along, height)
        rotation = times(times(about_z(self._heading(k, 1)), about_y(lean)), DOWN)

        def leaning() -> Rotation:
            return rotation

        yield from self.approach(self._over(k, along, 0.10, leaning), turn=0.2, steps=40)
        yield from self.move(self._over(k, along, height, leaning), tol=0.006, turn=0.15, step=_DOWN, fine=True)
        yield from self.set_grip(CLOSE)
        yield from self.rise(0.16, step=_SLOW, slew=_CAREFUL)
        if not self.holds(k, along):
            return False
        yield from self.move(((0.50, 0.10, _SAFE), self.rot), tol=0.02, turn=0.3, steps=30, step=_SLOW, slew=_CAREFUL)
        stand = times(about_y(lean - math.pi / 2), DOWN)
        yield from self.move(
            ((0.55, 0.10, _SAFE + 0.01), stand), tol=0.03, turn=0.2, steps=45, step=_SLOW, slew=_CAREFUL
        )
        return self.holds(k, along)

    def bring(self, k: int, along: float, height: float) -> Script:
        """Take part ``k``, which lies, from straight above to where there is room, and lay it down with its peg towards the robot."""
        yaw = _WRIST + wrap(self._heading(k, 1) - _WRIST)
        flip = math.pi if yaw > _WRIST + math.pi / 2 else 0.0  # the fingers are alike

        def turn() -> Rotation:
            return self.facing(yaw - flip)

        yield from self.approach(self._over(k, along, 0.10, turn), turn=0.2, steps=40)
        yield from self.move(self._over(k, along, height, turn), tol=0.006, turn=0.15, step=_DOWN, fine=True)
        yield from self.set_grip(CLOSE)
        yield from self.rise(_CLEAR, step=_SLOW)
        x, y = max(_FREE_PLACES, key=lambda at: self._room(k, at))
        yield from self.move(lambda: ((x, y, _CLEAR), self.facing(-flip)), tol=0.02, turn=0.2, steps=40, step=0.07)
        yield from self.move(((x, y, height + 0.002), self.rot), tol=0.006, turn=0.2, step=_DOWN, fine=True)
        yield from self.set_grip(OPEN)

    def _over(self, k: int, along: float, z: float, facing: Callable[[], Rotation]) -> Callable[[], Pose]:
        """Poses of a hand ``z`` m over the table and ``along`` m from part ``k``'s origin on its y axis."""

        def where() -> Pose:
            (x, y, _), now = self.part(k)
            return (x + along * now[0][1], y + along * now[1][1], z), facing()

        return where

    def _heading(self, k: int, axis: int) -> float:
        """Of an axis of part ``k``, rad."""
        _, turn = self.part(k)
        return math.atan2(turn[1][axis], turn[0][axis])

    def _room(self, k: int, at: tuple[float, float]) -> float:
        """m from a place to the nearest part that is not ``k``."""
        return min(math.dist(self.part(i)[0][:2], at) for i in range(len(self.furniture.parts)) if i != k)

    def _awkward(self, k: int, along: float, lean: float) -> bool:
        """Whether a hand that leans could not take part ``k``: its peg points away from the robot, the wrist, which is beyond the part then, would
        be farther away than the arm reaches, or the palm comes down on something tall.
        """
        heading = self._heading(k, 1)
        (x, y, _), _ = self._over(k, along, 0.0, lambda: DOWN)()
        c, s = math.cos(heading), math.sin(heading)
        wrist, palm = _WRIST_AT[0] * math.sin(lean) - _WRIST_AT[1] * math.cos(lean), _PALM * math.sin(lean)
        if abs(heading) > _SIDEWAYS or math.hypot(x + wrist * c, y + wrist * s) > _REACH:
            return True
        for other, radius in self.tall.items():
            (px, py, _), _ = self.part(other)
            dx, dy = px - x - palm * c, py - y - palm * s
            if abs(c * dx + s * dy) < 0.03 + radius and abs(c * dy - s * dx) < 0.1 + radius:
                return True
        return False

    def grasp_standing(self, k: int, rotation: Rotation, up: float, near: float, tol: float) -> Script:
        """Grasp part ``k`` from above, ``up`` m over its origin, with care from ``near`` m over that."""

        def above(height: float) -> Callable[[], Pose]:
            def where() -> Pose:
                (x, y, z), _ = self.part(k)
                return (x, y, z + up + height), rotation

            return where

        yield from self.approach(above(0.09), tol=0.02, steps=40)
        yield from self.move(above(near), tol=tol, turn=0.1)
        yield from self.move(above(0.0), tol=tol, turn=0.1, step=_DOWN, fine=True)
        yield from self.set_grip(CLOSE)

    def pick_standing(
        self, k: int, rotation: Rotation, up: float, *, near: float, tol: float, rise: float, along: float = 0.0
    ) -> Script:
        """``grasp_standing`` and rise; whether the part came along."""
        yield from self.grasp_standing(k, rotation, up, near, tol)
        yield from self.rise(rise, step=0.07)
        return self.holds(k, along)

    def push(self, k: int, half: float, once: Callable[[], Script]) -> Script:
        """Push part ``k``, ``half`` m from its centre to its edge, into the corner; again where it is not there afterwards."""
        for _ in range(_PUSHES if self.retry else 1):
            yield from once()
            yield from self.set_grip(OPEN)
            yield from self.rise(0.14)
            (x, y, _), (cx, cy, _) = self.part(k)[0], self.corner()
            if max(cx - half - x, cy - half - y) < _CORNERED:
                break
        yield from self.pause()

    def holds(self, k: int, along: float = 0.0) -> bool:
        """Whether part ``k``, grasped ``along`` m from its origin, is in the hand and off the table."""
        at, _ = self.part(k)
        return math.dist(at, self.pos) < abs(along) + 0.03 and self.pos[2] > 0.1 and at[2] > 0.04

    def attach(self, pair: int, place: Callable[[], int], pick: Callable[[], Script], grasp: Grasp) -> Script:
        """Pick up the pair's second part, put it into its hole and screw it home; where that fails, again (unless ``retry`` is off).
        Returns whether it is home.
        """
        while True:
            if not self.stands(pair, place()):
                yield from self.rise(0.14)
                came = yield from pick()
                if came and (yield from self.insert(pair, place())):
                    yield from self.back_off()
                else:
                    yield from self.set_grip(OPEN)
                    if self.retry:
                        continue
            if (yield from self.screw(pair, place(), grasp)):
                return True
            if not self.retry:
                return False

    def stands(self, pair: int, place: int) -> bool:
        """Whether the pair's second part is in its hole, upright."""
        shape = PARTS[self.furniture.parts[self.furniture.pairs[pair].second]]
        rest, off, tilt = self.left(pair, place)
        return rest < shape.tip - shape.root - 0.004 and off < 0.006 and tilt > 0.96

    def insert(self, pair: int, place: int) -> Script:
        """Bring the held part's peg over its hole, straighten it, lower it until it stands, and let go. Returns whether it stands."""
        wanted = self.furniture.pairs[pair]
        shape = PARTS[self.furniture.parts[wanted.second]]
        depth = shape.tip - shape.root

        def over(rest: float) -> Pose:
            """Hand pose that puts the part upright on the hole's axis with ``rest`` m to go."""
            goal, turn = self.hole(pair, place)
            into = turned(turn, shape.axis)
            at, mine = self.part(wanted.second)
            fix = about(cross(turned(mine, shape.axis), into))
            arm = add(self.pos, at, -1.0)
            to = add(goal, into, -rest)
            return add(to, turned(fix, arm)), times(fix, self.rot)

        def ready() -> bool:
            rest, off, tilt = self.left(pair, place)
            return off < 0.0015 and abs(rest - depth - 0.02) < 0.006 and tilt > math.cos(0.04)

        def lost() -> bool:
            return math.dist(self.part(wanted.second)[0], self.pos) > reach + 0.03

        reach = math.dist(self.part(wanted.second)[0], self.pos)
        gentle = {"step": _SLOW, "slew": _CAREFUL, "fine": True, "tol": 0.0, "turn": 0.0}
        yield from self.move(lambda: over(depth + 0.02), steps=60, until=lambda: ready() or lost(), **gentle)
        seen: list[float] = []

        def down() -> Pose:
            (x, y, z), turn = over(0.0)
            return (x, y, max(z, self.pos[2] - 0.006)), turn

        def stands() -> bool:
            seen.append(self.left(pair, place)[0])
            return seen[-1] < depth - 0.006 and len(seen) > 4 and seen[-4] - seen[-1] < 0.0006

        if lost():
            return False
        yield from self.move(down, steps=40, until=lambda: stands() or lost(), **gentle)
        yield from self.set_grip(OPEN)
        return self.stands(pair, place)

    def back_off(self) -> Script:
        """Away from what was let go, backwards along the hand and up."""
        back = turned(self.rot, (0.0, 0.0, -0.05))
        yield from self.move((add(add(self.pos, back), (0.0, 0.0, 0.03)), self.rot), tol=0.02, turn=0.3, steps=15)

    def screw(self, pair: int, place: int, grasp: Grasp) -> Script:
        """Turn the standing part home, stroke by stroke. Returns whether it is home.

        A stroke turns about where the axis was at first: a hand that followed the part it holds would carry the assembly away.
        """
        part = self.furniture.pairs[pair].second
        (x, y, _), _ = self.hole(pair, place)
        best, idle = 1.0, 0
        jitter = self.rng.uniform(-10, 10) * min(1.0, 1e3 * self.style.aim)
        stroke = math.radians((_FACE_STROKE if grasp.faces else _STROKE) + jitter)

        def heading() -> float:
            if grasp.faces == 0.0:
                return grasp.first
            _, mine = self.part(part)
            return _WIND + wrap(math.atan2(mine[1][0], mine[0][0]) + grasp.first - _WIND, grasp.faces)

        def over(up: float) -> Callable[[], Pose]:
            def where() -> Pose:
                (x, y, z), _ = self.part(part)
                return (x, y, z + grasp.up + up), self.facing(yaw)

            return where

        yaw = heading()
        yield from self.move(over(0.09), tol=0.02, turn=0.3, steps=45)
        while True:
            rest, off, tilt = self.left(pair, place)
            if rest < 0.0004:
                return True
            idle = 0 if rest < best - 0.0008 else idle + 1
            best = min(best, rest)
            if off > 0.01 or tilt < 0.94 or idle > 4:
                return False
            yaw = heading()
            yield from self.move(over(0.0), tol=0.008, turn=0.15, steps=30)
            yield from self.set_grip(CLOSE, 5)
            yield from self.move(
                lambda end=yaw - stroke: ((x, y, self.part(part)[0][2] + grasp.up - _PRESS), self.facing(end)), tol=0.02, turn=0.25, steps=22,
                until=lambda: self.left(pair, place)[0] < 0.0002,
            )  # fmt: skip
            yield from self.set_grip(OPEN, 5)
            if grasp.clear:
                yield from self.rise(self.pos[2] + grasp.clear, steps=12)
                yaw = heading()
                yield from self.move(over(grasp.clear), tol=0.012, turn=0.2, steps=25)


_HOMES = {  # of each pair of each task: places, rotation, in plain floats
    id(pair): (pair.places, rows_of([[1, 0, 0], [0, 1, 0], [0, 0, 1]] if pair.rotation is None else pair.rotation))
    for furniture in FURNITURE.values()
    for pair in furniture.pairs
}
