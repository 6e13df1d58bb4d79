"""Intervals against SciPy, published worked examples and hand-computed values; how often they cover the truth, by simulation."""

from __future__ import annotations

import functools
import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from agent.eval.statistics import (
    aggregate,
    bootstrap_interval,
    interquartile_mean,
    learning_band,
    paired_return,
    paired_success,
    probability_of_improvement,
    student_mean,
    wilson_interval,
)


def flags(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Episodes of two policies of which so many were solved by both, by one, by none."""
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


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


def test_the_difference_of_paired_rates_has_the_published_interval():
    """statpsych's ``ci.prop.ps(.05, 12, 4, 26, 6)`` (Bonett & Price 2012): 0.2548067 to 0.6251933."""
    found = paired_success(*flags(6, 26, 4, 12))
    assert (found.both, found.only_a, found.only_b, found.neither) == (6, 26, 4, 12)
    assert found.difference == -22 / 48
    assert found.interval == pytest.approx((-0.6251933, -0.2548067), abs=5e-8)


def test_mcnemar_is_exact():
    """Airway hyper-responsiveness before and after a transplantation (Fagerland et al. 2013, table 1): P = 0.0703, by hand 18 / 256."""
    assert paired_success(*flags(1, 1, 7, 12)).p_value == pytest.approx(18 / 256, abs=1e-9)
    for only_a, only_b in ((0, 3), (5, 5), (2, 11), (13, 1)):
        n, k = only_a + only_b, min(only_a, only_b)
        tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
        assert paired_success(*flags(3, only_a, only_b, 2)).p_value == pytest.approx(min(1.0, 2 * tail), abs=1e-9)


def test_policies_that_agree_everywhere_are_not_known_to_be_equal():
    found = paired_success([True] * 11, [True] * 11)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert -0.3 < found.interval[0] < 0 < found.interval[1] < 0.3


def test_paired_returns_are_their_differences():
    rng = np.random.default_rng(2)
    a = rng.normal(size=53)
    b = a + 0.5 + 0.01 * rng.normal(size=53)  # what both share drops out
    found = paired_return(a, b)
    assert found.value == pytest.approx(np.mean(b - a), abs=1e-12)
    assert (found.low, found.high) == bootstrap_interval(b - a) and 0.49 < found.low < found.high < 0.51


def test_student_is_scipys():
    values = np.random.default_rng(5).normal(size=7)
    for level in (0.8, 0.95):
        low, high = stats.t.interval(level, 6, loc=values.mean(), scale=stats.sem(values))
        assert student_mean(values, level) == pytest.approx((values.mean(), low, high), abs=1e-9)
    one, none = student_mean([3.0]), student_mean([])
    assert one.value == 3.0 and math.isnan(one.low) and math.isnan(one.high) and math.isnan(none.value)


def test_the_interquartile_mean_drops_a_quarter_at_each_end():
    assert interquartile_mean([1, 2, 3, 4, 5, 6, 7, 1000]) == 4.5
    assert interquartile_mean([3, 100, 1, 2, -50]) == 2.0  # a quarter of five is one
    table = np.random.default_rng(0).normal(size=(3, 41))
    expected = [stats.trim_mean(row, 0.25) for row in table]
    assert interquartile_mean(table) == pytest.approx(expected, abs=1e-9)


def test_an_aggregate_draws_within_its_tasks():
    """Two tasks whose runs do not differ: nothing is uncertain, whichever runs are drawn; pooled, it would be."""
    found = aggregate({"easy": [0.9, 0.9, 0.9], "hard": [0.1] * 5}, statistic=lambda x: x.mean(axis=-1))
    assert found == pytest.approx((0.4, 0.4, 0.4), abs=1e-12)
    scores = {"one": np.random.default_rng(1).normal(size=43)}
    iqm = functools.partial(stats.trim_mean, proportiontocut=0.25)
    expected = stats.bootstrap((scores["one"],), iqm, method="percentile", random_state=2)
    found = aggregate(scores)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.03)
    assert found == aggregate(scores) != aggregate(scores, seed=1)


