"""DDIM noise levels: exact at their base, within their range, learnable, published parameter names."""

from __future__ import annotations

import math

import pytest
import torch

from model.diffusion.eta import EtaAction, EtaFixed, EtaState, EtaStateAction

OBS = {"state": torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(5))}


@pytest.mark.parametrize(("base", "low", "high"), [(0.5, 0.1, 1.0), (1.0, 0.1, 1.0), (0.1, 0.1, 1.0), (0.7, 0.7, 0.7)])
def test_fixed_and_action_start_at_their_base(base: float, low: float, high: float):
    for eta, shape in ((EtaFixed(base, low, high), (3, 1)), (EtaAction(5, base, low, high), (3, 5))):
        level = eta(OBS)
        assert level.shape == shape
        torch.testing.assert_close(level, torch.full(shape, base), rtol=1e-6, atol=0)
        assert torch.isfinite(eta.eta_logit).all()
        assert list(eta.state_dict()) == ["eta_logit"]


def test_a_base_at_its_bound_is_exact():
    assert EtaFixed(1.0, 0.1, 1.0)(OBS).unique().item() == 1.0


@pytest.mark.parametrize("base", [0.5, 1.0, 0.1])
def test_every_level_can_be_learned(base: float):
    eta = EtaFixed(base, 0.1, 1.0)
    optimiser = torch.optim.Adam(eta.parameters(), lr=0.3)
    for _ in range(400):
        optimiser.zero_grad()
        (eta(OBS) - 0.4).square().mean().backward()
        optimiser.step()
    assert eta(OBS)[0].item() == pytest.approx(0.4, abs=0.05)


def test_published_infinite_logit_loads_as_its_bound():
    for infinity, bound in ((math.inf, 1.0), (-math.inf, 0.1)):
        eta = EtaFixed()
        eta.load_state_dict({"eta_logit": torch.tensor(infinity)})
        level = eta(OBS)
        assert level[0].item() == pytest.approx(bound, abs=1e-7)
        assert eta.eta_logit.abs() < 10  # near enough for an optimiser to come back from
        level.sum().backward()
        assert eta.eta_logit.grad > 0


def test_published_mapping_inside_the_range():
    eta = EtaFixed()
    eta.load_state_dict({"eta_logit": torch.tensor(0.8)})
    assert eta(OBS)[0].item() == pytest.approx(0.5 * (math.tanh(0.8) + 1) * 0.9 + 0.1)


def test_state_levels():
    torch.manual_seed(3)
    for eta, shape, base in ((EtaState(14, [11]), (3, 1), 0.5), (EtaStateAction(14, [11], 5), (3, 5), 1.0)):
        level = eta(OBS)
        assert level.shape == shape
        assert (level - base).abs().max() < 0.1  # gain .01: it starts at the base
        assert (level != base).all()
        level.sum().backward()
        assert all(p.grad is not None for p in eta.parameters())
        torch.nn.init.constant_(eta.mlp_res.moduleList[-1].linear_1.bias, 9.0)
        assert (eta(OBS) <= eta.max_eta).all()
        with pytest.raises(NotImplementedError, match="images"):
            eta({**OBS, "rgb": torch.zeros(3, 1, 3, 8, 8)})


def test_ranges_are_checked():
    for make in (EtaFixed, lambda *a: EtaAction(5, *a), lambda *a: EtaState(14, [11], "ReLU", "Identity", *a)):
        with pytest.raises(ValueError, match="min_eta <= base_eta"):
            make(0.05, 0.1, 1.0)
