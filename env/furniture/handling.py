"""The moves of which assembling consists: push into the corner, pick up what stands or lies, put a peg into its hole, screw it home."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from env.furniture.parts import PARTS
from env.furniture.scripted import CAREFUL, CLEAR, CLOSE, DOWN, OPEN, SLOW, WRIST, Assembler, Script
from env.furniture.spatial import Pose, Rotation, Vector, about, about_y, about_z, add, cross, times, turned, wrap

PUSH = 0.05  # m: how far beyond the hand a goal may be to which it pushes
BEYOND = 0.005  # m: how far beyond the corner it pushes in the end
_PUSHES, _CORNERED = 3, 0.012  # times, m to go
_DOWN = 0.04  # m: how far beyond the hand a goal may be that it descends to, among parts
_SAFE = 0.17  # m, height of travel with a part in the hand
_LEAN = math.radians(54.0)  # of the hand when it picks up what is to stand upright: the other side is left 36 degrees
_WRIST_AT = 0.21, 0.088  # m: the last joint but one, above and behind the hand's point
_REACH = 0.68  # m: how far that joint gets from the base
_PALM = 0.045  # m: from the hand's point, and 0.1 m to either side
_SIDEWAYS = math.radians(75.0)
_UPRIGHT = 0.8  # cosine
_FREE_PLACES = tuple((x, y) for x in (0.4, 0.46) for y in (-0.14, -0.07, 0.0, 0.07))
_WIND = math.radians(125.0)  # yaw about which a stroke begins
_STROKE, _FACE_STROKE = 240.0, 185.0  # degrees a stroke turns, about: anything, what has faces
_PRESS = 0.003  # m below the part: how far the hand that turns it would go


@dataclass(frozen=True)
class Grasp:
    """How a standing part is grasped to be screwed: ``up`` m above its origin, every ``faces`` rad, ``first`` rad from its x axis (where ``faces``
    is 0 it is round, and always grasped at ``first``); ``clear``: m to rise before turning back.
    """

    up: float
    faces: float = 0.0
    first: float = 0.0
    clear: float = 0.0


class Handler(Assembler):
    """An ``Assembler`` that knows these moves; a task sets ``tall`` as well."""

    tall: ClassVar[dict[int, float]] = {}  # parts that a palm may come down on, and how far they reach (m)

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
        yield from self.rise(0.16, step=SLOW, slew=CAREFUL)
        if not self.holds(k, along):
            return False
        yield from self.move(((0.50, 0.10, _SAFE), self.rot), tol=0.02, turn=0.3, steps=30, step=SLOW, slew=CAREFUL)
        stand = times(about_y(lean - math.pi / 2), DOWN)
        yield from self.move(((0.55, 0.10, _SAFE + 0.01), stand), tol=0.03, turn=0.2, steps=45, step=SLOW, slew=CAREFUL)
        return self.holds(k, along)

    def bring(self, k: int, along: float, height: float) -> Script:
        """Take part ``k``, which lies, from straight above to where there is room, and lay it down with its peg towards the robot."""
        yaw = WRIST + wrap(self._heading(k, 1) - WRIST)
        flip = math.pi if yaw > WRIST + math.pi / 2 else 0.0  # the fingers are alike

        def turn() -> Rotation:
            return self.facing(yaw - flip)

        yield from self.approach(self._over(k, along, 0.10, turn), turn=0.2, steps=40)
        yield from self.move(self._over(k, along, height, turn), tol=0.006, turn=0.15, step=_DOWN, fine=True)
        yield from self.set_grip(CLOSE)
        yield from self.rise(CLEAR, step=SLOW)
        x, y = max(_FREE_PLACES, key=lambda at: self._room(k, at))
        yield from self.move(lambda: ((x, y, CLEAR), self.facing(-flip)), tol=0.02, turn=0.2, steps=40, step=0.07)
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

    def settle(self) -> Script:
        """``push`` what is first, where it is not in the corner any more."""
        raise NotImplementedError

    def push(self, k: int, half: float, once: Callable[[], Script]) -> Script:
        """Push part ``k``, ``half`` m from its centre to its edge, into the corner; again where it is not there afterwards."""
        for _ in range(_PUSHES if self.retry else 1):
            (x, y, _), (cx, cy, _) = self.part(k)[0], self.corner()
            if max(cx - half - x, cy - half - y) < _CORNERED:
                break
            yield from once()
            yield from self.set_grip(OPEN)
            yield from self.rise(0.14)
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
            yield from self.settle()

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
        gentle = {"step": SLOW, "slew": CAREFUL, "fine": True, "tol": 0.0, "turn": 0.0}
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
