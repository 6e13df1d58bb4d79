"""Camera images of many simulations: ``CameraPool`` draws N x M of them on its own threads, uint8 and upright.

Each thread owns an OpenGL context, a scene, a copy of the render model and an ``MjData``; a simulation hands over where
its bodies are (``pose_of``) and what is particular to its episode (``appearance``). Robosuite draws after the last
physics substep, when MuJoCo's bodies are still where that substep began; so do we, because poses are copied as they are.

Three qualities (``assets/render_quality.png`` shows them; measured by ``script/render_quality_figure.py``):

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

from env.engine.camera_gl import choose_backend
from env.engine.camera_renderer import QUALITIES, Appearance, Quality, Renderer, base_model
from env.engine.family import Family
from env.engine.pool import pose_of
from env.errors import EnvError

__all__ = ["QUALITIES", "CameraPool", "pose_of"]

MAX_THREADS = 16  # of one pool: a context takes 100 MB and more
_GRACE_SECONDS, _GRACE_MEDIANS = 30.0, 100.0  # how long the watchdog waits for one more image
_START_SECONDS = 180.0  # and for the contexts
_APPEARANCE = (  # fields of a model that may differ between episodes and show
    "geom_size", "geom_aabb", "geom_rbound", "geom_pos", "geom_quat", "geom_rgba", "body_ipos", "body_iquat", "cam_pos",
    "cam_quat",
)  # fmt: skip


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
        self.model = base_model(family, settings)
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


def _serve(model, cameras, size, quality, backend, jobs, started, errors) -> None:  # noqa: ANN001
    """A render thread: draws whatever batches come, until it is told to stop."""
    try:
        renderer = Renderer(model, cameras, size, quality, backend)
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
