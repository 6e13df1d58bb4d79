"""Do features collapse, and does a dispersive loss keep them from it? Hidden features of checkpoints on the same demonstrations, in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent.checkpoint import load_policy
from agent.dataset.sequence import StitchedSequenceDataset
from agent.errors import UsageError
from agent.features import probe
from model.common.feature_diagnostics import feature_diagnostics
from model.types import Obs

N_TRAJECTORIES, N_POINTS = 40, 24  # observations: so many, equally spaced, of so many trajectories
NEIGHBOURS = 5  # whose phases are looked at
RARE = 0.05  # share of the observations, of a phase
RIDGE = 1e-2  # of the linear probe, relative to the features' mean square


@dataclass(frozen=True)
class Sample:
    """Observations of demonstrations and what is known of them; every policy is asked about the same."""

    obs: Obs  # {"state": (n, To, Do)[, "rgb"]}
    trajectory: np.ndarray  # (n,) which one
    phase: (
        np.ndarray | None
    )  # (n,) part of the task; None where demonstrations show none. Rare ones (a second try) are left out
    time: np.ndarray | None = None  # (n,) how much of its trajectory is over, 0 to 1

    @classmethod
    def of(cls, dataset: StitchedSequenceDataset) -> Sample:
        """Equally spaced in time in the first trajectories."""
        chunks = np.maximum(0, dataset.traj_lengths - dataset.horizon_steps + 1)[:N_TRAJECTORIES]
        steps = [np.unique(np.linspace(0, n - 1, min(n, N_POINTS)).round().astype(int)) for n in chunks]
        trajectory = np.repeat(np.arange(len(chunks)), [len(s) for s in steps])
        inside = np.concatenate(steps)
        rows = inside + (np.cumsum(chunks) - chunks)[trajectory]
        time = inside / np.maximum(1, chunks - 1)[trajectory]
        lengths = dataset.traj_lengths
        phase = phases(dataset.actions.cpu().numpy(), lengths)
        if phase is not None:
            phase = phase[inside + (np.cumsum(lengths) - lengths)[trajectory]]
            common = np.bincount(phase)[phase] >= RARE * len(phase)
            rows, trajectory, phase, time = rows[common], trajectory[common], phase[common], time[common]
        return cls(dataset.batch(torch.from_numpy(rows)).conditions, trajectory, phase, time)


def measure(checkpoint: Path, sample: Sample) -> dict[str, dict[str, float]]:
    """``described`` of a checkpoint: of the weights that were trained, not of their average, which is younger.

    Raises:
        CheckpointError: as ``load_policy``.
    """
    policy = load_policy(checkpoint, policy_weights="model")
    return described(probe(policy, sample.obs, torch.Generator().manual_seed(1)), sample)


def described(features: Mapping[str, Tensor], sample: Sample) -> dict[str, dict[str, float]]:
    """By layer: ``feature_diagnostics`` and, where there are phases, ``phase_separability`` (``separability``) and ``phase_probe``
    (``linear_probe``). ``features``: ``(n, D)`` by layer."""
    shuffled = torch.randperm(
        len(sample.trajectory), generator=torch.Generator().manual_seed(0)
    )  # diagnostics look at the first rows
    found = {}
    for layer, z in features.items():
        found[layer] = {k: float(v) for k, v in feature_diagnostics(z[shuffled], sample.obs["state"][shuffled]).items()}
        if sample.phase is not None:
            found[layer]["phase_separability"] = separability(z.numpy(), sample.phase, sample.trajectory)
            found[layer]["phase_probe"] = linear_probe(z.numpy(), sample.phase, sample.trajectory)
    return found


def phases(actions: np.ndarray, lengths: np.ndarray) -> np.ndarray | None:
    """How often a gripper has been told to open or close so far, ``(ΣT,)`` int64; None without grippers, or if none ever is.

    A gripper is a column of ``actions (ΣT, Da)`` of only two values, so to speak: nearly always near its own extremes.
    """
    extreme = np.abs(actions) > 0.9 * np.abs(actions).max(axis=0, keepdims=True)
    grippers = (extreme.mean(axis=0) > 0.95) & (actions.min(axis=0) < 0) & (actions.max(axis=0) > 0)
    if not grippers.any():
        return None
    switched = np.zeros(len(actions), np.int64)
    switched[1:] = (np.diff(np.sign(actions[:, grippers]), axis=0) != 0).any(axis=1)
    count = np.cumsum(switched)
    return count - np.repeat(count[np.cumsum(lengths) - lengths], lengths)  # anew in every trajectory


def separability(features: np.ndarray, phase: np.ndarray, trajectory: np.ndarray) -> float:
    """Of each row's nearest neighbours in *other* trajectories, the share that is in the same phase; mean over rows of a phase, then over
    phases. 1: features tell phases apart; by chance, one over the number of phases."""
    squares = np.square(features).sum(axis=1)
    distance = squares[:, None] + squares - 2 * features @ features.T
    distance[trajectory[:, None] == trajectory] = np.inf
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBOURS]
    same = (phase[nearest] == phase[:, None]).mean(axis=1)
    return float(np.mean([same[phase == k].mean() for k in np.unique(phase)]))


def linear_probe(features: np.ndarray, phase: np.ndarray, trajectory: np.ndarray) -> float:
    """Accuracy, mean over phases, of a linear classifier (ridge regression on one-hot phases) learned on the even trajectories and tried
    on the odd ones. By chance, one over the number of phases.

    Args:
        features: ``(n, D)``. phase, trajectory: ``(n,)``.
    """
    kinds, label = np.unique(phase, return_inverse=True)
    train = trajectory % 2 == 0
    centre, scale = features[train].mean(axis=0), np.sqrt(features[train].var(axis=0).mean()) + 1e-12
    z = np.concatenate([(features - centre) / scale, np.ones((len(features), 1))], axis=1).astype(np.float64)
    weight = 1 / np.sqrt(np.bincount(label[train], minlength=len(kinds)).clip(1))[label[train], None]
    target = np.eye(len(kinds))[label[train]] * weight
    gram = (z[train] * weight).T @ (z[train] * weight)
    found = np.linalg.solve(
        gram + RIDGE * np.eye(z.shape[1]) * np.trace(gram) / len(gram), (z[train] * weight).T @ target
    )
    guess = (z[~train] @ found).argmax(axis=1)
    return float(np.mean([(guess[label[~train] == k] == k).mean() for k in np.unique(label[~train])]))


def epochs_of(run: Path) -> dict[int, Path]:
    """Numbered checkpoints of a pre-training run by epoch; ``UsageError`` where there are none."""
    found = {int(file.stem.removeprefix("state_")): file for file in (run / "checkpoint").glob("state_*.pt")}
    if not found:
        raise UsageError(f"{run}: no checkpoint/state_<epoch>.pt in it; expected the run directory of a pre-training")
    return dict(sorted(found.items()))


def rows_of(groups: Mapping[str, Sequence[Path]], sample: Sample) -> Iterator[dict[str, Any]]:
    """One row for each run, epoch and layer: ``group, run, epoch, layer`` and what was measured; only of epochs that all runs have."""
    epochs = [set(epochs_of(run)) for runs in groups.values() for run in runs]
    shared = sorted(set.intersection(*epochs))
    if not shared:
        raise UsageError("the runs have no checkpoint of the same epoch (train.save_model_freq)")
    for group, runs in groups.items():
        for run in runs:
            for epoch in shared:
                for layer, report in measure(epochs_of(run)[epoch], sample).items():
                    yield {"group": group, "run": run.name, "epoch": epoch, "layer": layer, **report}
