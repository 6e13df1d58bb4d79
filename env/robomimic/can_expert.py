"""A scripted expert for Can: above the can, down, close, lift, carry, let go; again if it missed or the can slipped.

Geometry (m): the can has radius 0.025 and half height 0.04, its centre stands at 0.86 (bin floor 0.82, walls to 0.90).
The palm is 31 mm above the grip site, so a grasp 13 to 23 mm above the can's centre clears it. The can's compartment
spans x 0.10 to 0.295, y 0.28 to 0.525.

Success needs the can inside the compartment *and* the gripper more than 42 mm away, so it must be let go; it may be
dropped from above the walls. The compartment's centre is out of the arm's vertical reach: places nearer than 0.82 m to
the base are drawn, and the gripper tilts outwards there.
"""

from __future__ import annotations

import math

from env.robomimic.scripted import CLOSE, OPEN, Player, Point, Script, ScriptedExpert, above, at_height

_CAN = 9  # first column of the can's position
_BASE = (-0.5, -0.1)
_COMPARTMENT = (0.1975, 0.4025)  # centre
_REACH = 0.82


class _CanPlayer(Player):
    bases = (_BASE,)

    def can(self) -> Point:
        return self.point(_CAN)

    def place(self) -> Point:
        """A random point over the compartment that the arm reaches."""
        u = self.rng.uniform
        while True:
            x, y = _COMPARTMENT[0] + u(-0.06, 0.05), _COMPARTMENT[1] + u(-0.08, 0.06)
            if math.dist((x, y), _BASE) < _REACH:
                return x, y, u(0.91, 0.99)

    def script(self, k: int) -> Script:
        yield from self.attempt()
        while self.retry:
            yield from self.attempt()

    def attempt(self) -> Script:
        """Grasp the can and bring it to its compartment; ends early when the grasp missed."""
        arm, u = self.arms[0], self.rng.uniform
        yaw, height, grasp_height, lift = u(-0.7, 0.7), u(0.07, 0.12), u(0.013, 0.023), u(1.0, 1.08)
        arm.grasp = OPEN
        yield from arm.hover(lambda: (above(self.can(), height), yaw), tol=0.02, turn_tol=0.2)
        yield from arm.move(lambda: (above(self.can(), grasp_height), yaw), tol=0.006, speed=0.7, steps=60)
        yield from arm.pause()
        yield from arm.grip(CLOSE, 7, 11)
        yield from arm.move((at_height(arm.pos, lift), yaw), tol=0.04, steps=50)
        if arm.distance(self.can()) > 0.05:
            return
        place, yaw = self.place(), yaw + u(-0.4, 0.4)
        over = at_height(place, max(lift - 0.02, place[2]))
        yield from arm.hover(lambda: (over, yaw), tol=0.03, turn_tol=0.5)
        yield from arm.pause()
        yield from arm.move((place, yaw), tol=0.025, turn_tol=0.5, steps=60)
        yield from arm.grip(OPEN, 5, 9)
        yield from arm.move((above(arm.pos, u(0.08, 0.15)), yaw), tol=0.02, steps=40)


class CanExpert(ScriptedExpert):
    """Observations (n, 23) of Can in their published order -> actions (n, 7)."""

    player, obs_dim = _CanPlayer, 23
