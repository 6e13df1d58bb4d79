"""Kernels of the rasteriser, fourth part: the colour of a triangle at a pixel. Textures are laid on pixels."""

from __future__ import annotations

import numpy as np

from env.engine.raster_compile import inlined
from env.engine.raster_light import R_COLOUR, R_NEAR, R_UV
from env.engine.raster_pose import CUBE_UV
from env.engine.raster_sample import cube_face, level_of_detail, on_face, sample

_NONE, _ONE = np.float32(0), np.float32(1)
_HALF, _WHITE, _BYTE = np.float32(0.5), np.float32(255), np.uint64(255)


@inlined
def _value(records, r, first, x, y):
    return records[r, first] * x + records[r, first + 1] * y + records[r, first + 2]


@inlined
def _where(scene, texture, laying, face, records, r, x, y):
    """Texture coordinates of record ``r`` at the point (x, y) of the image."""
    a, b = _value(records, r, R_UV, x, y), _value(records, r, R_UV + 3, x, y)
    if laying == CUBE_UV:
        return on_face(face, a, b, _value(records, r, R_UV + 6, x, y))
    far = np.float32(1.0) / _value(records, r, R_NEAR, x, y)
    return a * far, b * far


@inlined
def face_at(laying, records, r, x, y):
    """The face of a cube texture that record ``r`` shows at (x, y)."""
    if laying != CUBE_UV:
        return 0
    return cube_face(
        _value(records, r, R_UV, x, y), _value(records, r, R_UV + 3, x, y), _value(records, r, R_UV + 6, x, y)
    )


@inlined
def detail_at(scene, texture, laying, records, r, column, row):
    """Level of detail of record ``r`` in the 2 x 2 pixels that hold (column, row)."""
    x, y = np.float32((column & ~1) + 0.5), np.float32((row & ~1) + 0.5)
    one = np.float32(1.0)
    face = face_at(laying, records, r, x, y)
    s, t = _where(scene, texture, laying, face, records, r, x, y)
    s_x, t_x = _where(scene, texture, laying, face, records, r, x + one, y)
    s_y, t_y = _where(scene, texture, laying, face, records, r, x, y + one)
    level = scene.heads[texture, 1]
    width, height = np.float32(scene.levels[level, 1]), np.float32(scene.levels[level, 2])
    a, b, c, d = (s_x - s) * width, (t_x - t) * height, (s_y - s) * width, (t_y - t) * height
    return level_of_detail(max(a * a + b * b, c * c + d * d))


@inlined
def shade(scene, texture, laying, records, r, column, row, detail):
    """Colour of record ``r`` at a pixel: red in the lowest byte."""
    x, y = np.float32(column) + _HALF, np.float32(row) + _HALF
    far = _ONE / _value(records, r, R_NEAR, x, y)
    red = min(max(_value(records, r, R_COLOUR, x, y) * far, _NONE), _ONE)
    green = min(max(_value(records, r, R_COLOUR + 3, x, y) * far, _NONE), _ONE)
    blue = min(max(_value(records, r, R_COLOUR + 6, x, y) * far, _NONE), _ONE)
    if texture < 0:
        red, green, blue = red * _WHITE, green * _WHITE, blue * _WHITE
    else:
        if laying == CUBE_UV:
            u, v, w = (
                _value(records, r, R_UV, x, y),
                _value(records, r, R_UV + 3, x, y),
                _value(records, r, R_UV + 6, x, y),
            )
            face = cube_face(u, v, w)
            s, t = on_face(face, u, v, w)
        else:
            face, s, t = 0, _value(records, r, R_UV, x, y) * far, _value(records, r, R_UV + 3, x, y) * far
        lanes = sample(scene, texture, face, s, t, detail)
        red *= np.float32(np.int32(lanes & _BYTE))
        green *= np.float32(np.int32((lanes >> np.uint64(32)) & _BYTE))
        blue *= np.float32(np.int32((lanes >> np.uint64(16)) & _BYTE))
    return np.uint32(np.int32(red + _HALF) | np.int32(green + _HALF) << 8 | np.int32(blue + _HALF) << 16)
