"""Kernels of the rasteriser, third part: the light on the corners of triangles that are seen, and what is known of each such triangle.

Light falls on corners, as in OpenGL 1.5. Up to ``LANES`` triangles of one item are described at once, in loops without branches over
columns of numbers, which compile to vector instructions. The columns of a ``Batch`` lie in one row of memory at places that are known when
the kernel is compiled, and are counted without a sign: only so does the compiler see that none overlaps another, and none is negative.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from env.engine.raster_compile import drawing_kernel, inlined
from env.engine.raster_pose import (
    F_EMISSION,
    F_MAP,
    F_NORMAL,
    F_RGBA,
    F_SHININESS,
    F_SPECULAR,
    F_TEXTURE,
    FLAT_UV,
    L_AIM,
    L_AMBIENT,
    L_CUTOFF,
    L_DIFFUSE,
    L_EXPONENT,
    L_FADE,
    L_PLACE,
    L_SPECULAR,
    L_SPOT,
    OWN_UV,
    W_LAYING,
    W_MIRRORED,
    W_TEXTURE,
)  # fmt: skip

kernel = drawing_kernel(__file__)
LANES, _AT_ONCE = 64, 16  # triangles of a batch: at most, and a multiple of which is worked on
_LANES, _COLUMN = np.uint64(LANES), np.uint64(3 * LANES)  # corner k of triangle t is at k * LANES + t of a column
# a record: how 1 / distance, and colours and texture coordinates over distance, grow along x and y, and what they are at (0, 0)
R_NEAR, R_COLOUR, R_UV, N_RECORD = 0, 3, 12, 21
# columns of ``Batch.floats``: place, unit normal, 1 / distance from the eye, towards a light and its strength, colour, gleam, texture
# coordinates; then one column of LANES for each number of a record
_X, _Y, _Z, _NX, _NY, _NZ, _AWAY, _LX, _LY, _LZ, _STRENGTH, _COLOUR, _GLEAM, _UV, _RECORD = (
    np.uint64(3 * LANES * k) for k in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 17, 20)
)
N_BATCH_FLOATS = int(_RECORD) + N_RECORD * LANES
# columns of ``Batch.doubles``: place in the eye's frame; then one column of LANES for each of a triangle's nine weights
_EYE, _WEIGHT = np.uint64(0), np.uint64(9 * LANES)
N_BATCH_DOUBLES = int(_WEIGHT) + 9 * LANES
_2, _3, _6 = np.uint64(2), np.uint64(3), np.uint64(6)
_NONE, _ONE, _TWO, _DIM, _SHINIEST = (np.float32(x) for x in (0, 1, 2, 0.3, 128))
_DARK = np.float32(8)  # e^-8 of white is a twelfth of a step of a byte
_HALF, _TINY = np.float32(0.5), np.float32(1e-24)
_LOG = tuple(np.float32(2 / math.log(2) / k) for k in (1, 3, 5, 7))
_EXP = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(1, 7))
_ROOT_HALF, _LEAST_POWER = np.int32(0x3F3504F3), np.float32(-126)


class Batch(NamedTuple):
    """Triangles of one item that are described at once: scratch memory."""

    triangles: np.ndarray  # (LANES,) int32
    places: np.ndarray  # (LANES,) int32: first place of the cluster of each
    floats: np.ndarray  # (N_BATCH_FLOATS,) float32
    doubles: np.ndarray  # (N_BATCH_DOUBLES,) float64


def make_batch() -> Batch:
    """Memory for one thread."""
    return Batch(
        np.zeros(LANES, np.int32), np.zeros(LANES, np.int32), np.zeros(N_BATCH_FLOATS, np.float32), np.zeros(N_BATCH_DOUBLES)
    )  # fmt: skip


@inlined
def _inverse_root(x):
    return _ONE / np.float32(math.sqrt(max(x, _TINY)))


@inlined
def _power(base, exponent):
    """``base`` (above 0, at most 1) to the power ``exponent``, to six digits: the C library's knows no vectors."""
    bits = np.float32(base).view(np.int32)
    whole = np.int32(np.int32(bits - _ROOT_HALF) >> np.int32(23))
    part = np.int32(bits - np.int32(whole << np.int32(23))).view(np.float32) - _ONE  # base = (1 + part) 2^whole
    s = part / (part + _TWO)
    q = s * s
    y = max(exponent * (np.float32(whole) + s * (_LOG[0] + q * (_LOG[1] + q * (_LOG[2] + q * _LOG[3])))), _LEAST_POWER)
    near = np.floor(y + _HALF)
    f = y - near
    power = _ONE + f * (_EXP[0] + f * (_EXP[1] + f * (_EXP[2] + f * (_EXP[3] + f * (_EXP[4] + f * _EXP[5])))))
    return power * np.int32(np.int32(np.int32(near) + np.int32(127)) << np.int32(23)).view(np.float32)


