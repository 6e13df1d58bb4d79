"""When a peg has found its hole, and how a thread holds: nopython kernels called before every physics step.

Every peg carries a nut (``scene.py``). A part that can be screwed is in one of two states:

* **free**: the nut is set, at every step, to where the first turns of two threads would meet at the part's present rotation, and
  stops the peg there like a collar (it remembers where it is: what presses it does not move it, however long). When peg and hole
  are aligned (``LATERAL``, ``TILT``) and the collar touches the rim, they engage.
* **engaged** in hole k: an equality welds the nut into the hole, the peg advances one pitch per turn. Unscrewed past its start it is free again, and
  so it is where force has torn it out of line.

Seen from the hole, ``turn`` in [0, 2 pi) is how far the part still has to be turned (modulo a whole turn) and u = pitch * turns how far it
has to go: the thread's start is the largest u of that phase that is not beyond ``depth - FREE``. So a peg first goes in by 7 to 16.4 mm, then
takes 0.9 to 2.6 turns, depending on its length and phase.

A steep thread must not be pressed home by its own lead (pitch / 2 pi = 1.5 mm per rad): it resists turning by Coulomb friction, ``FRICTION_ARM`` times the
force along its axis (of the step before) more than what is in the model. So each simulation has a model of its own, in which it is written; and also that an
engaged part and its socket do not collide: the thread is all that holds them.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from env.engine.library import DATA, MODEL, QPOS, QVEL, floats, int32s, integers
from env.furniture.layout import EFC_FORCE, EQ_ACTIVE, EXCLUDE, FRICTION

PITCH = 0.0094  # m per turn, right-handed
FRICTION_TORQUE = 0.02  # N m: what an unloaded thread resists, turned either way
FORGET = 0.97  # per physics step
STOP_TORQUE = 1.0  # N m: what keeps a free nut where it is
FREE = 0.007  # m that any peg goes in before its thread can start
TOUCH = 0.0008  # m: the collar touches the rim
LATERAL, TILT = 0.0025, math.cos(math.radians(9.0))  # of the peg's axis against the hole's, when they engage
OUT = 0.002  # m beyond the thread's start: unscrewed
TORN_LATERAL, TORN_TILT = 0.005, math.cos(math.radians(15.0))
NEAR = 0.02  # m from a hole's axis: the collar follows this hole's phase
LYING = 0.5  # cosine of a tilt: a peg as crooked as this is beside the hole
FRICTION_ARM = (
    0.0024  # m: friction coefficient (0.2) times radius (12 mm); beyond the lead, a thread holds whatever presses it
)

# of one thread, integers: [qpos of the part, qpos of the socket, qpos and dof of the nut's slide (its turn is next), equality of the tendon, of the
# first weld, number of holes, excludes of part and nut against the socket (2), their signatures (2)]
PART, SOCKET, NUT_Q, NUT_DOF, TENDON, WELD, N_HOLES, EXCLUDES, SIGNATURES, N_SCREW_IDS = *range(8), 9, 11
# floats: [axis of the peg 3, largest u, rotation when home 9, positions when home 4 x 3, of the collar when the peg is home: m along the axis from
# the part's origin, radius]
AXIS, U_MAX, HOME_ROTATION, HOME_POSITION, COLLAR_AT, COLLAR_RADIUS, N_SCREW_FACTS = 0, 3, 4, 13, 25, 26, 27
MAX_HOLES = 4
# memory: hole the part is engaged in, or -1; force along its axis in the last step, N; u where the collar is while it is free
HOLE, FORCE, COLLAR, N_SCREW_MEMORY = 0, 1, 2, 3


@numba.njit
def rotation_of(q, out):
    """Unit quaternion ``q`` (w x y z) -> ``out`` (3, 3)."""
    w, x, y, z = q[0], q[1], q[2], q[3]
    out[0, 0], out[0, 1], out[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    out[1, 0], out[1, 1], out[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    out[2, 0], out[2, 1], out[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)


@numba.njit
def relative(first, second, turn_first, turn_second, position, rotation):
    """Pose of ``second`` in the frame of ``first`` (each 3 + 4 of qpos) -> ``position`` (3,), ``rotation`` (3, 3); the two in between are
    scratch.
    """
    rotation_of(first[3:7], turn_first)
    rotation_of(second[3:7], turn_second)
    for r in range(3):
        s = 0.0
        for k in range(3):
            s += turn_first[k, r] * (second[k] - first[k])
        position[r] = s
        for c in range(3):
            s = 0.0
            for k in range(3):
                s += turn_first[k, r] * turn_second[k, c]
            rotation[r, c] = s


@numba.njit
def hole_view(fact, hole, position, rotation, out):
    """Where a part at ``position``, ``rotation`` in its socket's frame is, seen from hole ``hole``: out (3,) is how far it has to go (m), how far
    off the axis it is (m), and the cosine of its tilt.
    """
    ax, ay, az = fact[AXIS], fact[AXIS + 1], fact[AXIS + 2]
    tilt, rest, square = 0.0, 0.0, 0.0
    for r in range(3):
        into = (
            fact[HOME_ROTATION + 3 * r] * ax
            + fact[HOME_ROTATION + 3 * r + 1] * ay
            + fact[HOME_ROTATION + 3 * r + 2] * az
        )
        mine = rotation[r, 0] * ax + rotation[r, 1] * ay + rotation[r, 2] * az
        gap = fact[HOME_POSITION + 3 * hole + r] - position[r]
        tilt += into * mine
        rest += into * gap
        square += gap * gap
    out[0], out[1], out[2] = rest, math.sqrt(max(square - rest * rest, 0.0)), tilt


@numba.njit
def turn_left(fact, rotation):
    """How far a part at ``rotation`` in its socket's frame has to turn until it is home or a whole turn from it, in [0, 2 pi)."""
    # the turn about the axis in home^T rotation: for a rotation by -t about the unit axis a, trace = 1 + 2 cos t and the skew part is -2 sin t a
    trace, skew = 0.0, 0.0
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        for r in range(3):
            trace += fact[HOME_ROTATION + 3 * r + i] * rotation[r, i]
            skew += fact[AXIS + i] * (
                fact[HOME_ROTATION + 3 * r + k] * rotation[r, j] - fact[HOME_ROTATION + 3 * r + j] * rotation[r, k]
            )
    return -math.atan2(skew, trace - 1.0) % math.tau


