"""What a camera image costs: our own rasteriser against MuJoCo's default rendering by OpenGL, in the same minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from script.bench.measure import Contestant, Figure, compare
from script.bench.registry import Context, UnavailableError, benchmark

if TYPE_CHECKING:
    from script.bench.scenes import Scene

LIMITS = {"lift": 1.2, "can": 1.6, "square": 2.0, "transport": 7.0}  # CPU ms per image
SECONDS = 1.0  # a turn of our own renderer lasts at least so long: starting two threads, too, takes time
BESIDE = 0.2  # and as much of that where it is only to be seen beside
ROUNDS = 4  # through the states per call: about as many images as 50 environments ask for


@benchmark(
    "renderer",
    "CPU time per 96 x 96 camera image without OpenGL, one thread and two, against MuJoCo's default",
    repeats=9,
)
def renderer(context: Context) -> Iterator[Figure]:
    """All tasks through their policies' cameras, at states of an episode of the expert."""
    from env.engine.camera_gl import choose_backend
    from env.video import RenderError
    from script.bench.scenes import scene_of

    try:
        backend = choose_backend()
    except RenderError as error:
        raise UnavailableError(str(error)) from error
    for task, limit in LIMITS.items():
        yield from _task(context, scene_of(task), limit, backend)


def _task(context: Context, scene: Scene, limit: float, backend: str) -> Iterator[Figure]:
    from env.engine.native_threads import NativeThreads
    from script.bench.scenes import Mujoco

    theirs, out = Mujoco(scene, backend), scene.blank()
    setting = scene.model, scene.cameras, (scene.size, scene.size)
    ours = {
        (q, n): NativeThreads(*setting, q, n, scene.groups)
        for q, n in (("balanced", 1), ("balanced", 2), ("faithful", 1))
    }

    sides = {
        key: Contestant(_turn(threads, scene, context.scale * SECONDS * (BESIDE if key[0] == "faithful" else 1.0)))
        for key, threads in ours.items()
    }
    sides["MuJoCo"] = Contestant(lambda: _theirs(theirs, scene, out))
    try:
        sides["MuJoCo"].run()
        samples = context.interleave(sides, warm_up=False)  # all have drawn
    finally:
        theirs.close()
    one, gl = samples["balanced", 1], samples["MuJoCo"]
    for (quality, n), mine in ((key, samples[key]) for key in ours):
        bar = 10.0 if n == 1 and quality == "balanced" else None
        name = f"{scene.task}, {quality}, {n} thread{'s' * (n > 1)}"
        note = f"{1e3 * np.median(mine.cpu_seconds_each):.2f} CPU ms per image; MuJoCo {1e3 * np.median(gl.cpu_seconds_each):.1f}"
        yield compare(
            name, "images/CPU s", mine.cpu_rates, "MuJoCo's default by OpenGL", gl.cpu_rates, bar=bar, note=note
        )
    milliseconds = 1e3 * one.cpu_seconds_each
    aim = np.full(len(milliseconds), limit)
    yield compare(f"{scene.task}, balanced", "CPU ms/image", milliseconds, "at most", aim, better="lower", bar=1.0)
    two = samples["balanced", 2]
    yield compare(f"{scene.task}, balanced, 2 threads over 1", "images/s", two.rates, "one thread", one.rates, bar=1.8)


def _turn(threads: Any, scene: Scene, seconds: float) -> Callable[[], float]:
    """What draws all states often enough to last ``seconds``."""
    poses, images = np.concatenate([scene.poses] * ROUNDS), [im for _ in range(ROUNDS) for im in scene.blank()]
    looks, least = [scene.looks] * len(images), math.inf
    threads.draw(poses, looks, images)  # compiles
    for _ in range(3):
        begin = time.perf_counter()
        threads.draw(poses, looks, images)
        least = min(least, time.perf_counter() - begin)
    times = math.ceil(seconds / least)

    def run() -> float:
        for _ in range(times):
            threads.draw(poses, looks, images)
        return float(times * len(images) * len(scene.cameras))

    return run


def _theirs(renderer: Any, scene: Scene, out: np.ndarray) -> float:
    for pose, image in zip(scene.poses, out, strict=True):
        renderer.draw(pose, scene.looks, image)
    return float(len(out) * len(scene.cameras))