@inlined
def _gather(scene, item, n, item_floats, item_words, batch):
    """Corners of a batch's ``n`` triangles in the shape's frame, their normals and texture coordinates; the last fills what is left.

    Returns how many triangles to work on.
    """
    b, width = batch.floats, (n + _AT_ONCE - 1) // _AT_ONCE * _AT_ONCE
    textured, laying = item_words[item, W_TEXTURE] >= 0, item_words[item, W_LAYING]
    su, sv, sw = item_floats[item, F_TEXTURE], item_floats[item, F_TEXTURE + 1], item_floats[item, F_TEXTURE + 2]
    shift = _HALF if laying == FLAT_UV else _NONE
    for t in range(width):
        triangle, first = batch.triangles[min(t, n - 1)], batch.places[min(t, n - 1)]
        for k in range(3):
            j, place = np.uint64(k * LANES + t), first + scene.corners[triangle, k]
            x, y, z = scene.x[place], scene.y[place], scene.z[place]
            b[_X + j], b[_Y + j], b[_Z + j] = x, y, z
            b[_NX + j] = scene.attributes[triangle, k, 0]
            b[_NY + j] = scene.attributes[triangle, k, 1]
            b[_NZ + j] = scene.attributes[triangle, k, 2]
            if textured:
                own = laying == OWN_UV
                b[_UV + j] = scene.attributes[triangle, k, 3] if own else su * x - shift
                b[_UV + _COLUMN + j] = scene.attributes[triangle, k, 4] if own else sv * y - shift
                b[_UV + _2 * _COLUMN + j] = sw * z
    return width


@inlined
def _to_eye(item, item_floats, corner, width, batch):
    """A corner (the first place of its kind in a column) of each triangle into the eye's frame."""
    f, b, d = item_floats[item], batch.floats, batch.doubles
    m0, m1, m2, m3 = f[F_MAP], f[F_MAP + 1], f[F_MAP + 2], f[F_MAP + 3]
    m4, m5, m6, m7 = f[F_MAP + 4], f[F_MAP + 5], f[F_MAP + 6], f[F_MAP + 7]
    m8, m9, m10, m11 = f[F_MAP + 8], f[F_MAP + 9], f[F_MAP + 10], f[F_MAP + 11]
    n0, n1, n2, n3, n4 = f[F_NORMAL], f[F_NORMAL + 1], f[F_NORMAL + 2], f[F_NORMAL + 3], f[F_NORMAL + 4]
    n5, n6, n7, n8 = f[F_NORMAL + 5], f[F_NORMAL + 6], f[F_NORMAL + 7], f[F_NORMAL + 8]
    for t in range(width):
        j = corner + np.uint64(t)
        px, py, pz = np.float64(b[_X + j]), np.float64(b[_Y + j]), np.float64(b[_Z + j])
        ex, ey, ez = (
            m0 * px + m1 * py + m2 * pz + m3,
            m4 * px + m5 * py + m6 * pz + m7,
            m8 * px + m9 * py + m10 * pz + m11,
        )
        d[_EYE + j], d[_EYE + _COLUMN + j], d[_EYE + _2 * _COLUMN + j] = ex, ey, ez
        x, y, z = np.float32(ex), np.float32(ey), np.float32(ez)
        b[_X + j], b[_Y + j], b[_Z + j] = x, y, z
        b[_AWAY + j] = _inverse_root(x * x + y * y + z * z)
        qx, qy, qz = b[_NX + j], b[_NY + j], b[_NZ + j]
        nx, ny, nz = n0 * qx + n1 * qy + n2 * qz, n3 * qx + n4 * qy + n5 * qz, n6 * qx + n7 * qy + n8 * qz
        length = _inverse_root(nx * nx + ny * ny + nz * nz)
        b[_NX + j], b[_NY + j], b[_NZ + j] = nx * length, ny * length, nz * length


