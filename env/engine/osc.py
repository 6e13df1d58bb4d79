"""Operational-space control of 7-joint arms with parallel grippers, as robosuite 1.5.2 does it (Khatib 1987), for
nopython kernels.

An arm's joint torques are, with the task Jacobian J (6 x 7), mass matrix M and Lambda = (J M^-1 J^T)^-1,

    tau = J^T [Lambda_pos F_pos ; Lambda_ori F_ori] + bias + N^T M z,      z = kp_0 (q_0 - q) - 2 sqrt(kp_0) dq,
    F = kp * (goal - pose) - 2 sqrt(kp) * velocity,                        N^T M z = M z - J^T Lambda J z,

so one Cholesky chain (M = L L^T, W = L^-1 J^T, W^T W = Lambda^-1) replaces robosuite's inverses and pseudo-inverses.
The goal is "pose reached + delta" at every control step, in the world frame; units are metres, radians, N m.

What parity with robosuite needs and nobody would guess (each has a test in ``tests/env/test_parity.py``): the first
substep of an episode uses the mass matrix from when the controller was built, fingers still shut; the rotation delta
passes through float32; of the gripper's action only the sign counts.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from env.engine.library import (
    CTRL,
    CTRLRANGE,
    DATA,
    MODEL,
    QFRC_BIAS,
    QM,
    QPOS,
    QVEL,
    SITE_XMAT,
    SITE_XPOS,
    XQUAT,
    _int32,
    floats,
    mj_full_m,
    mj_jac_site,
    mj_step1,
    mj_step2,
)

N_JOINTS = 7
NULL_KP = 10.0  # robosuite.utils.control_utils.nullspace_torques
_PIVOT = 1e-13  # a pivot below this share of its diagonal is a direction the arm cannot move in

# ids: [number of arms, substeps, nv, nu], then per arm
#      [grip site, hand body, first qpos, first dof, first ctrl, first finger's qpos, first finger's ctrl]
N_ARM_IDS, FIRST_ARM = 7, 4
# facts: [stable limit, kp, position scale (m), rotation scale (rad), gripper speed]
KP, POSITION_SCALE, ROTATION_SCALE, GRIPPER_SPEED, N_ARM_FACTS = 1, 2, 3, 4, 5
# memory: [use the old mass matrix], then per arm [initial joints 7, gripper 2, old mass matrix 49]
STALE, INITIAL, GRIPPER, MASS = 0, 0, N_JOINTS, N_JOINTS + 2
N_ARM_MEMORY = N_JOINTS + 2 + N_JOINTS * N_JOINTS


def memory_size(n_arms: int) -> int:
    """Floats of controller state per simulation."""
    return 1 + n_arms * N_ARM_MEMORY


def first_task_id(n_arms: int) -> int:
    """Where a task's own entries begin in ``ids``."""
    return FIRST_ARM + n_arms * N_ARM_IDS


@numba.njit
def rotation_delta(v, out):
    """Axis-angle ``v`` (3,) -> rotation matrix ``out`` (3, 3), rounded through float32 like robosuite's."""
    angle = math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    q = np.zeros(4, np.float32)  # w, x, y, z
    q[0] = 1.0
    if angle > 0.0:
        q[0] = math.cos(angle / 2.0)
        for i in range(3):
            q[1 + i] = v[i] / angle * math.sin(angle / 2.0)
    scale = math.sqrt(2.0 / np.dot(q, q))  # np.dot, because the rounding of BLAS decides the last bit
    for i in range(4):
        q[i] = np.float32(q[i] * scale)
    p = np.zeros((4, 4), np.float32)
    for i in range(4):
        for j in range(4):
            p[i, j] = q[i] * q[j]
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        out[i, i] = 1.0 - p[min(j, k) + 1, min(j, k) + 1] - p[max(j, k) + 1, max(j, k) + 1]
        out[i, j] = p[i + 1, j + 1] - p[k + 1, 0]
        out[j, i] = p[i + 1, j + 1] + p[k + 1, 0]


@numba.njit
def cholesky(a, first, n, out):
    """Lower factor of ``a[first:first+n, first:first+n]``; dependent directions get an infinite pivot, so that
    solving ignores them.
    """
    for i in range(n):
        for j in range(i + 1):
            s = a[first + i, first + j]
            for k in range(j):
                s -= out[i, k] * out[j, k]
            if i != j:
                out[i, j] = s / out[j, j]
            elif s > _PIVOT * a[first + i, first + i]:
                out[i, i] = math.sqrt(s)
            else:
                out[i, i] = np.inf


