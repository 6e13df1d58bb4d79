"""PPO's options: divergence from the base, cloning the base, dispersed features. Each against an independent computation, and what it does."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from agent.errors import UsageError
from agent.finetune.minibatch import Data
from agent.finetune.ppo import PPO
from agent.finetune.regularise import Regulariser
from model.common.critic import CriticObs
from model.common.dispersive_loss import dispersive_loss
from model.common.mlp_gmm import GMM_MLP
from model.rl.gmm_ppo import PPO_GMM
from tests.agent import test_gaussian_ppo, test_ppo
from tests.agent.test_ppo import TRAIN, make_rollout
from tests.point_mass import PointMass

MAKE = {"diffusion": test_ppo.make_policy, "gaussian": test_gaussian_ppo.make_policy}


def moved(kind: str, amount: float = 0.05):
    """A policy whose tuned weights are not its base's any more."""
    policy = MAKE[kind]()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.actor_ft.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return policy


def data_of(rollout) -> Data:
    obs = {key: value.flatten(0, 1) for key, value in rollout.obs.items()}
    return Data(obs, None, rollout.chains.flatten(0, 1), rollout.log_probs.flatten(0, 1))


def pairs(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    n, k = data.log_probs.shape
    every = torch.randperm(n * k, generator=torch.Generator().manual_seed(2))
    return every // k, every % k


def distributions(kind, policy, obs, x, step):
    if kind == "gaussian":
        return [Normal(*network(obs)) for network in (policy.network, policy.actor)]
    position = step + policy.n_steps - policy.ft_denoising_steps
    both = [policy.step_mean_std(network, x, position, obs) for network in (policy.actor_ft, policy.actor)]
    return [Normal(mean, std.clamp(min=policy.min_logprob_denoising_std)) for mean, std in both]


@pytest.mark.parametrize("kind", MAKE)
def test_divergence_from_the_base_is_the_textbooks(kind):
    policy = moved(kind)
    data = data_of(make_rollout(policy, PointMass(5), 4)[0])
    row, step = pairs(data)
    obs, x = data.look(row), data.chains[row, step]
    expected = kl_divergence(*distributions(kind, policy, obs, x, step)).mean(dim=(1, 2))
    found = policy.base_divergence(obs, x, step)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6) and float(found.detach().mean()) > 1e-3
    loss = Regulariser(policy, {"kl_coef": 0.3}, torch.Generator()).loss(data, row, step, [])
    assert float(loss.detach()) == pytest.approx(0.3 * float(expected.mean()), rel=1e-4)
    same = MAKE[kind]()
    assert float(same.base_divergence(obs, x, step).abs().max()) < 1e-6


