"""Camera images of many simulations: ``CameraPool`` draws N x M of them on several threads, uint8 and upright.

A simulation hands over where its bodies are (``pose_of``) and what is particular to its episode (``appearance``). Robosuite draws after
the last physics substep, when MuJoCo's bodies are still where that substep began; so do we, because poses are copied as they are.

Who draws is told by ``renderer`` (``renderers.py``): OpenGL (``gl_threads.py``) or this project's own rasteriser
(``native_threads.py``). Either knows three qualities (``assets/render_quality.png`` shows them; measured by
``script/render_quality_figure.py``):

* ``faithful``: the floor's reflection, all of the meshes; drawn by OpenGL it is robosuite's rendering with default settings, to the pixel.
* ``balanced``: no floor reflection, light robot meshes (``camera_meshes.py``).
* ``fast``: also without multisampling, at twice the size and averaged down.

Images are (3 M, H, W) with the top row first, as robomimic stores them; robosuite's own observations have the bottom
row first. Never mix qualities between demonstrations and roll-outs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import mujoco
import numpy as np

from env.engine.camera_renderer import QUALITIES, Appearance, base_model
from env.engine.family import Family
from env.engine.pool import pose_of
from env.engine.renderers import AUTO, NATIVE, kind_of, one_of, resolve
from env.errors import EnvError

__all__ = ["QUALITIES", "CameraPool", "pose_of"]

MAX_THREADS = 16  # of one pool: an OpenGL context takes 100 MB and more
_APPEARANCE = (  # fields of a model that may differ between episodes and show
    "geom_size", "geom_aabb", "geom_rbound", "geom_pos", "geom_quat", "geom_rgba", "body_ipos", "body_iquat", "cam_pos",
    "cam_quat",
)  # fmt: skip


class CameraPool:
    """Draws what ``cameras`` of ``family`` see, on ``n_threads`` threads.

    Args:
        family: the task; its ``render_model`` must have the bodies of its physics model.
        cameras: names, in the order of the image's channels.
        image_size: (height, width) in pixels.
        quality: a key of ``QUALITIES``.
        n_threads: at most this many (and at most 16).
        renderer: one of ``RENDERERS``.

    Attributes:
        drawn_by: "native" or "gl": what to record beside the images.

    Raises:
        EnvError: an unknown camera, quality or renderer, a size below 1, a driver that refuses.
        RenderError: nothing here can render; the message says what to install.
    """

    def __init__(
        self,
        family: Family,
        cameras: Sequence[str],
        image_size: Sequence[int],
        quality: str,
        n_threads: int,
        renderer: str = AUTO,
    ) -> None:
        self.quality, renderer = one_of("render_quality", quality, QUALITIES), resolve(renderer)
        self.drawn_by = kind_of(renderer)
        self.model = family.render_model() if renderer == NATIVE else base_model(family, QUALITIES[quality])
        self.cameras = [_camera_id(self.model, family.name, name) for name in cameras]
        height, width = _checked_size(image_size)
        if not self.cameras:
            raise EnvError("cameras: at least one is needed for images, found none")
        self.image_shape = (3 * len(self.cameras), height, width)
        self._family, self._nbody, self._closed = family, family.model.nbody, False
        self._scratch: tuple[mujoco.MjModel, mujoco.MjData] | None = None
        if self.model.nbody != self._nbody:
            raise EnvError(
                f"task {family.name!r}: the render model has {self.model.nbody} bodies, physics {self._nbody}"
            )
        arguments, n_threads = (self.model, self.cameras, (height, width)), max(1, min(n_threads, MAX_THREADS))
        if renderer == NATIVE:
            from env.engine.native_threads import NativeThreads  # its kernels are of no use to OpenGL

            self._threads = NativeThreads(*arguments, quality, n_threads)
        else:
            from env.engine.gl_threads import GlThreads

            self._threads = GlThreads(*arguments, QUALITIES[quality], n_threads, renderer)

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
        if self._closed:
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
        if len(images):
            self._threads.draw(poses, appearances, images)

    def close(self) -> None:
        """End the threads and free what they hold; idempotent."""
        self._closed = True
        self._threads.close()


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
