"""Where an episode's objects begin: robosuite's uniform samplers, number for number, from one generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from env.errors import EnvError

_TRIES = 5000


@dataclass(frozen=True)
class Placement:
    """How robosuite places one object (``UniformRandomSampler``). Lengths in m, angles in rad."""

    name: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    rotation: tuple[float, float] | float  # drawn between two angles, or fixed (and then not drawn)
    axis: str
    inside: bool  # keep the whole object within the ranges
    apart: bool  # draw again while it overlaps an object placed before
    reference: tuple[float, float, float]
    z_offset: float
    radius: float
    bottom: float
    top: float
    flips: bool  # robosuite's hammer: the head to one side or the other

    def draw(self, rng: np.random.Generator, placed: list[tuple[Placement, np.ndarray]]) -> np.ndarray:
        """Position (3, m) and orientation (4, w x y z). Raises ``EnvError`` when there is no room."""
        margin = self.radius if self.inside else 0.0
        z = self.z_offset + self.reference[2] - self.bottom
        for _ in range(_TRIES):
            x = rng.uniform(self.x_range[0] + margin, self.x_range[1] - margin) + self.reference[0]
            y = rng.uniform(self.y_range[0] + margin, self.y_range[1] - margin) + self.reference[1]
            if self.apart and any(self._overlaps(x, y, z, *other) for other in placed):
                continue
            angle = rng.uniform(*self.rotation) if isinstance(self.rotation, tuple) else self.rotation
            pose = np.zeros(7)
            pose[:3] = x, y, z
            pose[3], pose[4 + "xyz".index(self.axis)] = math.cos(angle / 2), math.sin(angle / 2)
            if self.flips:
                pose[3:] = _flipped(pose[3:], rng)
            return pose
        raise EnvError(f"no room to place {self.name}: {_TRIES} draws overlapped other objects")

    def _overlaps(self, x: float, y: float, z: float, other: Placement, pose: np.ndarray) -> bool:
        near = np.linalg.norm((x - pose[0], y - pose[1])) <= other.radius + self.radius
        return bool(near and z - pose[2] <= other.top - self.bottom)


def _flipped(quaternion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by one of the hammer's two first orientations, drawn twice and used once, in single precision: as robosuite
    does it.
    """
    rng.random()
    x0, y0, z0, w0 = (0.5, -0.5, 0.5, -0.5) if rng.random() >= 0.5 else (-0.5, -0.5, -0.5, -0.5)
    x1, y1, z1, w1 = quaternion
    product = (
        x1 * w0 + y1 * z0 - z1 * y0 + w1 * x0,
        -x1 * z0 + y1 * w0 + z1 * x0 + w1 * y0,
        x1 * y0 - y1 * x0 + z1 * w0 + w1 * z0,
        -x1 * x0 - y1 * y0 - z1 * z0 + w1 * w0,
    )
    return np.array(product, np.float32).astype(np.float64)


def placements(sampler: Any) -> list[Placement]:
    """The objects of robosuite's ``SequentialCompositeSampler`` (or of a single sampler), in the order they are drawn."""
    return [
        _placement(part, thing)
        for part in getattr(sampler, "samplers", {"": sampler}).values()
        for thing in part.mujoco_objects
    ]


def _placement(part: Any, thing: Any) -> Placement:
    if part.rotation is None:
        rotation: tuple[float, float] | float = (0.0, 2 * np.pi)
    elif np.ndim(part.rotation):
        rotation = (float(min(part.rotation)), float(max(part.rotation)))
    else:
        rotation = float(part.rotation)
    return Placement(
        name=thing.name,
        x_range=(float(part.x_range[0]), float(part.x_range[1])),
        y_range=(float(part.y_range[0]), float(part.y_range[1])),
        rotation=rotation,
        axis=part.rotation_axis,
        inside=bool(part.ensure_object_boundary_in_range),
        apart=bool(part.ensure_valid_placement),
        reference=tuple(float(v) for v in part.reference_pos),
        z_offset=float(part.z_offset),
        radius=float(thing.horizontal_radius),
        bottom=float(thing.bottom_offset[-1]),
        top=float(thing.top_offset[-1]),
        flips=isinstance(getattr(type(thing), "init_quat", None), property),
    )
