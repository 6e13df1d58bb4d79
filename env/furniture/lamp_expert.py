"""A scripted expert for lamp: push the base into the corner, screw the bulb into it, put the hood over both."""

from __future__ import annotations

import math
from typing import ClassVar

from env.furniture.facts import FURNITURE
from env.furniture.handling import BEYOND, PUSH, Grasp, Handler
from env.furniture.scripted import DOWN, OPEN, Script
from env.furniture.spatial import Pose, about_z, add, times, wrap
from env.robomimic.scripted import ScriptedExpert

_BASE, _BULB, _HOOD = 0, 1, 2
_FOOT = 0.04235  # m, half the side of the base's foot
_FLANGE = 0.039  # m above the base's origin: where it is grasped
_GLOBE = 0.038  # m from the bulb's origin: its globe's centre
_REACH = 0.0275  # m from the bulb's origin: where it is grasped, near enough to its origin to be let go of
_SHORT = 0.014  # m beside the left obstacle's side, past whose end the base has to go
_NECK = 0.041  # m above the hood's origin: where it is grasped, from outside


class _Lamp(Handler):
    furniture = FURNITURE["lamp"]
    tall: ClassVar[dict[int, float]] = {_BASE: _FOOT, _HOOD: 0.045}

    def script(self) -> Script:
        yield from self.settle()
        yield from self.attach(
            0, lambda: 0, self.pick_bulb, Grasp(_GLOBE, first=math.radians(self.rng.uniform(160, 180)))
        )
        yield from self.rise(0.2)
        while True:
            yield from self.cover()
            if self.covered() or not self.retry:
                break
        yield from self.rise(0.25)

    def settle(self) -> Script:
        """Have what is first in the corner."""
        yield from self.push(_BASE, _FOOT, self.push_base)

    def push_base(self) -> Script:
        """Grasp the flange and push the base to the left, then forward into the corner."""
        _, turn = self.part(_BASE)
        yaw = math.pi / 2 + wrap(math.atan2(turn[1][0], turn[0][0]), math.pi / 2)
        up = _FLANGE + self.rng.uniform(-0.003, 0.002)
        yield from self.grasp_standing(_BASE, times(about_z(yaw), DOWN), up, near=0.03, tol=0.006)
        cx, cy, _ = self.corner()
        straight = times(about_z(math.pi / 2), DOWN)
        x, y = cx - _FOOT, cy - _FOOT
        for goal in ((self.pos[0], y - _SHORT), (x, y - _SHORT), (x + BEYOND, y + BEYOND)):
            at = (*goal, self.pos[2])
            yield from self.move((at, straight), tol=0.012, turn=0.3, steps=30, step=PUSH)

    def pick_bulb(self) -> Script:
        """Grasp the bulb by its globe."""
        return (yield from self.pick_lying(_BULB, _REACH + self.rng.uniform(-0.001, 0.001), 0.029))

    def cover(self) -> Script:
        """Pick up the hood and put it over the bulb."""
        rotation = times(about_z(self._hood_yaw()), DOWN)
        if not (yield from self.pick_standing(_HOOD, rotation, _NECK, near=0.05, tol=0.004, rise=0.30, along=_NECK)):
            yield from self.set_grip(OPEN)
            return

        def over(height: float) -> Pose:
            goal, at = self.hole(1, 0)[0], self.part(_HOOD)[0]
            return add(add(self.pos, add(goal, at, -1.0)), (0.0, 0.0, height)), rotation

        yield from self.move(lambda: over(0.13), tol=0.005, turn=0.2, steps=45, step=0.07)
        yield from self.move(
            lambda: over(max(-0.01, self.part(_HOOD)[0][2] - self.hole(1, 0)[0][2] - 0.02)), tol=0.0, steps=40, step=0.03, fine=True, until=self._lowered
        )  # fmt: skip
        yield from self.set_grip(OPEN)
        yield from self.rise(0.25)

    def _lowered(self) -> bool:
        return self.part(_HOOD)[0][2] - self.hole(1, 0)[0][2] < 0.001

    def covered(self) -> bool:
        """Whether the hood is where it belongs."""
        goal, at = self.hole(1, 0)[0], self.part(_HOOD)[0]
        return all(abs(a - b) < 0.0045 for a, b in zip(goal, at, strict=True))

    def _hood_yaw(self) -> float:
        """Of a hand whose fingers close on two of its eight sides."""
        _, turn = self.part(_HOOD)
        return math.pi / 2 + wrap(math.atan2(turn[1][0], turn[0][0]), math.pi / 4)


class LampExpert(ScriptedExpert):
    """Observations (n, 44) -> actions (n, 10)."""

    player, obs_dim = _Lamp, FURNITURE["lamp"].obs_dim


EXPERT = LampExpert
