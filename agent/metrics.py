"""Statistics of what was measured: intervals, explained variance, running moments, means over minibatches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate: ``successes`` of ``n`` episodes, two-sided, coverage ``level``.

    Nothing measured (``n = 0``) is ``(nan, nan)``, not zero.

    Raises:
        ValueError: counts or a level that make no sense.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, found successes={successes}, n={n}")
    _check_level(level)
    if n == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate, weight = successes / n, z * z / n
    centre = rate + weight / 2
    half = z * math.sqrt(rate * (1 - rate) / n + weight / (4 * n))
    # At the ends the bound is exactly 0 or 1; rounding must not say otherwise.
    low = 0.0 if successes == 0 else (centre - half) / (1 + weight)
    high = 1.0 if successes == n else (centre + half) / (1 + weight)
    return low, high


def bootstrap_interval(values: Any, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values (n,)``; same seed, same interval. No values: ``(nan,
    nan)``.

    Raises:
        ValueError: values that are not finite numbers in one dimension, or a level outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    _check_level(level)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"expected one dimension of finite values, found shape {values.shape}")
    if values.size == 0:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, 2_000_000 // values.size)  # bounds the memory of the index table
    for start in range(0, resamples, rows):
        block = means[start : start + rows]
        block[:] = values[rng.integers(values.size, size=(block.size, values.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def explained_variance(predictions: Tensor, targets: Tensor) -> float:
    """``1 - Var(targets - predictions) / Var(targets)``: 1 is perfect, 0 no better than a constant; constant targets:
    NaN."""
    variance = float(targets.double().var(correction=0))
    if not variance > 0.0:
        return math.nan
    return 1.0 - float((targets.double() - predictions.double()).var(correction=0)) / variance


class RunningMeanStd:
    """Mean and unbiased variance of everything seen, merged batch by batch (Chan et al.), in float64; starts as mean
    0, variance 1.

    The published merge (spec 1.12) with its prior weight of ``count`` observations.
    """

    def __init__(self, count: float = 1e-4) -> None:
        self.mean, self.var, self.count = 0.0, 1.0, float(count)

    def update(self, values: Any) -> None:
        """Take in ``values`` of any shape; an empty array changes nothing."""
        values = np.asarray(values, dtype=np.float64)
        if values.size == 0:
            return
        delta, total = float(values.mean()) - self.mean, self.count + values.size
        squares = (
            self.var * self.count + float(values.var()) * values.size + delta**2 * self.count * values.size / total
        )
        self.mean += delta * values.size / total
        self.var = squares / max(total - 1.0, 1e-8)
        self.count = total

    def state_dict(self) -> dict[str, float]:
        """Three numbers."""
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Inverse of ``state_dict``."""
        self.mean, self.var, self.count = float(state["mean"]), float(state["var"]), float(state["count"])


class RunningMean:
    """Weighted means of named 0-d tensors over minibatches; they stay on their device, only ``compute``
    synchronises."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._weights: dict[str, list[float]] = {}

    def add(self, values: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Count each value ``weight`` times (its number of samples). A name may be absent from some minibatches."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach())
            self._weights.setdefault(name, []).append(weight)

    def compute(self) -> dict[str, float]:
        """The means as plain numbers, in the order the names first came; nothing added: an empty dict."""
        means = {}
        for name, values in self._values.items():
            weights = np.array(self._weights[name])
            means[name] = float(np.dot(torch.stack(values).double().cpu().numpy(), weights) / weights.sum())
        return means


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a number between 0 and 1, found {level}")
