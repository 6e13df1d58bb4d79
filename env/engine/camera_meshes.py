"""A render model with lighter robot meshes: a Panda's 168,000 triangles become a quarter, and look the same at 96 x 96.

Quadric decimation (the ``fast-simplification`` package) of the arm's and the pedestal's visual meshes to a tenth. Left alone are
textured meshes, small ones, and what a wrist camera sees from close by: hand, fingers and last link. Nothing physical changes: physics
runs on a model without visual geoms.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import zipfile
from pathlib import Path

import mujoco
import numba
import numpy as np

_logger = logging.getLogger(__name__)

KEEP = 0.1  # of a mesh's triangles
AT_LEAST = 250  # triangles
PREFIXES = ("robot", "fixed_mount")  # meshes that may be lightened; a gripper's are called gripper...
UNTOUCHED = ("link7",)
_CREASE = np.cos(np.radians(40.0))  # faces that meet at a sharper angle are shaded as an edge
_RECIPE = f"1 {KEEP} {AT_LEAST} {_CREASE:.6f}"  # part of a cached mesh's name


def lighten(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy of ``model`` with light meshes (``model`` itself stays as it is).

    MuJoCo's arrays hold the meshes one behind the other, so a smaller one is written over the beginning of its original.
    """
    light = copy.copy(model)
    for mesh in _heavy_meshes(model):
        _replace(light, mesh, _light_mesh(model, mesh))
    for geom in range(light.ngeom):
        mesh = light.geom_dataid[geom]
        if light.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH and mesh >= 0:
            first = light.mesh_vertadr[mesh]
            corners = light.mesh_vert[first : first + light.mesh_vertnum[mesh]]
            low, high = corners.min(axis=0), corners.max(axis=0)
            light.geom_aabb[geom] = [*(low + high) / 2, *(high - low) / 2]
    return light


def _heavy_meshes(model: mujoco.MjModel) -> list[int]:
    """Meshes to lighten: of the names above, big, drawn without a texture."""
    found = set()
    for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH):
        mesh, material = int(model.geom_dataid[geom]), int(model.geom_matid[geom])
        name = model.mesh(mesh).name
        textured = material >= 0 and model.mesh_texcoordadr[mesh] >= 0 and (model.mat_texid[material] >= 0).any()
        named = name.startswith(PREFIXES) and not any(part in name for part in UNTOUCHED)
        if named and not textured and model.geom_group[geom] == 1 and model.mesh_facenum[mesh] > 1.2 * AT_LEAST:
            found.add(mesh)
    return sorted(found)


def _light_mesh(model: mujoco.MjModel, mesh: int) -> dict[str, np.ndarray]:
    """The mesh's substitute, kept on disk (a Panda's take 3 s to make): ``vertices (V, 3)``, ``faces (F, 3)``,
    ``normals (M, 3)`` and ``of_face (F, 3)``: the normal of each face's corners.
    """
    first, face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
    vertices = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
    faces = model.mesh_face[face : face + model.mesh_facenum[mesh]]
    digest = hashlib.sha256(_RECIPE.encode() + vertices.tobytes() + faces.tobytes()).hexdigest()[:24]
    file = _folder() / f"{digest}.npz"
    try:
        with np.load(file, allow_pickle=False) as kept:
            return {name: kept[name] for name in ("vertices", "faces", "normals", "of_face")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # absent or damaged: made anew
        pass
    vertices, faces = _decimate(*_weld(vertices, faces))
    normals, of_face = _corner_normals(vertices, faces)
    made = {"vertices": vertices, "faces": faces, "normals": normals, "of_face": of_face}
    partial = file.with_name(f".{digest}.{os.getpid()}.npz")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **made)
        os.replace(partial, file)
    except OSError as error:
        _logger.warning("light meshes cannot be kept in %s (%s): they are made anew each time", file.parent, error)
    return made


def _weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices in the same place become one; faces that lose their area that way are dropped."""
    welded, where = np.unique(np.round(vertices, 6), axis=0, return_inverse=True)
    faces = where.reshape(-1)[faces]
    a, b, c = faces.T
    return welded.astype(np.float32), faces[(a != b) & (b != c) & (c != a)].astype(np.int32)


def _folder() -> Path:
    """Beside the compiled kernels (``library.py``)."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(numba.config.CACHE_DIR or os.path.join(base, "d2ppo")) / "meshes"


def _decimate(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import fast_simplification

    share = min(1.0, max(KEEP, AT_LEAST / len(faces)))
    vertices, faces = fast_simplification.simplify(vertices, faces, target_reduction=1.0 - share, agg=2)
    return np.asarray(vertices, np.float32), np.asarray(faces, np.int32)


def _replace(model: mujoco.MjModel, mesh: int, new: dict[str, np.ndarray]) -> None:
    """Write a smaller mesh over ``mesh``; one that does not fit (it has more normals than the original) stays."""
    sizes = {
        "mesh_vertnum": len(new["vertices"]),
        "mesh_normalnum": len(new["normals"]),
        "mesh_facenum": len(new["faces"]),
    }
    if any(size > getattr(model, name)[mesh] for name, size in sizes.items()):
        return
    for name, first, values in (
        ("mesh_vert", model.mesh_vertadr[mesh], new["vertices"]),
        ("mesh_normal", model.mesh_normaladr[mesh], new["normals"]),
        ("mesh_face", model.mesh_faceadr[mesh], new["faces"]),
        ("mesh_facenormal", model.mesh_faceadr[mesh], new["of_face"]),
    ):
        getattr(model, name)[first : first + len(values)] = values
    for name, size in sizes.items():
        getattr(model, name)[mesh] = size


def _corner_normals(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals (M, 3) and which of them each face's corners use, (F, 3): at every corner the mean, weighted by area, of
    the faces around the vertex that do not turn away by more than the crease angle.
    """
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    weighted = np.cross(b - a, c - a)
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-20)
    around: list[list[int]] = [[] for _ in vertices]
    for f, corners in enumerate(faces):
        for v in corners:
            around[v].append(f)
    corner = np.empty((len(faces), 3, 3))
    for f, corners in enumerate(faces):
        for k, v in enumerate(corners):
            near = around[v]
            smooth = unit[near] @ unit[f] >= _CREASE
            corner[f, k] = weighted[near][smooth].sum(axis=0)
    corner /= np.maximum(np.linalg.norm(corner, axis=2, keepdims=True), 1e-20)
    normals, of_corner = np.unique(np.round(corner.reshape(-1, 3), 4), axis=0, return_inverse=True)
    return normals.astype(np.float32), of_corner.reshape(-1, 3).astype(np.int32)
