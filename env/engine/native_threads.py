"""Images drawn by this project's own rasteriser, on as many threads as there are images and cores.

Nothing is kept between calls but memory: threads live for one call, so there is nothing to hang, to end, or to lose in a fork.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np

from env.engine.camera_renderer import QUALITIES, Appearance
from env.engine.raster import FREE_CAMERA, Rasterizer, RasterScene

__all__ = ["FREE_CAMERA", "NativeThreads"]

GROUPS = (1, 2)  # robosuite shows visual geoms; collision geoms are in group 0


class NativeThreads:
    """``n_threads`` rasterisers of one scene, which share its meshes and textures.

    Args:
        model: as a task's ``render_model`` is. groups: the geom groups that are drawn.
        cameras: ids. size: (height, width) of an image.
        quality: a key of ``QUALITIES``.

    Raises ``EnvError`` for a malformed mesh or texture.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: Sequence[int],
        size: tuple[int, int],
        quality: str,
        n_threads: int,
        groups: Sequence[int] = GROUPS,
    ) -> None:
        scene, reflection = RasterScene(model, quality, groups), QUALITIES[quality].reflection
        self._rasterizers = [Rasterizer(scene, cameras, size, reflection) for _ in range(n_threads)]

    def draw(self, poses: np.ndarray, appearances: Sequence[Appearance], images: Sequence[np.ndarray]) -> None:
        """Draw ``images[k]`` (3 M, H, W) of bodies at ``poses[k]`` (nbody, 7); which thread draws what changes nothing."""
        order = itertools.count()  # shared: whoever is free takes the next one

        def work(rasterizer: Rasterizer) -> None:
            while (k := next(order)) < len(images):
                rasterizer.draw(poses[k], appearances[k], images[k])

        first, *others = self._rasterizers[: len(images)]
        if not others:
            work(first)
            return
        with ThreadPoolExecutor(len(others), "camera") as executor:
            ends = [executor.submit(work, other) for other in others]
            work(first)
        for end in ends:
            end.result()

    def close(self) -> None:
        """Nothing to free."""
