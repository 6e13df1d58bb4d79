"""What is said of a batch of features, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from model.common.feature_diagnostics import NEIGHBOURS, feature_diagnostics


def test_spread_by_hand():
    z = torch.cat([torch.eye(3), -torch.eye(3)])
    report = feature_diagnostics(z)
    assert report["effective_rank"].item() == pytest.approx(3, rel=1e-4)
    assert report["participation_ratio"].item() == pytest.approx(3, rel=1e-4)
    assert report["feature_norm"].item() == pytest.approx(1)
    assert report["distance_min"].item() == pytest.approx(math.sqrt(2 / 3))
    assert report["distance_mean"].item() == pytest.approx((4 * math.sqrt(2 / 3) + math.sqrt(4 / 3)) / 5)
    # singular values 2 * sqrt(2) and 1 * sqrt(2): shares 2/3 and 1/3; variances 4 : 1
    uneven = feature_diagnostics(torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]]))
    assert uneven["effective_rank"].item() == pytest.approx(3 / 2 ** (2 / 3), rel=1e-5)
    assert uneven["participation_ratio"].item() == pytest.approx(25 / 17, rel=1e-5)
    line = torch.arange(5.0)[:, None] * torch.ones(1, 7)
    assert feature_diagnostics(line)["effective_rank"].item() == pytest.approx(1, rel=1e-2)
    assert feature_diagnostics(line)["participation_ratio"].item() == pytest.approx(1, rel=1e-4)


def test_nothing_breaks_where_features_coincide():
    base = torch.randn(1, 257) * torch.ones(31, 1)
    nearly = torch.cat([base + 1e-7 * torch.randn(31, 257), -base])  # squared distances that round below zero
    assert torch.isfinite(feature_diagnostics(nearly)["distance_min"])
    collapsed = feature_diagnostics(torch.ones(11, 7), torch.randn(11, 3))
    assert all(torch.isfinite(v) for v in collapsed.values())
    with pytest.raises(ValueError, match="B >= 2"):
        feature_diagnostics(torch.ones(1, 7))
    with pytest.raises(ValueError, match="expected 11 states, found 7"):
        feature_diagnostics(torch.ones(11, 7), torch.ones(7, 2))


def test_neighbours_by_hand():
    """States on a line; features on the same line agree fully, features of another order by how many neighbours they keep."""
    where = torch.arange(13.0)[:, None] ** 1.1
    same = feature_diagnostics(where.repeat(1, 3) * 7, where)
    assert same["neighbour_agreement"] == 1
    steps = (where[1:] - where[:-1]).flatten()
    nearest = torch.cat([steps[:1], torch.minimum(steps[1:], steps[:-1]), steps[-1:]])
    pairs = (where - where.T).abs().sum() / (13 * 12)
    assert same["neighbour_distance"].item() == pytest.approx(float(nearest.mean() / pairs), rel=1e-5)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(3))
    shuffled = where[order]
    expected = 0.0
    for i in range(13):
        near = {int(j) for j in (where - where[i]).abs().flatten().argsort()[1 : NEIGHBOURS + 1]}
        other = {int(j) for j in (shuffled - shuffled[i]).abs().flatten().argsort()[1 : NEIGHBOURS + 1]}
        expected += len(near & other) / NEIGHBOURS / 13
    assert feature_diagnostics(shuffled, where)["neighbour_agreement"].item() == pytest.approx(expected)
    assert expected < 1
    few = feature_diagnostics(torch.randn(NEIGHBOURS + 1, 3), torch.randn(NEIGHBOURS + 1, 3))
    assert "neighbour_agreement" not in few


def test_collapse_shows():
    """Two clusters of states; a network that tells the clusters apart, but nothing within them."""
    torch.manual_seed(0)
    states = torch.cat([torch.randn(31, 4) - 9, torch.randn(31, 4) + 9])
    seen = states @ torch.randn(4, 17)
    collapsed = states.sign() @ torch.randn(4, 17) + 1e-4 * torch.randn(62, 17)
    a, b = feature_diagnostics(seen, states), feature_diagnostics(collapsed, states)
    assert b["effective_rank"] < 1.01 < 1.5 < a["effective_rank"]
    assert b["neighbour_distance"] < 1e-3 < 0.03 < a["neighbour_distance"]
    assert b["neighbour_agreement"] < 0.5 * a["neighbour_agreement"]
