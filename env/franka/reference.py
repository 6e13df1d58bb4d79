"""The reference model: what turns a policy's actions into targets that a robot can be drawn to, smooth at 250 Hz.

robosuite's operational-space controller does not go to the sum of the deltas it is given. At each 20 Hz tick its goal becomes the pose
*achieved* plus the delta, and force pulls there as in a critically damped unit mass (kp = 150): in 50 ms only a part of the way is
travelled. So

    x'' = kp (g - x) - kd x',    kd = 2 sqrt(kp),    g = x + 0.05 m * action at each tick,

and likewise the orientation with 0.5 rad and the error ``sin(angle) * axis``, as robosuite has it. Here x is the model's own pose, never
the measured one, so the stream is continuous. ``couple`` adds what robosuite's arm does beside (``dynamics.py``). Caps on velocity,
acceleration and jerk are laws of braking inside the model: the speed towards a wall is at most what can still be braked, and the
acceleration at most what can be taken back before the speed's cap is reached. Where no cap binds, what remains is the pure model.

Base frame, metres, radians, seconds. One robot's numbers are Python floats (an integration step takes some ten microseconds: numpy would
take a millisecond for vectors of three), a test's thousand robots arrays (B,) per component, through the same lines.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from env.franka.types import DeploymentError, RobotLimits

Vector = tuple[Any, ...]  # components, each a float or an array (B,)

_INFINITE = (math.inf, math.inf)
_MARGIN = (
    0.97,
    0.97,
    0.87,
)  # of the caps, aimed for inside: steps are finite, and floor and directions share one budget
_BRAKE_RATE = 150.0  # 1/s, at which what is left of a speed goes when braking, within the brake's caps
_APPROACH_RATE = 25.0  # 1/s, at which a braking model goes to where the arm is
_TINY = 1e-9
_ONE = SimpleNamespace(
    sqrt=math.sqrt,
    sin=math.sin,
    cos=math.cos,
    atan2=math.atan2,
    least=min,
    most=max,
    where=lambda c, a, b: a if c else b,
)
_MANY = SimpleNamespace(
    sqrt=np.sqrt, sin=np.sin, cos=np.cos, atan2=np.arctan2, least=np.minimum, most=np.maximum, where=np.where
)


@dataclass(frozen=True)
class Caps:
    """Upper bounds of the norms (translation, rotation) of velocity, acceleration and jerk; infinite: none."""

    velocity: tuple[float, float] = _INFINITE
    acceleration: tuple[float, float] = _INFINITE
    jerk: tuple[float, float] = _INFINITE

    def __post_init__(self) -> None:
        for name in ("velocity", "acceleration", "jerk"):
            pair = tuple(float(x) for x in getattr(self, name))
            if len(pair) != 2 or not all(x > 0 for x in pair):
                raise DeploymentError(f"caps.{name}: two positive numbers (translation, rotation), found {pair}.")
            object.__setattr__(self, name, pair)

    def scaled(self, factor: float) -> Caps:
        """All of them times ``factor``."""
        return Caps(*([c * factor for c in pair] for pair in (self.velocity, self.acceleration, self.jerk)))

    def within(self, limits: RobotLimits) -> Caps:
        """Never more than the arm itself allows."""
        pairs = ((getattr(self, k), getattr(limits, k)) for k in ("velocity", "acceleration", "jerk"))
        return Caps(*(tuple(map(min, mine, its)) for mine, its in pairs))


FIRST_RUN = Caps(velocity=(0.25, 0.6), acceleration=(2.5, 6.0), jerk=(50.0, 120.0))
BRAKE = Caps(acceleration=(10.0, 24.0), jerk=(1000.0, 4800.0))  # 0.3 m/s and 2 rad/s are gone within 100 ms


@dataclass(frozen=True)
class ReferenceSettings:
    """The controller that the policy was trained with, and how far its stand-in may go."""

    kp: float = 150.0  # 1/s^2; critically damped
    scale: tuple[float, float] = (0.05, 0.5)  # m and rad of an action of 1
    caps: Caps = field(default_factory=lambda: FIRST_RUN)
    brake: Caps = field(default_factory=lambda: BRAKE)
    leash_force: float = 20.0  # N: the reference is never further from the robot than this force stretches its spring
    leash_angle: float = 0.15  # rad
    coupled: bool = True  # whether it does what robosuite's arm does beside following (``dynamics.py``)
    step: float = 0.002  # s, of the integration, at most


class Reference:
    """Pose, velocity and acceleration of the model, and the goal it is drawn to; of one robot, or of B at once.

    ``position (3,) | (B, 3), quaternion (4,) | (B, 4)``; ``twist (6,) | (B, 6)``.
    """

    def __init__(self, position: np.ndarray, quaternion: np.ndarray, settings: ReferenceSettings | None = None) -> None:
        self.settings = settings or ReferenceSettings()
        self._kd = 2 * math.sqrt(self.settings.kp)
        self.snap(position, quaternion)

    def snap(self, position: np.ndarray, quaternion: np.ndarray) -> None:
        """Be at this pose, at rest, with nowhere to go: what is measured, before a start."""
        self._ops = _ONE if np.ndim(position) == 1 else _MANY
        self._x, self._q = self._parts(position), _unit(self._parts(quaternion), self._ops)
        still = tuple(0.0 * c for c in self._x)
        self._v = self._a = self._w = self._dw = still
        self._coupling: list[list[float]] | None = None
        self._drift: list[float] | None = None
        self.aim(self.position, self.quaternion)

    def copy(self) -> Reference:
        """Another in the same state: to look ahead with."""
        return copy.copy(self)  # its parts are tuples

    def _parts(self, array: np.ndarray) -> Vector:
        array = np.asarray(array, np.float64)
        return tuple(array.tolist()) if array.ndim == 1 else tuple(array[..., i] for i in range(array.shape[-1]))

    goal_quaternion = property(lambda self: self._array(self._goal_q))
    position = property(lambda self: self._array(self._x))
    quaternion = property(lambda self: self._array(self._q))
    twist = property(lambda self: self._array(self._v + self._w))
    acceleration = property(lambda self: self._array(self._a + self._dw))

    def _array(self, parts: Vector) -> np.ndarray:
        return np.array(parts) if self._ops is _ONE else np.stack(parts, -1)

    def goal_of(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The goal that the first six columns of ``action (..., Da)``, in [-1, 1] and base axes, mean at the present pose."""
        shift, turn = self.settings.scale
        parts = self._parts(action)
        position = tuple(x + shift * a for x, a in zip(self._x, parts))
        quaternion = _multiply(_exp(tuple(turn * a for a in parts[3:6]), self._ops), self._q)
        return self._array(position), self._array(quaternion)

    def aim(self, position: np.ndarray, quaternion: np.ndarray) -> None:
        """Go there from now on."""
        self._goal_x, self._goal_q = self._parts(position), self._parts(quaternion)
        self.braking, self._approach = False, 0.0

    def brake(self, position: np.ndarray | None = None, quaternion: np.ndarray | None = None) -> None:
        """Come to rest as fast as the brake's caps allow, and stay; where a pose is given, there: where the arm itself is coming to rest."""
        self.braking = True
        self._goal_x = self._x if position is None else self._parts(position)
        self._goal_q = self._q if quaternion is None else self._parts(quaternion)
        self._approach = 0.0 if position is None else _APPROACH_RATE

    def couple(self, coupling: np.ndarray | None, drift: np.ndarray | None) -> None:
        """Of ``dynamics.coupling``, for the steps to come; None: a unit mass."""
        self._coupling = None if coupling is None else np.asarray(coupling).tolist()
        self._drift = None if drift is None else np.asarray(drift).tolist()

    def advance(
        self,
        seconds: float,
        caps: Caps | None = None,
        low: np.ndarray | None = None,
        high: np.ndarray | None = None,
        ahead: np.ndarray | None = None,
    ) -> None:
        """Let ``seconds`` pass. ``caps``: others than the settings'; ``low, high``: the box that the position never leaves.

        ``ahead``: where its low walls will be; the model brakes before those, too.
        """
        if seconds <= 0:
            return
        n = max(1, math.ceil(seconds / self.settings.step - 1e-6))
        caps = self.settings.brake if self.braking else (caps or self.settings.caps)
        box = None if low is None else (self._parts(low), self._parts(high))
        brake_box = box if ahead is None else (tuple(map(self._ops.most, box[0], self._parts(ahead))), box[1])
        for _ in range(n):
            self._step(seconds / n, caps, box, brake_box)

    def _step(
        self, h: float, caps: Caps, box: tuple[Vector, Vector] | None, before: tuple[Vector, Vector] | None
    ) -> None:
        ops = self._ops
        pull, turn = self._approaching() if self.braking else self._pull()
        self._a = self._limited(pull, self._v, self._a, h, caps, 0, before)
        self._dw = self._limited(turn, self._w, self._dw, h, caps, 1, None)
        self._v = _shorten(tuple(v + h * a for v, a in zip(self._v, self._a)), caps.velocity[0], ops)
        self._w = _shorten(tuple(w + h * a for w, a in zip(self._w, self._dw)), caps.velocity[1], ops)
        self._x = tuple(x + h * v for x, v in zip(self._x, self._v))
        self._q = _unit(_multiply(_exp(tuple(h * w for w in self._w), ops), self._q), ops)
        if box is not None:
            self._keep_in(box)

    def _approaching(self) -> tuple[Vector, Vector]:
        """The velocities at which a braking model goes to its goal."""
        turn = _orientation_error(self._goal_q, self._q, self._ops)
        return (
            tuple(self._approach * (g - x) for g, x in zip(self._goal_x, self._x)),
            tuple(self._approach * e for e in turn),
        )

    def _pull(self) -> tuple[Vector, Vector]:
        """The accelerations the controller asks for, as the arm would answer."""
        kp, kd = self.settings.kp, self._kd
        turn = _orientation_error(self._goal_q, self._q, self._ops)
        force = [kp * (g - x) - kd * v for g, x, v in zip(self._goal_x, self._x, self._v)]
        force += [kp * e - kd * w for e, w in zip(turn, self._w)]
        if self._coupling is not None and self._drift is not None:
            force = [sum(c * f for c, f in zip(row, force)) + b for row, b in zip(self._coupling, self._drift)]
        return tuple(force[:3]), tuple(force[3:])

    def _limited(
        self, pull: Vector, v: Vector, a: Vector, h: float, caps: Caps, k: int, box: tuple[Vector, Vector] | None
    ) -> Vector:
        """The next acceleration of translation (k = 0) or rotation (1), under ``caps`` and before the walls of ``box``.

        ``pull``: the acceleration asked for; when braking, the velocity.
        """
        ops = self._ops
        top_v, top_a, top_j = (m * c[k] for m, c in zip(_MARGIN, (caps.velocity, caps.acceleration, caps.jerk)))
        rate = _BRAKE_RATE if self.braking else self._kd
        if self.braking:
            missing = tuple(p - c for p, c in zip(pull, v))
        elif top_v == top_a == top_j == math.inf:
            return pull
        else:  # the velocity that this pull leads to, what of it is allowed, and how far that is
            wanted = tuple(c + f / rate for c, f in zip(v, pull))
            if box is not None and top_a < math.inf:
                wanted = self._before_walls(wanted, box, top_a / math.sqrt(3), 4 / rate + 2 * top_a / top_j)
            missing = tuple(c - b for c, b in zip(_shorten(wanted, top_v, ops), v))
        target = tuple(rate * c for c in missing)
        if top_j == math.inf:
            return _shorten(target, top_a, ops)
        # the acceleration that can be taken back, at the jerk's cap, by the time nothing is missing any more
        tick = top_j * h / 2
        allowed = ops.sqrt(2 * top_j * _length(missing, ops) + tick * tick) - tick
        target = _shorten(target, ops.least(allowed, top_a), ops)
        change = _shorten(tuple(t - c for t, c in zip(target, a)), top_j * h, ops)
        return tuple(c + d for c, d in zip(a, change))

    def _before_walls(self, wanted: Vector, box: tuple[Vector, Vector], share: float, lag: float) -> Vector:
        """No faster, along each axis, than what can be braked before the wall with that axis' share of the acceleration; beyond it, back."""
        ops = self._ops

        def fastest(distance: Any) -> Any:
            speed = share * (ops.sqrt(lag * lag + 2 / share * abs(distance)) - lag)
            return ops.where(distance < 0, -speed, speed)

        return tuple(
            ops.most(ops.least(c, fastest(high - x)), -fastest(x - low))
            for c, x, low, high in zip(wanted, self._x, *box)
        )

    def _keep_in(self, box: tuple[Vector, Vector]) -> None:
        """The last word on the position: a wall, and no speed into it."""
        ops = self._ops
        kept = [
            (ops.least(ops.most(x, low), high), v, a) for x, v, a, low, high in zip(self._x, self._v, self._a, *box)
        ]
        out = [k[0] != x for k, x in zip(kept, self._x)]
        self._x = tuple(k[0] for k in kept)
        self._v = tuple(ops.where(o, 0.0, k[1]) for o, k in zip(out, kept))
        self._a = tuple(ops.where(o, 0.0, k[2]) for o, k in zip(out, kept))

    def leash(self, position: np.ndarray, quaternion: np.ndarray, stiffness: float) -> Any:
        """Draw the model to within reach of the measured pose; whether (B,) it was out of it.

        The reach is ``leash_force / stiffness`` (N/m) and ``leash_angle``: whatever a robot pushes against, it does not push harder. The
        speed away from the robot goes with it, at once: the leash stands above the caps.
        """
        ops, measured, heading = self._ops, self._parts(position), self._parts(quaternion)
        away = tuple(x - m for x, m in zip(self._x, measured))
        turn = _log(_multiply(self._q, _inverse(heading)), ops)
        far, direction, reach = _beyond(away, self.settings.leash_force / stiffness, ops)
        turned, axis, angle = _beyond(turn, self.settings.leash_angle, ops)
        self._x = tuple(ops.where(far, m + d * reach, x) for m, d, x in zip(measured, direction, self._x))
        self._v, self._a = (_not_along(u, direction, far, ops) for u in (self._v, self._a))
        at_reach = _multiply(_exp(tuple(c * angle for c in axis), ops), heading)
        self._q = tuple(ops.where(turned, c, d) for c, d in zip(at_reach, self._q))
        self._w, self._dw = (_not_along(u, axis, turned, ops) for u in (self._w, self._dw))
        return far | turned


