"""Statistics of training: explained variance, running moments, means over minibatches. Those of results: ``agent/eval/statistics.py``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
