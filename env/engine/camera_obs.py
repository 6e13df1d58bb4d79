"""The images in the observations of N simulations: when to look, what to draw, where it goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from env.engine.camera_renderer import Appearance
from env.engine.cameras import CameraPool
from env.engine.pool import Simulations, pose_of
from env.engine.renderers import AUTO
from env.errors import EnvError

Glimpse = tuple[np.ndarray, Appearance]  # poses of one slot's last To control steps (To, nbody, 7), its episode's looks


class CameraObs:
    """The cameras of ``simulations``: where everything was in the last ``frames`` control steps, and images of it.

    ``poses (N, To, nbody, 7)`` is all there is to save: images are a function of it and of the episodes' starts.
    """

    def __init__(
        self,
        simulations: Simulations,
        cameras: Sequence[str],
        image_size: Sequence[int],
        quality: str,
        frames: int,
        renderer: str = AUTO,
    ) -> None:
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
            raise EnvError(f"img_cond_steps must be a whole number of at least 1, found {frames!r}")
        self.frames, self.quality = frames, quality
        self._simulations = simulations
        self.pool = CameraPool(simulations.family, cameras, image_size, quality, simulations.n_threads, renderer)
        self.shape = (frames, *self.pool.image_shape)
        self.poses = np.zeros((simulations.n, frames, simulations.family.model.nbody, 7))
        self._appearances: list[Appearance] = [()] * simulations.n

    def begin(self, slots: Iterable[int], starts: np.ndarray) -> None:
        """Episodes have begun in ``slots``, with draws ``starts[k]``."""
        for i, start in zip(slots, starts, strict=True):
            self._appearances[i] = self.pool.appearance(start)
            self.poses[i] = pose_of(self._simulations.data[i])

    def look(self, slots: Iterable[int]) -> None:
        """A control step (with one frame: a chunk) has ended in ``slots``. One that went unstable is not looked at."""
        for i in slots:
            pose = pose_of(self._simulations.data[i])
            if np.isfinite(pose).all():
                self.poses[i, :-1] = self.poses[i, 1:]
                self.poses[i, -1] = pose

    def restore(self, slots: Iterable[int], starts: np.ndarray, poses: np.ndarray) -> None:
        """Go on from saved ``poses``; ``slots`` are those in use, ``starts[k]`` their episodes' draws."""
        self.poses[...] = poses
        for i, start in zip(slots, starts, strict=True):
            self._appearances[i] = self.pool.appearance(start)

    def glimpses(self, slots: Iterable[int]) -> list[Glimpse]:
        """What there is to see now in ``slots``; stays the same when the slots move on."""
        return [(self.poses[i].copy(), self._appearances[i]) for i in slots]

    def blank(self) -> np.ndarray:
        """Images of nothing, (N, To, 3 M, H, W): what idle slots see."""
        return np.zeros((self._simulations.n, *self.shape), np.uint8)

    def draw(self, pictures: Sequence[tuple[np.ndarray, Glimpse]]) -> None:
        """Draw each glimpse into its (To, 3 M, H, W), all at once."""
        images = [image for target, _ in pictures for image in target]
        appearances = [appearance for _, (_, appearance) in pictures for _ in range(self.frames)]
        if images:
            self.pool.render(np.concatenate([poses for _, (poses, _) in pictures]), appearances, images)

    def close(self) -> None:
        """End the render threads; idempotent."""
        self.pool.close()
