"""Demonstrations, cut into overlapping action chunks: the supervised loop's data.

Every start ``i`` of a trajectory with ``i + Ta <= its length`` is a sample: the actions ``i ... i + Ta - 1`` and the
``To`` observations up to ``i``, oldest first (before the trajectory began, its first one is repeated). Everything
lies on the device as one tensor per kind; a batch is a few gathers, with no Python per sample. Images are kept as uint8; on a
GPU they lie only where they take at most half of what is free, for the network needs the rest. Else they stay on the host, and
where the file has them uncompressed in the file: a batch reads what it needs, and they may be more than memory holds.
"""

from __future__ import annotations

import os
import warnings

import numpy as np
import torch
from torch import Tensor

from agent.dataset.demos import read_demos
from agent.errors import DatasetError
from agent.memory import free_bytes
from model.types import Batch


class StitchedSequenceDataset:
    """The chunks of a demonstration file (``agent.dataset.demos``).

    Args:
        dataset_path: the npz file.
        horizon_steps: actions per chunk, ``Ta``.
        cond_steps: observations per chunk, ``To``.
        img_cond_steps: images per chunk; at most ``cond_steps``.
        max_n_episodes: only the first so many trajectories are used.
        use_img: also give images, ``conditions["rgb"] (B, img_cond_steps, C, H, W)`` uint8.
        device: where everything lives, images if there is room.

    Raises:
        DatasetError: the file does not do (see ``read_demos``), or no trajectory is as long as a chunk.
    """

    def __init__(
        self,
        dataset_path: str | os.PathLike[str],
        horizon_steps: int = 64,
        cond_steps: int = 1,
        img_cond_steps: int = 1,
        max_n_episodes: int = 10000,
        use_img: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        self.path = str(dataset_path)
        self.horizon_steps, self.cond_steps, self.img_cond_steps = (
            int(horizon_steps),
            int(cond_steps),
            int(img_cond_steps),
        )
        self.device = torch.device(device)
        if min(self.horizon_steps, self.cond_steps, self.img_cond_steps, max_n_episodes) < 1:
            raise DatasetError(
                "train_dataset: horizon_steps, cond_steps, img_cond_steps and max_n_episodes must be at least 1"
            )
        if self.img_cond_steps > self.cond_steps:
            raise DatasetError(
                f"train_dataset.img_cond_steps: expected at most cond_steps ({cond_steps}), found {img_cond_steps}"
            )
        arrays = read_demos(dataset_path, use_img, int(max_n_episodes))
        self.traj_lengths = arrays["traj_lengths"][: int(max_n_episodes)].astype(np.int64)
        total = int(self.traj_lengths.sum())
        self.states = self._tensor(arrays["states"][:total].astype(np.float32))
        self.actions = self._tensor(arrays["actions"][:total].astype(np.float32))
        self.images = self._place(arrays["images"]) if use_img else None
        self.mapped = isinstance(arrays.get("images"), np.memmap) and self.images.device.type == "cpu"
        self._index(total)
        self._chunk = torch.arange(self.horizon_steps, device=self.device)

    def __len__(self) -> int:
        """Number of chunks."""
        return self._starts.numel()

    @property
    def obs_dim(self) -> int:
        """Columns of ``states``, ``Do``."""
        return self.states.shape[1]

    @property
    def action_dim(self) -> int:
        """Columns of ``actions``, ``Da``."""
        return self.actions.shape[1]

    @property
    def n_trajectories(self) -> int:
        """Trajectories in use, those too short for a chunk included."""
        return len(self.traj_lengths)

    @property
    def n_bytes(self) -> int:
        """Memory of the demonstrations, images included unless they stay in the file."""
        tensors = [self.states, self.actions, *([] if self.images is None or self.mapped else [self.images])]
        return sum(t.numel() * t.element_size() for t in tensors)

    def check(self, obs_dim: int, action_dim: int) -> None:
        """Raise ``DatasetError`` unless the columns are those of the configuration (``obs_dim``, ``action_dim``)."""
        for key, expected, found in (("obs_dim", obs_dim, self.obs_dim), ("action_dim", action_dim, self.action_dim)):
            if expected != found:
                raise DatasetError(
                    f"{self.path}: expected {key}={expected} as configured, found {found} columns. The file belongs "
                    "to another task (or was "
                    f"collected with other low_dim_keys): give the right train_dataset_path, or set {key}={found}"
                )

    def batch(self, indices: Tensor) -> Batch:
        """The chunks ``indices (B,)`` int64, on the dataset's device; images where they lie.

        Returns:
            ``Batch(actions (B, Ta, Da), {"state": (B, To, Do)[, "rgb": (B, img_cond_steps, C, H, W) uint8]})``.
        """
        indices = indices.to(self.device)
        starts, first = self._starts[indices], self._first[indices]
        actions = self.actions[starts[:, None] + self._chunk]
        conditions = {"state": self.states[self._history(starts, first, self.cond_steps)]}
        if self.images is not None:
            conditions["rgb"] = self.images[self._history(starts, first, self.img_cond_steps).to(self.images.device)]
        return Batch(actions, conditions)

    def split(self, train_fraction: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Chunk indices for training and for validation (CPU int64), divided by whole trajectories.

        Neighbouring chunks overlap, so dividing chunk by chunk would validate on what was trained on.

        Args:
            train_fraction: share of the trajectories to train on, in (0, 1]; 1 leaves the validation set empty. Else
                each side gets at least one.
            generator: draws which (on the CPU).

        Raises:
            DatasetError: a fraction outside (0, 1], or too few trajectories to divide.
        """
        if not 0.0 < train_fraction <= 1.0:
            raise DatasetError(f"train.train_split: expected a number in (0, 1], found {train_fraction}")
        everything = torch.arange(len(self))
        if train_fraction == 1.0:
            return everything, everything[:0]
        usable = torch.unique(self._trajectory)
        if usable.numel() < 2:
            raise DatasetError(
                f"{self.path}: only {usable.numel()} trajectory is long enough; train.train_split below 1 needs at "
                "least two"
            )
        n_train = min(max(round(train_fraction * usable.numel()), 1), usable.numel() - 1)
        chosen = usable[torch.randperm(usable.numel(), generator=generator)[:n_train]]
        is_train = torch.isin(self._trajectory, chosen)
        return everything[is_train], everything[~is_train]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _place(self, images: np.ndarray) -> Tensor:
        """The images on the device if that is not the host and has room, else where they are."""
        if self.device.type != "cpu":
            free = free_bytes(self.device)
            if free is not None and 2 * images.nbytes <= free:
                return _on_host(images).to(self.device)
        return _on_host(images)

    def _index(self, total: int) -> None:
        """Every start whose chunk ends within its trajectory: row in the file, first row and number of its
        trajectory."""
        ends = np.cumsum(self.traj_lengths)
        rows = np.arange(total)
        trajectory = np.repeat(np.arange(len(ends)), self.traj_lengths)
        fits = rows + self.horizon_steps <= ends[trajectory]
        if not fits.any():
            raise DatasetError(
                f"{self.path}: no trajectory is as long as a chunk: horizon_steps={self.horizon_steps}, longest "
                "trajectory "
                f"{int(self.traj_lengths.max())} steps"
            )
        self._starts = self._tensor(rows[fits])
        self._first = self._tensor((ends - self.traj_lengths)[trajectory[fits]])
        self._trajectory = torch.from_numpy(trajectory[fits])

    def _history(self, starts: Tensor, first: Tensor, steps: int) -> Tensor:
        """Rows ``(B, steps)`` of the observations up to each start, oldest first, never before the trajectory's
        first."""
        back = torch.arange(steps - 1, -1, -1, device=self.device)
        return torch.maximum(starts[:, None] - back, first[:, None])


def _on_host(images: np.ndarray) -> Tensor:
    """The images as a tensor over the same memory, or over the same file: those are never written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)
