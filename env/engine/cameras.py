"""Camera images of many simulations: ``CameraPool`` draws N x M of them on its own threads, uint8 and upright.

Each thread owns an OpenGL context, a scene, a copy of the render model and an ``MjData``; a simulation hands over where
its bodies are (``pose_of``) and what is particular to its episode (``appearance``). Robosuite draws after the last
physics substep, when MuJoCo's bodies are still where that substep began; so do we, because poses are copied as they are.

Three qualities (spec: measured ms per image on one core, Lift's wrist camera, and likeness to robosuite's own image):

* ``faithful``: pixel-identical to robosuite's rendering with default settings; only what cannot show is left out.
* ``balanced``: no floor reflection, light robot meshes (``camera_meshes.py``).
* ``fast``: also without multisampling, at twice the size and averaged down.

Images are (3 M, H, W) with the top row first, as robomimic stores them; robosuite's own observations have the bottom
row first. Never mix qualities between demonstrations and roll-outs.
"""

from __future__ import annotations

import atexit
import copy
import difflib
import itertools
import queue
import statistics
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np

from env.engine.camera_cull import find_visible, place, unpack
from env.engine.camera_gl import choose_backend, open_context
from env.engine.camera_meshes import lighten
from env.engine.family import Family
from env.errors import EnvError

MAX_THREADS = 16  # of one pool: a context takes 100 MB and more
_GRACE_SECONDS, _GRACE_MEDIANS, _START_SECONDS = (
    30.0,
    100.0,
    180.0,
)  # the watchdog: how long one image, a start may take
_SHOWN, _HIDDEN = 1, 3  # geom groups: drawn, not drawn
_OCCLUDER_AREA = 0.01  # m^2 (product of the two larger half sizes): smaller boxes hide too little to be worth asking
_APPEARANCE = (  # fields of a model that may differ between episodes and show
    "geom_size", "geom_aabb", "geom_rbound", "geom_pos", "geom_quat", "geom_rgba", "body_ipos", "body_iquat", "cam_pos",
    "cam_quat",
)  # fmt: skip


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


def pose_of(data: mujoco.MjData) -> np.ndarray:
    """Where the bodies are, position and quaternion: (nbody, 7)."""
    return np.concatenate([data.xpos, data.xquat], axis=1)


@dataclass
class _Batch:
    """Images to be drawn now: ``poses (K, nbody, 7)`` into ``images[k] (3 M, H, W)``."""

    poses: np.ndarray
    appearances: Sequence[Appearance]
    images: Sequence[np.ndarray]
    next: Any = field(default_factory=itertools.count)  # shared by the threads: whoever is free takes the next one
    done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    finished: list[int] = field(default_factory=list)  # which images are done: how the watchdog sees that it goes on
    errors: list[BaseException] = field(default_factory=list)


