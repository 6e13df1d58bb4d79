"""Camera images without OpenGL: a software rasteriser of our own that draws what MuJoCo's renderer would draw.

``RasterScene`` holds everything of a model that never moves (made once, shared by all threads); a ``Rasterizer`` holds one thread's scratch
memory and draws. Drawing releases the GIL, is deterministic to the bit, and loads no graphics library.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from env.engine.camera_renderer import Appearance
from env.engine.raster_scene import RasterScene

__all__ = ["FREE_CAMERA", "RasterScene", "Rasterizer"]

FREE_CAMERA = -1  # as a camera id: MuJoCo's free camera at its default place


class Rasterizer:
    """Draws the views of ``cameras`` (ids, or ``FREE_CAMERA``); for one thread at a time.

    Args:
        size: (height, width) in pixels.
        reflections: whether the floor mirrors (as ``Quality.reflection``).
    """

    def __init__(self, scene: RasterScene, cameras: Sequence[int], size: tuple[int, int], reflections: bool) -> None:
        raise NotImplementedError

    def draw(self, pose: np.ndarray, appearance: Appearance, image: np.ndarray) -> None:
        """All cameras into ``image (3 M, H, W)`` uint8, top row first; bodies at ``pose (nbody, 7)`` float64."""
        raise NotImplementedError

    def draw_depth(self, pose: np.ndarray, appearance: Appearance, depth: np.ndarray) -> None:
        """Distances along the viewing axis, in metres, into ``depth (M, H, W)`` float32; the far plane where nothing is."""
        raise NotImplementedError

    def draw_segmentation(self, pose: np.ndarray, appearance: Appearance, objects: np.ndarray) -> None:
        """Object ids and types (``mjtObj``), as ``mujoco.Renderer`` gives them, into ``objects (M, H, W, 2)`` int32; -1 where
        nothing is.
        """
        raise NotImplementedError
