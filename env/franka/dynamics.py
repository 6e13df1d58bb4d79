"""What robosuite's Panda does beside following its controller: how translation and rotation pull at each other.

robosuite's operational-space controller weighs force and torque each by its own inertia (``uncouple_pos_ori``), as if the other were
not there. So a torque also moves the grip site, a force also turns it, and a speed bends its own path:

    [x''; w'] = coupling [f; m] + drift,    coupling = J M^-1 J^T diag(L_x, L_w),    drift = J' dq

with unit-mass accelerations f and m, mass matrix M, and L the inverse of the diagonal blocks of J M^-1 J^T. On the diagonal that is 1;
beside it, up to 1 m and 2 rad/m: for actions that turn it is what a unit mass gets most wrong. ``drift`` also holds what slows the arm:
the joints' friction, and the air. For its links' inertias are round numbers, and MuJoCo takes each body for a box of that inertia: a
fingertip of 10 g becomes a cube of 2.4 m that the air holds back with 1 N m at 0.6 rad/s.

All of it is robosuite's model, which is what the policies were trained on, and no real Panda. With it M is MuJoCo's, to rounding.
"""

from __future__ import annotations

import numpy as np

from env.franka.frames import rotation_between
from env.franka.kinematics import grip_site, jacobian, joint_frames

# link by link: mass (kg), centre of mass in the joint's frame (m), inertia about it (kg m^2; of the last: hand and fingers included)
_MASS = (3.0, 3.0, 2.0, 2.0, 2.0, 1.5, 1.52)
_CENTRE = (
    (0.0, 0.0, -0.07),
    (0.0, -0.1, 0.0),
    (0.04, 0.0, -0.05),
    (-0.04, 0.05, 0.0),
    (0.0, 0.0, -0.15),
    (0.06, 0.0, 0.0),
    (0.0, 0.0, 0.146236),
)
_LAST = np.array([[0.219025, 0.019948, 0.0], [0.019948, 0.218986, 0.0], [0.0, 0.0, 0.200104]])
_INERTIA = (*(i * np.eye(3) for i in (0.3, 0.3, 0.2, 0.2, 0.2, 0.1)), _LAST)
_ARMATURE = 5.0 / np.arange(1, 8)  # kg m^2, of the motors
_DAMPING = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])  # N m s/rad
_FRICTION, _STICKS = 0.1, 0.002  # N m, of each joint, reached at some such speed (rad/s)
# what the air sees of the hand, in the frame of the grip site: where (m), and the edges (m) of the box of the body's mass and inertia
_AIR = 1.2  # kg/m^3
_BOXES = (
    ((0.0, 0.0, -0.097), 0.5, (0.05, 0.05, 0.05)),
    ((0.0, 0.0, 0.073), 0.3, (0.09, 0.07, 0.05)),
    ((0.0, 0.0208, 0.0054), 0.1, (0.01, 0.01, 0.005)),
    ((0.0, -0.0208, 0.0054), 0.1, (0.01, 0.01, 0.005)),
    ((0.0, 0.0293, 0.0114), 0.01, (0.01, 0.01, 0.01)),
    ((0.0, -0.0293, 0.0114), 0.01, (0.01, 0.01, 0.01)),
)
_REST = 10.0  # 1/s^2, of the posture
_STEP = 1e-6  # s, to differentiate the Jacobian over


def mass_matrix(q: np.ndarray, armature: np.ndarray | float = _ARMATURE) -> np.ndarray:
    """(7, 7), kg m^2, at joint positions ``q (7,)``; ``armature``: of the motors, robosuite's if not given."""
    poses = joint_frames(q)
    axes, origins = np.stack([p[:3, 2] for p in poses[:7]]), np.stack([p[:3, 3] for p in poses[:7]])
    total = np.diag(np.broadcast_to(armature, 7)).astype(np.float64)
    for i, (mass, centre, inertia) in enumerate(zip(_MASS, _CENTRE, _INERTIA)):
        turn, at = poses[i][:3, :3], poses[i][:3, 3] + poses[i][:3, :3] @ np.array(centre)
        moved, turned = np.zeros((7, 3)), np.zeros((7, 3))
        turned[: i + 1] = axes[: i + 1]
        moved[: i + 1] = np.cross(axes[: i + 1], at - origins[: i + 1])
        total += mass * moved @ moved.T + turned @ turn @ inertia @ turn.T @ turned.T
    return total


