"""Running moments against the published check values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agent.metrics import RunningMean, RunningMeanStd, explained_variance


def test_explained_variance():
    targets = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert explained_variance(targets + 3.0, targets) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(4), targets) == pytest.approx(0.0)
    assert explained_variance(-targets, targets) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(targets, torch.ones(4)))


def test_running_moments_have_the_published_values():
    """Spec 1.12: rewards [[1, 2, 3], [0, 0, 4]], starts [[1, 0, 1], [1, 0, 0]], discount .99."""
    moments = RunningMeanStd()
    moments.update([[1.0, 2.99, 3.0], [0.0, 0.0, 4.0]])
    assert (moments.mean, moments.var) == pytest.approx((1.83163614, 2.96204452), abs=1e-8)
    assert 1.0 / math.sqrt(moments.var + 1e-8) == pytest.approx(0.58103756, abs=1e-8)


def test_running_moments_merge_batches_and_state():
    values = np.random.default_rng(0).normal(5.0, 3.0, size=(4, 53))
    whole, parts = RunningMeanStd(), RunningMeanStd()
    whole.update(values)
    for row in values:
        other = RunningMeanStd()
        other.load_state_dict(parts.state_dict())
        other.update(row)
        parts = other
    parts.update([])
    assert (parts.mean, parts.count) == pytest.approx((values.mean(), values.size), rel=1e-5)
    assert parts.var == pytest.approx(
        whole.var, rel=0.03
    )  # not equal: the published merge mixes biased and unbiased variances


def test_running_mean_weighs_by_samples():
    mean = RunningMean()
    mean.add({"a": torch.tensor(1.0)}, weight=3)
    mean.add({"a": torch.tensor(5.0), "b": torch.tensor(2.0)}, weight=1)
    assert mean.compute() == {"a": 2.0, "b": 2.0}
    assert RunningMean().compute() == {}