@pytest.mark.parametrize("kind", MAKE)
def test_cloning_scores_what_the_base_does(kind):
    policy = moved(kind)
    data = data_of(make_rollout(policy, PointMass(5), 4)[0])
    row, step = pairs(data)
    some = data.look(row[:: data.log_probs.shape[1]])
    chains = policy.base_chains(some, torch.Generator().manual_seed(3))
    base = MAKE[kind]()  # tuned as the base is: the chains are its own
    noise = torch.randn(len(chains), *policy.noise_shape, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(base.sample(some, False, noise).chains, chains, atol=1e-6)
    regulariser = Regulariser(policy, {"use_bc_loss": True, "bc_loss_coeff": 2.0}, torch.Generator().manual_seed(3))
    loss = regulariser.loss(data, row, step, [])
    assert float(loss.detach()) == pytest.approx(-2 * float(policy.chain_log_probs(some, chains).mean()), rel=1e-5)
    assert regulariser.means.read()["loss/bc"] == pytest.approx(float(loss.detach()) / 2)
    assert (
        Regulariser(policy, {"use_bc_loss": False, "bc_loss_coeff": 2.0}, torch.Generator()).loss(data, row, step, [])
        is None
    )


@pytest.mark.parametrize("option", [{"kl_coef": 3.0}, {"use_bc_loss": True, "bc_loss_coeff": 3.0}])
@pytest.mark.parametrize("kind", MAKE)
def test_it_keeps_the_policy_near_its_base(kind, option):
    distances = []
    for extra in ({}, option):
        policy = MAKE[kind]()
        algorithm = PPO(policy, {**TRAIN, **extra}, 13, torch.Generator().manual_seed(0))
        for iteration in range(3):
            rollout, _ = make_rollout(policy, PointMass(13, dense=True), 9, iteration)
            metrics = algorithm.update(rollout, iteration)
        data = data_of(rollout)
        row, step = pairs(data)
        distances.append(float(policy.base_divergence(data.look(row), data.chains[row, step], step).mean()))
        assert ("loss/kl_base" in metrics or "loss/bc" in metrics) == bool(extra)
    assert distances[1] < 0.7 * distances[0]


def test_dispersive_loss_is_of_the_tuned_networks_hidden_layer():
    policy = moved("diffusion")
    data = data_of(make_rollout(policy, PointMass(5), 4)[0])
    row, step = pairs(data)
    train = {
        "dispersive_loss_weight": 0.5,
        "dispersive_loss_type": "infonce_l2",
        "dispersive_loss_temperature": 0.7,
        "dispersive_loss_layer": "late",
    }
    regulariser = Regulariser(policy, train, torch.Generator())
    with regulariser.recording() as features:
        policy.log_prob(data.look(row), data.chains[row, step], data.chains[row, step + 1], step)
    assert len(features) == 1 and features[0].shape == (len(row), 31)  # hidden, not the output's 4
    loss = regulariser.loss(data, row, step, features)
    expected = dispersive_loss(features[0], "infonce_l2", 0.7, group_size=32)
    assert float(loss.detach()) == pytest.approx(0.5 * float(expected.detach()), rel=1e-5)
    loss.backward()
    tuned = [p.grad for p in policy.actor_ft.parameters() if p.grad is not None]
    assert sum(float(g.abs().sum()) for g in tuned) > 0 and all(p.grad is None for p in policy.network.parameters())
    metrics = PPO(policy, {**TRAIN, **train}, 5, torch.Generator().manual_seed(0)).update(
        make_rollout(policy, PointMass(5), 9)[0], 0
    )
    assert metrics["loss/dispersive"] < 0 < metrics["dispersive/gradient_norm_ratio"]


def test_gradients_are_compared_once_per_update():
    policy = moved("diffusion")
    data = data_of(make_rollout(policy, PointMass(5), 4)[0])
    row, step = pairs(data)
    regulariser = Regulariser(policy, {"dispersive_loss_weight": 0.5}, torch.Generator())
    for scale in (3.0, 30.0):  # the second minibatch does not count
        with regulariser.recording() as features:
            new = policy.log_prob(data.look(row), data.chains[row, step], data.chains[row, step + 1], step)
        regulariser.loss(data, row, step, features)
        regulariser.compare(scale * new.sum())
    norms = []
    for loss in (3 * new.sum(), regulariser.disperse(features)):
        gradients = torch.autograd.grad(loss, list(policy.actor_ft.parameters()), retain_graph=True, allow_unused=True)
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None)))
    assert regulariser.read()["dispersive/gradient_norm_ratio"] == pytest.approx(0.5 * norms[1] / norms[0], rel=1e-4)
    assert "dispersive/gradient_norm_ratio" not in regulariser.read()


def test_what_cannot_be_is_refused():
    mixture = PPO_GMM(GMM_MLP(2, 2, 4, [31], num_modes=3), CriticObs(4, [29]), horizon_steps=2)
    with pytest.raises(UsageError, match=r"train\.kl_coef: PPO_GMM has no base policy"):
        Regulariser(mixture, {"kl_coef": 0.1}, torch.Generator())
    with pytest.raises(UsageError, match=r"train\.dispersive_loss_weight: dispersive_loss_layer"):
        Regulariser(
            MAKE["diffusion"](), {"dispersive_loss_weight": 1, "dispersive_loss_layer": "last"}, torch.Generator()
        )


def test_fewer_steps_are_tuned_as_time_goes_by():
    policy = moved("diffusion")  # 3 of 5 steps
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    policy.tune_last(2)
    assert policy.n_chain_steps == policy.ft_denoising_steps == 2
    fresh = test_ppo.make_policy(k=2)
    assert torch.equal(policy.clip_ranges, fresh.clip_ranges) and torch.equal(
        policy.denoising_discounts, fresh.denoising_discounts
    )
    assert all(torch.equal(value, before[f"actor_ft.{key}"]) for key, value in policy.network.state_dict().items())
    algorithm = PPO(
        policy, {**TRAIN, "ft_denoising_steps_d": 1, "ft_denoising_steps_t": 2}, 5, torch.Generator().manual_seed(0)
    )
    steps = []
    for iteration in range(4):
        algorithm.checked_ratio = False  # the ratio is 1 again before every update
        algorithm.update(make_rollout(policy, PointMass(5), 9, iteration)[0], iteration)
        steps.append(policy.n_chain_steps)
    assert steps == [2, 1, 1, 1]
    other = test_ppo.make_policy()
    other.load_state_dict(policy.state_dict())
    PPO(other, TRAIN, 5, torch.Generator()).load_state_dict(algorithm.state_dict())
    noise, obs = torch.randn(7, *policy.noise_shape), {"state": torch.randn(7, 1, 4)}
    assert torch.equal(other.sample(obs, True, noise).trajectories, policy.sample(obs, True, noise).trajectories)
    with pytest.raises(UsageError, match=r"train\.ft_denoising_steps_d: PPO_Gaussian has no denoising steps"):
        PPO(MAKE["gaussian"](), {**TRAIN, "ft_denoising_steps_d": 1}, 5, torch.Generator())