def _length(v: Vector, ops: SimpleNamespace) -> Any:
    return ops.sqrt(sum(c * c for c in v))


def _shorten(v: Vector, longest: Any, ops: SimpleNamespace) -> Vector:
    """``v``, no longer than ``longest``."""
    if isinstance(longest, float) and longest == math.inf:
        return v
    scale = ops.least(1.0, longest / ops.most(_length(v, ops), _TINY))
    return tuple(c * scale for c in v)


def _unit(v: Vector, ops: SimpleNamespace) -> Vector:
    n = _length(v, ops)
    return tuple(c / n for c in v)


def _beyond(v: Vector, reach: float, ops: SimpleNamespace) -> tuple[Any, Vector, float]:
    """Whether ``v`` is longer than ``reach``, its direction, and the length it may have: a hair below the reach."""
    length = _length(v, ops)
    return length > reach, tuple(c / ops.most(length, _TINY) for c in v), reach * (1 - 1e-9)


def _not_along(v: Vector, direction: Vector, where: Any, ops: SimpleNamespace) -> Vector:
    """``v`` without what of it points along ``direction``, where asked."""
    along = ops.where(where, ops.most(sum(c * d for c, d in zip(v, direction)), 0.0), 0.0)
    return tuple(c - along * d for c, d in zip(v, direction))


