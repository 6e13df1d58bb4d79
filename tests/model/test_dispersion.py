"""The dispersive loss in training: the automatic layer, the adaptive weight, the queue, and that their state is all there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.common.dispersion import ADAPT_EVERY, CANDIDATES, MAX_WEIGHT, RANK_ROWS, Dispersion, choose_layer
from model.common.dispersive_loss import DispersiveLoss, dispersive_loss
from model.diffusion.diffusion import DiffusionModel
from model.diffusion.mlp_diffusion import DiffusionMLP
from model.types import Batch

B, TA, DA, DO = 7, 3, 2, 5


def policy(**settings: object) -> DiffusionModel:
    torch.manual_seed(0)
    network = DiffusionMLP(DA, TA, DO, time_dim=8, mlp_dims=[13, 13, 13], residual_style=True)
    return DiffusionModel(network, TA, DO, DA, 11, use_dispersive_loss=True, **settings)


def batch(seed: int, n: int = B) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(n, TA, DA, generator=g) * 2 - 1, {"state": torch.randn(n, 1, DO, generator=g)})


def train(model: DiffusionModel, steps: int, first: int = 0) -> list[Tensor]:
    """A few steps of plain gradient descent; the losses."""
    totals = []
    for k in range(first, first + steps):
        loss = model.loss(batch(k), torch.Generator().manual_seed(k))
        model.zero_grad()
        loss.total.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad
        totals.append(loss.total.detach())
    return totals


def reports(early: float, mid: float, late: float) -> dict[str, dict[str, float]]:
    return {layer: {"effective_rank": x} for layer, x in zip(CANDIDATES, (early, mid, late), strict=True)}


def test_the_layer_of_highest_rank_is_chosen_over_all_reports():
    assert choose_layer([reports(3, 7, 5)]) == "mid"
    assert choose_layer([reports(6, 7, 5), reports(6, 3, 5)]) == "early"


def test_nothing_is_dispersed_until_the_layer_is_chosen():
    model = policy(dispersive_loss_layer="auto", dispersive_auto_epochs=2)
    plain = DiffusionModel(model.network, TA, DO, DA, 11)
    first = model.loss(batch(0), torch.Generator().manual_seed(0))
    assert torch.equal(first.total, plain.loss(batch(0), torch.Generator().manual_seed(0)).total)
    assert set(first.parts) == {"diffusion loss"} and model.diagnostics(batch(0)) == {}
    assert model.dispersion.consider(reports(3, 2, 4)) is None and model.dispersion.undecided
    assert model.dispersion.consider(reports(3, 2, 4)) == "late"
    assert model.dispersion.modules == [model.network.hidden_layers[2]]
    again = model.loss(batch(0), torch.Generator().manual_seed(0))
    fixed = DiffusionModel(model.network, TA, DO, DA, 11, use_dispersive_loss=True, dispersive_loss_layer="late")
    assert torch.equal(again.total, fixed.loss(batch(0), torch.Generator().manual_seed(0)).total)


def norms(model: DiffusionModel, kind: str) -> float:
    """The norm of one loss's gradient in all parameters, by ``backward``."""
    model.eval()  # neither counts nor joins a queue
    losses = model.loss(batch(0), torch.Generator().manual_seed(0))
    model.zero_grad()
    weight, model.dispersion.weight = model.dispersion.weight, 1.0 if kind == "dispersive" else 0.0
    losses = model.loss(batch(0), torch.Generator().manual_seed(0))
    losses.total.backward()
    model.dispersion.weight = weight
    squares = sum(float(p.grad.square().sum()) for p in model.network.parameters())
    model.zero_grad()
    model.train()
    return math.sqrt(squares)


def collapsed(**settings: object) -> DiffusionModel:
    """A policy whose early features all but lie on a line."""
    model = policy(**settings)
    weight = model.network.hidden_layers[0].weight
    with torch.no_grad():
        weight.copy_(torch.linspace(0.5, 1.5, len(weight))[:, None] * weight[:1] + 1e-2 * weight)
    return model


def rank(rows: Tensor) -> float:
    """Roy & Vetterli's, by NumPy's singular values."""
    singular = np.linalg.svd((rows - rows.mean(0)).flatten(1).double().numpy(), compute_uv=False)
    p = singular[singular > 1e-9] / singular.sum()
    return math.exp(-(p * np.log(p)).sum())


