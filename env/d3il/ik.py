"""How D3IL moves its Panda: inverse kinematics at 1 kHz that never looks at the arm, and joint PD that follows it. For
nopython kernels; metres, radians, N m.

Every millisecond the desired joints ``q`` make ``ITERATIONS`` steps towards the desired hand position, rod down:

    dq/dt = J^T A^-1 (e - J n) + n,   A = J J^T with its eigenvalues clipped to [1e-2, 1e2],   n = 40 clip(rest - q),

where e holds clipped position and orientation errors times gains, and |dq/dt| <= 3 rad/s. The clip matters where the
arm is stretched: beyond the last row the smallest eigenvalue of J J^T falls to 7e-4. Then

    tau = kp (q - q_measured) + kd ((q - q_before) / 1 ms - dq_measured) + bias,

bias (gravity, Coriolis) being that of the last physics step, as in D3IL, which reads it before the next one.

``A``'s eigenvalues are found by Jacobi rotations from the last iteration's eigenvectors: A moves by a thousandth between
iterations, so one or two sweeps do. Constants: D3IL's controller configuration, read and verified at run time
(``tests/env/test_avoiding.py`` compares with an implementation that uses MuJoCo's kinematics and NumPy's SVD).
"""

from __future__ import annotations

import math

import numba
import numpy as np

from env.engine.library import CTRL, DATA, MODEL, QFRC_BIAS, QPOS, QVEL, floats, mj_step

N_JOINTS = 7
DT = 1e-3  # s, of physics and of the inverse kinematics
ITERATIONS = 3
GAIN = np.array([200.0, 200.0, 800.0, 30.0, 30.0, 30.0])  # 1/s: position x y z, orientation
POSITION_CLIP, ORIENTATION_CLIP = 0.01, 0.1  # of the errors before the gain
REST = np.array([0.0, 0.174, 0.0, -0.872, 0.0, 1.222, 0.785])
REST_GAIN, REST_CLIP = 40.0, 0.2
EIGENVALUE_MIN, EIGENVALUE_MAX = 1e-2, 1e2
SPEED_LIMIT = 3.0  # rad/s, norm of all joints
Q_MIN = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
Q_MAX = np.array([2.8973, 1.7628, 2.0, -0.0698, 2.8973, 3.7525, 2.8973])
KP = np.array([120.0, 120.0, 120.0, 120.0, 50.0, 30.0, 10.0])
KD = np.array([10.0, 10.0, 10.0, 10.0, 6.0, 5.0, 3.0])
# the arm's kinematics: per joint, where its frame sits in the one before, and that frame's quarter turns about x
OFFSET = np.array([
    [0.0, 0.0, 0.333], [0.0, 0.0, 0.0], [0.0, -0.316, 0.0], [0.0825, 0.0, 0.0], [-0.0825, 0.384, 0.0], [0.0, 0.0, 0.0],
    [0.088, 0.0, 0.0],
])  # fmt: skip
TURN = np.array([0.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0])
FLANGE, HAND_TO_TCP = 0.107, 0.105  # m along the last joint's axis
HAND_TURN = -math.pi / 4  # about that axis
_TIP, _COS, _SIN = FLANGE + HAND_TO_TCP, math.cos(HAND_TURN), math.sin(HAND_TURN)
_NEGLIGIBLE = 1e-28  # off-diagonal square, as a share of the product of the diagonal, that a rotation may leave


@numba.njit
def workspace():
    """Scratch arrays: rotation (3, 3), axes (7, 3), centres (7, 3), tip (3,), J (6, 7), A (6, 6), eigenvectors (6, 6), and
    three vectors.
    """
    return (
        np.zeros((3, 3)), np.zeros((7, 3)), np.zeros((7, 3)), np.zeros(3), np.zeros((6, 7)), np.zeros((6, 6)), np.eye(6),
        np.zeros(6), np.zeros(6), np.zeros(7),
    )  # fmt: skip


