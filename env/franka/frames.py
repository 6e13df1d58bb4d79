"""Frames and rotations: the world's and the robot's base, the flange and the grip site; quaternions are (x, y, z, w).

All functions broadcast over leading dimensions. ``O`` is the base frame, ``F`` the flange, ``NE`` the nominal end effector (the stock
hand's TCP, 103.4 mm in front of the flange and turned by -45 degrees), ``EE`` what the robot is told is its end effector: the *grip
site* of robosuite, on which the policies are trained, 6.9 mm behind the nominal end effector (measured; spec 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SMALL = 1e-12


def _pose(x: float, y: float, z: float, yaw: float = 0.0) -> np.ndarray:
    """A homogeneous (4, 4) of a translation and a turn about z."""
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:3, 3] = x, y, z
    return pose


NOMINAL_IN_FLANGE = _pose(0.0, 0.0, 0.1034, -np.pi / 4)  # F_T_NE
GRIP_SITE_IN_NOMINAL = _pose(0.0, 0.0, -0.0069)  # NE_T_EE: what set_EE is given (column by column)
GRIP_SITE_IN_FLANGE = NOMINAL_IN_FLANGE @ GRIP_SITE_IN_NOMINAL  # F_T_EE
# fingertips in the frame of the grip site: beyond it along z, to both sides along y (where the fingers move)
FINGERTIP_DEPTH = 0.016
FINGERTIP_HALF_THICKNESS = 0.011  # along x


def _columns(a: np.ndarray) -> tuple[np.ndarray, ...]:
    """The components of vectors or quaternions (..., n)."""
    a = np.asarray(a, np.float64)
    return tuple(a[..., i] for i in range(a.shape[-1]))


def _joined(columns: tuple[np.ndarray, ...]) -> np.ndarray:
    """Their inverse; numpy's ``stack`` takes ten times as long for single ones."""
    if np.ndim(columns[0]) == 0 == np.ndim(columns[-1]):
        return np.array(columns)
    return np.stack(np.broadcast_arrays(*columns), -1)


def quat_to_matrix(q: np.ndarray) -> np.ndarray:
    """Unit quaternions (..., 4) -> rotation matrices (..., 3, 3); others are normalised first."""
    q = np.asarray(q, np.float64)
    x, y, z, w = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def matrix_to_quat(m: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) -> unit quaternions (..., 4) with w >= 0."""
    m = np.asarray(m, np.float64)
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # four times the outer product q q^T: its longest row is the best conditioned multiple of q (Bar-Itzhack)
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    rows = (
        (1 + m00 - m11 - m22, xy, xz, wx),
        (xy, 1 - m00 + m11 - m22, yz, wy),
        (xz, yz, 1 - m00 - m11 + m22, wz),
        (wx, wy, wz, 1 + m00 + m11 + m22),
    )
    outer = np.stack([np.stack(row, -1) for row in rows], -2)
    best = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), -1)
    q = np.take_along_axis(outer, best[..., None, None], -2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[..., 3:] < 0, -q, q)


def quat_multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rotation ``b`` followed by ``a``: (..., 4)."""
    ax, ay, az, aw = _columns(a)
    bx, by, bz, bw = _columns(b)
    product = (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )
    return _joined(product)


def quat_inverse(q: np.ndarray) -> np.ndarray:
    """Of unit quaternions (..., 4)."""
    return np.asarray(q, np.float64) * np.array([-1.0, -1.0, -1.0, 1.0])


