"""Gaussian policies: published layouts, log-probability and entropy against torch.distributions, sampling, loading."""

import math

import pytest
import torch
from torch.distributions import Normal

from model.common.critic import CriticObs
from model.common.gaussian import GaussianModel
from model.common.mlp_gaussian import Gaussian_MLP
from model.rl.gaussian_ppo import PPO_Gaussian
from model.types import Batch, ShapeError, StateDictError

B, TA, DA, DO = 7, 2, 3, 5
LEARNED = {"fixed_std": 0.3, "learn_fixed_std": True}
HEADS = {"fixed_std": None}


def network(**settings) -> Gaussian_MLP:
    return Gaussian_MLP(DA, TA, DO, **{"mlp_dims": (11, 13), "activation_type": "Tanh", "fixed_std": 0.1, **settings})


def policy(**settings) -> PPO_Gaussian:
    torch.manual_seed(0)
    return PPO_Gaussian(network(**settings), CriticObs(DO, (17, 17, 17)), TA)


def obs() -> dict[str, torch.Tensor]:
    return {"state": torch.randn(B, 1, DO, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize(  # parameters and keys of DPPO's own networks (spec 2.1, state_dict_keys.csv)
    ("arguments", "n_parameters", "keys"),
    [
        ((3, 1, 11, (512, 512, 512), "ReLU"), 534536, {"mlp_base.moduleList.2.linear_1.weight", "mlp_logvar.moduleList.0.linear_1.bias"}),
        ((6, 1, 17, (256, 256), "ReLU"), 73486, {"mlp_mean.moduleList.0.linear_1.weight", "logvar_min", "logvar_max"}),
        ((3, 1, 11, (256, 256, 256), "Mish", {"fixed_std": 0.1}), 135429, {"mlp_mean.moduleList.3.linear_1.weight"}),
        ((7, 4, 23, (512, 512, 512), "Mish", {**LEARNED, "residual_style": True}), 551973, {"logvar", "mlp_mean.layers.1.l2.weight"}),
        ((2, 4, 4, (256, 256, 256), "ReLU", {"fixed_std": 0.1, "residual_style": True}), 134922, {"mlp_mean.layers.2.bias"}),
    ],
)  # fmt: skip
def test_layout_is_the_published_one(arguments, n_parameters, keys):
    *plain, more = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    state = Gaussian_MLP(*plain, **more).state_dict()
    assert sum(value.numel() for value in state.values()) == n_parameters
    assert keys <= set(state)


@pytest.mark.parametrize("settings", [{}, LEARNED, HEADS], ids=["fixed", "learned", "heads"])
def test_log_prob_and_entropy_are_those_of_torch_distributions(settings):
    model, seen = policy(**settings), obs()
    sample = model.sample(seen, generator=torch.Generator().manual_seed(2))
    mean, std = model.network(seen)
    truth = Normal(mean, std.expand_as(mean))
    assert sample.chains.shape == (B, 2, TA, DA)
    assert torch.equal(sample.chains[:, 1], sample.trajectories)
    expected = truth.log_prob(sample.trajectories).mean(dim=(1, 2))
    torch.testing.assert_close(sample.log_probs, expected[:, None])
    torch.testing.assert_close(model.chain_log_probs(seen, sample.chains), expected[:, None])
    step = torch.zeros(B, dtype=torch.int64)
    torch.testing.assert_close(model.log_prob(seen, sample.chains[:, 0], sample.chains[:, 1], step), expected)
    torch.testing.assert_close(model.entropy_proxy(seen), truth.entropy().mean())
    loss = GaussianModel(model.network, TA).loss(Batch(sample.trajectories, seen))
    torch.testing.assert_close(loss.total, -expected.mean())


def test_deviations_are_where_they_should_be():
    fixed, learned = network()(obs())[1], network(**LEARNED)(obs())[1]
    assert float(fixed) == pytest.approx(0.1)
    assert learned.shape == (DA,)
    torch.testing.assert_close(learned, torch.full((DA,), 0.3))
    bounded = network(**LEARNED, std_min=0.2, std_max=0.25)
    torch.testing.assert_close(bounded(obs())[1], torch.full((DA,), 0.25))
    heads = network(fixed_std=None, std_min=0.07, std_max=0.9)
    with torch.no_grad():
        heads.mlp_logvar.moduleList[0].linear_1.bias.fill_(-100.0)
        assert float(heads(obs())[1].max()) == pytest.approx(0.07, rel=1e-5)
        heads.mlp_logvar.moduleList[0].linear_1.bias.fill_(100.0)
        assert float(heads(obs())[1].min()) == pytest.approx(0.9, rel=1e-5)
        heads.mlp_logvar.moduleList[0].linear_1.weight.zero_()
        heads.mlp_logvar.moduleList[0].linear_1.bias.zero_()
        assert float(heads(obs())[1].mean()) == pytest.approx(math.sqrt(0.07 * 0.9), rel=1e-5)


def test_sampling_is_mean_plus_bounded_noise_and_deterministic_is_the_mean():
    torch.manual_seed(0)
    model, seen = GaussianModel(network(**LEARNED), TA, randn_clip_value=0.5), obs()
    mean = model.network(seen)[0]
    assert torch.equal(model.sample(seen).trajectories, mean)
    noise = torch.randn(B, 1, TA, DA)
    drawn = model.sample(seen, deterministic=False, noise=noise).trajectories
    torch.testing.assert_close(drawn, mean + 0.3 * noise[:, 0].clamp(-0.5, 0.5))
    with pytest.raises(ShapeError, match=r"noise: expected \(B, 1, Ta, Da\) = \(7, 1, 2, 3\)"):
        model.sample(seen, deterministic=False, noise=noise[:, 0])
    with pytest.raises(ShapeError, match="actions: expected"):
        model.loss(Batch(torch.zeros(B, TA + 1, DA), seen))


def test_the_mean_is_squashed_unless_asked_otherwise():
    big = {"state": 1e3 * obs()["state"]}
    torch.manual_seed(0)
    with torch.no_grad():
        assert float(network(activation_type="ReLU")(big)[0].abs().max()) <= 1.0
        assert float(network(activation_type="ReLU", tanh_output=False)(big)[0].abs().max()) > 1.0


def test_base_weights_fill_the_tuned_and_the_frozen_network():
    torch.manual_seed(3)
    base = GaussianModel(network(), TA)
    tuned = policy(**LEARNED, std_max=0.4)  # the base knows no logvar, and other bounds
    parameters = list(tuned.actor_parameters())
    tuned.load_base(base.state_dict())
    assert [a is b for a, b in zip(parameters, tuned.actor_parameters(), strict=True)] == [True] * len(parameters)
    seen = obs()
    assert torch.equal(tuned.sample(seen, deterministic=True).trajectories, base.sample(seen).trajectories)
    assert float(tuned.network(seen)[1][0].detach()) == pytest.approx(0.3)
    state = tuned.state_dict()
    for key, value in base.network.mlp_mean.state_dict().items():
        assert all(torch.equal(state[f"{name}.mlp_mean.{key}"], value) for name in ("network", "actor", "actor_ft"))
    assert not any(parameter.requires_grad for parameter in tuned.actor.parameters())
    with pytest.raises(StateDictError, match=r"network\.mlp_mean"):
        tuned.load_base({key: value for key, value in base.state_dict().items() if "moduleList.1" not in key})
    with pytest.raises(StateDictError, match="expected only keys that start with"):
        tuned.load_base(tuned.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fixed_std": None, "learn_fixed_std": True}, "learn_fixed_std"),
        ({"std_min": 0.5, "std_max": 0.1}, "std_min"),
        ({"fixed_std": 0.0}, "fixed_std"),
        ({"residual_style": True, "mlp_dims": (11, 11, 11), "dropout": 0.1}, "dropout"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        network(**settings)
