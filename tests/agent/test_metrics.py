"""Intervals against scipy, running moments against the published check values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from agent.metrics import RunningMean, RunningMeanStd, bootstrap_interval, explained_variance, wilson_interval


@pytest.mark.parametrize("n", [1, 7, 53, 400])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_is_scipys(n, level):
    for successes in {0, 1, n // 3, n - 1, n}:
        expected = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
        assert wilson_interval(successes, n, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_of_nothing_is_nan_and_nonsense_is_an_error():
    assert all(math.isnan(bound) for bound in wilson_interval(0, 0))
    for arguments in ((3, 2), (-1, 5), (1, 2, 1.0)):
        with pytest.raises(ValueError, match="expected"):
            wilson_interval(*arguments)


def test_bootstrap_agrees_with_scipy_and_repeats():
    values = np.random.default_rng(3).normal(2.0, 1.5, size=101)
    low, high = bootstrap_interval(values, seed=5)
    assert (low, high) == bootstrap_interval(values, seed=5)
    assert (low, high) != bootstrap_interval(values, seed=6)
    expected = stats.bootstrap((values,), np.mean, method="percentile", random_state=1).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_bootstrap_edges():
    assert all(math.isnan(bound) for bound in bootstrap_interval([]))
    assert bootstrap_interval([2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([1.0, math.nan])


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