@inlined
def _towards(light, corner, width, b):
    """Where a light is, seen from a corner of each triangle, and how strong."""
    ax, ay, az = light[L_AIM], light[L_AIM + 1], light[L_AIM + 2]
    if light[L_SPOT] <= _NONE:
        for t in range(width):
            j = corner + np.uint64(t)
            b[_LX + j], b[_LY + j], b[_LZ + j], b[_STRENGTH + j] = -ax, -ay, -az, _ONE
        return
    px, py, pz = light[L_PLACE], light[L_PLACE + 1], light[L_PLACE + 2]
    cutoff, exponent = light[L_CUTOFF], light[L_EXPONENT] if light[L_CUTOFF] > -_ONE else _NONE
    fade0, fade1, fade2 = light[L_FADE], light[L_FADE + 1], light[L_FADE + 2]
    for t in range(width):
        j = corner + np.uint64(t)
        lx, ly, lz = px - b[_X + j], py - b[_Y + j], pz - b[_Z + j]
        square = lx * lx + ly * ly + lz * lz
        nearness = _inverse_root(square)
        lx, ly, lz = lx * nearness, ly * nearness, lz * nearness
        along = -(lx * ax + ly * ay + lz * az)
        strength = _power(min(max(along, _TINY), _ONE), exponent) / (fade0 + square * (nearness * fade1 + fade2))
        b[_LX + j], b[_LY + j], b[_LZ + j] = lx, ly, lz
        b[_STRENGTH + j] = strength if along > cutoff and (along > _NONE or exponent <= _NONE) else _NONE


@inlined
def _add_light(light, gloss, shine, corner, width, b):
    """What a light adds to the colour and the gleam of a corner of each triangle."""
    a0, a1, a2 = light[L_AMBIENT], light[L_AMBIENT + 1], light[L_AMBIENT + 2]
    d0, d1, d2 = light[L_DIFFUSE], light[L_DIFFUSE + 1], light[L_DIFFUSE + 2]
    s0, s1, s2 = gloss * light[L_SPECULAR], gloss * light[L_SPECULAR + 1], gloss * light[L_SPECULAR + 2]
    least = max(_ONE - _DARK / max(shine, _ONE), _NONE)
    for t in range(width):
        j = corner + np.uint64(t)
        nx, ny, nz, lx, ly, lz = b[_NX + j], b[_NY + j], b[_NZ + j], b[_LX + j], b[_LY + j], b[_LZ + j]
        strength, away = b[_STRENGTH + j], b[_AWAY + j]
        facing = max(nx * lx + ny * ly + nz * lz, _NONE)
        b[_COLOUR + j] += strength * (a0 + facing * d0)
        b[_COLOUR + _COLUMN + j] += strength * (a1 + facing * d1)
        b[_COLOUR + _2 * _COLUMN + j] += strength * (a2 + facing * d2)
        hx, hy, hz = lx - b[_X + j] * away, ly - b[_Y + j] * away, lz - b[_Z + j] * away
        along = nx * hx + ny * hy + nz * hz
        square = max(hx * hx + hy * hy + hz * hz, _TINY)
        gleam = strength * _power(min(max(along * along / square, _TINY), _ONE), _HALF * shine)
        seen = facing > _NONE and (shine <= _NONE or (along > _NONE and along * along > least * least * square))
        gleam = gleam if seen else _NONE
        b[_GLEAM + j] += gleam * s0
        b[_GLEAM + _COLUMN + j] += gleam * s1
        b[_GLEAM + _2 * _COLUMN + j] += gleam * s2


@inlined
def _begin(ambient, corner, width, b):
    """Colours of a corner of each triangle before any light falls on it."""
    for c in range(3):
        at = corner + np.uint64(c) * _COLUMN
        for t in range(width):
            j = at + np.uint64(t)
            b[_COLOUR + j], b[_GLEAM + j] = ambient, _NONE