@numba.njit
def start_of(turn, u_max):
    """u (m) at which a thread starts, ``turn`` rad (mod a whole turn) from home."""
    u = PITCH * turn / math.tau
    return u + PITCH * math.floor((u_max - u) / PITCH)


@numba.njit
def touching(fact, view):
    """u (m) at which the lowest point of the collar would touch the rim of the hole that ``view`` is of."""
    if view[2] < LYING:
        return -math.inf
    at, low = fact[COLLAR_AT], fact[COLLAR_RADIUS] * math.sqrt(max(1.0 - view[2] * view[2], 0.0))
    return (view[0] + at - low) / view[2] - at


@numba.njit
def set_nut(qpos, qvel, row, u):
    """The nut at rest, where a peg has ``u`` to go."""
    qpos[row[NUT_Q]], qpos[row[NUT_Q] + 1] = u, u * math.tau / PITCH
    qvel[row[NUT_DOF]] = qvel[row[NUT_DOF] + 1] = 0.0


@numba.njit
def exclude(h, row, pointers, wanted):
    """Whether part and nut of the thread ``row`` and their socket pass through one another. (0 is the signature of no two bodies.)"""
    address = integers(h[MODEL] + pointers[EXCLUDE], 1)[0]
    for k in range(2):
        int32s(address + 4 * row[EXCLUDES + k], 1)[0] = row[SIGNATURES + k] if wanted else 0


@numba.njit
def update(h, row, fact, own, n_q, n_v, pointers, w):
    """Before a physics step: free or engage the thread ``row`` / ``fact``; ``own`` is its memory, ``pointers`` is ``layout.py``'s, ``w`` is ``workspace()``."""
    qpos, qvel = floats(h[QPOS], n_q), floats(h[QVEL], n_v)
    turn_first, turn_second, position, rotation, view = w
    part, socket = qpos[row[PART] : row[PART] + 7], qpos[row[SOCKET] : row[SOCKET] + 7]
    relative(socket, part, turn_first, turn_second, position, rotation)
    flags = integers(integers(h[DATA] + pointers[EQ_ACTIVE], 1)[0], 1)
    friction = floats(integers(h[MODEL] + pointers[FRICTION], 1)[0] + 8 * (row[NUT_DOF] + 1), 1)
    if own[HOLE] >= 0.0:
        hole = int(own[HOLE])
        hole_view(fact, hole, position, rotation, view)
        torn = view[1] > TORN_LATERAL or view[2] < TORN_TILT
        if torn or qpos[row[NUT_Q]] > fact[U_MAX] + OUT:
            own[HOLE], own[COLLAR] = -1.0, min(qpos[row[NUT_Q]], fact[U_MAX])
            flags[0] &= ~(0xFF << (8 * (row[WELD] + hole)))
        else:
            friction[0] = FRICTION_TORQUE + FRICTION_ARM * own[FORCE]
            exclude(h, row, pointers, True)
            return
    friction[0] = STOP_TORQUE
    nearest, at = 1e9, 0
    for hole in range(row[N_HOLES]):
        hole_view(fact, hole, position, rotation, view)
        if view[1] < nearest:
            nearest, at = view[1], hole
    hole_view(fact, at, position, rotation, view)
    u = fact[U_MAX]
    if nearest < NEAR:
        start = start_of(turn_left(fact, rotation), fact[U_MAX])
        if abs(view[0] - start) < TOUCH and nearest < LATERAL and view[2] > TILT:
            own[HOLE] = float(at)
            flags[0] |= 1 << (8 * (row[WELD] + at))
            u = start
        else:  # follow the thread's start, but never push the collar through the rim
            u = start if start < touching(fact, view) + TOUCH else min(start, own[COLLAR])
    own[COLLAR] = u
    exclude(h, row, pointers, own[HOLE] >= 0.0)
    set_nut(qpos, qvel, row, u)


@numba.njit
def feel(h, tendon, own, pointers):
    """After a physics step: keep the force that the thread bore (the tendons' equalities are the first constraints), or some of what
    it bore lately: a part that bounces must not slip between two blows.
    """
    own[FORCE] = max(
        FORGET * own[FORCE], abs(floats(integers(h[DATA] + pointers[EFC_FORCE], 1)[0], tendon + 1)[tendon])
    )


@numba.njit
def workspace():
    """Scratch arrays of ``update``."""
    return np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3), np.zeros((3, 3)), np.zeros(3)
