"""Triangles of what MuJoCo draws: its tessellation of primitives, meshes with their corner normals, and both cut into clusters.

A *shape* is drawn by any number of geoms, scaled; a mesh is a shape, and so are the unit sphere, the unit box and each plane. Its triangles
lie in clusters of at most ``CLUSTER`` neighbours, each with a box that holds it and a cone that holds its normals, so that most of what faces
away or lies outside an image is dismissed at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from env.errors import EnvError

CLUSTER = 64  # triangles; they have at most 192 corners, so that an index fits a byte
_GRID = 200  # lines of a plane at most, as in MuJoCo
_SHARP = 0.8  # cosine between a corner's normal and its face's below which the face's is drawn


@dataclass
class Soup:
    """Triangles one by one: ``corners`` (T, 3, 3), ``normals`` (T, 3, 3), texture coordinates ``uv`` (T, 3, 2); float32."""

    corners: np.ndarray
    normals: np.ndarray
    uv: np.ndarray


@dataclass
class Shape:
    """A soup in clusters. ``places`` (P, 3): corners' positions, cluster by cluster; ``clusters`` (C, 4): first place, places, first
    triangle, triangles; ``boxes`` (C, 6): centre, half sizes; ``cones`` (C, 4): axis, and the sine of the largest angle from it (2: no
    cone); ``corners`` (T, 3) uint8: places counted from the cluster's first; ``planes`` (T, 4): unit normals, and how far the origin lies
    above each; ``attributes`` (T, 3, 5): their normals and texture coordinates.
    """

    places: np.ndarray
    clusters: np.ndarray
    boxes: np.ndarray
    cones: np.ndarray
    corners: np.ndarray
    planes: np.ndarray
    attributes: np.ndarray


def make_shape(soup: Soup) -> Shape:
    """Cut triangles into clusters and share what their corners have in common. Triangles without an area are dropped."""
    a, b, c = (soup.corners[:, k].astype(np.float64) for k in range(3))
    faces = np.cross(b - a, c - a)
    lengths = np.linalg.norm(faces, axis=1)
    kept = np.flatnonzero(lengths > 0)
    faces = faces[kept] / lengths[kept, None]
    extent = max(float(np.ptp(soup.corners.reshape(-1, 3), axis=0).max()), 1e-9) if len(kept) else 1.0
    features = np.concatenate([(a + b + c)[kept] / (3 * extent), 0.25 * faces], axis=1)
    places, clusters, boxes, cones, corners, order = [], [], [], [], [], []
    planes = np.column_stack([faces, -(faces * a[kept]).sum(axis=1)])
    n_places = n_triangles = 0
    for members in _groups(features, np.arange(len(kept))):
        points, which = np.unique(soup.corners[kept[members]].reshape(-1, 3), axis=0, return_inverse=True)
        clusters.append([n_places, len(points), n_triangles, len(members)])
        n_places, n_triangles = n_places + len(points), n_triangles + len(members)
        low, high = points.min(axis=0), points.max(axis=0)
        boxes.append([*(low + high) / 2, *(high - low) / 2])
        cones.append(_cone(faces[members]))
        places.append(points)
        corners.append(which.reshape(-1, 3))
        order.append(members)
    order = np.concatenate(order or [np.zeros(0, int)])
    return Shape(
        np.concatenate(places or [np.zeros((0, 3))]).astype(np.float32),
        np.array(clusters, np.int32).reshape(-1, 4),
        np.array(boxes, np.float32).reshape(-1, 6),
        np.array(cones, np.float32).reshape(-1, 4),
        np.concatenate(corners or [np.zeros((0, 3))]).astype(np.uint8),
        planes[order].astype(np.float32),
        np.concatenate([soup.normals, soup.uv], axis=2)[kept[order]].astype(np.float32),
    )


def _groups(features: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
    """``members`` in groups of at most ``CLUSTER``: halved along the feature that varies most, again and again."""
    if len(members) <= CLUSTER:
        return [members] if len(members) else []
    values = features[members]
    order = members[np.argsort(values[:, np.argmax(np.ptp(values, axis=0))], kind="stable")]
    half = (len(order) // 2 + CLUSTER // 2) // CLUSTER * CLUSTER or len(order) // 2
    return _groups(features, order[:half]) + _groups(features, order[half:])


def _cone(faces: np.ndarray) -> list[float]:
    axis = faces.sum(axis=0)
    length = np.linalg.norm(axis)
    if length < 1e-6:
        return [0.0, 0.0, 1.0, 2.0]
    axis /= length
    narrowest = float((faces @ axis).min()) - 1e-5
    return [*axis, np.sqrt(1.0 - narrowest**2) if narrowest > 0 else 2.0]


# ------------------------------------------------------------------------------------------------------------- meshes


def mesh_soup(model: mujoco.MjModel, mesh: int) -> Soup:
    """A mesh as MuJoCo draws it. Raises ``EnvError`` for indices out of range and numbers that are none."""
    faces, vertices = _faces(model, mesh, "face", "vert")
    of_corner, normals = _faces(model, mesh, "facenormal", "normal")
    corners, normals = vertices[faces], normals[of_corner]
    if model.mesh_texcoordadr[mesh] >= 0:  # then MuJoCo takes the corners' normals as they are
        of_uv, uv = _faces(model, mesh, "facetexcoord", "texcoord")
        return Soup(corners, normals, uv[of_uv])
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = np.where(lengths < 1e-10, np.float32([0, 0, 1]), flat / np.maximum(lengths, 1e-10))[:, None]
    sharp = (normals * flat).sum(axis=2, keepdims=True) < _SHARP
    return Soup(corners, np.where(sharp, flat, normals), np.zeros((len(faces), 3, 2), np.float32))


def _faces(model: mujoco.MjModel, mesh: int, index: str, of: str) -> tuple[np.ndarray, np.ndarray]:
    """Three indices per face of ``mesh``, and the rows they point at; checked."""
    face, first = model.mesh_faceadr[mesh], getattr(model, f"mesh_{of}adr")[mesh]
    indices = getattr(model, f"mesh_{index}")[face : face + model.mesh_facenum[mesh]]
    rows = getattr(model, f"mesh_{of}")[first : first + getattr(model, f"mesh_{of}num")[mesh]]
    name = model.mesh(mesh).name
    if indices.size and (indices.min() < 0 or indices.max() >= len(rows)):
        bad = indices.min() if indices.min() < 0 else indices.max()
        raise EnvError(
            f"mesh {name!r} is malformed: mesh_{index} points at row {bad} of mesh_{of}, which has {len(rows)}"
        )
    if not np.isfinite(rows).all():
        raise EnvError(f"mesh {name!r} is malformed: mesh_{of} holds numbers that are not finite")
    return indices, rows


# --------------------------------------------------------------------------------------------------------- primitives


def _quads(vertices: np.ndarray, normals: np.ndarray) -> Soup:
    """Quadrilaterals (Q, 4, 3), cut as OpenGL cuts them."""
    cut = [[0, 1, 3], [1, 2, 3]]
    corners = np.concatenate([vertices[:, k] for k in cut])
    return Soup(corners, np.concatenate([normals[:, k] for k in cut]), np.zeros((len(corners), 3, 2), np.float32))


def _join(*soups: Soup) -> Soup:
    return Soup(
        *(np.concatenate([getattr(s, k) for s in soups]).astype(np.float32) for k in ("corners", "normals", "uv"))
    )


def _grid(point, slices: int, stacks: np.ndarray, flip: bool) -> Soup:  # noqa: ANN001
    """Quadrilaterals between consecutive ``stacks`` around the axis; ``point(azimuth, stack)`` -> (position, normal)."""
    azimuth = 2 * np.pi * np.arange(slices + 1) / slices
    places, normals = point(*np.meshgrid(azimuth, stacks, indexing="ij"))
    around = [(0, 0), (1, 0), (1, 1), (0, 1)]
    n, m = slices, len(stacks) - 1
    quads = [
        np.stack([values[i : i + n, j : j + m].reshape(-1, 3) for i, j in around], axis=1)
        for values in (places, normals)
    ]
    if flip:
        quads = [q[:, ::-1] for q in quads]
    soup = _quads(*quads)
    kept = np.linalg.norm(
        np.cross(soup.corners[:, 1] - soup.corners[:, 0], soup.corners[:, 2] - soup.corners[:, 0]), axis=1
    )
    return Soup(*(values[kept > 1e-12] for values in (soup.corners, soup.normals, soup.uv)))


def sphere(slices: int, stacks: int, signs: tuple[int, ...] = (-1, 1), lift: float = 0.0) -> Soup:
    """The unit sphere, or one half of it (``signs``) moved up or down by ``lift``."""

    def point(azimuth: np.ndarray, elevation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        normal = np.stack(
            [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)], -1
        )
        return normal + [0, 0, lift], normal

    half = stacks // 2
    return _join(*(_grid(point, slices, sign * np.pi / 2 * np.arange(half + 1) / half, sign < 0) for sign in signs))


def tube(slices: int, stacks: int) -> Soup:
    """The open cylinder of radius 1 from -1 to 1."""

    def point(azimuth: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        normal = np.stack([np.cos(azimuth), np.sin(azimuth), 0 * azimuth], -1)
        return normal + [0, 0, 1] * height[..., None], normal

    return _grid(point, slices, 2 * np.arange(stacks + 1) / stacks - 1, False)


def disk(slices: int, stacks: int, sign: int) -> Soup:
    """The unit disk at height ``sign`` that faces away from the origin."""

    def point(azimuth: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = np.stack([np.cos(azimuth) * radius, np.sin(azimuth) * radius, sign + 0 * azimuth], -1)
        return place, 0 * place + [0, 0, sign]

    return _grid(point, slices, np.arange(stacks, -1, -1) / stacks, sign < 0)


def cylinder(slices: int, stacks: int) -> Soup:
    """The closed cylinder of radius 1 from -1 to 1."""
    return _join(disk(slices, stacks // 2, -1), tube(slices, stacks), disk(slices, stacks // 2, 1))


def _rectangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Quadrilaterals (Q, 4, 3) at height 0 between the grid lines ``x`` and ``y``, seen from above."""
    low_x, low_y = (v.ravel() for v in np.meshgrid(x[:-1], y[:-1], indexing="ij"))
    high_x, high_y = (v.ravel() for v in np.meshgrid(x[1:], y[1:], indexing="ij"))
    zero = np.zeros_like(low_x)
    ring = [(low_x, low_y), (high_x, low_y), (high_x, high_y), (low_x, high_y)]
    return np.stack([np.stack([px, py, zero], axis=1) for px, py in ring], axis=1)