def _drag(turn: np.ndarray, twist: np.ndarray) -> np.ndarray:
    """Force and torque (6,) of the air on the hand at orientation ``turn (3, 3)``, moving at ``twist (6,)``: MuJoCo's, of a box."""
    speed, spin = turn.T @ twist[:3], turn.T @ twist[3:]
    force, torque = np.zeros(3), np.zeros(3)
    for at, mass, inertia in _BOXES:
        ix, iy, iz = inertia
        x, y, z = np.sqrt(6 / mass * np.array([iy + iz - ix, ix + iz - iy, ix + iy - iz]))
        v = speed + np.cross(spin, at)
        push = -_AIR / 2 * np.array([y * z, x * z, x * y]) * np.abs(v) * v
        force += push
        torque += np.cross(at, push)
        torque -= _AIR / 64 * np.array([x * (y**4 + z**4), y * (x**4 + z**4), z * (x**4 + y**4)]) * np.abs(spin) * spin
    return np.concatenate([turn @ force, turn @ torque])


def coupling(
    q: np.ndarray, twist: np.ndarray, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``coupling (6, 6)`` and ``drift (6,)`` of an arm at ``q (7,)`` whose grip site moves at ``twist (6,)``; and its ``dq (7,)``.

    Joint velocities are the smallest (in kinetic energy) that give the twist, and the ``own (7,)`` motion that gives none.
    """
    J, spread, inverse = _spread(q)
    weighed = np.zeros((6, 6))
    for block in (slice(0, 3), slice(3, 6)):
        weighed[block, block] = np.linalg.inv(inverse[block, block])
    dq = spread @ np.linalg.solve(inverse, twist) + (0.0 if own is None else own)
    slowed = _DAMPING * dq + _FRICTION * dq / (np.abs(dq) + _STICKS)
    drift = (jacobian(q + _STEP * dq) - J) @ dq / _STEP - spread.T @ slowed
    return inverse @ weighed, drift + inverse @ _drag(joint_frames(q)[-1][:3, :3], twist), dq


class SuiteArm:
    """The posture that robosuite's arm would have by now: its redundant joint drifts, and that bends the hand's path, too.

    robosuite draws the joints to the ``rest`` they had at the start by 10 (rest - q) - 2 sqrt(10) dq, in the null space of the hand.
    Begun at ``q (7,)`` measured; then ``update`` once per action tick.
    """

    def __init__(self, q: np.ndarray) -> None:
        self.rest = np.array(q, np.float64)
        self.at(q)

    def at(self, q: np.ndarray) -> None:
        """It is there, at rest; what it is drawn to stays."""
        self.q, self._own = np.array(q, np.float64), np.zeros(7)

    def update(
        self, position: np.ndarray, quaternion: np.ndarray, twist: np.ndarray, seconds: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """``coupling (6, 6)`` and ``drift (6,)``, ``seconds`` after the last, of a hand that by now is there and moves so."""
        there = grip_site(self.q)
        moved = np.concatenate([position - there.position, rotation_between(there.quaternion, quaternion)])
        _, spread, inverse = _spread(self.q)
        self.q = self.q + spread @ np.linalg.solve(inverse, moved) + seconds * self._own
        J, spread, inverse = _spread(self.q)
        task = spread @ np.linalg.solve(inverse, twist)
        free = np.eye(7) - spread @ np.linalg.solve(inverse, J)  # the null space, in the metric of the inertia
        pull = _REST * (self.rest - self.q) - 2 * np.sqrt(_REST) * (task + self._own)
        self._own = free @ (self._own + seconds * pull)
        return coupling(self.q, twist, self._own)[:2]


def _spread(q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """J (6, 7), M^-1 J^T (7, 6), and J M^-1 J^T (6, 6) kept from being singular."""
    J = jacobian(q)
    spread = np.linalg.solve(mass_matrix(q), J.T)
    return J, spread, J @ spread + 1e-9 * np.eye(6)
