"""Demonstrations as transitions: what learns from rewards draws minibatches from them, beside its replay buffer.

A transition is a chunk of ``horizon_steps`` actions, the sum of their rewards, whether the task ended with the last of them, and the observation
``horizon_steps`` later. Chunks lie within one trajectory; of a trajectory that ended without a terminal (time was up) the last chunk has no
next observation, and is left out. Arrays that the file has uncompressed stay in the file.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.dataset.demos import read_demos
from agent.dataset.normalization import existing, load_normalizer
from agent.errors import DatasetError
from agent.finetune.replay import Transitions
from env.normalizer import Normalizer
from env.npz import NpzFile


class StitchedSequenceQLearningDataset:
    """The transitions of a demonstration file (``agent.dataset.demos``) with rewards and terminals.

    Args:
        dataset_path: the npz file.
        horizon_steps: actions per chunk, ``Ta``.
        cond_steps: observations, ``To``; before a trajectory began its first one is repeated.
        max_n_episodes: only the first so many trajectories are used.
        discount_factor: per chunk, of the returns.
        get_mc_return: also give each chunk's discounted return to its trajectory's end.
        device: where batches go.

    Raises:
        DatasetError: the file does not do (see ``read_demos``), has no rewards or no terminals, or no trajectory is long enough.
    """

    def __init__(
        self,
        dataset_path: str | os.PathLike[str],
        horizon_steps: int = 1,
        cond_steps: int = 1,
        max_n_episodes: int = 10000,
        discount_factor: float = 1.0,
        get_mc_return: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        self.path, self.horizon_steps, self.cond_steps = str(dataset_path), horizon_steps, cond_steps
        self.device = torch.device(device)
        arrays = _mapped(dataset_path)
        for name in ("rewards", "terminals"):
            if name not in arrays:
                raise DatasetError(
                    f"{dataset_path}: no {name} in it, which learning from rewards needs. Collect or convert the demonstrations again "
                    "(script/collect_demos.py, script/convert_dataset.py)"
                )
        lengths = arrays["traj_lengths"][:max_n_episodes].astype(np.int64)
        self.states, self.actions = arrays["states"], arrays["actions"]
        rewards = np.asarray(arrays["rewards"], np.float64)
        ends, rows = np.cumsum(lengths), np.arange(lengths.sum())
        trajectory = np.repeat(np.arange(len(lengths)), lengths)
        last = rows + horizon_steps - 1
        within = last < ends[trajectory]
        ended = np.zeros(len(rows), bool)
        ended[within] = np.asarray(arrays["terminals"])[last[within]].astype(bool)
        self.starts = rows[within & (ended | (last + 1 < ends[trajectory]))]
        if not len(self.starts):
            raise DatasetError(
                f"{dataset_path}: no trajectory has a chunk of horizon_steps={horizon_steps} and what it led to; longest "
                f"{int(lengths.max())} steps"
            )
        self.first = (ends - lengths)[trajectory[self.starts]]
        sums = np.concatenate([[0.0], np.cumsum(rewards[: len(rows)])])
        self.rewards = (sums[self.starts + horizon_steps] - sums[self.starts]).astype(np.float32)
        self.terminated = ended[self.starts]
        self.returns = None
        if get_mc_return:
            whole = returns_to_end(rewards[: len(rows)], lengths, horizon_steps, discount_factor)
            self.returns = whole[self.starts].astype(np.float32)

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.starts)

    def check(self, obs_dim: int, action_dim: int) -> None:
        """Raise ``DatasetError`` unless the columns are those of the configuration."""
        for key, expected, found in (
            ("obs_dim", obs_dim, self.states.shape[1]),
            ("action_dim", action_dim, self.actions.shape[1]),
        ):
            if expected != found:
                raise DatasetError(
                    f"{self.path}: expected {key}={expected} as configured, found {found} columns. The file belongs to another task: "
                    "give the right offline_dataset_path"
                )

    def check_normalizer(self, normalizer: Normalizer) -> None:
        """Raise ``DatasetError`` unless the numbers mean what they mean to ``normalizer``, as far as the file's folder says how they were made."""
        path = existing(Path(self.path).with_name("normalization.npz"))
        if not path.is_file():
            return
        theirs, mine = load_normalizer(path).to_dict(), normalizer.to_dict()
        for key, value in theirs.items():
            expected = mine[key]
            if value.shape != expected.shape or not np.allclose(value, expected, rtol=1e-4, atol=1e-5):
                i = int(np.abs(value - expected).argmax()) if value.shape == expected.shape else 0
                raise DatasetError(
                    f"{self.path}: its numbers were normalised by {path}, whose {key} is not the policy's (column {i}: expected "
                    f"{expected[i]:.5g}, found {value[i]:.5g}). Give the demonstrations that the base policy was trained on (data_root, "
                    "offline_dataset_path), or begin with a policy that was trained on these"
                )

    def sample(self, n: int, generator: torch.Generator, gamma: float, scale: float = 1.0) -> Transitions:
        """``n`` of them, with replacement; ``gamma`` per chunk, rewards (and returns) times ``scale``."""
        drawn = torch.randint(len(self), (n,), generator=generator, device=generator.device).cpu().numpy()
        return self.gather(drawn, gamma, scale)

    def gather(self, index: np.ndarray, gamma: float, scale: float = 1.0) -> Transitions:
        """Those at ``index (B,)``."""
        start, first = self.starts[index], self.first[index]
        ended = self.terminated[index]
        after = np.where(ended, start, start + self.horizon_steps)  # nobody asks what follows an end
        chunk = start[:, None] + np.arange(self.horizon_steps)
        numbers = (scale * self.rewards[index], np.where(ended, 0.0, gamma).astype(np.float32))
        returns = None if self.returns is None else self._tensor(scale * self.returns[index])
        return Transitions(
            {"state": self._history(start, first)}, self._tensor(self.actions[chunk]), *map(self._tensor, numbers),
            {"state": self._history(after, first)}, None, returns,
        )  # fmt: skip

    def _history(self, rows: np.ndarray, first: np.ndarray) -> Tensor:
        back = np.arange(self.cond_steps - 1, -1, -1)
        return self._tensor(self.states[np.maximum(rows[:, None] - back, first[:, None])])

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)


def returns_to_end(rewards: np.ndarray, lengths: np.ndarray, horizon_steps: int, gamma: float) -> np.ndarray:
    """Of every row of trajectories one after another, the discounted sum of chunks' rewards from there to the trajectory's end, (T,);
    ``gamma`` per chunk of ``horizon_steps``."""
    ends = np.cumsum(lengths)
    left = np.concatenate([np.arange(n, 0, -1) for n in lengths])  # rows to the end, itself included
    sums = np.concatenate([[0.0], np.cumsum(rewards)])
    rows = np.arange(len(rewards))
    returns = sums[np.minimum(rows + horizon_steps, np.repeat(ends, lengths))] - sums[rows]
    group = (left - 1) // horizon_steps  # whole chunks that follow
    order = np.argsort(group, kind="stable")
    for at in np.split(order, np.searchsorted(group[order], np.arange(1, group.max() + 1)))[
        1:
    ]:  # all trajectories at once
        returns[at] += gamma * returns[at + horizon_steps]
    return returns


def _mapped(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """``read_demos``, but arrays that the file has uncompressed are views of it."""
    arrays = read_demos(path)
    with NpzFile(path) as archive:
        for name in ("states", "actions"):
            view = archive.map(name)
            if view is not None and view.dtype == np.float32:
                arrays[name] = view
    return arrays
