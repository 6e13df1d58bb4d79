"""The steered policy: the base's own chunks at first, the density of whole starts, frozen eyes, and PPO through the one loop."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from agent.finetune.ppo import PPO
from agent.finetune.rollout import EpisodeTracker, Rollout, collect
from model.common.critic import CriticObs
from model.common.mlp_gaussian import Gaussian_MLP
from model.common.vit import VitEncoder
from model.diffusion.diffusion import DiffusionModel
from model.diffusion.diffusion_ppo import PPODiffusion
from model.diffusion.diffusion_steer import SteeredDiffusion
from model.diffusion.mlp_diffusion import DiffusionMLP, VisionDiffusionMLP
from tests.agent.test_ppo import TRAIN, make_rollout
from tests.point_mass import PointMass

B, TO, TA, DA, DO = 11, 2, 6, 5, 7
STD = {"fixed_std": 1.0, "learn_fixed_std": True, "std_max": 1.5, "tanh_output": False}


def policy(
    ta: int = TA, da: int = DA, do: int = DO, to: int = TO, ts: int | None = None, **settings
) -> SteeredDiffusion:
    torch.manual_seed(0)
    return SteeredDiffusion(
        DiffusionMLP(da, ta, to * do, mlp_dims=[13] * 3, residual_style=True),
        Gaussian_MLP(da, ts or ta, to * do, [19, 23], **STD),
        CriticObs(to * do, [17] * 3, residual_style=True),
        **{"horizon_steps": ta, "obs_dim": do, "action_dim": da, "denoising_steps": 20, "ddim_steps": 5, **settings},
    )


def observations(n: int = B) -> dict[str, torch.Tensor]:
    return {"state": torch.randn(n, TO, DO, generator=torch.Generator().manual_seed(1))}


def moved(p: SteeredDiffusion) -> SteeredDiffusion:
    with torch.no_grad():
        for parameter in p.steer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return p


def plain(p: SteeredDiffusion, **settings) -> DiffusionModel:
    """The base in a policy of its own, with copied weights."""
    return DiffusionModel(copy.deepcopy(p.network), TA, DO, DA, 20, use_ddim=True, ddim_steps=5, **settings)


def test_exploring_is_at_first_what_the_base_does():
    p, obs = policy(), observations()
    noise = torch.randn(B, *p.noise_shape)
    start = torch.cat([noise, torch.zeros(B, 5, TA, DA)], dim=1)
    sample = p.sample(obs, noise=noise)
    assert torch.equal(sample.trajectories, plain(p).sample(obs, noise=start).trajectories)
    assert torch.equal(sample.trajectories, p.untuned().sample(obs, noise=start).trajectories)
    assert torch.equal(sample.chains[:, 1], noise[:, 0])
    best = p.sample(obs, deterministic=True)
    assert best.log_probs is None
    middle = plain(p, start_std=0.0).sample(obs, noise=start).trajectories
    assert torch.equal(best.trajectories, middle)
    assert not torch.equal(middle, sample.trajectories)


@pytest.mark.parametrize("ts", [6, 2, 1])
def test_a_learned_start_is_what_is_denoised(ts):
    p, obs = moved(policy(ts=ts)), observations()
    noise = torch.randn(B, *p.noise_shape)
    with torch.no_grad():
        mean, std = p.steer(obs)
    whole = torch.arange(TA) // (TA // ts)  # which row of the start each step of the chunk begins with
    drawn = (mean + std * noise[:, 0, :: TA // ts])[:, whole]
    for deterministic, start in ((False, drawn), (True, mean[:, whole])):
        sample = p.sample(obs, deterministic, noise)
        torch.testing.assert_close(sample.chains[:, 1], start)
        given = torch.cat([start[:, None], torch.zeros(B, 5, TA, DA)], dim=1)
        torch.testing.assert_close(sample.trajectories, plain(p).sample(obs, noise=given).trajectories)


@pytest.mark.parametrize("ts", [6, 2])
def test_density_and_divergence_are_those_of_torch(ts):
    p, obs = moved(policy(ts=ts)), observations()
    sample = p.sample(obs)
    z = sample.chains[:, 1, :: TA // ts]
    mean, std = p.steer(obs)
    theirs = Independent(Normal(mean, std.expand_as(mean)), 2)
    torch.testing.assert_close(sample.log_probs[:, 0], theirs.log_prob(z))
    torch.testing.assert_close(p.chain_log_probs(obs, sample.chains), sample.log_probs)
    standard = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 2)
    divergence = p.base_divergence(obs, z, torch.zeros(B))
    torch.testing.assert_close(divergence, kl_divergence(theirs, standard))


def test_only_the_start_learns():
    p, obs = moved(policy()), observations()
    chains = p.sample(obs).chains
    (p.chain_log_probs(obs, chains).sum() + p.value(obs).sum()).backward()
    assert all(q.grad is not None for q in [*p.actor_parameters(), *p.critic_parameters()])
    assert not any(q.requires_grad for q in p.network.parameters())
    assert {key.split(".")[0] for key in p.state_dict()} == {"network", "steer", "critic"}
    other = policy()
    base = {f"network.{key}": value + 1 for key, value in p.network.state_dict().items()}
    other.load_base(base)
    for key, value in other.network.state_dict().items():
        torch.testing.assert_close(value, base[f"network.{key}"])


def test_a_start_that_does_not_divide_the_chunk_is_refused():
    with pytest.raises(ValueError, match=r"steer\.horizon_steps.*6.*4"):
        policy(ts=4)


@pytest.mark.parametrize("sampler", [{}, {"use_ddim": True, "ddim_steps": 5}])
def test_the_deviation_of_the_start_scales_the_start_alone(sampler):
    """Of the policy as pre-trained, and of the one that is tuned."""

    def both(**settings):
        torch.manual_seed(0)
        net = DiffusionMLP(DA, TA, TO * DO, mlp_dims=[13] * 3, residual_style=True)
        critic = CriticObs(TO * DO, [17] * 3, residual_style=True)
        return DiffusionModel(net, TA, DO, DA, 20, **sampler, **settings), PPODiffusion(
            copy.deepcopy(net), critic, TA, DO, DA, 20, 3, **sampler, **settings
        )

    for scaled, usual in zip(both(start_std=0.3), both(), strict=True):
        noise = torch.randn(B, *usual.noise_shape)
        given = torch.cat([0.3 * noise[:, :1], noise[:, 1:]], dim=1)
        one, other = scaled.sample(observations(), noise=noise), usual.sample(observations(), noise=given)
        assert torch.equal(one.trajectories, other.trajectories)
        assert not torch.equal(one.trajectories, usual.sample(observations(), noise=noise).trajectories)


def test_starts_from_a_negative_deviation_are_refused():
    with pytest.raises(ValueError, match="start_std"):
        plain(policy(), start_std=-0.1)


SIZE, N, S = (19, 23), 5, 7


def seeing() -> SteeredDiffusion:
    torch.manual_seed(0)
    eyes = VitEncoder([3, *SIZE], {"patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2})
    actor = VisionDiffusionMLP(eyes, 2, 2, 2, time_dim=8, mlp_dims=[31] * 3, spatial_emb=11, residual_style=True)
    steer, critic = Gaussian_MLP(2, 2, 13, [19, 23], **STD), CriticObs(13, [17] * 3, residual_style=True)
    return SteeredDiffusion(
        actor, steer, critic, horizon_steps=2, obs_dim=2, action_dim=2, denoising_steps=20, ddim_steps=5
    )


def test_images_are_encoded_once_per_rollout_however_often_it_is_learned_from(monkeypatch):
    p, calls, forward = seeing(), [], VitEncoder.forward

    def counted(self, images, flatten=False):
        calls.append(len(images))
        return forward(self, images, flatten)

    monkeypatch.setattr(VitEncoder, "forward", counted)
    venv = PointMass(N, 2, 11, image_size=SIZE)
    obs = venv.reset(0)
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    rollout = Rollout.allocate(S, N, tensors, (2, 2, 2), "cpu")
    collect(p, venv, obs, np.ones(N, bool), rollout, EpisodeTracker.start(N), torch.Generator().manual_seed(0))
    assert sum(calls) == S * N
    calls.clear()
    train = {**TRAIN, "batch_size": 30, "update_epochs": 7, "augment": False}
    metrics = PPO(p, train, N, torch.Generator().manual_seed(1)).update(rollout, 0)
    finals = sum(len(index) for index, _ in rollout.final_obs)
    assert sum(calls) == S * N + finals
    assert metrics["self_check/max_abs_log_ratio"] < 1e-4
    with torch.no_grad():
        flat = {key: value.flatten(0, 1) for key, value in rollout.obs.items()}
        seen = p.network.encode(flat)
        wide = torch.cat([seen["features"], flat["state"].flatten(1)], dim=1)
        torch.testing.assert_close(p.value(flat), p.critic.Q1(wide)[:, 0])


def test_ppo_over_the_start_learns_what_the_frozen_base_can_do():
    """A base that goes anywhere (random weights) on a dense point mass: choosing its starts raises the return."""
    p = policy(2, 2, 4, 1, ddim_steps=3)
    train = {
        **TRAIN,
        "batch_size": 200,
        "update_epochs": 10,
        "actor_lr": 3e-3,
        "critic_lr": 3e-3,
        "gamma": 0.9,
        "gae_lambda": 0.95,
        "target_kl": None,
    }
    algorithm = PPO(p, train, 53, torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in p.network.state_dict().items()}
    gained = []
    for iteration in range(20):
        rollout, _ = make_rollout(p, PointMass(53, dense=True), 13)
        algorithm.update(rollout, iteration)
        gained.append(float(rollout.rewards.mean()))
    assert np.mean(gained[-3:]) > np.mean(gained[:3]) + 0.3
    for key, value in p.network.state_dict().items():
        assert torch.equal(value, before[key])


def test_only_a_sampler_without_noise_can_be_steered():
    assert policy(use_ddim=True).n_steps == 5
    with pytest.raises(ValueError, match=r"use_ddim: .*set it to true"):
        policy(use_ddim=False)
