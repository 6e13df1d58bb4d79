"""Images drawn by OpenGL: threads that keep their contexts, and a watchdog for drivers that do not answer."""

from __future__ import annotations

import atexit
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
from env.engine.camera_renderer import Appearance, Quality, Renderer
from env.errors import EnvError

_GRACE_SECONDS, _GRACE_MEDIANS = 30.0, 100.0  # how long the watchdog waits for one more image
_START_SECONDS = 180.0  # and for the contexts


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


class GlThreads:
    """``n_threads`` threads, each with its own OpenGL context, scene and copy of the render model.

    Args:
        model: of ``base_model``.
        cameras: ids. size: (height, width) of an image.
        renderer: "gl", "egl" or "osmesa".

    Raises:
        EnvError: a driver refuses or does not answer.
        RenderError: nothing here can render; the message says what to install.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: Sequence[int],
        size: tuple[int, int],
        quality: Quality,
        n_threads: int,
        renderer: str = "gl",
    ) -> None:
        self._durations: deque[float] = deque(maxlen=100)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        backend, started, errors = choose_backend(renderer), threading.Semaphore(0), []
        arguments = (model, cameras, size, quality, backend, self._queue, started, errors)
        self._threads = [
            threading.Thread(target=_serve, args=arguments, name=f"camera_{i}", daemon=True) for i in range(n_threads)
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

    def draw(self, poses: np.ndarray, appearances: Sequence[Appearance], images: Sequence[np.ndarray]) -> None:
        """Draw ``images[k]`` (3 M, H, W) of bodies at ``poses[k]`` (nbody, 7).

        Raises ``EnvError`` after ``close``, and when the graphics driver hangs or fails.
        """
        if not self._finalizer.alive:
            raise EnvError("the renderer is closed")
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
            "that: stop the run and go on with resume=<its directory>. If it happens again, set env.renderer=native, which "
            "draws without a driver."
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


def _close_reference(reference: weakref.ref[GlThreads]) -> Any:
    def close() -> None:
        threads = reference()
        if threads is not None:
            threads.close()

    return close