@inlined
def _end(item, item_floats, corner, width, b):
    """Colours of a corner of each triangle, of the light on it and its own: at most 1, before any texture."""
    for c in range(3):
        at, own = corner + np.uint64(c) * _COLUMN, item_floats[item, F_RGBA + c]
        for t in range(width):
            j = at + np.uint64(t)
            b[_COLOUR + j] = min(own * b[_COLOUR + j] + b[_GLEAM + j], _ONE)


@inlined
def _weigh(lens, width, batch):
    """Weights (3, 3) of each triangle: for each corner, how its share over distance grows along x and y, and what it is at (0, 0)."""
    d, scale = batch.doubles, 1.0 / lens[2]
    middle, height = lens[0], lens[1]
    for k in range(3):
        o, a, b = np.uint64(k * LANES), np.uint64((k + 1) % 3 * LANES), np.uint64((k + 2) % 3 * LANES)
        for lane in range(width):
            t = np.uint64(lane)
            ax, ay, az = d[_EYE + a + t], d[_EYE + _COLUMN + a + t], d[_EYE + _2 * _COLUMN + a + t]
            bx, by, bz = d[_EYE + b + t], d[_EYE + _COLUMN + b + t], d[_EYE + _2 * _COLUMN + b + t]
            x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
            volume = 1.0 / (d[_EYE + o + t] * x + d[_EYE + _COLUMN + o + t] * y + d[_EYE + _2 * _COLUMN + o + t] * z)
            x, y = x * volume * scale, y * volume * scale
            at = _WEIGHT + _3 * o + t
            d[at], d[at + _LANES], d[at + _2 * _LANES] = x, y, -z * volume - x * middle - y * height


@inlined
def _spread(column, first, width, batch):
    """Three numbers of each record from what a column holds for its triangle's corners."""
    b, d = batch.floats, batch.doubles
    for j in range(3):
        w, to = _WEIGHT + np.uint64(j * LANES), _RECORD + np.uint64((first + j) * LANES)
        for lane in range(width):
            t = np.uint64(lane)
            b[to + t] = np.float32(
                d[w + t] * b[column + t]
                + d[w + _3 * _LANES + t] * b[column + _LANES + t]
                + d[w + _6 * _LANES + t] * b[column + _2 * _LANES + t]
            )


@kernel
def describe_triangles(scene, item, n, item_floats, item_words, all_lights, lens, records, first, batch):
    """Fill the records from ``first`` on of the ``n`` triangles in ``batch``, which belong to ``item``."""
    b, d = batch.floats, batch.doubles
    lights = all_lights[item_words[item, W_MIRRORED]]
    gloss, shine = item_floats[item, F_SPECULAR], item_floats[item, F_SHININESS] * _SHINIEST
    ambient = item_floats[item, F_EMISSION] + (_DIM if len(lights) == 0 else _NONE)
    width = _gather(scene, item, n, item_floats, item_words, batch)
    for k in range(3):
        corner = np.uint64(k * LANES)
        _to_eye(item, item_floats, corner, width, batch)
        _begin(ambient, corner, width, b)
        for i in range(len(lights)):
            _towards(lights[i], corner, width, b)
            _add_light(lights[i], gloss, shine, corner, width, b)
        _end(item, item_floats, corner, width, b)
    _weigh(lens, width, batch)
    for j in range(3):
        w, to = _WEIGHT + np.uint64(j * LANES), _RECORD + np.uint64((R_NEAR + j) * LANES)
        for lane in range(width):
            t = np.uint64(lane)
            b[to + t] = np.float32(d[w + t] + d[w + _3 * _LANES + t] + d[w + _6 * _LANES + t])
        _spread(_COLOUR + np.uint64(j) * _COLUMN, R_COLOUR + 3 * j, width, batch)
    used = R_UV
    if item_words[item, W_TEXTURE] >= 0:
        used = N_RECORD
        for j in range(3):
            _spread(_UV + np.uint64(j) * _COLUMN, R_UV + 3 * j, width, batch)
    for t in range(n):
        for c in range(used):
            records[first + t, c] = b[_RECORD + np.uint64(c * LANES + t)]
