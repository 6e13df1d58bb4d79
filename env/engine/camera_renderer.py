"""One thread's renderer: a scene, an OpenGL context, and the render model with what can show in an image marked."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass

import mujoco
import numpy as np

from env.engine.camera_cull import find_visible, place, split_meshes, unpack
from env.engine.camera_gl import open_context
from env.engine.camera_meshes import lighten
from env.engine.family import Family
from env.errors import EnvError

_SHOWN, _HIDDEN = 1, 3  # geom groups: drawn, not drawn
_OCCLUDER_AREA = 0.01  # m^2 (product of the two larger half sizes): smaller boxes hide too little to be worth asking


@dataclass(frozen=True)
class Quality:
    """How images are drawn. ``samples``: per pixel; None: as many as the model says (4). ``scale``: drawn this much
    larger and averaged down.
    """

    reflection: bool
    light_meshes: bool
    samples: int | None
    scale: int


QUALITIES = {
    "faithful": Quality(reflection=True, light_meshes=False, samples=None, scale=1),
    "balanced": Quality(reflection=False, light_meshes=True, samples=4, scale=1),
    "fast": Quality(reflection=False, light_meshes=True, samples=0, scale=2),
}

Appearance = tuple[tuple[str, np.ndarray, np.ndarray], ...]  # (field of the model, rows, their values)


def base_model(family: Family, quality: Quality) -> mujoco.MjModel:
    """The render model that all threads copy: what robosuite draws is in group 1, everything else is not drawn."""
    model = family.render_model()
    if quality.light_meshes:
        model = lighten(model)
    if quality.samples is not None:
        model.vis.quality.offsamples = quality.samples
    model.vis.quality.shadowsize = min(model.vis.quality.shadowsize, 64 if not model.light_castshadow.any() else 4096)
    drawn = np.isin(model.geom_group, (1, 2))  # robosuite shows visual geoms; collision geoms are in group 0
    model.geom_group[:] = np.where(drawn, _SHOWN, _HIDDEN)
    return model


class Renderer:
    """One thread's OpenGL context, scene and simulation; used by that thread only."""

    def __init__(
        self, base: mujoco.MjModel, cameras: list[int], size: tuple[int, int], quality: Quality, backend: str
    ) -> None:
        self._owner, self._quality, self._cameras = threading.get_ident(), quality, cameras
        self._base, self._model = base, copy.copy(base)
        height, width = (quality.scale * n for n in size)
        self._model.vis.global_.offwidth, self._model.vis.global_.offheight = width, height
        self._data = mujoco.MjData(self._model)
        mujoco.mj_kinematics(self._model, self._data)  # the world body's frame, which ``place`` leaves alone
        self._gl = open_context(backend, width, height)
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(self._model, maxgeom=2000)
        self._option, self._perturb, self._camera = mujoco.MjvOption(), mujoco.MjvPerturb(), mujoco.MjvCamera()
        self._option.geomgroup[:] = [int(group == _SHOWN) for group in range(len(self._option.geomgroup))]
        self._option.sitegroup[:] = 0  # robosuite makes its sites invisible
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)
        self._aspect = width / height
        self._drawn, self._hiders, self._mirror = _roles(self._model)
        self._visible = np.zeros(self._model.ngeom, bool)
        self._boxes, self._first = split_meshes(self._model)
        self._worn: Appearance = ()
        self._needs_centres = (self._model.cam_mode != 0).any() or (self._model.light_mode != 0).any()

    def draw(self, pose: np.ndarray, appearance: Appearance, image: np.ndarray) -> None:
        """All cameras into ``image (3 M, H, W)``."""
        if threading.get_ident() != self._owner:  # OpenGL would say nothing and leave the image as it was
            raise RuntimeError("a renderer was used outside its thread")
        self._wear(appearance)
        model, data = self._model, self._data
        data.xpos[:], data.xquat[:] = pose[:, :3], pose[:, 3:]
        place(
            data._address, data.xpos, data.xquat, data.xmat, data.xipos, data.ximat, model.body_ipos, model.body_iquat,
            model.body_sameframe, data.geom_xpos, data.geom_xmat, model.geom_pos, model.geom_quat, model.geom_bodyid,
            model.geom_sameframe,
        )  # fmt: skip
        if self._needs_centres:
            mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        for k, camera in enumerate(self._cameras):
            self._look(camera)
            mujoco.mjr_render(self._viewport, self._scene, self._context)
            mujoco.mjr_readPixels(self._pixels, None, self._viewport, self._context)
            unpack(self._pixels, image[3 * k : 3 * k + 3])

    def close(self) -> None:
        """Free the context."""
        self._context.free()
        self._gl.free()

    def _look(self, camera: int) -> None:
        """Fill the scene with what ``camera`` can see."""
        model, data = self._model, self._data
        half_height = np.tan(np.radians(model.cam_fovy[camera]) / 2)
        in_mirror = find_visible(
            data.cam_xpos[camera], data.cam_xmat[camera], half_height * self._aspect, half_height,
            model.vis.map.znear * model.stat.extent, data.geom_xpos, data.geom_xmat, self._boxes, self._first,
            self._drawn, self._hiders, self._mirror if self._quality.reflection else -1, self._visible,
        )  # fmt: skip
        model.geom_group[:] = np.where(self._visible, _SHOWN, _HIDDEN)
        self._camera.fixedcamid = camera
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = in_mirror > 0
        mujoco.mjv_updateScene(
            model, data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )

    def _wear(self, appearance: Appearance) -> None:
        """Change the model to the appearance of the episode that is drawn next."""
        if appearance is self._worn:
            return
        for name, rows, _ in self._worn:
            getattr(self._model, name)[rows] = getattr(self._base, name)[rows]
            if name == "geom_aabb":
                self._boxes[self._first[rows]] = self._base.geom_aabb[rows]
        for name, rows, values in appearance:
            getattr(self._model, name)[rows] = values
            if name == "geom_aabb":
                self._boxes[self._first[rows]] = values  # episodes differ in primitive geoms, which have one box each
        self._worn = appearance


