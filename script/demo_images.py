"""Images of demonstrations, for ``collect_demos.py``: drawn after the fact, from where the bodies were at every control step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from agent.dataset.image_stream import save_demos_streamed
from env.engine.pool import usable_cores
from env.registry import family
from env.robomimic.env_meta import TASKS

if TYPE_CHECKING:
    from env.engine.cameras import CameraPool

_AT_ONCE = 64  # images drawn per call


@dataclass(frozen=True)
class Sight:
    """What there was to see in one demonstration: bodies at every control step ``(T, nbody, 7)``, and the episode's draw."""

    poses: np.ndarray
    start: np.ndarray


def proprioception(task: str) -> np.ndarray:
    """Columns of the full state that image policies get: the arms' own coordinates, in the published order."""
    layout = family(task).layout
    return np.concatenate([np.arange(layout[k].start, layout[k].stop) for k in TASKS[task].obs_dims(use_object=False)])


def save_with_images(
    path: Path,
    task: str,
    arrays: Mapping[str, np.ndarray],
    sights: Sequence[Sight],
    quality: str,
    size: int,
    renderer: str,
) -> dict[str, object]:
    """Draw all ``sights`` and write ``path`` with them; returns what ``about.json`` should say of the images.

    Raises ``EnvError`` where nothing can draw, ``DatasetError`` where nothing can be written.
    """
    from env.engine.cameras import CameraPool  # its kernels are of no use without images

    cameras = list(TASKS[task].cameras)
    pool = CameraPool(family(task), cameras, (size, size), quality, usable_cores(), renderer)
    try:
        save_demos_streamed(path, arrays, _frames(pool, sights, task), pool.image_shape)
    finally:
        pool.close()
    return {"render_quality": quality, "cameras": cameras, "image_size": [size, size], "renderer": pool.drawn_by}


def _frames(pool: CameraPool, sights: Sequence[Sight], task: str) -> Iterator[np.ndarray]:
    total = sum(len(sight.poses) for sight in sights)
    with tqdm(total=total, desc=f"{task}: images", unit="img") as bar:
        for sight in sights:
            appearance = pool.appearance(sight.start)
            for first in range(0, len(sight.poses), _AT_ONCE):
                poses = sight.poses[first : first + _AT_ONCE]
                images = np.empty((len(poses), *pool.image_shape), np.uint8)
                pool.render(poses, [appearance] * len(poses), list(images))
                bar.update(len(poses))
                yield images