def box(quads: int) -> Soup:
    """The cube from -1 to 1, each face in ``quads`` x ``quads``."""
    lines = 2 * np.arange(quads + 1) / quads - 1
    flat, soups = _rectangle(lines, lines), []
    for axis in range(3):
        for sign in (-1, 1):
            face = (
                np.roll(flat + [0, 0, 1], axis + 1, axis=2)
                if sign > 0
                else np.roll(flat[:, ::-1] - [0, 0, 1], axis + 1, axis=2)
            )
            normal = np.zeros(3)
            normal[axis] = sign
            soups.append(_quads(face, np.broadcast_to(normal, face.shape)))
    return _join(*soups)


def plane(size: np.ndarray, repeat: np.ndarray | None, far: float) -> Soup:
    """A plane geom as MuJoCo makes it. ``size`` (3,): half sizes (0: without end) and distance of its grid lines; ``repeat`` (2,): its
    material's texture; ``far``: where the view ends, m.
    """
    lines = []
    for k in range(2):
        half = float(size[k])
        if half > 0:
            step = max(float(size[2]), half / (_GRID - 2))
            n = int(half / max(1e-15, step))
            n -= n % 2
            pad = half - n * step
            edges = -half + pad + 2 * step * np.arange(n + 1)
            lines.append(
                np.maximum.accumulate(np.concatenate([[-half], edges, [half]])) if n else np.array([-half, 0, half])
            )
        else:
            increment = infinite_step(repeat, k, far)
            lines.append((2.1 * far + 2 * increment) / _GRID * (np.arange(_GRID + 1) - _GRID / 2))
    face = _rectangle(*lines)
    return _join(_quads(face, np.broadcast_to([0.0, 0.0, 1.0], face.shape)))


def infinite_step(repeat: np.ndarray | None, axis: int, far: float) -> float:
    """By what a plane without end is moved along with the camera: a period of its texture."""
    if repeat is not None and repeat[axis] > 0:
        return 2.0 / float(repeat[axis])
    return 2.1 * far / (_GRID - 2)
