"""A scripted expert for round_table: push the top into the corner, screw the leg into it, screw the base into the leg."""

from __future__ import annotations

import math
from typing import ClassVar

from env.furniture.facts import FURNITURE
from env.furniture.handling import BEYOND, PUSH, Grasp, Handler
from env.furniture.scripted import CLOSE, DOWN, Script
from env.furniture.spatial import about_z, times, wrap
from env.robomimic.scripted import ScriptedExpert

_TOP, _LEG, _BASE = 0, 1, 2
_RADIUS, _RIM = 0.1, 0.0955  # m: of the top, of the middle of its rim
_HEAD = 0.0296  # m from the leg's origin: middle of its head
_CROSS = 0.006  # m above the base's origin: where its cross is grasped
_HIGH = 0.0115  # the same where it is screwed: the fingers' ends must not come down on the leg
_OUTER = 0.137  # m from the top's centre: the outer finger of a hand that is open over the rim
_SEGMENT = math.tau / 16  # rad: the rim is a polygon


class _RoundTable(Handler):
    furniture = FURNITURE["round_table"]
    tall: ClassVar[dict[int, float]] = {_BASE: 0.066}

    def script(self) -> Script:
        yield from self.settle()
        yield from self.attach(
            0, lambda: 0, self.pick_leg, Grasp(_HEAD, first=math.radians(self.rng.uniform(160, 180)))
        )
        yield from self.rise(0.2)
        yield from self.attach(1, lambda: 0, self.pick_base, Grasp(_HIGH, math.pi / 2, math.pi / 4, clear=0.035))
        yield from self.rise(0.25)

    def settle(self) -> Script:
        """Have what is first in the corner."""
        yield from self.push(_TOP, _RADIUS, self.push_top)

    def push_top(self) -> Script:
        """Grasp the rim on the robot's side and push the top into the corner."""
        (x, y, _), turn = self.part(_TOP)
        first = wrap(math.atan2(turn[1][0], turn[0][0]), _SEGMENT)
        yaw = max((first + _SEGMENT * k for k in range(-2, 3)), key=lambda yaw: self._beside(x, y, yaw))
        rotation = times(about_z(yaw + math.pi / 2), DOWN)
        at = (x - _RIM * math.cos(yaw), y - _RIM * math.sin(yaw), 0.0155)
        yield from self.approach(lambda: ((at[0], at[1], 0.09), rotation))
        yield from self.move((at, rotation), tol=0.006, turn=0.15, step=PUSH)
        yield from self.set_grip(CLOSE)
        cx, cy, _ = self.corner()
        out = _RADIUS - BEYOND
        goal = (cx - out - _RIM * math.cos(yaw), cy - out - _RIM * math.sin(yaw), self.pos[2])
        yield from self.move((goal, rotation), turn=0.3, steps=45, step=PUSH)

    def _beside(self, x: float, y: float, yaw: float) -> float:
        """m between the outer finger, where the hand takes the rim of a top at x, y on the side ``yaw``, and the other parts; what is plenty
        varies by chance.
        """
        x, y = x - _OUTER * math.cos(yaw), y - _OUTER * math.sin(yaw)
        (bx, by, _), _ = self.part(_BASE)
        (lx, ly, _), turn = self.part(_LEG)
        leg = min(math.hypot(x - lx - s * turn[0][1], y - ly - s * turn[1][1]) for s in (-0.039, 0.0, 0.03, 0.052))
        return min(math.hypot(x - bx, y - by) - 0.066, leg - 0.021, 0.05 + 0.01 * self.rng.random())

    def pick_leg(self) -> Script:
        """Grasp the leg by its head."""
        return (yield from self.pick_lying(_LEG, _HEAD + self.rng.uniform(-0.004, 0.002), 0.021))

    def pick_base(self) -> Script:
        """Grasp the base's cross from above, between its bars."""
        _, turn = self.part(_BASE)
        rotation = times(about_z(wrap(math.atan2(turn[1][0], turn[0][0]) + math.pi / 4, math.pi / 2)), DOWN)
        return (yield from self.pick_standing(_BASE, rotation, _CROSS, near=0.04, tol=0.006, rise=0.22))


class RoundTableExpert(ScriptedExpert):
    """Observations (n, 44) -> actions (n, 10)."""

    player, obs_dim = _RoundTable, FURNITURE["round_table"].obs_dim


EXPERT = RoundTableExpert