@numba.njit
def cholesky_solve(factor, n, b, x):
    """x = (L L^T)^-1 b for the lower ``factor``'s leading n x n block."""
    for i in range(n):
        s = b[i]
        for k in range(i):
            s -= factor[i, k] * x[k]
        x[i] = s / factor[i, i]
    for i in range(n - 1, -1, -1):
        s = x[i]
        for k in range(i + 1, n):
            s -= factor[k, i] * x[k]
        x[i] = s / factor[i, i]


@numba.njit
def inverse_inertia(jacobian, mass, w, out):
    """out = J M^-1 J^T (6, 6), by W = L^-1 J^T with M = L L^T."""
    factor, half = w[0], w[1]
    cholesky(mass, 0, N_JOINTS, factor)
    for c in range(6):
        for i in range(N_JOINTS):
            s = jacobian[c, i]
            for k in range(i):
                s -= factor[i, k] * half[k, c]
            half[i, c] = s / factor[i, i]
    for a in range(6):
        for b in range(a + 1):
            s = 0.0
            for k in range(N_JOINTS):
                s += half[k, a] * half[k, b]
            out[a, b] = s
            out[b, a] = s


@numba.njit
def pose_force(kp, velocity, position, rotation, goal_position, goal_rotation, out):
    """PD force (6,) towards the goal; the orientation error is half the sum of the cross products of current and goal
    axes.
    """
    kd = 2.0 * math.sqrt(kp)
    for r in range(3):
        out[r] = kp * (goal_position[r] - position[r]) - kd * velocity[r]
        i, j = (r + 1) % 3, (r + 2) % 3
        s = 0.0
        for c in range(3):
            s += rotation[i, c] * goal_rotation[j, c] - rotation[j, c] * goal_rotation[i, c]
        out[3 + r] = kp * (0.5 * s) - kd * velocity[3 + r]


@numba.njit
def arm_torques(kp, q, dq, q0, bias, jacobian, mass, position, rotation, goal_position, goal_rotation, w, out):
    """Joint torques ``out`` (7,) in N m; see the module docstring. ``w`` is ``workspace()``."""
    inertia, full, ori, velocity, force, wrench, null, z = w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9]
    inverse_inertia(jacobian, mass, w, inertia)
    for i in range(N_JOINTS):
        z[i] = NULL_KP * (q0[i] - q[i]) - 2.0 * math.sqrt(NULL_KP) * dq[i]
    for a in range(6):
        s, moved = 0.0, 0.0
        for i in range(N_JOINTS):
            s += jacobian[a, i] * dq[i]
            moved += jacobian[a, i] * z[i]
        velocity[a] = s
        null[a] = moved
    pose_force(kp, velocity, position, rotation, goal_position, goal_rotation, force)
    cholesky(inertia, 0, 6, full)
    cholesky_solve(full, 3, force, wrench)  # the leading 3 x 3 factor is the factor of the position block
    cholesky(inertia, 3, 3, ori)
    cholesky_solve(ori, 3, force[3:], wrench[3:])
    cholesky_solve(full, 6, null, velocity)
    for i in range(N_JOINTS):
        s = bias[i]
        for k in range(N_JOINTS):
            s += mass[i, k] * z[k]
        for a in range(6):
            s += jacobian[a, i] * (wrench[a] - velocity[a])
        out[i] = s


@numba.njit
def workspace():
    """Scratch arrays of ``arm_torques``."""
    return (
        np.zeros((7, 7)), np.zeros((7, 6)), np.zeros((6, 6)), np.zeros((6, 6)), np.zeros((3, 3)),
        np.zeros(6), np.zeros(6), np.zeros(6), np.zeros(6), np.zeros(7),
    )  # fmt: skip


@numba.njit
def _clip(x: float, low: float, high: float) -> float:
    return min(high, max(low, x))


@numba.njit
def set_goal(facts, action, position, rotation, gripper, delta, turn, goal_position, goal_rotation):
    """The goal of one arm for one control step, from its 7 actions, each in [-1, 1]; moves ``gripper`` (2,) by the
    sign of the last.
    """
    for r in range(3):
        goal_position[r] = position[r] + _clip(action[r], -1.0, 1.0) * facts[POSITION_SCALE]
        delta[r] = _clip(action[3 + r], -1.0, 1.0) * facts[ROTATION_SCALE]
    rotation_delta(delta, turn)
    for r in range(3):
        for c in range(3):
            goal_rotation[r, c] = (
                turn[r, 0] * rotation[0, c] + turn[r, 1] * rotation[1, c] + turn[r, 2] * rotation[2, c]
            )
    change = facts[GRIPPER_SPEED] * np.sign(action[6])
    gripper[0] = _clip(gripper[0] - change, -1.0, 1.0)
    gripper[1] = _clip(gripper[1] + change, -1.0, 1.0)


