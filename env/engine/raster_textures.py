"""Textures as OpenGL samples them: levels of detail made the way its drivers make them, packed for the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from env.errors import EnvError

FLAT, CUBE = 0, 1  # kinds


@dataclass
class Textures:
    """All textures of a model. ``heads`` (N, 4): kind, first level, levels, faces; ``levels`` (L, 3): first texel, width, height of a face;
    ``texels`` (T,) uint32: red in the lowest byte; linear colours.
    """

    heads: np.ndarray
    levels: np.ndarray
    texels: np.ndarray
    skybox: int = -1


def load_textures(model: mujoco.MjModel) -> Textures:
    """Raises ``EnvError`` naming a texture that is malformed."""
    heads, levels, texels, n = [], [], [], 0
    skybox = -1
    for t in range(model.ntex):
        flat = model.tex_type[t] == mujoco.mjtTexture.mjTEXTURE_2D
        if skybox < 0 and model.tex_type[t] == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            skybox = t
        faces = _pixels(model, t, flat)
        srgb = flat and model.tex_colorspace[t] == mujoco.mjtColorSpace.mjCOLORSPACE_SRGB
        first = len(levels)
        while True:
            levels.append([n, faces.shape[2], faces.shape[1]])
            texels.append(_pack(np.rint(255 * _decode(faces)).astype(np.uint8) if srgb else faces))
            n += texels[-1].size
            if faces.shape[1] == faces.shape[2] == 1:
                break
            faces = _halve(faces, srgb)
        heads.append([FLAT if flat else CUBE, first, len(levels) - first, len(faces)])
    return Textures(
        np.array(heads, np.int32).reshape(-1, 4),
        np.array(levels, np.int32).reshape(-1, 3),
        np.concatenate(texels or [np.zeros(1, np.uint32)]),
        skybox,
    )


def _pixels(model: mujoco.MjModel, t: int, flat: bool) -> np.ndarray:
    """The faces of texture ``t``: (1 or 6, height, width, 3) uint8; a cube with six equal faces has one."""
    width, height, channels, first = (
        int(getattr(model, f"tex_{k}")[t]) for k in ("width", "height", "nchannel", "adr")
    )
    name, size = model.texture(t).name or f"number {t}", width * height * channels
    if width < 1 or height < 1 or channels not in (3, 4) or (not flat and height not in (width, 6 * width)):
        raise EnvError(f"texture {name!r} is malformed: {width} x {height} pixels of {channels} channels")
    if first < 0 or first + size > len(model.tex_data):
        raise EnvError(
            f"texture {name!r} is malformed: its pixels are bytes {first} to {first + size} of {len(model.tex_data)}"
        )
    pixels = model.tex_data[first : first + size].reshape(height, width, channels)[:, :, :3]
    return pixels[None] if flat or height == width else pixels.reshape(6, width, width, 3)


def _pack(faces: np.ndarray) -> np.ndarray:
    colours = faces.astype(np.uint32)
    return (colours[..., 0] | colours[..., 1] << 8 | colours[..., 2] << 16 | 255 << 24).astype(np.uint32).ravel()


def _decode(colours: np.ndarray) -> np.ndarray:
    """sRGB bytes -> linear, 0 to 1."""
    c = np.arange(256) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)[colours]


def _encode(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def _halve(faces: np.ndarray, srgb: bool) -> np.ndarray:
    """The next level: half the size (rounded down), each pixel interpolated between the four around its middle."""
    values = _decode(faces) if srgb else faces / 255
    for axis in (1, 2):
        size = values.shape[axis]
        middle = np.clip((np.arange(max(1, size // 2)) + 0.5) * size / max(1, size // 2) - 0.5, 0, size - 1)
        low = middle.astype(int)
        weight = (middle - low).reshape([-1 if k == axis else 1 for k in range(4)])
        values = (
            np.take(values, low, axis) * (1 - weight) + np.take(values, np.minimum(low + 1, size - 1), axis) * weight
        )
    return np.rint(255 * (_encode(values) if srgb else values)).astype(np.uint8)
