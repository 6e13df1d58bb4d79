"""What the rasteriser draws: a model's shapes, materials, textures and lights in flat arrays, made once and shared by all threads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np

from env.engine import raster_shapes as shapes
from env.engine.camera_meshes import lighten
from env.engine.camera_renderer import QUALITIES
from env.engine.raster_textures import load_textures
from env.errors import EnvError

_logger = logging.getLogger(__name__)
_said: set[str] = set()  # features that are not drawn, and have been named

GEOM = mujoco.mjtGeom
WHOLE, TUBE, TOP, BOTTOM = range(4)  # parts of a geom: a capsule is made of three shapes
_CAPSULE = (("tube", TUBE), ("top", TOP), ("bottom", BOTTOM))
_BUILTIN = {GEOM.mjGEOM_SPHERE: "sphere", GEOM.mjGEOM_ELLIPSOID: "sphere", GEOM.mjGEOM_CYLINDER: "cylinder", GEOM.mjGEOM_BOX: "box"}  # fmt: skip
# columns of ``Scene.items``; they are part of the kernels, so this file is part of what names their cache (``raster_compile``)
I_GEOM, I_SHAPE, I_PART = range(3)
# columns of ``Scene.materials``
M_RGBA, M_EMISSION, M_SPECULAR, M_SHININESS, M_REFLECTANCE, M_REPEAT, M_UNIFORM, N_MATERIAL = 0, 4, 5, 6, 7, 8, 10, 11


class Scene(NamedTuple):
    """The arrays the kernels read. See ``Shape`` and ``Textures`` for those that are theirs."""

    x: np.ndarray  # (P,) float32: of places
    y: np.ndarray
    z: np.ndarray
    clusters: np.ndarray
    boxes: np.ndarray
    cones: np.ndarray
    corners: np.ndarray
    planes: np.ndarray  # (4, T) float32
    attributes: np.ndarray
    shapes: np.ndarray  # (S, 2) int32: first cluster, clusters
    items: np.ndarray  # (I, 3) int32: what is drawn, in MuJoCo's order: geom, shape, part
    geom_type: np.ndarray  # (G,) int32
    geom_body: np.ndarray
    geom_material: np.ndarray
    geom_uv: np.ndarray  # 1: texture coordinates are the mesh's own
    geom_scaled: np.ndarray  # 1: its shape is in metres: a mesh or plane
    materials: np.ndarray  # (M, N_MATERIAL) float32
    material_texture: np.ndarray  # (M,) int32, -1: none
    heads: np.ndarray
    levels: np.ndarray
    texels: np.ndarray
    skybox: int


class RasterScene:
    """Everything drawable of ``model``, once; read-only afterwards, shared by any number of threads.

    Args:
        model: geoms of ``groups`` are drawn.
        quality: a key of ``camera_renderer.QUALITIES``; other than "faithful" draws light robot meshes.
        groups: the geom groups that are seen.

    Raises:
        EnvError: an unknown quality; a malformed mesh or texture (an index out of range), naming it.
    """

    def __init__(self, model: mujoco.MjModel, quality: str, groups: Sequence[int] = (1, 2)) -> None:
        if quality not in QUALITIES:
            raise EnvError(f"render_quality: expected one of {', '.join(QUALITIES)}, found {quality!r}")
        _check(model)
        self.model = model
        self._pieces, self._numbers = [], {}
        self._drawn = lighten(model) if QUALITIES[quality].light_meshes and _any_mesh(model) else model
        items = [item for geom in range(model.ngeom) for item in self._items(geom, groups)]
        self.arrays = self._pack(items)
        _say_what_is_missing(model, [item[I_GEOM] for item in items])
        self.endless = [
            (item[I_GEOM], self._steps(item[I_GEOM]))
            for item in items
            if model.geom_type[item[I_GEOM]] == GEOM.mjGEOM_PLANE and not model.geom_size[item[I_GEOM], :2].all()
        ]
        del self._pieces, self._numbers, self._drawn

    def _steps(self, geom: int) -> np.ndarray:
        """By what a plane without end may be moved along its axes, unseen: (2,), 0 where it ends."""
        model, material = self.model, self.model.geom_matid[geom]
        repeat = model.mat_texrepeat[material] if material >= 0 else None
        far = float(model.vis.map.zfar * model.stat.extent)
        return np.array(
            [shapes.infinite_step(repeat, k, far) if model.geom_size[geom, k] <= 0 else 0.0 for k in range(2)]
        )

    def _items(self, geom: int, groups: Sequence[int]) -> list[tuple[int, int, int]]:
        """What to draw for ``geom``: (geom, shape, part)."""
        model, kind = self.model, GEOM(int(self.model.geom_type[geom]))
        quality, data = model.vis.quality, int(model.geom_dataid[geom])
        slices, stacks = quality.numslices, quality.numstacks
        if min(max(int(model.geom_group[geom]), 0), 5) not in groups:
            return []
        if kind == GEOM.mjGEOM_MESH and data >= 0:
            return [(geom, self._shape(("mesh", data), lambda: shapes.mesh_soup(self._drawn, data)), WHOLE)]
        if kind == GEOM.mjGEOM_PLANE:
            material = model.geom_matid[geom]
            repeat = model.mat_texrepeat[material] if material >= 0 else None
            far = float(model.vis.map.zfar * model.stat.extent)
            return [
                (geom, self._shape(("plane", geom), lambda: shapes.plane(model.geom_size[geom], repeat, far)), WHOLE)
            ]
        makers = {
            "sphere": lambda: shapes.sphere(slices, stacks),
            "cylinder": lambda: shapes.cylinder(slices, stacks),
            "box": lambda: shapes.box(quality.numquads),
            "tube": lambda: shapes.tube(slices, stacks),
            "top": lambda: shapes.sphere(slices, stacks, (1,), 1.0),
            "bottom": lambda: shapes.sphere(slices, stacks, (-1,), -1.0),
        }
        if kind == GEOM.mjGEOM_CAPSULE:
            return [(geom, self._shape((name, 0), makers[name]), part) for name, part in _CAPSULE]
        if kind in _BUILTIN:
            return [(geom, self._shape((_BUILTIN[kind], 0), makers[_BUILTIN[kind]]), WHOLE)]
        return []

    def _shape(self, key: tuple[str, int], make) -> int:  # noqa: ANN001
        if key not in self._numbers:
            self._numbers[key] = len(self._pieces)
            self._pieces.append(shapes.make_shape(make()))
        return self._numbers[key]

    def _pack(self, items: list[tuple[int, int, int]]) -> Scene:
        model, pieces = self.model, self._pieces
        starts = {k: np.cumsum([0, *(len(getattr(p, k)) for p in pieces)]) for k in ("places", "clusters", "corners")}
        clusters = [
            p.clusters + np.array([starts["places"][s], 0, starts["corners"][s], 0], np.int32)
            for s, p in enumerate(pieces)
        ]

        def joined(parts: list[np.ndarray], columns: tuple[int, ...], dtype: type) -> np.ndarray:
            return np.concatenate([np.zeros((0, *columns), dtype), *parts]).astype(dtype)

        places = joined([p.places for p in pieces], (3,), np.float32)
        mesh = np.maximum(model.geom_dataid, 0)
        has_uv = model.mesh_texcoordadr[mesh] >= 0 if model.nmesh else np.zeros(model.ngeom, bool)
        is_mesh = (model.geom_type == GEOM.mjGEOM_MESH) & (model.geom_dataid >= 0)
        textures = load_textures(model)
        return Scene(
            *(np.ascontiguousarray(places[:, k]) for k in range(3)),
            joined(clusters, (4,), np.int32),
            joined([p.boxes for p in pieces], (6,), np.float32),
            joined([p.cones for p in pieces], (4,), np.float32),
            joined([p.corners for p in pieces], (3,), np.uint8),
            np.ascontiguousarray(joined([p.planes for p in pieces], (4,), np.float32).T),
            joined([p.attributes for p in pieces], (3, 5), np.float32),
            np.stack([starts["clusters"][:-1], np.diff(starts["clusters"])], axis=1).astype(np.int32).reshape(-1, 2),
            np.array(items, np.int32).reshape(-1, 3),
            model.geom_type.astype(np.int32),
            model.geom_bodyid.astype(np.int32),
            model.geom_matid.astype(np.int32),
            (is_mesh & has_uv).astype(np.int32),
            (is_mesh | (model.geom_type == GEOM.mjGEOM_PLANE)).astype(np.int32),
            _materials(model),
            model.mat_texid[:, mujoco.mjtTextureRole.mjTEXROLE_RGB].astype(np.int32),
            textures.heads,
            textures.levels,
            textures.texels,
            textures.skybox,
        )


def _materials(model: mujoco.MjModel) -> np.ndarray:
    columns = [
        getattr(model, f"mat_{k}")
        for k in ("rgba", "emission", "specular", "shininess", "reflectance", "texrepeat", "texuniform")
    ]
    return np.column_stack([np.asarray(c, np.float32) for c in columns])


def _any_mesh(model: mujoco.MjModel) -> bool:
    return bool((model.geom_type == GEOM.mjGEOM_MESH).any())


def _check(model: mujoco.MjModel) -> None:
    """Indices between the arrays of a model. Raises ``EnvError``."""
    for name, values, limit in (
        ("geom_matid", model.geom_matid, model.nmat),
        ("geom_bodyid", model.geom_bodyid, model.nbody),
        ("geom_dataid of a mesh", model.geom_dataid[model.geom_type == GEOM.mjGEOM_MESH], model.nmesh),
        ("mat_texid", model.mat_texid, model.ntex),
    ):
        if values.size and (values.min() < -1 or values.max() >= limit):
            raise EnvError(f"the model is malformed: {name} holds {values.max()}, there are {limit}")


def _say_what_is_missing(model: mujoco.MjModel, geoms: Sequence[int]) -> None:
    """Log, once per process, each feature of this model that the rasteriser does not draw."""
    kinds, lights = model.geom_type, model.light_active.astype(bool)
    drawn, reflecting = np.array(sorted(set(geoms)), int), np.zeros(model.ngeom, bool)
    if model.nmat:
        reflecting = (model.geom_matid >= 0) & (model.mat_reflectance[model.geom_matid] > 0)
    on_table = drawn[reflecting[drawn]] if len(drawn) else drawn
    missing = {
        "height fields": (kinds == GEOM.mjGEOM_HFIELD).any(),
        "signed distance fields": (kinds == GEOM.mjGEOM_SDF).any(),
        "skins": model.nskin > 0,
        "flexible bodies": model.nflex > 0,
        "shadows": (model.light_castshadow.astype(bool) & lights).any(),
        "point and image lights": (model.light_type[lights] > int(mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)).any(),
        "reflecting boxes": len(on_table) > 0 and kinds[on_table[0]] == GEOM.mjGEOM_BOX,
        "haze": any(kinds[g] == GEOM.mjGEOM_PLANE and not model.geom_size[g, :2].any() for g in drawn),
        "cameras without perspective": model.cam_orthographic.any() if hasattr(model, "cam_orthographic") else False,
    }
    for feature, present in missing.items():
        if present and feature not in _said:
            _said.add(feature)
            _logger.warning(
                "the native renderer does not draw %s: the image goes without (env.renderer=gl draws them)", feature
            )