class CameraPool:
    """Draws what ``cameras`` of ``family`` see, on ``n_threads`` threads that keep their OpenGL contexts.

    Args:
        family: the task; its ``render_model`` must have the bodies of its physics model.
        cameras: names, in the order of the image's channels.
        image_size: (height, width) in pixels.
        quality: a key of ``QUALITIES``.
        n_threads: at most this many (and at most 16).

    Raises:
        EnvError: an unknown camera or quality, a size below 1, a driver that refuses.
        RenderError: nothing here can render; the message says what to install.
    """

    def __init__(
        self, family: Family, cameras: Sequence[str], image_size: Sequence[int], quality: str, n_threads: int
    ) -> None:
        self.quality = quality
        settings = _checked_quality(quality)
        self.model = _base_model(family, settings)
        self.cameras = [_camera_id(self.model, family.name, name) for name in cameras]
        height, width = _checked_size(image_size)
        if not self.cameras:
            raise EnvError("cameras: at least one is needed for images, found none")
        self.image_shape = (3 * len(self.cameras), height, width)
        self._family, self._nbody = family, family.model.nbody
        self._scratch: tuple[mujoco.MjModel, mujoco.MjData] | None = None
        if self.model.nbody != self._nbody:
            raise EnvError(
                f"task {family.name!r}: the render model has {self.model.nbody} bodies, physics {self._nbody}"
            )
        self._durations: deque[float] = deque(maxlen=100)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        backend, started, errors = choose_backend(), threading.Semaphore(0), []
        arguments = (self.model, self.cameras, (height, width), settings, backend, self._queue, started, errors)
        self._threads = [
            threading.Thread(target=_serve, args=arguments, name=f"camera_{i}", daemon=True)
            for i in range(max(1, min(n_threads, MAX_THREADS)))
        ]
        for thread in self._threads:
            thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._queue, self._threads)
        self._finalizer.atexit = False
        for _ in self._threads:
            if not started.acquire(timeout=_START_SECONDS):
                self._give_up(f"no OpenGL context within {_START_SECONDS:g} s")
        if errors:
            self.close()
            raise errors[0]
        # Only now: OpenGL's own exit handlers are registered with the first context, and must run after ours.
        self._at_exit = _close_reference(weakref.ref(self))
        atexit.register(self._at_exit)

    def appearance(self, start: np.ndarray) -> Appearance:
        """What ``start`` (of ``Family.draw``) changes in the render model."""
        if not self._family.own_models:
            return ()
        if self._scratch is None:
            model = copy.copy(self.model)
            self._scratch = model, mujoco.MjData(model)
        self._family.patch(*self._scratch, start)
        changes = []
        for name in _APPEARANCE:
            before, after = getattr(self.model, name), getattr(self._scratch[0], name)
            rows = np.flatnonzero((before != after).reshape(len(before), -1).any(axis=1))
            if rows.size:
                changes.append((name, rows, after[rows].copy()))
        return tuple(changes)

    def render(self, poses: np.ndarray, appearances: Sequence[Appearance], images: Sequence[np.ndarray]) -> None:
        """Draw ``images[k]`` (each (3 M, H, W) uint8, contiguous) of bodies at ``poses[k]`` (nbody, 7).

        Raises ``EnvError`` for wrong shapes, after ``close``, and when the graphics driver hangs or fails.
        """
        if not self._finalizer.alive:
            raise EnvError("the renderer is closed")
        poses = np.ascontiguousarray(poses, np.float64)
        if poses.shape != (len(images), self._nbody, 7) or len(appearances) != len(images):
            raise EnvError(
                f"{len(images)} images need poses of shape {(len(images), self._nbody, 7)} and as many appearances, "
                f"found {poses.shape} and {len(appearances)}"
            )
        for image in images:
            if image.shape != self.image_shape or image.dtype != np.uint8 or not image.flags.c_contiguous:
                raise EnvError(
                    f"an image must be contiguous uint8 {self.image_shape}, found {image.dtype} {image.shape}"
                )
        if not len(images):
            return
        batch, begin = _Batch(poses, appearances, images), time.monotonic()
        helpers = min(len(self._threads), len(images))
        for _ in range(helpers):
            self._queue.put(batch)
        for _ in range(helpers):
            before = -1
            while not batch.done.acquire(timeout=self.patience()):
                if len(batch.finished) == before:
                    waited = time.monotonic() - begin
                    self._give_up(f"{len(batch.finished)} of {len(images)} images are done after {waited:.0f} s")
                before = len(batch.finished)
        if batch.errors:
            raise EnvError(f"drawing a camera image failed: {batch.errors[0]}") from batch.errors[0]
        self._durations.append((time.monotonic() - begin) * helpers / len(images))

    def patience(self) -> float:
        """Seconds without a finished image after which the driver counts as hanging (a busy machine draws slowly, but
        goes on)."""
        return _GRACE_SECONDS + _GRACE_MEDIANS * (statistics.median(self._durations) if self._durations else 0.0)

    def close(self) -> None:
        """End the threads and free their contexts; idempotent. Must have happened before the process exits (it does so
        by itself at exit): OpenGL crashes otherwise.
        """
        self._finalizer()
        if hasattr(self, "_at_exit"):
            atexit.unregister(self._at_exit)

    def _give_up(self, what: str) -> None:
        self._finalizer.detach()  # a stuck OpenGL call cannot be ended, and must not be waited for
        raise EnvError(
            f"the renderer hangs: {what}. A graphics driver does not answer, and nothing in this process can change "
            "that: stop the run and go on with resume=<its directory>. If it happens again, set MUJOCO_GL=osmesa "
            "(apt-get install libosmesa6), which draws without a driver."
        )


class _Renderer:
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
        self._aabb = np.array(self._model.geom_aabb)
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
            model.vis.map.znear * model.stat.extent, data.geom_xpos, data.geom_xmat, self._aabb, self._drawn,
            self._hiders, self._mirror if self._quality.reflection else -1, self._visible,
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
                self._aabb[rows] = self._base.geom_aabb[rows]
        for name, rows, values in appearance:
            getattr(self._model, name)[rows] = values
            if name == "geom_aabb":
                self._aabb[rows] = values
        self._worn = appearance


def _serve(model, cameras, size, quality, backend, jobs, started, errors) -> None:  # noqa: ANN001
    """A render thread: draws whatever batches come, until it is told to stop."""
    try:
        renderer = _Renderer(model, cameras, size, quality, backend)
    except BaseException as error:
        errors.append(error)
        return
    finally:
        started.release()
    while (batch := jobs.get()) is not None:
        try:
            while not batch.errors and (k := next(batch.next)) < len(batch.images):
                renderer.draw(batch.poses[k], batch.appearances[k], batch.images[k])
                batch.finished.append(k)
        except BaseException as error:
            batch.errors.append(error)
        batch.done.release()
        del batch
    renderer.close()


def _stop(jobs: queue.SimpleQueue[Any], threads: list[threading.Thread]) -> None:
    for _ in threads:
        jobs.put(None)
    for thread in threads:
        thread.join()


def _close_reference(reference: weakref.ref[CameraPool]) -> Any:
    def close() -> None:
        pool = reference()
        if pool is not None:
            pool.close()

    return close


def _checked_quality(name: str) -> Quality:
    if name not in QUALITIES:
        near = difflib.get_close_matches(str(name), QUALITIES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise EnvError(f"render_quality: expected one of {', '.join(QUALITIES)}, found {name!r}; {hint}".rstrip("; "))
    return QUALITIES[name]


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    values = list(size)
    if len(values) != 2 or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1 for n in values):
        raise EnvError(f"image_size: expected (height, width), whole numbers of at least 1, found {tuple(values)}")
    return int(values[0]), int(values[1])


def _camera_id(model: mujoco.MjModel, task: str, name: str) -> int:
    found = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if found < 0:
        known = ", ".join(model.camera(i).name for i in range(model.ncam)) or "none"
        raise EnvError(f"image_keys: task {task!r} has no camera {name!r}; it has {known}")
    if model.cam_sensorsize[found].any():
        raise EnvError(
            f"image_keys: camera {name!r} has a sensor size; only cameras given by an angle (fovy) are drawn"
        )
    return found


def _base_model(family: Family, quality: Quality) -> mujoco.MjModel:
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