def _multiply(a: Vector, b: Vector) -> Vector:
    """The rotation ``b`` followed by ``a``."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def _inverse(q: Vector) -> Vector:
    return -q[0], -q[1], -q[2], q[3]


def _exp(r: Vector, ops: SimpleNamespace) -> Vector:
    angle = ops.most(_length(r, ops), _TINY)
    scale = ops.sin(angle / 2) / angle
    return (*(c * scale for c in r), ops.cos(angle / 2))


def _short_way(q: Vector, ops: SimpleNamespace) -> Vector:
    """Of q and -q, the same rotation, the one with w >= 0."""
    sign = ops.where(q[3] < 0, -1.0, 1.0)
    return tuple(c * sign for c in q)


def _log(q: Vector, ops: SimpleNamespace) -> Vector:
    *vector, w = _short_way(q, ops)
    sine = ops.most(_length(tuple(vector), ops), _TINY)
    scale = 2 * ops.atan2(sine, w) / sine
    return tuple(c * scale for c in vector)


def _orientation_error(goal: Vector, q: Vector, ops: SimpleNamespace) -> Vector:
    """sin(angle) * axis of the turn from ``q`` to ``goal``, robosuite's error; of length 1 from a right angle on."""
    *vector, w = _short_way(_multiply(goal, _inverse(q)), ops)
    scale = ops.where(w > math.sqrt(0.5), 2 * w, 1 / ops.most(_length(tuple(vector), ops), _TINY))
    return tuple(c * scale for c in vector)