def quat_rotate(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Vectors (..., 3), turned by unit quaternions (..., 4)."""
    x, y, z, w = _columns(q)
    a, b, c = _columns(v)
    ta, tb, tc = 2 * (y * c - z * b), 2 * (z * a - x * c), 2 * (x * b - y * a)
    return _joined((a + w * ta + y * tc - z * tb, b + w * tb + z * ta - x * tc, c + w * tc + x * tb - y * ta))


def exp_quat(rotation_vector: np.ndarray) -> np.ndarray:
    """Rotation vectors (..., 3), radians about their own direction -> unit quaternions (..., 4)."""
    r = np.asarray(rotation_vector, np.float64)
    angle = np.linalg.norm(r, axis=-1, keepdims=True)
    half = angle / 2
    scale = np.where(angle < 1e-8, 0.5, np.sin(half) / np.maximum(angle, _SMALL))
    return np.concatenate([r * scale, np.cos(half)], -1)


def log_quat(q: np.ndarray) -> np.ndarray:
    """Unit quaternions (..., 4) -> rotation vectors (..., 3) of at most half a turn."""
    q = np.asarray(q, np.float64)
    q = np.where(q[..., 3:] < 0, -q, q)
    sine = np.linalg.norm(q[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, q[..., 3:])
    return q[..., :3] * np.where(sine < 1e-8, 2.0, angle / np.maximum(sine, _SMALL))


def rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rotation vector (..., 3), of the common frame, that turns ``a`` into ``b``: ``exp(r) a = b``."""
    return log_quat(quat_multiply(b, quat_inverse(a)))


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Radians (...) between two orientations."""
    return np.linalg.norm(rotation_between(a, b), axis=-1)


def slerp(a: np.ndarray, b: np.ndarray, s: np.ndarray | float) -> np.ndarray:
    """From ``a`` (s = 0) to ``b`` (s = 1) on the shorter way, at constant speed: (..., 4)."""
    return quat_multiply(exp_quat(rotation_between(a, b) * np.asarray(s)[..., None]), a)


def same_sign(q: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
    """``q (4,)`` or ``-q``, the same rotation: whichever is closer to ``previous``; with w >= 0 where there is none."""
    q = np.asarray(q, np.float64)
    return -q if (q[3] < 0 if previous is None else np.dot(q, previous) < 0) else q


@dataclass(frozen=True)
class Transform:
    """Where one frame is in another: ``x_there = rotate(quaternion, x_here) + position``."""

    position: np.ndarray
    quaternion: np.ndarray

    @classmethod
    def from_matrix(cls, m: np.ndarray) -> Transform:
        """Of a homogeneous (4, 4)."""
        return cls(np.array(m[:3, 3], np.float64), matrix_to_quat(m[:3, :3]))

    def matrix(self) -> np.ndarray:
        m = np.eye(4)
        m[:3, :3], m[:3, 3] = quat_to_matrix(self.quaternion), self.position
        return m

    def __matmul__(self, other: Transform) -> Transform:
        return Transform(self.point(other.position), quat_multiply(self.quaternion, other.quaternion))

    def inverse(self) -> Transform:
        q = quat_inverse(self.quaternion)
        return Transform(-quat_rotate(q, self.position), q)

    def point(self, x: np.ndarray) -> np.ndarray:
        """Points (..., 3)."""
        return quat_rotate(self.quaternion, x) + self.position

    def vector(self, v: np.ndarray) -> np.ndarray:
        """Directions, velocities, rotation vectors (..., 3): turned, not moved."""
        return quat_rotate(self.quaternion, v)

    def orientation(self, q: np.ndarray) -> np.ndarray:
        """Orientations (..., 4)."""
        return quat_multiply(self.quaternion, q)


IDENTITY = Transform(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]))
# robosuite's table-top tasks: where the base stands in the world of their observations
SUITE_BASE = Transform(np.array([-0.56, 0.0, 0.912]), np.array([0.0, 0.0, 0.0, 1.0]))


def flange_to_grip_site(flange: Transform) -> Transform:
    """The grip site's pose where the flange's is known, both in the base frame."""
    return flange @ _GRIP


def grip_site_to_flange(grip: Transform) -> Transform:
    """The other way round."""
    return grip @ _GRIP_INVERSE


_GRIP = Transform.from_matrix(GRIP_SITE_IN_FLANGE)
_GRIP_INVERSE = _GRIP.inverse()


def lowest_fingertip(quaternion: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """How far (...) above the grip site, along the base's z, the lowest corner of the two fingertips is (negative: below it).

    Each hand's orientation is ``quaternion (..., 4)``, its fingers ``width`` metres apart.
    """
    x, y, z, w = _columns(quaternion)
    third_row = 2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)  # of the rotation matrix
    sides = np.abs(third_row[0]) * FINGERTIP_HALF_THICKNESS + np.abs(third_row[1]) * np.asarray(width) / 2
    return third_row[2] * FINGERTIP_DEPTH - sides
