"""Cartesian impedance control of the twin's arm, for nopython kernels: what ``panda_py``'s controller does to a real one.

Joint torques, with the Jacobian J (6 x 7) of the grip site, position error e (m) and orientation error r (the vector part of the
error's quaternion, *half* the angle, as in libfranka's example):

    tau = J^T [K_t e - D_t (v - v*); K_r r - D_r (w - w*)] + (1 - J^T J^T+) (k_n (q_n - q) - 2 sqrt(k_n) dq) + bias,

D = 2 ratio sqrt(K) as if everything weighed 1 kg; bias is gravity and Coriolis, which a real Franka adds by itself. The torque may
change by 1 N m per ms, as on the real one. v* is the target's velocity times ``feedforward``.

Out of control, when it has been stopped, the joints are held, critically damped at a rate of UNIT_RATE and all alike,

    tau = M (r^2 (q_n - q) - 2 r dq) + bias,    q_n = q + dq / r at the stop:

speed is gone by exp(-r t) and nothing swings back. That stands in for a control unit's own stop, whose law is not published; M r^2 is the
size of the stiffness that is (some 3000 N m/rad).
"""

from __future__ import annotations

import math

import numba
import numpy as np

from env.engine import osc
from env.engine.library import (
    CTRL,
    CTRLRANGE,
    DATA,
    MODEL,
    QFRC_BIAS,
    QPOS,
    QVEL,
    SITE_XPOS,
    XQUAT,
    _int32,
    call_control,
    compiled,
    floats,
    mj_jac_site,
    mj_step1,
    mj_step2,
)

# gains: [K_t (N/m), K_r (N m/rad), damping ratio, null-space stiffness (N m/rad), feedforward (0 to 1), largest torque step (N m),
#         share of a new external torque that its estimate takes over per physics step]
N_GAINS = 7
UNIT_RATE = 40.0  # 1/s: 2 % of a speed are left after 100 ms
# fingers: [width aimed at now, width wanted (m), change per physics step (m)]
AIM, WANTED, STEP, N_FINGERS = 0, 1, 2, 3


@numba.njit
def orientation_error(now, target, out):
    """out (3,): the vector part of target * conj(now), both (x, y, z, w), the short way round."""
    sign = 1.0 if now[0] * target[0] + now[1] * target[1] + now[2] * target[2] + now[3] * target[3] >= 0.0 else -1.0
    for r in range(3):
        i, j = (r + 1) % 3, (r + 2) % 3
        out[r] = sign * (target[r] * now[3] - target[3] * now[r] - target[i] * now[j] + target[j] * now[i])


@numba.njit
def impedance_torques(gains, q, dq, rest, bias, jacobian, position, quaternion, target, scratch, out):
    """Joint torques ``out`` (7,); ``target`` (13,): position, quaternion, twist. See the module's docstring."""
    wrench, null, z, error, square, factor = scratch
    orientation_error(quaternion, target[3:7], error)
    for a in range(6):
        velocity = 0.0
        for i in range(osc.N_JOINTS):
            velocity += jacobian[a, i] * dq[i]
        stiffness = gains[0] if a < 3 else gains[1]
        off = target[a] - position[a] if a < 3 else error[a - 3]
        damping = 2.0 * gains[2] * math.sqrt(stiffness)
        wrench[a] = stiffness * off - damping * (velocity - gains[4] * target[7 + a])
    for i in range(osc.N_JOINTS):
        z[i] = gains[3] * (rest[i] - q[i]) - 2.0 * math.sqrt(gains[3]) * dq[i]
    for a in range(6):
        null[a] = 0.0
        for i in range(osc.N_JOINTS):
            null[a] += jacobian[a, i] * z[i]
        for b in range(a + 1):
            s = 0.0
            for i in range(osc.N_JOINTS):
                s += jacobian[a, i] * jacobian[b, i]
            square[a, b], square[b, a] = s, s
    osc.cholesky(square, 0, 6, factor)
    osc.cholesky_solve(factor, 6, null, error[3:])  # error[3:] (6,) serves as its result
    for i in range(osc.N_JOINTS):
        s = bias[i] + z[i]
        for a in range(6):
            s += jacobian[a, i] * (wrench[a] - error[3 + a])
        out[i] = s