@numba.njit
def write_controls(ctrl, limits, first, values, n):
    """ctrl[first : first + n] = values, clipped to the actuators' ranges."""
    for i in range(n):
        ctrl[first + i] = _clip(values[i], limits[2 * (first + i)], limits[2 * (first + i) + 1])


@numba.njit
def control_arms(h, memory, ids, facts, action):
    """One control step of all arms of one simulation: substeps x (mj_step1, torques, mj_step2). action (7 * number of
    arms,).
    """
    n_arms, nv, nu = ids[0], ids[2], ids[3]
    jac, full_mass, jacobian, mass = (
        np.zeros((6, nv)),
        np.zeros((nv, nv)),
        np.zeros((6, N_JOINTS)),
        np.zeros((N_JOINTS, N_JOINTS)),
    )
    rotation, turn, delta, torque, fingers = (
        np.zeros((3, 3)),
        np.zeros((3, 3)),
        np.zeros(3),
        np.zeros(N_JOINTS),
        np.zeros(2),
    )
    goal_position, goal_rotation, w = np.zeros((n_arms, 3)), np.zeros((n_arms, 3, 3)), workspace()
    ctrl, limits = floats(h[CTRL], nu), floats(h[CTRLRANGE], 2 * nu)
    for k in range(ids[1]):
        mj_step1(h[MODEL], h[DATA])
        mj_full_m(h[MODEL], full_mass.ctypes.data, h[QM])
        for arm in range(n_arms):
            arm_ids, own = ids[FIRST_ARM + N_ARM_IDS * arm :], memory[1 + N_ARM_MEMORY * arm :]
            site, q_at, dof = arm_ids[0], arm_ids[2], arm_ids[3]
            mj_jac_site(h[MODEL], h[DATA], jac.ctypes.data, jac.ctypes.data + 8 * 3 * nv, _int32(site))
            for i in range(N_JOINTS):
                for r in range(6):
                    jacobian[r, i] = jac[r, dof + i]
                for j in range(N_JOINTS):
                    mass[i, j] = own[MASS + N_JOINTS * i + j] if memory[STALE] != 0.0 else full_mass[dof + i, dof + j]
            position, matrix = floats(h[SITE_XPOS] + 24 * site, 3), floats(h[SITE_XMAT] + 72 * site, 9)
            for r in range(3):
                for c in range(3):
                    rotation[r, c] = matrix[3 * r + c]
            gripper = own[GRIPPER : GRIPPER + 2]
            if k == 0:
                set_goal(
                    facts,
                    action[7 * arm :],
                    position,
                    rotation,
                    gripper,
                    delta,
                    turn,
                    goal_position[arm],
                    goal_rotation[arm],
                )
            arm_torques(
                facts[KP], floats(h[QPOS] + 8 * q_at, N_JOINTS), floats(h[QVEL] + 8 * dof, N_JOINTS), own[INITIAL:],
                floats(h[QFRC_BIAS] + 8 * dof, N_JOINTS), jacobian, mass, position, rotation,
                goal_position[arm], goal_rotation[arm], w, torque,
            )  # fmt: skip
            write_controls(ctrl, limits, arm_ids[4], torque, N_JOINTS)
            for i in range(2):
                low, high = limits[2 * (arm_ids[6] + i)], limits[2 * (arm_ids[6] + i) + 1]
                fingers[i] = 0.5 * (high + low) + 0.5 * (high - low) * gripper[i]
            write_controls(ctrl, limits, arm_ids[6], fingers, 2)
        memory[STALE] = 0.0
        mj_step2(h[MODEL], h[DATA])


@numba.njit
def write_quaternion(h, body, out):
    """Orientation of a body as (x, y, z, w), robosuite's order."""
    wxyz = floats(h[XQUAT] + 32 * body, 4)
    out[0], out[1], out[2], out[3] = wxyz[1], wxyz[2], wxyz[3], wxyz[0]


@numba.njit
def observe_arm(h, ids, arm, out):
    """out (9,): grip site's position (m), hand *body*'s orientation (x, y, z, w), finger positions (m).

    The first two are those of the last substep's start, as in robosuite; the fingers are fresh.
    """
    arm_ids = ids[FIRST_ARM + N_ARM_IDS * arm :]
    position, fingers = floats(h[SITE_XPOS] + 24 * arm_ids[0], 3), floats(h[QPOS] + 8 * arm_ids[5], 2)
    for r in range(3):
        out[r] = position[r]
    write_quaternion(h, arm_ids[1], out[3:])
    out[7], out[8] = fingers[0], fingers[1]