@numba.njit
def forward(q, rotation, axes, centres, tip):
    """Forward kinematics: orientation of the last joint's frame, axis and centre of every joint, position of the TCP."""
    for r in range(3):
        tip[r] = 0.0
        for c in range(3):
            rotation[r, c] = 1.0 if r == c else 0.0
    for i in range(N_JOINTS):
        cos, sin, turn = math.cos(q[i]), math.sin(q[i]), TURN[i]
        for r in range(3):
            x, y, z = rotation[r, 0], rotation[r, 1], rotation[r, 2]
            tip[r] += x * OFFSET[i, 0] + y * OFFSET[i, 1] + z * OFFSET[i, 2]
            if turn != 0.0:
                y, z = turn * z, -turn * y
            rotation[r, 0], rotation[r, 1], rotation[r, 2] = cos * x + sin * y, cos * y - sin * x, z
            axes[i, r], centres[i, r] = z, tip[r]
    for r in range(3):
        tip[r] += _TIP * rotation[r, 2]


@numba.njit
def jacobian(axes, centres, tip, out):
    """Geometric Jacobian (6, 7) of the TCP, position above orientation."""
    for i in range(N_JOINTS):
        a, b, c = axes[i, 0], axes[i, 1], axes[i, 2]
        x, y, z = tip[0] - centres[i, 0], tip[1] - centres[i, 1], tip[2] - centres[i, 2]
        out[0, i], out[1, i], out[2, i] = b * z - c * y, c * x - a * z, a * y - b * x
        out[3, i], out[4, i], out[5, i] = a, b, c


@numba.njit
def _clip(x: float, low: float, high: float) -> float:
    return min(high, max(low, x))


@numba.njit
def pose_error(rotation, tip, goal, out):
    """Clipped errors (6,) of the position, and of the hand's orientation against "rod down", the quaternion (0, 1, 0, 0)."""
    for r in range(3):
        out[r] = _clip(goal[r] - tip[r], -POSITION_CLIP, POSITION_CLIP)
    xx = _COS * rotation[0, 0] + _SIN * rotation[0, 1]  # of the hand's frame, turned about the flange
    yx = _COS * rotation[1, 0] + _SIN * rotation[1, 1]
    zx = _COS * rotation[2, 0] + _SIN * rotation[2, 1]
    xy = _COS * rotation[0, 1] - _SIN * rotation[0, 0]
    yy = _COS * rotation[1, 1] - _SIN * rotation[1, 0]
    zy = _COS * rotation[2, 1] - _SIN * rotation[2, 0]
    x = 0.5 * math.sqrt(max(1.0 + xx - yy - rotation[2, 2], 1e-12))
    f = 0.25 / x
    w, y, z = (zy - rotation[1, 2]) * f, (xy + yx) * f, (rotation[0, 2] + zx) * f
    out[3] = _clip(w, -ORIENTATION_CLIP, ORIENTATION_CLIP)
    out[4] = _clip(z, -ORIENTATION_CLIP, ORIENTATION_CLIP)
    out[5] = _clip(-y, -ORIENTATION_CLIP, ORIENTATION_CLIP)


@numba.njit
def rotate_away(a, v, p, q):
    """One Jacobi rotation: make a[p, q] zero, and turn the eigenvectors ``v`` (columns) along. False: it was zero."""
    off = a[p, q]
    if off * off <= _NEGLIGIBLE * abs(a[p, p] * a[q, q]):
        return False
    theta = 0.5 * (a[q, q] - a[p, p]) / off
    t = math.copysign(1.0, theta) / (abs(theta) + math.sqrt(theta * theta + 1.0))
    c = 1.0 / math.sqrt(t * t + 1.0)
    s = t * c
    for k in range(6):
        x, y = a[k, p], a[k, q]
        a[k, p], a[k, q] = c * x - s * y, s * x + c * y
        x, y = v[k, p], v[k, q]
        v[k, p], v[k, q] = c * x - s * y, s * x + c * y
    for k in range(6):
        x, y = a[p, k], a[q, k]
        a[p, k], a[q, k] = c * x - s * y, s * x + c * y
    return True


