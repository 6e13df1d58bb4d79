"""A scripted expert for Square: grasp the nut's handle, carry, turn, lower over the peg, let go; again if it missed.

Geometry (m): the nut's hole has half width 0.02275, the nut is 20 mm thick and rests at z 0.83; its handle (32 mm wide)
points along the nut's +x axis and stands out from 44 to 79 mm. The peg, at (0.23, 0.10), has half width 0.016 and ends
at z 0.95: 6.7 mm of play a side, so that any yaw fits if centred.

What the plan has to know:

* The handle must end up towards the base or at -y; elsewhere it is out of reach. Which of the grasps and turns the
  wrist can do follows from its range (``plan``).
* A half turn over the peg stretches the arm into a singularity where position and orientation errors balance for good:
  large turns are made 0.15 m nearer to the base.
* The nut slips in the grasp, so yaw is closed on nut yaw minus *measured* gripper yaw. Adding the nut's error to the
  commanded yaw at every step would oscillate.
* Going down while off by more than 7 mm jams the nut on the peg's edge: back up and align again.

Success: the nut within 30 mm of the peg's axis and below 0.87, and the gripper more than 42 mm from its centre (true
while holding the handle).
"""

from __future__ import annotations

import math

from env.robomimic.scripted import (
    CLOSE,
    OPEN,
    Player,
    Point,
    Pose,
    Script,
    ScriptedExpert,
    above,
    at_height,
    wrap,
    yaw_of,
)

_NUT = 9  # first column of the nut's position, then orientation
_BASE = (-0.56, 0.0)
_PEG, _PEG_TOP = (0.23, 0.10), 0.95
_HANDLE = 0.060  # m from the nut's centre
_WRIST = (-1.9, 3.3)  # rad: yaw minus bearing that the last joint reaches, with some margin
_FACES = ((math.pi, 0.0), (-math.pi / 2, 1.0))  # yaw of the nut on the peg, and what it costs to choose it
_MISALIGNED, _MISTURNED = 0.007, 0.15  # m, rad


class _SquarePlayer(Player):
    bases = (_BASE,)

    def nut(self) -> Pose:
        """The nut's centre and the direction of its handle."""
        return self.point(_NUT), yaw_of(*self.row[_NUT + 3 : _NUT + 7])

    def handle(self, radius: float, height: float) -> Point:
        """The point of the handle ``radius`` from the nut's centre, ``height`` above it."""
        (x, y, z), phi = self.nut()
        return x + radius * math.cos(phi), y + radius * math.sin(phi), z + height

    def plan(self) -> tuple[float, float]:
        """Gripper yaw at the grasp, and the turn from there to the peg: the cheapest that the wrist can do."""
        arm, ((x, y, _), phi) = self.arms[0], self.nut()
        best = (math.inf, 0.0, 0.0)
        for face, dislike in _FACES:
            short = wrap(face - phi)
            for grasp in (phi - math.pi, phi, phi + math.pi):
                for turn in (short - math.tau, short, short + math.tau):
                    twists = (_twist(grasp, x, y, phi), _twist(grasp + turn, *_PEG, face))
                    beyond = max(_WRIST[0] - min(twists), max(twists) - _WRIST[1], abs(turn) - 3.3, 0.0)
                    cost = abs(grasp - arm.yaw) + 0.7 * abs(turn) + dislike + 100.0 * beyond
                    best = min(best, (cost + self.rng.expovariate(2.5), grasp, turn))
        return best[1:]

    def script(self, k: int) -> Script:
        self.arms[0].reach = 0.80  # keeps the nut level
        yield from self.arms[0].wait(3)  # the nut settles
        yield from self.attempt()
        while self.retry:
            yield from self.attempt()

    def attempt(self) -> Script:
        """Grasp the handle and thread the nut; ends early when the grasp missed."""
        arm, u = self.arms[0], self.rng.uniform
        yaw, turn = self.plan()
        radius, height, grasp_height = _HANDLE + u(-0.004, 0.006), u(0.06, 0.10), u(0.003, 0.006)
        top, depth = _PEG_TOP + u(0.045, 0.08), u(0.885, 0.925)

        def low() -> Pose:
            return self.handle(radius, grasp_height), yaw

        arm.grasp = OPEN
        yield from arm.hover(lambda: (self.handle(radius, height), yaw), tol=0.015, turn_tol=0.1)
        yield from arm.pause()
        yield from arm.move(low, tol=0.004, turn_tol=0.05, speed=0.6, steps=60, fine=True)
        yield from arm.grip(CLOSE, 8, 12)
        yield from arm.move((at_height(arm.pos, top), yaw), tol=0.04, steps=60)
        if not self.lost(radius):
            yield from self.thread(radius, yaw + turn, self.nut()[1] + turn, top, depth)

    def lost(self, radius: float) -> bool:
        """Whether the nut is not in the grasp."""
        return self.arms[0].distance(self.handle(radius, 0.0)) > 0.04

    def thread(self, radius: float, yaw: float, face: float, top: float, depth: float) -> Script:
        """Carry the held nut to the peg, turned to ``face`` (at about gripper ``yaw``), and lower it there."""
        arm, far = self.arms[0], abs(yaw - self.arms[0].yaw) > 0.9

        def over(z: float, back: float = 0.0) -> Pose:
            """Gripper pose that brings the nut over the peg at height ``z``, ``back`` metres nearer to the base."""
            (nx, ny, nz), phi = self.nut()
            goal = yaw + wrap(face + arm.heading - phi - yaw)
            x, y = _PEG[0] - nx, _PEG[1] - ny
            if z < _PEG_TOP < nz and (math.hypot(x, y) > _MISALIGNED or abs(goal - arm.yaw) > _MISTURNED):
                z = top - 0.01  # not aligned (any more): back up
            return (arm.pos[0] + x - back, arm.pos[1] + y, arm.pos[2] + z - nz), goal

        def lost() -> bool:
            return self.lost(radius)

        if far:  # turn before the arm is stretched out
            yield from arm.move(lambda: over(top, 0.15), tol=0.04, turn_tol=0.5, until=lost)
        yield from arm.move(lambda: over(top), tol=0.012, turn_tol=0.15, steps=150, until=lost)
        yield from arm.pause()
        yield from arm.move(
            lambda: over(depth), 0.0, speed=0.6, steps=120, gain=1.3, fine=True,
            until=lambda: lost() or self.nut()[0][2] < depth + 0.01,
        )  # fmt: skip
        yield from arm.grip(OPEN, 6, 9)
        yield from arm.move((above(arm.pos, self.rng.uniform(0.06, 0.1)), arm.yaw), tol=0.02, steps=30)


def _twist(yaw: float, x: float, y: float, phi: float) -> float:
    """Yaw minus bearing of a gripper that holds the handle of a nut at ``x``, ``y`` turned to ``phi``."""
    x, y = x + _HANDLE * math.cos(phi) - _BASE[0], y + _HANDLE * math.sin(phi) - _BASE[1]
    return yaw - math.atan2(y, x)


class SquareExpert(ScriptedExpert):
    """Observations (n, 23) of Square in their published order -> actions (n, 7)."""

    player, obs_dim = _SquarePlayer, 23
