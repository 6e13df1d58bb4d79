"""A scripted expert for one_leg: push the table's top into the corner, stand leg 4 in the corner's hole, screw it home."""

from __future__ import annotations

import math

from env.furniture.facts import FURNITURE
from env.furniture.handling import BEYOND, PUSH, Grasp, Handler
from env.furniture.scripted import CLOSE, DOWN, Script
from env.furniture.spatial import about_z, add, times, wrap
from env.robomimic.scripted import ScriptedExpert

_TOP, _LEG = 0, 4
_RIM, _HALF = 0.0781, 0.0813  # m from the top's centre: middle of its rim, its edge


class _OneLeg(Handler):
    furniture = FURNITURE["one_leg"]

    def script(self) -> Script:
        yield from self.settle()
        yield from self.attach(0, self.place, self.pick, Grasp(0.008, faces=math.pi / 2))
        yield from self.rise(0.2)

    def pick(self) -> Script:
        """Grasp the leg near its middle."""
        return (yield from self.pick_lying(_LEG, self.rng.uniform(-0.004, 0.006), 0.0165))

    def place(self) -> int:
        """The hole nearest to the corner."""
        return max(range(4), key=lambda k: sum(self.hole(0, k)[0][:2]))

    def settle(self) -> Script:
        """Have what is first in the corner."""
        yield from self.push(_TOP, _HALF, self.push_top)

    def push_top(self) -> Script:
        """Grasp the rim nearest to the robot and push the top into the corner."""
        at, turn = self.part(_TOP)
        sides = [tuple(s * row[i] for row in turn) for i in (0, 2) for s in (1.0, -1.0)]
        side = min(sides, key=lambda v: v[0])
        yaw = wrap(math.atan2(side[1], side[0]) - math.pi)
        slide = self.rng.uniform(-0.02, 0.02)
        x, y, _ = add(add(at, side, _RIM), (-side[1], side[0], 0.0), slide)
        rotation = times(about_z(yaw + math.pi / 2), DOWN)
        yield from self.approach(lambda: ((x, y, 0.09), rotation))
        yield from self.move(((x, y, 0.017), rotation), tol=0.006)
        yield from self.set_grip(CLOSE)
        cx, cy, _ = self.corner()
        goal = (cx - _HALF - _RIM + BEYOND, cy - _HALF - slide + BEYOND, self.pos[2])
        yield from self.move((goal, times(about_z(math.pi / 2), DOWN)), turn=0.3, steps=45, step=PUSH)


class OneLegExpert(ScriptedExpert):
    """Observations (n, 58) -> actions (n, 10)."""

    player, obs_dim = _OneLeg, FURNITURE["one_leg"].obs_dim


EXPERT = OneLegExpert
