"""Mixture policies: forward, density, sampling and entropy against torch.distributions and plain arithmetic; PPO has a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn import functional as F  # noqa: N812

from model.common.critic import CriticObs
from model.common.dispersive_loss import DispersiveLoss, record_outputs
from model.common.gaussian import GaussianModel
from model.common.gmm import GMMModel
from model.common.mlp_gaussian import Gaussian_MLP
from model.common.mlp_gmm import GMM_MLP
from model.common.transformer import GMM_Transformer
from model.rl.gmm_ppo import PPO_GMM
from model.types import Batch, ShapeError, StateDictError

B, TA, DA, DO, M = 7, 2, 3, 5, 4
LEARNED = {"fixed_std": 0.3, "learn_fixed_std": True}
SETTINGS = pytest.mark.parametrize("settings", [{"fixed_std": 0.2}, LEARNED, {}], ids=["fixed", "learned", "own"])


def network(**settings) -> GMM_MLP:
    torch.manual_seed(0)
    made = GMM_MLP(DA, TA, DO, **{"mlp_dims": (11, 11, 11), "num_modes": M, "activation_type": "Tanh", **settings})
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return made


def policy(**settings) -> PPO_GMM:
    return PPO_GMM(network(**settings), CriticObs(DO, (17, 17, 17)), TA)


def obs(n: int = B) -> dict[str, torch.Tensor]:
    return {"state": torch.randn(n, 1, DO, generator=torch.Generator().manual_seed(1))}


def mixture(mean: torch.Tensor, std: torch.Tensor, logits: torch.Tensor) -> MixtureSameFamily:
    """Of the flat chunk, as torch has it."""
    return MixtureSameFamily(
        Categorical(logits=logits), Independent(Normal(mean.flatten(2), std.expand_as(mean).flatten(2)), 1)
    )


@SETTINGS
@pytest.mark.parametrize("residual", [False, True])
def test_the_forward_pass_is_its_formula(settings, residual):
    net, seen = network(**settings, residual_style=residual), obs()
    w, state = net.state_dict(), seen["state"].flatten(1)

    def perceptron(name: str) -> torch.Tensor:
        if residual:
            h = F.linear(state, w[f"{name}.layers.0.weight"], w[f"{name}.layers.0.bias"])
            inner = F.linear(h.tanh(), w[f"{name}.layers.1.l1.weight"], w[f"{name}.layers.1.l1.bias"])
            h = h + F.linear(inner.tanh(), w[f"{name}.layers.1.l2.weight"], w[f"{name}.layers.1.l2.bias"])
            return F.linear(h, w[f"{name}.layers.2.weight"], w[f"{name}.layers.2.bias"])
        h = state
        for i in range(4):
            h = F.linear(h, w[f"{name}.moduleList.{i}.linear_1.weight"], w[f"{name}.moduleList.{i}.linear_1.bias"])
            h = h.tanh() if i < 3 else h
        return h

    mean, std, logits = net(seen)
    torch.testing.assert_close(logits, perceptron("mlp_weights"))
    flat = perceptron("mlp_mean").tanh()
    for mode in range(M):  # mode by mode, then step by step
        for step in range(TA):
            start = (mode * TA + step) * DA
            torch.testing.assert_close(mean[:, mode, step], flat[:, start : start + DA])
    if settings is LEARNED:
        expected = (0.5 * w["logvar"]).exp().clamp(0.01, 1.0)
        torch.testing.assert_close(std.expand_as(mean)[3, 2, 1], expected[2 * DA : 3 * DA])
    elif settings:
        assert float(std) == pytest.approx(0.2)
    else:
        expected = (0.5 * perceptron("mlp_logvar")).exp().clamp(0.01, 1.0)
        torch.testing.assert_close(std.flatten(1), expected)


@SETTINGS
def test_density_and_entropy_are_those_of_torch_distributions(settings):
    model, seen = policy(**settings), obs()
    sample = model.sample(seen, generator=torch.Generator().manual_seed(2))
    truth = mixture(*model.network(seen))
    expected = truth.log_prob(sample.trajectories.flatten(1)) / (TA * DA)
    torch.testing.assert_close(sample.log_probs, expected[:, None])
    torch.testing.assert_close(model.chain_log_probs(seen, sample.chains), expected[:, None])
    step = torch.zeros(B, dtype=torch.int64)
    torch.testing.assert_close(model.log_prob(seen, sample.chains[:, 0], sample.chains[:, 1], step), expected)
    modes = truth.component_distribution.entropy() / (TA * DA)
    torch.testing.assert_close(model.entropy_proxy(seen), (truth.mixture_distribution.probs * modes).sum(-1).mean())
    loss = GMMModel(model.network, TA).loss(Batch(sample.trajectories, seen))
    torch.testing.assert_close(loss.total, -expected.mean())


def test_one_mode_is_the_gaussian_policy():
    settings = {"mlp_dims": (11, 13), "fixed_std": 0.3}
    one, gaussian = network(**settings, num_modes=1), Gaussian_MLP(DA, TA, DO, activation_type="Tanh", **settings)
    gaussian.mlp_mean.load_state_dict(one.mlp_mean.state_dict())
    batch = Batch(torch.rand(B, TA, DA), obs())
    torch.testing.assert_close(GMMModel(one, TA).loss(batch).total, GaussianModel(gaussian, TA).loss(batch).total)


def test_modes_are_drawn_by_their_weights_and_actions_around_their_means():
    model, n = GMMModel(network(fixed_std=0.1), TA), 20_000
    seen = {"state": obs(1)["state"].expand(n, -1, -1)}
    mean, _, logits = (part[0].detach() if part.ndim else part for part in model.network(seen))
    weights = logits.softmax(-1)
    assert weights.min() > 0.02
    means = model.sample(seen, generator=torch.Generator().manual_seed(0)).trajectories
    distance = (means[:, None] - mean).abs().amax((2, 3))
    assert float(distance.min(1).values.max()) < 1e-6  # deterministic: always exactly one mode's mean
    mode = distance.argmin(1)
    drawn = torch.bincount(mode, minlength=M) / n
    torch.testing.assert_close(drawn, weights, rtol=0, atol=4 * math.sqrt(0.25 / n))
    noise = torch.randn(n, *model.noise_shape, generator=torch.Generator().manual_seed(1))
    x = model.sample(seen, deterministic=False, noise=noise).trajectories
    centre = model.sample(seen, deterministic=True, noise=noise).trajectories
    torch.testing.assert_close(x, centre + 0.1 * noise[:, 0])
    model.randn_clip_value = 0.5
    near = model.sample(seen, deterministic=False, noise=noise).trajectories
    torch.testing.assert_close(near, centre + 0.1 * noise[:, 0].clamp(-0.5, 0.5))
    with pytest.raises(ShapeError, match=r"noise: expected \(B, 2, Ta, Da\)"):
        model.sample(seen, noise=noise[:, :1])


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_the_policy_gradient_of_the_published_sizes_is_not_zero(kind):
    """Can: 28 numbers of deviation 0.1 have a joint density far above the bound at which the published gradient stops."""
    torch.manual_seed(0)
    if kind == "mlp":
        net = GMM_MLP(7, 4, 23, (512, 512, 512), residual_style=True, fixed_std=0.1, learn_fixed_std=True, std_max=0.2)
    else:
        net = GMM_Transformer(7, 4, 23, 96, 4, 4, fixed_std=0.1, learn_fixed_std=True, std_max=0.2)
    model, seen = PPO_GMM(net, CriticObs(23, (13, 13, 13)), 4), {"state": torch.randn(31, 1, 23)}
    sample = model.sample(seen)
    assert float(28 * sample.log_probs.mean()) > 2
    ratio = (model.chain_log_probs(seen, sample.chains) - sample.log_probs).exp()
    torch.testing.assert_close(ratio, torch.ones(31, 1))
    (torch.randn(31, 1) * ratio).mean().backward()
    assert not [
        name for name, p in net.named_parameters() if not p.grad.any() and ".norm2." not in name
    ]  # see test_transformer


@SETTINGS
def test_gradients_reach_every_parameter(settings):
    net = network(**settings)
    GMMModel(net, TA).loss(Batch(torch.rand(B, TA, DA), obs())).total.backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("layer", ["early", "mid", "late", "all"])
def test_the_dispersive_loss_acts_on_hidden_features(layer):
    net, loss = network(residual_style=True), DispersiveLoss(layer=layer)
    with record_outputs(loss.modules(net)) as features:
        net(obs())
    assert [z.shape for z in features] == [(B, 11)] * (3 if layer == "all" else 1)
    loss(features).backward()
    assert net.mlp_mean.layers[0].weight.grad.norm() > 1e-3
    assert net.mlp_mean.layers[-2].weight.grad is None


def test_base_weights_fill_the_tuned_network():
    base = GMMModel(network(fixed_std=0.3), TA)
    tuned = PPO_GMM(GMM_MLP(DA, TA, DO, (11, 11, 11), M, "Tanh", **LEARNED), CriticObs(DO, (17, 17, 17)), TA)
    tuned.load_base(base.state_dict())
    seen, noise = obs(), torch.randn(B, 2, TA, DA)
    expected = base.sample(seen, noise=noise).trajectories
    assert torch.equal(tuned.sample(seen, deterministic=True, noise=noise).trajectories, expected)
    assert float(tuned.network(seen)[1].detach().mean()) == pytest.approx(0.3)
    state = tuned.state_dict()
    assert {key.split(".")[0] for key in state} == {"network", "actor_ft", "critic"}  # no base, as published
    with pytest.raises(StateDictError, match=r"network\.mlp_weights"):
        tuned.load_base({key: value for key, value in base.state_dict().items() if "mlp_weights" not in key})


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"num_modes.*found 0"):
        network(num_modes=0)
    with pytest.raises(ValueError, match=r"std_min"):
        network(std_min=0.5, std_max=0.1)
    with pytest.raises(ShapeError, match=r"actions: expected"):
        GMMModel(network(), TA).loss(Batch(torch.zeros(B, TA + 1, DA), obs()))