@numba.njit
def diagonalise(jac, v, a, row):
    """Eigenvalues of J J^T on the diagonal of ``a``; ``v``: eigenvectors of a similar matrix, becomes this one's. ``row``
    (7,) is scratch.
    """
    for p in range(6):  # a = (v^T J)(v^T J)^T, row by row: exactly symmetric and no 6 x 6 products
        for q in range(p, 6):
            a[p, q] = 0.0
    for i in range(N_JOINTS):
        for p in range(6):
            s = 0.0
            for k in range(6):
                s += v[k, p] * jac[k, i]
            row[p] = s
        for p in range(6):
            for q in range(p, 6):
                a[p, q] += row[p] * row[q]
    for p in range(6):
        for q in range(p):
            a[p, q] = a[q, p]
    for _ in range(12):
        turned = False
        for p in range(5):
            for q in range(p + 1, 6):
                turned |= rotate_away(a, v, p, q)
        if not turned:
            return


@numba.njit
def iterate(q, goal, w):
    """One iteration of the inverse kinematics: ``q`` (7,) a step of 1 ms nearer to ``goal`` (3,)."""
    rotation, axes, centres, tip, jac, a, v, error, along, speed = w
    forward(q, rotation, axes, centres, tip)
    jacobian(axes, centres, tip, jac)
    pose_error(rotation, tip, goal, error)
    diagonalise(jac, v, a, speed)
    for i in range(N_JOINTS):
        speed[i] = REST_GAIN * _clip(REST[i] - q[i], -REST_CLIP, REST_CLIP)
    for r in range(6):
        s = GAIN[r] * error[r]
        for i in range(N_JOINTS):
            s -= jac[r, i] * speed[i]
        error[r] = s
    for p in range(6):
        s = 0.0
        for r in range(6):
            s += v[r, p] * error[r]
        along[p] = s / _clip(a[p, p], EIGENVALUE_MIN, EIGENVALUE_MAX)
    for r in range(6):
        s = 0.0
        for p in range(6):
            s += v[r, p] * along[p]
        error[r] = s
    norm = 0.0
    for i in range(N_JOINTS):
        for r in range(6):
            speed[i] += jac[r, i] * error[r]
        norm += speed[i] * speed[i]
    scale = DT * (SPEED_LIMIT / math.sqrt(norm) if norm > SPEED_LIMIT * SPEED_LIMIT else 1.0)
    for i in range(N_JOINTS):
        q[i] = _clip(q[i] + scale * speed[i], Q_MIN[i], Q_MAX[i])


@numba.njit
def control(h, q, last_bias, goal, substeps):
    """One control step: ``substeps`` milliseconds of inverse kinematics towards ``goal`` (3,), PD and physics.

    ``q`` (7,): the desired joints, moved on. ``last_bias`` (7,): the bias of the last physics step, renewed (MuJoCo's own copy
    does not survive saving and restoring). The arm's joints are the model's first.
    """
    w, before = workspace(), np.zeros(N_JOINTS)
    qpos, qvel, bias = floats(h[QPOS], N_JOINTS), floats(h[QVEL], N_JOINTS), floats(h[QFRC_BIAS], N_JOINTS)
    ctrl = floats(h[CTRL], N_JOINTS)
    for i in range(N_JOINTS):
        bias[i] = last_bias[i]
    for _ in range(substeps):
        for i in range(N_JOINTS):
            before[i] = q[i]
        for _ in range(ITERATIONS):
            iterate(q, goal, w)
        for i in range(N_JOINTS):
            ctrl[i] = KP[i] * (q[i] - qpos[i]) + KD[i] * ((q[i] - before[i]) / DT - qvel[i]) + bias[i]
        mj_step(h[MODEL], h[DATA])
    for i in range(N_JOINTS):
        last_bias[i] = bias[i]
