"""Kernels of the rasteriser: a texture's colour, as OpenGL filters it. Four colours travel as 16-bit lanes of one 64-bit word."""

from __future__ import annotations

import math

import numpy as np

from env.engine.raster_compile import inlined

_EVEN, _HALVES, _LANES = np.uint64(0x00FF00FF), np.uint64(0x0080008000800080), np.uint64(0x00FF00FF00FF00FF)
_ONE, _EIGHT, _TWO = np.uint64(256), np.uint64(8), np.uint64(32)


@inlined
def _spread(texel):
    """A texel's bytes, 16 bits apart."""
    word = np.uint64(texel)
    return (word & _EVEN) | (((word >> _EIGHT) & _EVEN) << _TWO)


@inlined
def blend(a, b, part):
    """Between the lanes of ``a`` and ``b``; ``part``: 0 to 256."""
    weight = np.uint64(part)
    return ((a * (_ONE - weight) + b * weight + _HALVES) >> _EIGHT) & _LANES


@inlined
def _neighbours(at, size, repeats):
    """The two texels around coordinate ``at`` (0 to 1) of a row, and how far it is on the way (0 to 256)."""
    place = np.int64(math.floor(at * np.float32(size * 256) - np.float32(127.5)))  # in 256ths of a texel
    i, part = place >> 8, place & 255
    j = i + 1
    if repeats:
        i = i + size if i < 0 else i
        j = j - size if j >= size else j
    return min(max(i, 0), size - 1), min(max(j, 0), size - 1), part


@inlined
def _bilinear(scene, level, face, s, t, repeats):
    first, width, height = scene.levels[level, 0], scene.levels[level, 1], scene.levels[level, 2]
    first += face * width * height
    i, j, across = _neighbours(s, width, repeats)
    k, m, up = _neighbours(t, height, repeats)
    low, high = first + k * width, first + m * width
    a = blend(_spread(scene.texels[low + i]), _spread(scene.texels[low + j]), across)
    b = blend(_spread(scene.texels[high + i]), _spread(scene.texels[high + j]), across)
    return blend(a, b, up)


@inlined
def level_of_detail(spread_squared):
    """log2 of how many texels a pixel spans, times 256, from its square: linear between powers of two, as OpenGL's drivers have it."""
    return np.int64((np.float32(max(spread_squared, 1e-12)).view(np.int32) - np.int32(0x3F800000)) >> 16)


@inlined
def sample(scene, texture, face, s, t, detail):
    """Lanes (red, blue, green, alpha) at (s, t); ``detail``: of ``level_of_detail``."""
    repeats = scene.heads[texture, 0] == 0
    first, last = scene.heads[texture, 1], scene.heads[texture, 1] + scene.heads[texture, 2] - 1
    if repeats:
        s -= math.floor(s)
        t -= math.floor(t)
    if scene.heads[texture, 3] == 1:
        face = 0
    if detail <= 0:
        return _bilinear(scene, first, face, s, t, repeats)
    level = min(first + (detail >> 8), last)
    colour = _bilinear(scene, level, face, s, t, repeats)
    part = detail & 255
    if part > 0 and level < last:
        colour = blend(colour, _bilinear(scene, level + 1, face, s, t, repeats), part)
    return colour


@inlined
def cube_face(x, y, z):
    """Which face of a cube a direction meets: +x, -x, +y, -y, +z, -z."""
    ax, ay, az = abs(x), abs(y), abs(z)
    if ax >= ay and ax >= az:
        return 0 if x >= 0.0 else 1
    if ay >= az:
        return 2 if y >= 0.0 else 3
    return 4 if z >= 0.0 else 5


@inlined
def on_face(face, x, y, z):
    """Texture coordinates of a direction on ``face``."""
    if face == 0:
        across, down, major = -z, -y, x
    elif face == 1:
        across, down, major = z, -y, -x
    elif face == 2:
        across, down, major = x, z, y
    elif face == 3:
        across, down, major = x, -z, -y
    elif face == 4:
        across, down, major = x, -y, z
    else:
        across, down, major = -x, -y, -z
    half = np.float32(0.5) / np.float32(max(major, 1e-30))
    return across * half + np.float32(0.5), down * half + np.float32(0.5)