def _roles(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray, int]:
    """Ids of the geoms that are drawn, of the opaque boxes that may hide others, and of the reflecting plane (or -1).

    Only the first reflecting geom of a scene reflects; the others' reflectance is set to zero, so that none takes its
    place when it is left out.
    """
    kinds, boxes = mujoco.mjtGeom, model.geom_aabb
    alpha, reflectance = model.geom_rgba[:, 3].copy(), np.zeros(model.ngeom)
    for geom in np.flatnonzero(model.geom_matid >= 0):
        material = model.geom_matid[geom]
        reflectance[geom] = model.mat_reflectance[material]
        if tuple(model.geom_rgba[geom]) == (0.5, 0.5, 0.5, 1.0):  # MuJoCo: a colour of its own beats the material's
            alpha[geom] = model.mat_rgba[material, 3]
    drawn = np.flatnonzero((model.geom_group == _SHOWN) & (alpha > 0))
    opaque = alpha >= 0.995
    flat = (model.geom_type == kinds.mjGEOM_PLANE) | (model.geom_type == kinds.mjGEOM_BOX)
    mirrors = [int(g) for g in drawn if opaque[g] and flat[g] and reflectance[g] > 0]
    for geom in np.flatnonzero(model.geom_type == kinds.mjGEOM_PLANE):
        sizes = [n if n > 0 else 1e3 for n in model.geom_size[geom, :2]]
        boxes[geom] = [0, 0, 0, *sizes, 0]
    for geom in mirrors[1:]:
        if model.geom_matid[geom] == model.geom_matid[mirrors[0]]:
            raise EnvError(f"geoms {mirrors[0]} and {geom} reflect with one material: not supported")
        model.mat_reflectance[model.geom_matid[geom]] = 0.0
    if mirrors and model.geom_type[mirrors[0]] != kinds.mjGEOM_PLANE:
        raise EnvError(f"geom {mirrors[0]} is a reflecting box: only a plane may reflect")
    areas = np.sort(model.geom_size, axis=1)[:, 1:].prod(axis=1)
    hiders = [g for g in drawn if opaque[g] and model.geom_type[g] == kinds.mjGEOM_BOX and areas[g] > _OCCLUDER_AREA]
    return drawn.astype(np.int64), np.array(hiders, np.int64), mirrors[0] if mirrors else -1
