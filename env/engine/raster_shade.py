"""Kernels of the rasteriser, third part: the colour of a triangle at a pixel. Light falls on corners, textures on pixels, as in OpenGL 1.5."""

from __future__ import annotations

import math

import numpy as np

from env.engine.raster_compile import drawing_kernel, inlined
from env.engine.raster_fill import eye_place
from env.engine.raster_pose import (
    CUBE_UV,
    F_EMISSION,
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
from env.engine.raster_sample import cube_face, level_of_detail, on_face, sample

kernel = drawing_kernel(__file__)
# a record: how 1 / distance, and colours and texture coordinates over distance, grow along x and y, and what they are at (0, 0)
R_NEAR, R_COLOUR, R_UV, N_RECORD = 0, 3, 12, 21
_NONE, _ONE, _DIM, _SHINIEST = np.float32(0), np.float32(1), np.float32(0.3), np.float32(128)
_HALF, _WHITE, _BYTE = np.float32(0.5), np.float32(255), np.uint64(255)
_TINY, _DARK = np.float32(1e-24), np.float32(8)  # e^-8 of white is a twelfth of a step of a byte


@inlined
def _inverse_root(x):
    return _ONE / np.float32(math.sqrt(max(x, _TINY)))


@inlined
def _gleam(along, square, shine, least):
    """Cosine ``along`` / sqrt(``square``) to the power ``shine``; nothing where the cosine is below ``least``."""
    if shine <= _NONE:
        return _ONE
    if along <= _NONE or along * along <= least * least * square:
        return _NONE
    return np.float32(math.exp(shine * np.float32(0.5) * np.float32(math.log(along * along / square))))


@inlined
def _light_corner(x, y, z, nx, ny, nz, item, item_floats, lights, colour, corner):
    """OpenGL's light at a corner (eye's frame, unit normal) -> ``colour[corner]``, each at most 1. All float32."""
    away = _inverse_root(x * x + y * y + z * z)
    gloss, shine = item_floats[item, F_SPECULAR], item_floats[item, F_SHININESS] * _SHINIEST
    ambient = item_floats[item, F_EMISSION] + (_DIM if len(lights) == 0 else _NONE)
    least = max(_ONE - _DARK / max(shine, _ONE), _NONE)
    red, green, blue, shine_red, shine_green, shine_blue = ambient, ambient, ambient, _NONE, _NONE, _NONE
    for i in range(len(lights)):
        if lights[i, L_SPOT] > _NONE:
            lx, ly, lz = lights[i, L_PLACE] - x, lights[i, L_PLACE + 1] - y, lights[i, L_PLACE + 2] - z
            square = lx * lx + ly * ly + lz * lz
            nearness = _inverse_root(square)
            lx, ly, lz = lx * nearness, ly * nearness, lz * nearness
            along = -(lx * lights[i, L_AIM] + ly * lights[i, L_AIM + 1] + lz * lights[i, L_AIM + 2])
            if along <= lights[i, L_CUTOFF]:
                continue
            strength = _ONE / (lights[i, L_FADE] + square * (nearness * lights[i, L_FADE + 1] + lights[i, L_FADE + 2]))
            if lights[i, L_CUTOFF] > -_ONE:
                strength *= _gleam(along, _ONE, lights[i, L_EXPONENT], _NONE)
        else:
            lx, ly, lz, strength = -lights[i, L_AIM], -lights[i, L_AIM + 1], -lights[i, L_AIM + 2], _ONE
        facing = max(nx * lx + ny * ly + nz * lz, _NONE)
        red += strength * (lights[i, L_AMBIENT] + facing * lights[i, L_DIFFUSE])
        green += strength * (lights[i, L_AMBIENT + 1] + facing * lights[i, L_DIFFUSE + 1])
        blue += strength * (lights[i, L_AMBIENT + 2] + facing * lights[i, L_DIFFUSE + 2])
        if facing > _NONE and gloss > _NONE:
            hx, hy, hz = lx - x * away, ly - y * away, lz - z * away
            along = nx * hx + ny * hy + nz * hz
            bright = gloss * strength * _gleam(along, hx * hx + hy * hy + hz * hz, shine, least)
            shine_red += bright * lights[i, L_SPECULAR]
            shine_green += bright * lights[i, L_SPECULAR + 1]
            shine_blue += bright * lights[i, L_SPECULAR + 2]
    colour[corner, 0] = min(item_floats[item, F_RGBA] * red + shine_red, _ONE)
    colour[corner, 1] = min(item_floats[item, F_RGBA + 1] * green + shine_green, _ONE)
    colour[corner, 2] = min(item_floats[item, F_RGBA + 2] * blue + shine_blue, _ONE)


@inlined
def _corner_uv(scene, item, item_floats, item_words, place, triangle, uv, corner):
    laying = item_words[item, W_LAYING]
    if laying == OWN_UV:
        uv[corner, 0] = scene.attributes[triangle, corner, 3]
        uv[corner, 1] = scene.attributes[triangle, corner, 4]
    elif laying == FLAT_UV:
        uv[corner, 0] = item_floats[item, F_TEXTURE] * scene.x[place] - 0.5
        uv[corner, 1] = item_floats[item, F_TEXTURE + 1] * scene.y[place] - 0.5
    else:
        uv[corner, 0] = item_floats[item, F_TEXTURE] * scene.x[place]
        uv[corner, 1] = item_floats[item, F_TEXTURE + 1] * scene.y[place]
        uv[corner, 2] = item_floats[item, F_TEXTURE + 2] * scene.z[place]


@inlined
def _weigh(eye, lens, weights):
    """``weights (3, 3)``: for each corner, how its share over distance grows along x and y, and what it is at (0, 0)."""
    for k in range(3):
        a, b = (k + 1) % 3, (k + 2) % 3
        x = eye[a, 1] * eye[b, 2] - eye[a, 2] * eye[b, 1]
        y = eye[a, 2] * eye[b, 0] - eye[a, 0] * eye[b, 2]
        z = eye[a, 0] * eye[b, 1] - eye[a, 1] * eye[b, 0]
        volume = 1.0 / (eye[k, 0] * x + eye[k, 1] * y + eye[k, 2] * z)
        weights[k, 0], weights[k, 1] = x * volume / lens[2], y * volume / lens[2]
        weights[k, 2] = -z * volume - weights[k, 0] * lens[0] - weights[k, 1] * lens[1]


@inlined
def describe_triangle(scene, item, triangle, cluster, item_floats, item_words, all_lights, lens, record, work):
    """Fill a triangle's ``record``. ``work`` (4, 3, 3): scratch."""
    eye, weights, colour, uv = work[0], work[1], work[2], work[3]
    lights = all_lights[item_words[item, W_MIRRORED]]
    first = scene.clusters[cluster, 0]
    textured = item_words[item, W_TEXTURE] >= 0
    for k in range(3):
        place = first + scene.corners[triangle, k]
        eye_place(scene, place, item, item_floats, eye[k])
        n0, n1 = scene.attributes[triangle, k, 0], scene.attributes[triangle, k, 1]
        n2 = scene.attributes[triangle, k, 2]
        m = F_NORMAL
        nx = item_floats[item, m] * n0 + item_floats[item, m + 1] * n1 + item_floats[item, m + 2] * n2
        ny = item_floats[item, m + 3] * n0 + item_floats[item, m + 4] * n1 + item_floats[item, m + 5] * n2
        nz = item_floats[item, m + 6] * n0 + item_floats[item, m + 7] * n1 + item_floats[item, m + 8] * n2
        length = _inverse_root(nx * nx + ny * ny + nz * nz)
        _light_corner(
            np.float32(eye[k, 0]), np.float32(eye[k, 1]), np.float32(eye[k, 2]), nx * length, ny * length, nz * length, item,
            item_floats, lights, colour, k,
        )  # fmt: skip
        if textured:
            _corner_uv(scene, item, item_floats, item_words, place, triangle, uv, k)
    _weigh(eye, lens, weights)
    for j in range(3):
        record[R_NEAR + j] = weights[0, j] + weights[1, j] + weights[2, j]
        for c in range(3):
            record[R_COLOUR + 3 * c + j] = (
                weights[0, j] * colour[0, c] + weights[1, j] * colour[1, c] + weights[2, j] * colour[2, c]
            )
            if textured:
                record[R_UV + 3 * c + j] = (
                    weights[0, j] * uv[0, c] + weights[1, j] * uv[1, c] + weights[2, j] * uv[2, c]
                )


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
