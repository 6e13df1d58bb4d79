"""Rotations of the scripted experts as tuples of three rows of plain floats: on three numbers numpy is several times slower."""

from __future__ import annotations

import math
from collections.abc import Iterable

Vector = tuple[float, float, float]
Rotation = tuple[Vector, Vector, Vector]
Pose = tuple[Vector, Rotation]


def wrap(angle: float, period: float = math.tau) -> float:
    """The same angle in [-period / 2, period / 2)."""
    return (angle + period / 2) % period - period / 2


def rows_of(matrix: Iterable[Iterable[float]]) -> Rotation:
    """A (3, 3) array, or nested sequences."""
    return tuple(tuple(float(x) for x in row) for row in matrix)


def times(a: Rotation, b: Rotation) -> Rotation:
    """a b."""
    (p, q, r), (s, t, u), (v, w, x) = b
    return tuple((i * p + j * s + k * v, i * q + j * t + k * w, i * r + j * u + k * x) for i, j, k in a)


def turned(a: Rotation, v: Vector) -> Vector:
    """a v."""
    x, y, z = v
    return tuple(i * x + j * y + k * z for i, j, k in a)


def transpose(a: Rotation) -> Rotation:
    """The inverse of a rotation."""
    return tuple(zip(*a, strict=True))


def add(a: Vector, b: Vector, scale: float = 1.0) -> Vector:
    """a + scale b."""
    return a[0] + scale * b[0], a[1] + scale * b[1], a[2] + scale * b[2]


def dot(a: Vector, b: Vector) -> float:
    """a . b."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vector, b: Vector) -> Vector:
    """a x b."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def about_y(angle: float) -> Rotation:
    """Rotation about the y axis, rad."""
    c, s = math.cos(angle), math.sin(angle)
    return (c, 0.0, s), (0.0, 1.0, 0.0), (-s, 0.0, c)


def about_z(angle: float) -> Rotation:
    """Rotation about the z axis, rad."""
    c, s = math.cos(angle), math.sin(angle)
    return (c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0)


def about(v: Vector) -> Rotation:
    """The rotation of a rotation vector (rad)."""
    angle = math.sqrt(dot(v, v))
    if angle < 1e-9:
        return (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    x, y, z = (c / angle for c in v)
    c, s = math.cos(angle), math.sin(angle)
    d = 1.0 - c
    return (
        (c + d * x * x, d * x * y - s * z, d * x * z + s * y),
        (d * x * y + s * z, c + d * y * y, d * y * z - s * x),
        (d * x * z - s * y, d * y * z + s * x, c + d * z * z),
    )


def vector_of(a: Rotation) -> Vector:
    """The rotation vector (rad) of a rotation of less than half a turn (near half a turn the axis is poorly known)."""
    (_, b, c), (d, _, f), (g, h, _) = a
    cosine = min(max((a[0][0] + a[1][1] + a[2][2] - 1.0) / 2.0, -1.0), 1.0)
    angle = math.acos(cosine)
    sine = math.sin(angle)
    scale = 0.5 if angle < 1e-6 else angle / (2.0 * max(sine, 1e-6))
    return scale * (h - f), scale * (c - g), scale * (d - b)


def from_quaternion(x: float, y: float, z: float, w: float) -> Rotation:
    """Rotation of a unit quaternion."""
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