def test_an_adaptive_weight_is_the_lacking_share_of_balanced_gradients():
    model = collapsed(dispersive_loss_weight="adaptive", dispersive_balance=0.3)
    error = norms(model, "diffusion")
    features = early(model, B)
    both = collapsed(dispersive_loss_weight=1.0)
    gradients = []
    for chosen in (both, DiffusionModel(both.network, TA, DO, DA, 11)):
        both.zero_grad()
        chosen.loss(batch(0), torch.Generator().manual_seed(0)).total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in both.network.parameters()]))
    lacking = 1 - rank(features) / rank(batch(0).conditions["state"])
    assert 0.2 < lacking < 0.9
    losses = model.loss(batch(0), torch.Generator().manual_seed(0))
    expected = lacking * 0.3 * error / float((gradients[0] - gradients[1]).norm())
    assert model.dispersion.weight == pytest.approx(expected, rel=1e-3)
    assert losses.parts["dispersive weight"].item() == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(
        losses.total.detach(),
        losses.parts["diffusion loss"] + model.dispersion.weight * losses.parts["dispersive loss"],
        rtol=1e-4,
        atol=1e-6,
    )
    assert all(p.grad is None for p in model.parameters())
    report = model.diagnostics(batch(0))
    assert float(report["feature_rank"]) == pytest.approx(rank(features), rel=1e-5)  # nearly a line: scatter in float64
    assert float(report["state_rank"]) == pytest.approx(rank(batch(0).conditions["state"]), rel=1e-5)


def test_an_adaptive_weight_leaves_alone_what_has_not_collapsed_and_opens_what_has():
    whole, plain = (policy(dispersive_loss_weight=weight) for weight in ("adaptive", 0.0))
    for a, b in zip(train(whole, 2 * ADAPT_EVERY), train(plain, 2 * ADAPT_EVERY), strict=True):
        assert torch.equal(a, b)
    assert whole.dispersion.weight == 0.0
    ranks = []
    for weight in ("adaptive", 0.0):
        model = collapsed(dispersive_loss_weight=weight, dispersive_balance=1.0, dispersive_loss_type="infonce_cosine")
        train(model, ADAPT_EVERY)
        ranks.append(rank(early(model, 61)))
    assert ranks[0] > 1.25 * ranks[1]


def early(model: DiffusionModel, n: int) -> Tensor:
    """Its early features of a batch of ``n``."""
    seen = []
    hook = model.network.hidden_layers[0].register_forward_hook(lambda *args: seen.append(args[2].detach()))
    model.eval()
    model.loss(batch(0, n), torch.Generator().manual_seed(0))
    model.train()
    hook.remove()
    return seen[0]


def test_angles_open_collapsed_features_and_distances_stretch_them():
    """Why ``infonce_cosine`` is what cfg/pretraining.md recommends: the cheapest way to larger distances is a longer line."""
    ranks = {}
    for kind in ("infonce_l2", "infonce_cosine"):
        model = collapsed(dispersive_loss_type=kind, dispersive_loss_weight=1.0)
        optimiser = torch.optim.Adam(model.network.parameters(), 1e-2)
        for k in range(50):
            losses = []
            for model.dispersion.weight in (1.0, 0.0):
                losses.append(model.loss(batch(k, 61), torch.Generator().manual_seed(k)).total)
            optimiser.zero_grad()
            (losses[0] - losses[1]).backward()
            optimiser.step()
        ranks[kind] = rank(early(model, 61))
    assert ranks["infonce_l2"] < 3 < 6 < ranks["infonce_cosine"]


