"""How Furniture-Bench moves its Panda (``diffik``), for nopython kernels: one step of inverse kinematics per control step, joint PD that
follows it slowly (about two fifths of the way within the step).

    q_target = q + J^+ [goal - position ; log(R_goal R^T)],   J^+ the least-squares inverse of the hand's 6 x 7 Jacobian.

A goal is absolute: position (m, robot frame), the first two *rows* of the rotation, orthonormalised as pytorch3d does it, and the
gripper, of which only the sign counts, and not even that where it is smaller than ``GRIP_MARGIN``.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from env.engine.library import (
    CTRL,
    DATA,
    MODEL,
    QPOS,
    QVEL,
    SITE_XMAT,
    SITE_XPOS,
    _address,
    _int32,
    _symbol,
    floats,
    mj_jac_site,
)
from env.engine.osc import N_JOINTS, cholesky, cholesky_solve

GRIP_MARGIN, GRIPPER_FORCE = 0.019, 13.0  # N per finger
_SMALL = 1e-9
mj_kinematics = _symbol("mj_kinematics", _address, _address)
mj_com_pos = _symbol("mj_comPos", _address, _address)


@numba.njit
def refresh(h):
    """Poses and what Jacobians are made of, for the present ``qpos`` (``mj_step`` leaves those of before its integration)."""
    mj_kinematics(h[MODEL], h[DATA])
    mj_com_pos(h[MODEL], h[DATA])


@numba.njit
def rotation_from_rows(rows, out):
    """Six numbers -> rotation ``out`` (3, 3) with them as first two rows, orthonormalised (Gram-Schmidt). False: they span no plane."""
    first = math.sqrt(rows[0] * rows[0] + rows[1] * rows[1] + rows[2] * rows[2])
    if not first > _SMALL:
        return False
    along = 0.0
    for c in range(3):
        out[0, c] = rows[c] / first
        along += out[0, c] * rows[3 + c]
    second = 0.0
    for c in range(3):
        out[1, c] = rows[3 + c] - along * out[0, c]
        second += out[1, c] * out[1, c]
    second = math.sqrt(second)
    if not second > _SMALL:
        return False
    for c in range(3):
        out[1, c] /= second
    for c in range(3):
        a, b = (c + 1) % 3, (c + 2) % 3
        out[2, c] = out[0, a] * out[1, b] - out[0, b] * out[1, a]
    return True


@numba.njit
def rotation_error(goal, now, out):
    """Rotation vector (rad, world) of ``goal now^T`` -> ``out`` (3,), through the quaternion: exact up to half a turn."""
    m = np.zeros((3, 3))
    for r in range(3):
        for c in range(3):
            m[r, c] = goal[r, 0] * now[c, 0] + goal[r, 1] * now[c, 1] + goal[r, 2] * now[c, 2]
    q, trace = np.zeros(4), m[0, 0] + m[1, 1] + m[2, 2]
    largest = 0
    for i in range(3):
        if m[i, i] > (trace if largest == 0 else m[largest - 1, largest - 1]):
            largest = i + 1
    if largest == 0:
        q[0] = 1.0 + trace
        for i in range(3):
            j, k = (i + 1) % 3, (i + 2) % 3
            q[1 + i] = m[k, j] - m[j, k]
    else:
        i = largest - 1
        j, k = (i + 1) % 3, (i + 2) % 3
        q[0], q[1 + i] = m[k, j] - m[j, k], 1.0 + m[i, i] - m[j, j] - m[k, k]
        q[1 + j], q[1 + k] = m[j, i] + m[i, j], m[k, i] + m[i, k]
    size = math.sqrt(q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    scale = 0.0
    if size > _SMALL * abs(q[0]):
        scale = 2.0 * math.atan2(size, abs(q[0])) / math.copysign(size, q[0])
    for i in range(3):
        out[i] = scale * q[1 + i]


@numba.njit
def hand_jacobian(h, site, n_v, whole, out):
    """Jacobian (6, 7) of the hand -> ``out``; the arm's joints are the model's first. ``whole`` (6, n_v) is scratch."""
    mj_jac_site(h[MODEL], h[DATA], whole.ctypes.data, whole.ctypes.data + 8 * 3 * n_v, _int32(site))
    for r in range(6):
        for i in range(N_JOINTS):
            out[r, i] = whole[r, i]


@numba.njit
def joint_step(jacobian, error, out):
    """The shortest ``out`` (7,) with ``jacobian out = error`` (6,); directions the arm cannot move in are left out."""
    product, factor, solved = np.zeros((6, 6)), np.zeros((6, 6)), np.zeros(6)
    for r in range(6):
        for c in range(6):
            s = 0.0
            for i in range(N_JOINTS):
                s += jacobian[r, i] * jacobian[c, i]
            product[r, c] = s
    cholesky(product, 0, 6, factor)
    cholesky_solve(factor, 6, error, solved)
    for i in range(N_JOINTS):
        s = 0.0
        for r in range(6):
            s += jacobian[r, i] * solved[r]
        out[i] = s


@numba.njit
def command(h, site, n_v, action, own):
    """Targets of arm and gripper for one control step, from an action (10,); ``own`` (1,) is the gripper's last sign."""
    refresh(h)
    qpos, ctrl = floats(h[QPOS], N_JOINTS), floats(h[CTRL], N_JOINTS + 2)
    position, matrix = floats(h[SITE_XPOS] + 24 * site, 3), floats(h[SITE_XMAT] + 72 * site, 9).reshape(3, 3)
    goal, error, step = np.zeros((3, 3)), np.zeros(6), np.zeros(N_JOINTS)
    jacobian = np.zeros((6, N_JOINTS))
    if rotation_from_rows(action[3:9], goal):
        rotation_error(goal, matrix, error[3:])
    for r in range(3):
        error[r] = min(max(action[r], -1.0), 1.0) - position[r]
    hand_jacobian(h, site, n_v, np.zeros((6, n_v)), jacobian)
    joint_step(jacobian, error, step)
    for i in range(N_JOINTS):
        ctrl[i] = qpos[i] + step[i]
    if abs(action[9]) > GRIP_MARGIN:
        own[0] = math.copysign(1.0, action[9])
    ctrl[N_JOINTS] = ctrl[N_JOINTS + 1] = -GRIPPER_FORCE * own[0]


@numba.njit
def observe_arm(h, site, n_v, out):
    """out (16,): position, rotation rows, velocity (m/s), angular velocity (rad/s), gripper width (m); poses must be fresh."""
    position, matrix = floats(h[SITE_XPOS] + 24 * site, 3), floats(h[SITE_XMAT] + 72 * site, 9)
    qpos, qvel, jacobian = floats(h[QPOS], N_JOINTS + 2), floats(h[QVEL], N_JOINTS), np.zeros((6, N_JOINTS))
    for i in range(3):
        out[i] = position[i]
    for i in range(6):
        out[3 + i] = matrix[i]
    hand_jacobian(h, site, n_v, np.zeros((6, n_v)), jacobian)
    for r in range(6):
        s = 0.0
        for i in range(N_JOINTS):
            s += jacobian[r, i] * qvel[i]
        out[9 + r] = s
    out[15] = qpos[N_JOINTS] + qpos[N_JOINTS + 1]