def test_probability_of_improvement_is_mann_and_whitneys():
    rng = np.random.default_rng(7)
    a = {task: rng.integers(5, size=n) for task, n in (("t", 7), ("u", 11))}
    b = {task: rng.integers(6, size=n) for task, n in (("t", 5), ("u", 3))}  # with ties
    u = [stats.mannwhitneyu(b[t], a[t]).statistic / (len(a[t]) * len(b[t])) for t in a]
    found = probability_of_improvement(a, b)
    assert found.value == pytest.approx(np.mean(u), abs=1e-9) and found.low < found.value < found.high
    assert probability_of_improvement(b, a).value == pytest.approx(1 - np.mean(u), abs=1e-9)
    assert probability_of_improvement({"t": [1, 2]}, {"t": [3, 4]}) == (1.0, 1.0, 1.0)


def test_a_band_is_the_mean_of_curves_where_all_are_known():
    band = learning_band([([0, 10, 20], [0.0, 1.0, 2.0]), ([5, 10, 30], [1.0, 3.0, 3.0])])
    assert band.x.tolist() == [5, 10, 20] and band.n == 2
    assert band.mean == pytest.approx([0.75, 2.0, 2.5])
    at_ten = student_mean([1.0, 3.0])
    assert (band.low[1], band.high[1]) == pytest.approx((at_ten.low, at_ten.high), abs=1e-12)
    assert np.isnan(learning_band([([0, 1], [2.0, 3.0])]).low).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: paired_success([True], [True, False]),
        lambda: paired_return([], []),
        lambda: paired_return([1.0], [math.nan]),
        lambda: aggregate({"task": []}),
        lambda: probability_of_improvement({"a": [1.0]}, {"b": [1.0]}),
        lambda: learning_band([([0, 1], [0, 1]), ([2, 3], [0, 1])]),
        lambda: learning_band([]),
        lambda: student_mean([1.0, 2.0], level=1.0),
    ],
)
def test_nonsense_is_an_error(wrong):
    with pytest.raises(ValueError, match="expected|no x in common"):
        wrong()


def test_wilson_covers_as_often_as_it_says():
    """Exactly, by summing the binomial distribution: on average over all rates, and never much less at any."""
    rates = np.linspace(0.01, 0.99, 197)
    for n in (50, 200):
        intervals = np.array([wilson_interval(k, n) for k in range(n + 1)])
        inside = (intervals[:, :1] <= rates) & (rates <= intervals[:, 1:])
        cover = (stats.binom.pmf(np.arange(n + 1)[:, None], n, rates) * inside).sum(axis=0)
        assert 0.948 < cover.mean() < 0.956 and cover.min() > 0.83


def test_paired_intervals_cover_as_often_as_they_say():
    """Exactly, over all tables of 23 episodes of three pairs of policies; and exact McNemar errs at most as often as it says."""
    n = 23
    for only_a, only_b in ((0.05, 0.05), (0.1, 0.3), (0.02, 0.6)):
        cover = wrong = 0.0
        for i, j in product(range(n + 1), repeat=2):
            if i + j > n:
                continue
            p = stats.multinomial.pmf([i, j, n - i - j], n, [only_a, only_b, 1 - only_a - only_b])
            found = paired_success(*flags(0, i, j, n - i - j))
            cover += p * (found.interval[0] <= only_b - only_a <= found.interval[1])
            wrong += p * (found.p_value <= 0.05)
        assert 0.94 < cover < 0.998
        assert only_a != only_b or wrong <= 0.05


def share(covered) -> float:
    return float(np.mean([covered(np.random.default_rng(seed)) for seed in range(400)]))


def test_intervals_of_means_cover_as_often_as_they_say():
    """400 simulated experiments each: a binomial standard error of 0.011."""

    def returns(rng):
        low, high = bootstrap_interval(rng.gamma(2.0, 3.0, size=101), resamples=500)
        return low <= 6.0 <= high

    def runs(rng):
        found = student_mean(rng.normal(0.7, 0.1, size=3))
        return found.low <= 0.7 <= found.high

    def tasks(rng):  # symmetric about 0.3 and 0.7: the interquartile mean is 0.5
        found = aggregate({"a": rng.normal(0.3, 0.1, 11), "b": rng.normal(0.7, 0.1, 11)}, resamples=500)
        return found.low <= 0.5 <= found.high

    def better(rng):  # P(y > x) of two normals half a deviation apart
        found = probability_of_improvement(
            {"t": rng.normal(size=19)}, {"t": rng.normal(0.5, 1, size=19)}, resamples=500
        )
        return found.low <= stats.norm.cdf(0.5 / math.sqrt(2)) <= found.high

    assert 0.92 < share(returns) < 0.98
    assert 0.92 < share(runs) < 0.98
    assert 0.90 < share(tasks) < 0.98
    assert 0.90 < share(better) < 0.98
