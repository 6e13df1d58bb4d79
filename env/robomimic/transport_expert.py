"""A scripted expert for Transport. Arm 0 takes the lid off, lifts the hammer out and presents it; arm 1 clears the
trash, takes the hammer in mid-air and puts it into the target bin. What fails is tried again as long as it can be.

Geometry (m): the robots face each other along y, from -0.81 and +0.81. Bins are 0.30 square and 0.15 high, their floor
ends at 0.811, their rim at 0.95: start (0.2, -0.45), target (-0.2, 0.45), trash (0.2, 0.45). The lid's handle is
20 x 80 x 30 mm at z 0.975. The trash is a cube of 40 mm. The hammer's handle is 200 mm long and 30 mm square, turned up
to 30 degrees in the bin, the head at either end; its body's origin is the handle's centre.

What the plan has to know:

* The tables leave a gap, and neither arm reaches the other's table: the hammer changes hands in mid-air near y = 0,
  held 20 to 35 mm behind the handle's centre by arm 0 and 65 to 80 mm ahead of it by arm 1.
* Near the base (0.4 m) the forearm is vertical, a singularity of the wrist, and going down kicks the gripper 30 mm
  sideways. Leaning outwards and a higher gain help; on the way up, leaning would stall the lift.
* The head has 7 mm to the bin's wall: the lift sidesteps to centre the hammer, or it is levered round in the grasp.
* An opened gripper still hooks the head: arm 0 goes back, and arm 1 moves, only when arm 0 has risen over it.
* Rising nearer than 0.38 m to the base drags the gripper to it, and it stays there: the trash is let go farther out.

Success is a moment in which hammer and trash touch the floors of their bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from env.robomimic.scripted import (
    CLOSE,
    OPEN,
    Arm,
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

_HAMMER, _TRASH, _LID, _TARGET_BIN, _TRASH_BIN = 18, 25, 32, 39, 42  # first columns of positions, orientations next
_CLEAR = 1.03  # m: a gripper this high carries trash or hammer over the walls
_HEAD = 0.016  # m from the handle's centre to that of the whole hammer
_LEAN = 0.15  # rad
_INSIDE, _FLOOR = 0.13, 0.86  # m: half width of a bin's inside, and a height below its rim
_HOLD, _SLIP = 0.02, 0.01  # m from the handle's axis: the gripper does not hold it; it holds it by the finger tips
_REACH, _FALLEN = 0.15, 0.75  # m: least |y| at which only the arm of that side reaches, and a height below the tables
_ROOM = 0.08  # m that arm 0 rises over the hammer


class _TransportPlayer(Player):
    bases = ((0.0, -0.81), (0.0, 0.81))

    def script(self, k: int) -> Script:
        if k == 0:
            self.presented = self.taken = self.released = False
            return self.giver(self.arms[0])
        return self.taker(self.arms[1])

    # ------------------------------------------------------------------------------------------- what is where

    def axis(self) -> Point:
        """Unit direction of the hammer's handle, from the body's own axis."""
        x, y, z, w = self.row[_HAMMER + 3 : _HAMMER + 7]
        return 2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)

    def forward(self) -> Point:
        """The same towards arm 1 (+y)."""
        x, y, z = self.axis()
        return (x, y, z) if y > 0 else (-x, -y, -z)

    def handle(self, along: float) -> Point:
        """The point of the handle ``along`` metres towards arm 1 from its centre."""
        return _shift(self.point(_HAMMER), self.forward(), along)

    def grip(self, arm: Arm) -> tuple[float, float]:
        """Where an arm is at the hammer: along the handle (its body's axis) from its centre, and beside it (m)."""
        d, a = _difference(arm.pos, self.point(_HAMMER)), self.axis()
        along = d[0] * a[0] + d[1] * a[1] + d[2] * a[2]
        return along, math.sqrt(max(d[0] * d[0] + d[1] * d[1] + d[2] * d[2] - along * along, 0.0))

    def holds(self, arm: Arm) -> bool:
        """Whether the closed gripper of an arm has the hammer."""
        along, beside = self.grip(arm)
        return beside < _HOLD and abs(along) < 0.1

    def lies(self, side: float) -> bool:
        """Whether the hammer lies where the arm on that side (-1: arm 0, 1: arm 1) reaches it."""
        _, y, z = self.point(_HAMMER)
        return side * y > _REACH and z > _FALLEN

    def inside(self, thing: int, place: int) -> bool:
        """Whether a thing is low in a bin."""
        (x, y, z), (bx, by, _) = self.point(thing), self.point(place)
        return abs(x - bx) < _INSIDE and abs(y - by) < _INSIDE and z < _FLOOR

    # ----------------------------------------------------------------------------------------------- both arms

    def pick(
        self,
        arm: Arm,
        target: Callable[[], Pose],
        lift: float,
        grasp_height: float,
        height: float,
        sidestep: Callable[[], Point] = lambda: (0.0, 0.0, 0.0),
        good: Callable[[], bool] = lambda: True,
        tries: int = 4,
    ) -> Script:
        """Grasp at ``target`` from ``height`` m above and lift to ``lift``; again unless it follows and is ``good``."""

        def low() -> Pose:
            point, yaw = target()
            return above(point, grasp_height), yaw

        def high() -> Pose:
            point, yaw = target()
            return above(point, height), yaw

        for _ in range(tries):
            arm.grasp = OPEN
            yield from arm.hover(high, tol=0.02, turn_tol=0.15)
            yield from arm.pause()
            arm.lean = _LEAN
            yield from arm.move(low, tol=0.006, speed=0.7, steps=70, gain=2.5, fine=True)
            yield from arm.grip(CLOSE, 7, 10)
            arm.lean, start, held = 0.0, arm.pos, _difference(target()[0], arm.pos)
            over = at_height(_shift(start, sidestep(), 1.0), lift)
            yield from arm.move((over, arm.yaw), tol=0.04, steps=60, gain=2.0, speed=0.8)
            if math.dist(_difference(target()[0], arm.pos), held) < 0.03 and good():
                return True
            yield from arm.move((start, arm.yaw), tol=0.02, steps=50)  # put back
        return False

    # ----------------------------------------------------------------------------------------------- arm 0

    def giver(self, arm: Arm) -> Script:
        start = self.point(_LID)
        while math.dist(self.point(_LID)[:2], start[:2]) < 0.2:
            yield from self.uncover(arm)
        while True:
            if self.lies(-1.0) and (yield from self.fetch(arm)):
                yield from self.present(arm)
            yield arm.hold()

    def uncover(self, arm: Arm) -> Script:
        """Take the lid off and lay it on the table beside the bin."""
        u, home, off = self.rng.uniform, math.pi / 2, self.rng.uniform(-0.015, 0.015)

        def lid() -> Pose:
            x, y, z = self.point(_LID)
            return (x, y + off, z), home

        yield from self.pick(arm, lid, lift=u(1.05, 1.09), grasp_height=0.003, height=u(0.05, 0.08))
        x, y = u(-0.22, -0.17), u(-0.47, -0.43)
        yield from arm.move(((x, y, u(1.0, 1.05)), home), tol=0.05, turn_tol=0.3)
        yield from arm.move(((x, y, u(0.85, 0.88)), home), tol=0.015, turn_tol=0.3, steps=60)
        yield from arm.grip(OPEN, 5, 8)
        yield from arm.move((above(arm.pos, u(0.11, 0.15)), home), tol=0.03, steps=30)

    def fetch(self, arm: Arm) -> Script:
        """Lift the hammer out of its bin; true when it is held."""
        u, back = self.rng.uniform, self.rng.uniform(0.02, 0.035)

        def grasp() -> Pose:
            x, y, _ = self.forward()
            return self.handle(-back), math.atan2(y, x)

        def centred() -> Point:
            x, y, z = self.axis()
            return -_HEAD * x, -_HEAD * y, -_HEAD * z

        def firm() -> bool:
            return abs(self.axis()[2]) < 0.5 and self.grip(arm)[1] < _SLIP

        return (
            yield from self.pick(
                arm, grasp, lift=u(1.03, 1.08), grasp_height=0.002, height=u(0.16, 0.19), sidestep=centred, good=firm
            )
        )

    def present(self, arm: Arm) -> Script:
        """Hold the hammer out until arm 1 has it."""
        u, yaw = self.rng.uniform, math.pi / 2 + self.rng.uniform(-0.15, 0.15)
        meet = (u(-0.04, 0.04), -0.055, u(0.99, 1.05))
        yield from arm.hover(lambda: (meet, yaw), tol=0.02, turn_tol=0.1, until=lambda: not self.holds(arm))
        self.presented = True
        yield from arm.wait(until=lambda: self.taken or not self.holds(arm))
        self.presented = False
        if not self.taken:
            return
        yield from arm.wait(self.rng.randint(1, 4))
        yield from arm.grip(OPEN, 6, 8)
        high = above(arm.pos, u(0.10, 0.13))
        yield from arm.move(
            (high, arm.yaw), tol=0.01, steps=40, until=lambda: arm.pos[2] - self.point(_HAMMER)[2] > _ROOM
        )
        self.released = True
        yield from arm.move(((u(-0.1, 0.1), u(-0.40, -0.30), u(1.05, 1.15)), math.pi / 2), tol=0.03)

    # ----------------------------------------------------------------------------------------------- arm 1

    def taker(self, arm: Arm) -> Script:
        u = self.rng.uniform
        while not self.inside(_TRASH, _TRASH_BIN):
            yield from self.clear(arm)
        stand, ahead = (u(-0.05, 0.1), u(0.2, 0.3), u(1.1, 1.18)), u(0.065, 0.08)
        while True:
            arm.grasp, self.taken, self.released = OPEN, False, False
            yield from arm.move((stand, -math.pi / 2), tol=0.03)
            yield from arm.wait(until=lambda: self.presented)
            yield from self.take(arm, ahead)
            if self.taken:
                yield from self.deliver(arm)

    def clear(self, arm: Arm) -> Script:
        """Bring the trash from the target bin to the trash bin."""
        u, home = self.rng.uniform, -math.pi / 2
        yaw = home + wrap(yaw_of(*self.row[_TRASH + 3 : _TRASH + 7]) - home, math.pi / 2)
        lift, height = u(_CLEAR, 1.07), u(0.14, 0.18)
        if not (yield from self.pick(arm, lambda: (self.point(_TRASH), yaw), lift, 0.004, height)):
            return
        x, y, _ = self.point(_TRASH_BIN)
        x, y, high = x + u(-0.03, 0.06), y + u(-0.06, 0.01), u(_CLEAR, 1.06)
        yield from arm.move(((x, y, high), yaw + u(-0.3, 0.3)), tol=0.04, turn_tol=0.5)
        yield from arm.move(((x, y, u(0.93, 1.0)), arm.yaw), tol=0.02, turn_tol=0.5, steps=50)
        yield from arm.grip(OPEN, 6, 9)
        yield from arm.move((at_height(arm.pos, u(_CLEAR, 1.06)), arm.yaw), tol=0.04, steps=40)

    def take(self, arm: Arm, ahead: float) -> Script:
        """Grasp the presented hammer ``ahead`` of its centre, and wait until arm 0 has let go."""

        def grasp(height: float) -> Pose:
            x, y, _ = self.forward()
            return above(self.handle(ahead), height), math.atan2(-y, -x)

        def withdrawn() -> bool:
            return not self.presented

        yield from arm.hover(lambda: grasp(0.10), tol=0.02, turn_tol=0.1, until=withdrawn)
        yield from arm.move(lambda: grasp(0.002), tol=0.006, speed=0.7, steps=80, fine=True, until=withdrawn)
        yield from arm.grip(CLOSE, 8, 10)
        if self.presented and self.holds(arm):
            self.taken = True
            yield from arm.wait(until=lambda: self.released)

    def deliver(self, arm: Arm) -> Script:
        """Carry the hammer to the target bin and let it go there."""
        u = self.rng.uniform
        x, y, z = arm.pos
        yield from arm.move(((x, y + 0.05, z + u(0.05, 0.09)), arm.yaw), tol=0.03, steps=50)
        final, low = -math.pi / 2 + u(-0.25, 0.25), u(0.87, 0.91)

        def over(z: float) -> Pose:
            """Gripper pose that centres the hammer over the bin, its handle at height ``z``."""
            hx, hy, hz = _shift(self.point(_HAMMER), self.axis(), _HEAD)
            bx, by, _ = self.point(_TARGET_BIN)
            return (arm.pos[0] + bx - hx, arm.pos[1] + by - hy, arm.pos[2] + z - hz), final

        def lost() -> bool:
            return not self.holds(arm)

        yield from arm.move(lambda: over(1.03), tol=0.025, turn_tol=0.15, until=lost)
        yield from arm.pause()
        yield from arm.move(lambda: over(low), tol=0.015, turn_tol=0.3, steps=80, until=lost)
        yield from arm.grip(OPEN, 6, 9)
        yield from arm.move((at_height(arm.pos, 1.05), arm.yaw), tol=0.03)


def _shift(point: Point, direction: Point, by: float) -> Point:
    return point[0] + by * direction[0], point[1] + by * direction[1], point[2] + by * direction[2]


def _difference(a: Point, b: Point) -> Point:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


class TransportExpert(ScriptedExpert):
    """Observations (n, 59) of Transport in their published order -> actions (n, 14)."""

    player, obs_dim = _TransportPlayer, 59