def test_an_adaptive_weight_is_remeasured_now_and_then_and_bounded():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Identity(), nn.Identity())
    network.hidden_layers = list(network)
    dispersion = Dispersion(network, DispersiveLoss(), "early", "adaptive", balance=0.5)
    w = network[0].weight
    states = torch.eye(RANK_ROWS + 3)  # the last three rows do not count
    line = [torch.arange(RANK_ROWS + 3.0)[:, None]]
    share = 1 - 1 / rank(states[:RANK_ROWS])  # to 1e-5: single precision
    ratios = [4.0] * ADAPT_EVERY + [1.0] * ADAPT_EVERY + [1.0]
    weights = []
    for ratio in ratios:
        dispersion.step((ratio * w).sum(), w.sum(), line, states)
        weights.append(dispersion.weight / share)
    assert weights[0] == pytest.approx(1.0, rel=1e-5)  # 0.5 * 4 would be more than the largest
    assert weights[:ADAPT_EVERY] == [weights[0]] * ADAPT_EVERY
    assert weights[ADAPT_EVERY] == pytest.approx(
        0.5 * 2**0.8, rel=1e-5
    )  # of 2, as it was bounded, and 1: geometric mean, 0.8 to 0.2
    assert weights[2 * ADAPT_EVERY] == pytest.approx(0.5 * 2**0.64, rel=1e-5)
    dead = Dispersion(network, DispersiveLoss(), "early", "adaptive", balance=0.5)
    dead.step(w.sum(), 0 * w.sum(), line, states)
    assert dead.weight == pytest.approx(MAX_WEIGHT * share, rel=1e-5)
    several = Dispersion(network, DispersiveLoss(), "all", "adaptive", balance=0.5)
    several.step(w.sum(), w.sum(), [states, line[0], states], states)
    assert several.weight == pytest.approx(0.5 * share, rel=1e-5)  # the layer that lacks most


def test_the_queue_holds_the_last_rows_and_takes_part_in_training_alone():
    model = policy(dispersive_queue=10, dispersive_loss_weight=1.0)
    module, seen = model.network.hidden_layers[0], []
    module.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    found = [model.loss(batch(k), torch.Generator().manual_seed(k)).parts["dispersive loss"] for k in range(3)]
    old = [None, seen[0], torch.cat(seen[:2])[-10:]]
    for value, z, queue in zip(found, seen, old, strict=True):
        torch.testing.assert_close(value, dispersive_loss(z, "infonce_l2", group_size=32, queue=queue))
    before = model.dispersion.state_dict()["queues"][0]
    assert torch.equal(before, torch.cat(seen)[-10:])
    model.eval()
    quiet = model.loss(batch(3), torch.Generator().manual_seed(3)).parts["dispersive loss"]
    torch.testing.assert_close(quiet, dispersive_loss(seen[-1], "infonce_l2", group_size=32))
    assert torch.equal(model.dispersion.state_dict()["queues"][0], before)
    several = policy(dispersive_queue=5, dispersive_loss_layer="all")
    train(several, 2)
    assert [tuple(q.shape) for q in several.dispersion.state_dict()["queues"]] == [(5, 13)] * 3


SETTINGS = {"dispersive_loss_layer": "auto", "dispersive_loss_weight": "adaptive", "dispersive_queue": 11}


@pytest.mark.parametrize("chosen_before", [False, True])
def test_its_state_is_all_there_is(chosen_before: bool):
    whole = collapsed(**SETTINGS, dispersive_auto_epochs=2)
    whole.dispersion.consider(reports(3, 5, 4))
    if chosen_before:
        whole.dispersion.consider(reports(3, 5, 4))
    train(whole, ADAPT_EVERY + 3)
    resumed = policy(**SETTINGS, dispersive_auto_epochs=2)
    resumed.load_state_dict(whole.state_dict())
    resumed.dispersion.load_state_dict(whole.dispersion.state_dict())
    for model in (whole, resumed):
        if not chosen_before:
            assert model.dispersion.consider(reports(3, 5, 4)) == "mid"
    assert resumed.dispersion.settings.layer == "mid"
    for a, b in zip(train(whole, ADAPT_EVERY, 100), train(resumed, ADAPT_EVERY, 100), strict=True):
        assert torch.equal(a, b)
    assert resumed.dispersion.weight == whole.dispersion.weight > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dispersive_loss_weight": "adaptiv"},
            "dispersive_loss_weight: expected a number or adaptive, found 'adaptiv'",
        ),
        ({"dispersive_loss_layer": "automatic"}, "dispersive_loss_layer"),
        ({"dispersive_queue": -1}, "dispersive_queue"),
        ({"dispersive_queue": 7, "dispersive_loss_variant": "released"}, "dispersive_queue"),
        ({"dispersive_loss_weight": "adaptive", "dispersive_balance": 0.0}, "dispersive_balance"),
        ({"dispersive_loss_layer": "auto", "dispersive_auto_epochs": 0}, "dispersive_auto_epochs"),
    ],
)
def test_settings_that_do_not_do_are_named(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        policy(**settings)
