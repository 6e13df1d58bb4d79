"""A scripted expert for round_table: push the top into the corner, screw the leg into it, screw the base into the leg."""

from __future__ import annotations

import math

from env.furniture.facts import FURNITURE
from env.furniture.scripted import CLOSE, DOWN, OPEN, Assembler, Grasp, Script
from env.furniture.spatial import about_z, times, wrap
from env.robomimic.scripted import ScriptedExpert

_TOP, _LEG, _BASE = 0, 1, 2
_RADIUS, _RIM = 0.1, 0.0955  # m: of the top, of the middle of its rim
_HEAD = 0.0296  # m from the leg's origin: middle of its head
_CROSS = 0.005  # m above the base's origin: middle of its cross
_SEGMENT = math.tau / 16  # rad: the rim is a polygon


class _RoundTable(Assembler):
    furniture = FURNITURE["round_table"]

    def script(self) -> Script:
        yield from self.push_top()
        yield from self.attach(0, lambda: 0, self.pick_leg, Grasp(_HEAD, first=math.radians(self.rng.uniform(70, 90))))
        yield from self.rise(0.2)
        yield from self.attach(1, lambda: 0, self.pick_base, Grasp(_CROSS, math.pi / 2, math.pi / 4, clear=0.035))
        yield from self.rise(0.25)

    def push_top(self) -> Script:
        """Grasp the rim on the robot's side and push the top into the corner."""
        (x, y, _), turn = self.part(_TOP)
        yaw = wrap(math.atan2(turn[1][0], turn[0][0]), _SEGMENT) + _SEGMENT * self.rng.choice(
            (-1, 0, 0, 1)
        )  # of the grasped segment, seen from -x
        rotation = times(about_z(yaw + math.pi / 2), DOWN)
        at = (x - _RIM * math.cos(yaw), y - _RIM * math.sin(yaw), 0.0155)
        yield from self.approach(lambda: ((at[0], at[1], 0.09), rotation))
        yield from self.move((at, rotation), tol=0.006, turn=0.15)
        yield from self.set_grip(CLOSE)
        cx, cy, _ = self.corner()
        goal = (cx - _RADIUS - _RIM * math.cos(yaw) + 0.015, cy - _RADIUS - _RIM * math.sin(yaw) + 0.015, self.pos[2])
        yield from self.move((goal, rotation), turn=0.3, steps=45)
        yield from self.set_grip(OPEN)
        yield from self.rise(0.14)
        yield from self.pause()

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
