"""Poses as the published observations have them, for nopython kernels. Quaternions are (x, y, z, w), w >= 0 where noted."""

from __future__ import annotations

import math

import numba

from env.engine import osc
from env.engine.library import CONTACT_GEOMS, CONTACT_STRIDE, NCON, SITE_XPOS, XPOS, XQUAT, floats, int32s


@numba.njit
def write_upright_quaternion(h, body, out):
    """A body's orientation with w >= 0: the sign robosuite's ``mat2quat`` chooses, where ``body_xquat`` keeps its own."""
    wxyz = floats(h[XQUAT] + 32 * body, 4)
    sign = -1.0 if wxyz[0] < 0.0 else 1.0
    for r in range(3):
        out[r] = sign * wxyz[1 + r]
    out[3] = sign * wxyz[0]


@numba.njit
def relative_pose(position, quaternion, arm, out):
    """out (7,): an object's position (m) and orientation (w >= 0) in the frame of the gripper.

    ``position`` (3,) and ``quaternion`` (4,) are the object's, ``arm`` the first seven numbers of ``osc.observe_arm``: the
    frame's origin is the grip site, its axes are the hand body's.
    """
    x, y, z, w = arm[3], arm[4], arm[5], arm[6]
    scale = 2.0 / (x * x + y * y + z * z + w * w)
    a, b, c = position[0] - arm[0], position[1] - arm[1], position[2] - arm[2]
    # R^T d, from the quaternion of R
    out[0] = (1 - scale * (y * y + z * z)) * a + scale * (x * y + w * z) * b + scale * (x * z - w * y) * c
    out[1] = scale * (x * y - w * z) * a + (1 - scale * (x * x + z * z)) * b + scale * (y * z + w * x) * c
    out[2] = scale * (x * z + w * y) * a + scale * (y * z - w * x) * b + (1 - scale * (x * x + y * y)) * c
    p, q, r, s = quaternion[0], quaternion[1], quaternion[2], quaternion[3]
    rx = w * p - x * s - y * r + z * q  # conj(gripper) * object
    ry = w * q + x * r - y * s - z * p
    rz = w * r - x * q + y * p - z * s
    rw = w * s + x * p + y * q + z * r
    norm = math.sqrt(rx * rx + ry * ry + rz * rz + rw * rw)
    norm = -norm if rw < 0.0 else norm
    out[3], out[4], out[5], out[6] = rx / norm, ry / norm, rz / norm, rw / norm


@numba.njit
def observe_arm_and_object(h, ids, body, out):
    """out (23,): arm 0 (``osc.observe_arm``), a body's position (m) and orientation, and both in the gripper's frame."""
    osc.observe_arm(h, ids, 0, out)
    position = floats(h[XPOS] + 24 * body, 3)
    for r in range(3):
        out[9 + r] = position[r]
    osc.write_quaternion(h, body, out[12:])
    relative_pose(position, out[12:], out, out[16:])


@numba.njit
def let_go(h, ids, body):
    """Whether the gripper counts as away from a body: robosuite's reaching reward, 1 - tanh(10 d), is below 0.6."""
    grip = floats(h[SITE_XPOS] + 24 * ids[osc.FIRST_ARM], 3)
    return 1.0 - math.tanh(10.0 * distance_to_body(h, body, grip)) < 0.6


@numba.njit
def distance_to_body(h, body, point):
    """Metres from ``point`` (3,) to the origin of a body."""
    position, s = floats(h[XPOS] + 24 * body, 3), 0.0
    for r in range(3):
        s += (point[r] - position[r]) * (point[r] - position[r])
    return math.sqrt(s)


@numba.njit
def touching(h, groups, first, second):
    """Whether a geom of group ``first`` touches one of group ``second``; ``groups`` (ngeom,) holds each geom's group."""
    n = int32s(h[NCON], 1)[0]
    for i in range(n):
        pair = int32s(h[CONTACT_GEOMS] + CONTACT_STRIDE * i, 2)
        if pair[0] < 0 or pair[1] < 0:  # a flex, not a geom
            continue
        a, b = groups[pair[0]], groups[pair[1]]
        if (a == first and b == second) or (a == second and b == first):
            return True
    return False
