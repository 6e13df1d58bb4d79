"""Maps of what a pre-trained policy makes of its demonstrations: hidden features in two dimensions, by time and by phase of the task."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from agent.checkpoint import load_policy
from agent.collapse import N_TRAJECTORIES, Sample, described
from agent.dataset.sequence import StitchedSequenceDataset
from agent.errors import UsageError
from agent.features import LAYERS, probe
from agent.report.runs import Run


@dataclass(frozen=True)
class Features:
    """Of one checkpoint, at ``n`` observations of demonstrations."""

    layer: str  # that the maps show
    variance: float  # share of it that the map by PCA shows
    maps: dict[str, np.ndarray]  # method to (n, 2), each axis within [0, 1]
    time: np.ndarray  # (n,) how much of its trajectory is over, 0 to 1
    phase: np.ndarray | None  # (n,) int64; None where demonstrations show none
    figures: dict[str, dict[str, float]]  # of each layer, by name


def features_of(run: Run, umap: bool = False) -> Features:
    """Features of the run's policy on its own demonstrations, equally spaced in time in the first trajectories.

    Raises:
        UsageError: no checkpoint, no demonstrations, or images that cannot be read; ``ValueError``: a network without three hidden layers.
    """
    data = run.config["train_dataset"]
    dataset = StitchedSequenceDataset(
        data["dataset_path"],
        data["horizon_steps"],
        data.get("cond_steps", 1),
        data.get("img_cond_steps", 1),
        N_TRAJECTORIES,
        data.get("use_img", False),
    )
    sample = Sample.of(dataset)
    found = probe(load_policy(run.checkpoint), sample.obs, torch.Generator().manual_seed(0))
    if not found:
        raise ValueError(f"{run.path}: its network declares fewer than three hidden layers")
    layer = run.config.get("dispersive_loss_layer")
    layer = layer if layer in LAYERS else "mid"
    left, singular, _ = np.linalg.svd(found[layer].numpy() - found[layer].numpy().mean(axis=0), full_matrices=False)
    share = float((singular[:2] ** 2).sum() / max((singular**2).sum(), 1e-12))
    return Features(layer, share, maps_of(left * singular, umap), sample.time, sample.phase, described(found, sample))


def maps_of(principal: np.ndarray, umap: bool = False) -> dict[str, np.ndarray]:
    """Features in two dimensions, from their principal components ``(n, D)``: by PCA, by t-SNE where scikit-learn is installed, by UMAP."""
    found = {"PCA": principal[:, :2]}
    scaled = (principal[:, :50] / max(float(principal[:, 0].std()), 1e-12)).astype(np.float32)
    with contextlib.suppress(ImportError):
        found["t-SNE"] = _tsne(scaled)
    if umap:
        found["UMAP"] = _umap(scaled)
    return {name: _to_unit_square(xy) for name, xy in found.items()}


def _tsne(z: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    return TSNE(init=z[:, :2] * 1e-4, perplexity=min(30, (len(z) - 1) / 3), max_iter=500, random_state=0).fit_transform(
        z
    )


def _umap(z: np.ndarray) -> np.ndarray:
    try:
        from umap import UMAP  # compiles itself: some 15 s
    except ImportError as error:
        raise UsageError("UMAP needs a package of its own: pip install -e .[report]") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed makes it use one core
        return UMAP(random_state=0, n_jobs=1).fit_transform(z)


def _to_unit_square(xy: np.ndarray) -> np.ndarray:
    """Shifted and scaled, with its proportions kept."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    return (xy - (low + high) / 2) / max(float((high - low).max()), 1e-12) + 0.5
