"""Camera images without OpenGL: a software rasteriser of our own that draws what MuJoCo's renderer would draw.

``RasterScene`` holds everything of a model that never moves (made once, shared by all threads); a ``Rasterizer`` holds one thread's scratch
memory and draws. Drawing releases the GIL, is deterministic to the bit, and loads no graphics library.

The order of things: triangles are first only sorted out (``raster_fill``: which is nearest at each of a pixel's four samples), and what is
seen is then lit (``raster_light``) and textured (``raster_shade``, ``raster_paint``): most triangles of a robot are never looked at twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from env.engine.camera_cull import place
from env.engine.camera_renderer import Appearance
from env.engine.raster_cull import TILE
from env.engine.raster_fill import Frame
from env.engine.raster_light import LANES, N_RECORD, make_batch
from env.engine.raster_pose import L_AMBIENT, L_CUTOFF, L_EXPONENT, L_FADE, L_SPOT, N_FLOATS, N_LIGHT, N_WORDS
from env.engine.raster_scene import RasterScene
from env.engine.raster_shapes import CLUSTER
from env.engine.raster_view import Posed, Scratch, Work, draw_geoms, draw_view, place_all, place_lights
from env.errors import EnvError

__all__ = ["FREE_CAMERA", "RasterScene", "Rasterizer"]

FREE_CAMERA = -1  # as a camera id: MuJoCo's free camera at its default place
_SAMPLES = np.array([0.375, 0.875, 0.125, 0.625])  # where in a pixel they lie along x, from its lowest to its highest
_MIDDLE = np.full(4, 0.5)
_LOOKS = (
    "geom_pos",
    "geom_quat",
    "geom_size",
    "geom_rgba",
    "geom_rbound",
    "cam_pos",
    "cam_quat",
)  # may differ between episodes
_UNSEEN = {"geom_aabb", "body_ipos", "body_iquat"}  # may differ, too, and change nothing here


class Rasterizer:
    """Draws the views of ``cameras`` (ids, or ``FREE_CAMERA``); for one thread at a time.

    Args:
        size: (height, width) in pixels.
        reflections: whether the floor mirrors (as ``Quality.reflection``).
    """

    def __init__(self, scene: RasterScene, cameras: Sequence[int], size: tuple[int, int], reflections: bool) -> None:
        self._scene, self._model, self._reflections = scene, scene.model, bool(reflections)
        self._cameras, (self._height, self._width) = list(cameras), (int(n) for n in size)
        model = self._model
        for camera in self._cameras:
            if not FREE_CAMERA <= camera < model.ncam:
                raise EnvError(f"camera {camera}: the model has {model.ncam} cameras")
        self._own = {name: np.array(getattr(model, name)) for name in _LOOKS}
        self._worn: Appearance = ()
        facts, self._lit = _light_facts(model)
        self._posed = Posed(
            np.zeros((model.ngeom, 3)), np.zeros((model.ngeom, 9)), self._own["geom_size"], self._own["geom_rgba"],
            self._own["geom_rbound"], np.zeros((len(facts), 3)), np.zeros((len(facts), 3)), facts,
        )  # fmt: skip
        self._work = _memory(scene, self._height, self._width, len(facts))
        self._cam_pos, self._cam_mat = np.zeros((model.ncam + 1, 3)), np.zeros((model.ncam + 1, 9))
        self._cam_pos[-1], self._cam_mat[-1] = _free_camera(model)  # FREE_CAMERA is the last row
        self._light_pos, self._light_dir = (
            np.ascontiguousarray(v[self._lit]) for v in (model.light_pos, model.light_dir)
        )
        self._bodies = [
            np.ascontiguousarray(v, np.int64)
            for v in (model.geom_bodyid, model.cam_bodyid, model.light_bodyid[self._lit])
        ]
        self._head = len(facts) - len(self._lit)  # 1 with a headlight, whose light comes first
        self._frames = {(c, n): self._frame(c, n) for c in self._cameras for n in (4, 1)}
        self._tracks = bool((model.cam_mode != 0).any() or (model.light_mode != 0).any())
        self._data = mujoco.MjData(model) if self._tracks else None

    def draw(self, pose: np.ndarray, appearance: Appearance, image: np.ndarray) -> None:
        """All cameras into ``image (3 M, H, W)`` uint8, top row first; bodies at ``pose (nbody, 7)`` float64."""
        self._check("image", image, (3 * len(self._cameras), self._height, self._width), np.uint8)
        self._place(pose, appearance)
        for k, camera in enumerate(self._cameras):
            draw_view(*self._seen_by(camera, 4), self._reflections, image[3 * k : 3 * k + 3])

    def draw_depth(self, pose: np.ndarray, appearance: Appearance, depth: np.ndarray) -> None:
        """Distances along the viewing axis, in metres, into ``depth (M, H, W)`` float32; the far plane where nothing is. As
        ``mujoco.Renderer`` has it: at pixels' middles, what is transparent counts as solid.
        """
        self._check("depth", depth, (len(self._cameras), self._height, self._width), np.float32)
        self._place(pose, appearance)
        geoms = np.zeros(depth.shape[1:], np.int32)
        for k, camera in enumerate(self._cameras):
            draw_geoms(*self._seen_by(camera, 1), depth[k], geoms)

    def draw_segmentation(self, pose: np.ndarray, appearance: Appearance, objects: np.ndarray) -> None:
        """Object ids and types (``mjtObj``), as ``mujoco.Renderer`` gives them, into ``objects (M, H, W, 2)`` int32; -1 where
        nothing is.
        """
        self._check("objects", objects, (len(self._cameras), self._height, self._width, 2), np.int32)
        self._place(pose, appearance)
        depth, geoms = np.zeros(objects.shape[1:3], np.float32), np.zeros(objects.shape[1:3], np.int32)
        for k, camera in enumerate(self._cameras):
            draw_geoms(*self._seen_by(camera, 1), depth, geoms)
            objects[k, ..., 0] = geoms
            objects[k, ..., 1] = np.where(geoms >= 0, int(mujoco.mjtObj.mjOBJ_GEOM), -1)

    def _check(self, name: str, array: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise EnvError(f"{name} must be contiguous {np.dtype(dtype)} {shape}, found {array.dtype} {array.shape}")

    def _place(self, pose: np.ndarray, appearance: Appearance) -> None:
        """Put everything where the bodies are."""
        model, own, small = self._model, self._own, self._work.scratch.small
        self._wear(appearance)
        pose = np.ascontiguousarray(pose, np.float64)
        if pose.shape != (model.nbody, 7):
            raise EnvError(f"a pose of this model has the shape {(model.nbody, 7)}, found {pose.shape}")
        place_all(
            pose, self._bodies[0], own["geom_pos"], own["geom_quat"], self._posed, self._bodies[1], own["cam_pos"], own["cam_quat"],
            self._cam_pos, self._cam_mat, small,
        )  # fmt: skip
        place_lights(pose, self._bodies[2], self._light_pos, self._light_dir, self._posed, self._head, small)
        self._endless = [(g, self._posed.geom_pos[g].copy(), steps) for g, steps in self._scene.endless]
        if self._tracks:
            self._track(pose)

    def _track(self, pose: np.ndarray) -> None:
        """Cameras and lights that follow something: MuJoCo knows how."""
        model, data = self._model, self._data
        data.xpos[:], data.xquat[:] = pose[:, :3], pose[:, 3:]
        place(
            data._address, data.xpos, data.xquat, data.xmat, data.xipos, data.ximat, model.body_ipos, model.body_iquat,
            model.body_sameframe, data.geom_xpos, data.geom_xmat, model.geom_pos, model.geom_quat, model.geom_bodyid,
            model.geom_sameframe,
        )  # fmt: skip
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        self._cam_pos[:-1], self._cam_mat[:-1] = data.cam_xpos, data.cam_xmat
        head = self._head
        self._posed.light_pos[head:], self._posed.light_dir[head:] = (
            data.light_xpos[self._lit],
            data.light_xdir[self._lit],
        )

    def _seen_by(self, camera: int, per_pixel: int) -> tuple:
        """What the kernels ask for first."""
        mat = self._cam_mat[camera]
        for plane, middle, steps in self._endless:  # a plane without end moves along with the camera, by whole periods
            axes = self._posed.geom_mat[plane].reshape(3, 3)
            along = np.where(steps > 0, (self._cam_pos[camera] - middle) @ axes[:, :2], 0.0)
            self._posed.geom_pos[plane] = middle + axes[:, :2] @ (
                2 * steps * np.rint(along / np.maximum(2 * steps, 1e-9))
            )
        if self._head:
            self._posed.light_pos[0], self._posed.light_dir[0] = self._cam_pos[camera], -mat[2::3]
        return self._scene.arrays, self._work, self._posed, self._cam_pos[camera], mat, self._frames[camera, per_pixel]

    def _frame(self, camera: int, per_pixel: int) -> Frame:
        model, middle = self._model, self._height / 2
        fovy = model.vis.global_.fovy if camera == FREE_CAMERA else model.cam_fovy[camera]
        tangent = float(np.tan(np.radians(fovy) / 2))
        near, far = (float(n * model.stat.extent) for n in (model.vis.map.znear, model.vis.map.zfar))
        lens = np.array(
            [self._width / 2, middle, middle / tangent, near, tangent * self._width / self._height, tangent]
        )
        return Frame(
            lens, _SAMPLES if per_pixel == 4 else _MIDDLE, self._width, per_pixel * self._height, per_pixel, far
        )

    def _wear(self, appearance: Appearance) -> None:
        """Change to the appearance of the episode that is drawn next."""
        if appearance is self._worn:
            return
        for name, _, _ in appearance:
            if name not in self._own and name not in _UNSEEN:
                raise EnvError(f"an appearance changes {name}, which cannot change here; expected {', '.join(_LOOKS)}")
        for name, rows, _ in self._worn:
            if name in self._own:
                self._own[name][rows] = getattr(self._model, name)[rows]
        for name, rows, values in appearance:
            if name in self._own:
                self._own[name][rows] = values
        self._worn = appearance


def _memory(scene: RasterScene, height: int, width: int, n_lights: int) -> Work:
    arrays = scene.arrays
    n, items = 4 * height * width, len(arrays.items)
    of_cluster = np.concatenate([[0], np.cumsum(arrays.clusters[:, 3])])
    first, clusters = arrays.shapes[arrays.items[:, 1]].T if items else (np.zeros(0, int), np.zeros(0, int))
    triangles = int((of_cluster[first + clusters] - of_cluster[first]).sum())
    tiles = -(-height // TILE) * -(-width // TILE)
    scratch = Scratch(
        np.zeros((5, 4), np.float32), np.zeros((3, 256), np.float32), np.zeros(tiles, np.float32), np.zeros(width, np.float32),
        np.zeros((2, width), np.int64), np.zeros(CLUSTER, np.float32), np.zeros(CLUSTER, np.int32), np.zeros((3, 3)), np.zeros((4, 3)), np.zeros(32),
    )  # fmt: skip
    return Work(
        np.zeros((2, n), np.float32), np.zeros((2, n), np.int32), np.zeros((2, n), np.uint32), np.full((2, n), 1e30, np.float32),
        np.zeros((2 * triangles + 1, 4), np.int32), np.zeros((2 * n + LANES, N_RECORD), np.float32),
        np.zeros((2 * items, N_FLOATS), np.float32), np.zeros((2 * items, N_WORDS), np.int32), np.zeros(items, np.int32),
        np.zeros(items), np.zeros((2, n_lights, N_LIGHT), np.float32), make_batch(), np.zeros((3, 4)), scratch,
    )  # fmt: skip


def _light_facts(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """What does not move of the lights that shine, the headlight first: (L, N_LIGHT); and the ids of the others."""
    lit, head = np.flatnonzero(model.light_active), model.vis.headlight
    facts = np.zeros((bool(head.active) + len(lit), N_LIGHT), np.float32)
    if head.active:
        facts[0, L_AMBIENT:L_FADE] = [*head.ambient, *head.diffuse, *head.specular]
    rest = facts[bool(head.active) :]
    rest[:, L_SPOT] = model.light_type[lit] == int(mujoco.mjtLightType.mjLIGHT_SPOT)
    rest[:, L_AMBIENT:L_FADE] = np.concatenate(
        [model.light_ambient[lit], model.light_diffuse[lit], model.light_specular[lit]], axis=1
    )
    rest[:, L_FADE : L_FADE + 3] = model.light_attenuation[lit]
    cutoff = model.light_cutoff[lit]
    rest[:, L_CUTOFF] = np.where(cutoff == 180, -1.0, np.cos(np.radians(cutoff)))
    rest[:, L_EXPONENT] = model.light_exponent[lit]
    return facts, lit


def _free_camera(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) and frame (9,) of MuJoCo's free camera where it starts."""
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    azimuth, elevation = np.radians(camera.azimuth), np.radians(camera.elevation)
    ahead = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    up = np.array([-np.sin(elevation) * np.cos(azimuth), -np.sin(elevation) * np.sin(azimuth), np.cos(elevation)])
    frame = np.stack([np.cross(ahead, up), up, -ahead], axis=1)
    return camera.lookat - camera.distance * ahead, frame.ravel()