@compiled(
    "void(int64[::1], int64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], "
    "float64[::1], float64[:, ::1], int64, int64)",
    __file__,
)
def run_impedance(handles, ids, gains, rest, target, fingers, torque, constraint, external, inertia, controlled, steps):
    """``steps`` physics steps under impedance control.

    handles, ids: see ``library.py`` and ``osc.py``; gains (N_GAINS,); rest (7,): joints of the null space, or, where it is not
    ``controlled``, those that are held; target (13,): position (m) and quaternion (x, y, z, w) in the world, twist; fingers
    (N_FINGERS,), moved; torque (7,): the last one, without the bias, replaced; constraint (nv,): MuJoCo's constraint forces;
    external (7,): what is estimated of them at the arm's joints, replaced; inertia (7, 7): of the joints, where they are held.
    """
    nv, nu, site, hand, q_at, dof, first, finger = ids[2], ids[3], ids[4], ids[5], ids[6], ids[7], ids[8], ids[10]
    jac, jacobian = np.zeros((6, nv)), np.zeros((6, osc.N_JOINTS))
    scratch = np.zeros(6), np.zeros(6), np.zeros(osc.N_JOINTS), np.zeros(9), np.zeros((6, 6)), np.zeros((6, 6))
    wanted, sent, aims, quaternion = np.zeros(osc.N_JOINTS), np.zeros(osc.N_JOINTS), np.zeros(2), np.zeros(4)
    ctrl, limits = floats(handles[CTRL], nu), floats(handles[CTRLRANGE], 2 * nu)
    for _ in range(steps):
        mj_step1(handles[MODEL], handles[DATA])
        mj_jac_site(handles[MODEL], handles[DATA], jac.ctypes.data, jac.ctypes.data + 8 * 3 * nv, _int32(site))
        jacobian[:, :] = jac[:, dof : dof + osc.N_JOINTS]
        wxyz, bias = floats(handles[XQUAT] + 32 * hand, 4), floats(handles[QFRC_BIAS] + 8 * dof, osc.N_JOINTS)
        for r in range(4):
            quaternion[r] = wxyz[(r + 1) % 4]
        q, dq = floats(handles[QPOS] + 8 * q_at, osc.N_JOINTS), floats(handles[QVEL] + 8 * dof, osc.N_JOINTS)
        if controlled:
            impedance_torques(
                gains, q, dq, rest, bias, jacobian, floats(handles[SITE_XPOS] + 24 * site, 3), quaternion, target, scratch, wanted
            )  # fmt: skip
        for i in range(osc.N_JOINTS):
            if controlled:
                torque[i] += min(gains[5], max(-gains[5], wanted[i] - bias[i] - torque[i]))
            else:
                torque[i] = 0.0
                for j in range(osc.N_JOINTS):
                    torque[i] += inertia[i, j] * UNIT_RATE * (UNIT_RATE * (rest[j] - q[j]) - 2.0 * dq[j])
            sent[i] = torque[i] + bias[i]
        osc.write_controls(ctrl, limits, first, sent, osc.N_JOINTS)
        way = fingers[WANTED] - fingers[AIM]
        fingers[AIM] += min(fingers[STEP], max(-fingers[STEP], way))
        aims[0], aims[1] = 0.5 * fingers[AIM], -0.5 * fingers[AIM]
        osc.write_controls(ctrl, limits, finger, aims, 2)
        mj_step2(handles[MODEL], handles[DATA])
        for i in range(osc.N_JOINTS):
            external[i] += gains[6] * (constraint[dof + i] - external[i])


@compiled("int64(int64, int64, int64, int64, int64, int64, int64)", __file__)
def control_step(kernel, handles, memory, ids, facts, action, reward):
    """One call of a task's control kernel (``library.py``); all arguments are addresses. With no physics steps in ``ids`` it only judges."""
    return call_control(kernel, handles, memory, ids, facts, action, reward)
