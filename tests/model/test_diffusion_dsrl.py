"""Off-policy steering: what the start's distribution is, what the critics see of it, and soft actor-critic through the one loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution

from agent.finetune.dsrl import DSRL
from agent.finetune.rollout import EpisodeTracker, Rollout, collect
from model.common.critic import CriticObsAct
from model.common.mlp_gaussian import Gaussian_MLP
from model.diffusion.diffusion import DiffusionModel
from model.diffusion.diffusion_dsrl import DSRLDiffusion
from model.diffusion.mlp_diffusion import DiffusionMLP
from tests.agent.test_soft_rl import TRAIN
from tests.point_mass import PointMass

B, TO, TA, DA, DO = 11, 2, 6, 5, 7
BOUND = 1.3


def policy(
    ts: int = 2, ta: int = TA, da: int = DA, do: int = DO, to: int = TO, bound: float = BOUND, **more
) -> DSRLDiffusion:
    torch.manual_seed(0)
    return DSRLDiffusion(
        DiffusionMLP(da, ta, to * do, mlp_dims=[13] * 3, residual_style=True),
        Gaussian_MLP(da, ts, to * do, [19, 23], tanh_output=False, std_min=0.05, std_max=2.0),
        CriticObsAct(to * do, [29, 31], da, ts),
        bound=bound,
        **{"horizon_steps": ta, "obs_dim": do, "action_dim": da, "denoising_steps": 20, "ddim_steps": 5, **more},
    )


def observations() -> dict[str, torch.Tensor]:
    return {"state": torch.randn(B, TO, DO, generator=torch.Generator().manual_seed(1))}


def denoised(p: DSRLDiffusion, obs, start: torch.Tensor) -> torch.Tensor:
    """What the frozen policy makes of a start, by its own sampler."""
    base = DiffusionModel(p.network, TA, DO, DA, 20, use_ddim=True, ddim_steps=5)
    return base.sample(obs, noise=torch.cat([start[:, None], torch.zeros(B, 5, TA, DA)], dim=1)).trajectories


@pytest.mark.parametrize("ts", [6, 2, 1])
def test_a_chunk_is_what_the_frozen_policy_makes_of_the_drawn_start(ts):
    p, obs = policy(ts), observations()
    noise = torch.randn(B, *p.noise_shape)
    with torch.no_grad():
        mean, std = p.start.network(obs)
    each = torch.arange(TA) // (TA // ts)  # which row of the start each step of the chunk begins with
    drawn = BOUND * torch.tanh(mean + std * noise[:, 0, :: TA // ts])[:, each]
    for deterministic, start in ((False, drawn), (True, BOUND * mean.tanh()[:, each])):
        sample = p.sample(obs, deterministic, noise)
        torch.testing.assert_close(sample.chains, start[:, None])
        torch.testing.assert_close(sample.trajectories, denoised(p, obs, start))
        torch.testing.assert_close(p.executed(obs, sample.chains[:, -1]), sample.trajectories)


def test_at_first_it_acts_as_the_policy_was_trained_within_the_bound():
    p, obs = policy(6), observations()
    noise = torch.randn(B, *p.noise_shape)
    sample, start = p.untouched(obs, noise), noise[:, 0].clamp(-BOUND, BOUND)
    assert (noise.abs() > BOUND).any()
    torch.testing.assert_close(sample.chains[:, 0], start)
    torch.testing.assert_close(sample.trajectories, denoised(p, obs, start))


def test_densities_are_those_of_a_squashed_gaussian():
    p, obs = policy(), observations()
    starts, log_prob = p.sample_with_log_prob(obs, torch.Generator().manual_seed(3))
    assert starts.shape == (B, TA, DA) and starts.requires_grad
    mean, std = p.start.network(obs)
    law = TransformedDistribution(Normal(mean, std), [TanhTransform(), AffineTransform(0.0, BOUND)])
    # scaling by the bound is a constant, and left out
    expected = law.log_prob(starts[:, :: TA // 2]).sum(dim=(1, 2)) + 2 * DA * np.log(BOUND)
    torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-4)


def test_critics_see_every_free_number_of_a_start_once():
    p, obs = policy(), observations()
    starts = torch.randn(B, TA, DA)
    q = p.values(obs, starts)
    free = starts[:, [0, 3]]
    for value, expected in zip(q, p.critic(obs, free), strict=True):
        assert torch.equal(value, expected)
    assert torch.equal(p.actor_value(obs, starts), torch.minimum(*q))
    assert p.n_numbers == 2 * DA


def test_a_bound_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"bound: expected a number above 0, found 0"):
        policy(bound=0)
    with pytest.raises(ValueError, match=r"steer.horizon_steps: expected a divisor of horizon_steps = 6, found 4"):
        policy(4)


def run(p: DSRLDiffusion, iterations: int, **train) -> tuple[DSRL, list[float]]:
    """Through the one loop's ``collect``, 53 points at once; returns the mean reward of every iteration, too."""
    n, steps = 53, 13
    algorithm = DSRL(
        p, {**TRAIN, "explore_std": 1.0, "n_critic_warmup_updates": 7, **train}, n, torch.Generator().manual_seed(0)
    )
    venv = PointMass(n, 2, 11, dense=True)
    obs, firsts, gained = venv.reset(0), np.ones(n, bool), []
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    rollout, tracker = Rollout.allocate(steps, n, tensors, (1, 2, 2), "cpu"), EpisodeTracker.start(n)
    generator = torch.Generator().manual_seed(1)
    for iteration in range(iterations):
        obs, firsts, _ = collect(
            p, venv, obs, firsts, rollout, tracker, generator, act=algorithm.act, observe=algorithm.observe
        )
        algorithm.update(rollout, iteration)
        gained.append(float(rollout.rewards.mean()))
    return algorithm, gained


def test_starts_go_into_the_replay_buffer_and_nothing_is_learned_while_it_acts_as_trained():
    p = policy(1, 2, 2, 4, 1, ddim_steps=3)
    before = {key: value.clone() for key, value in p.state_dict().items()}
    algorithm, _ = run(p, 1, n_explore_steps=14)
    kept = torch.as_tensor(algorithm.replay.arrays["actions"][algorithm.replay.arrays["usable"]])
    assert torch.equal(kept[:, 0], kept[:, 1])  # one start for both steps of a chunk
    assert kept.abs().max() == pytest.approx(BOUND) and float(kept.std()) > 0.8
    for key, value in p.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert algorithm.target_entropy == -2  # of two free numbers, not of four


def test_it_learns_what_the_frozen_base_can_do():
    """A base that goes anywhere (random weights) on a dense point mass: choosing its starts raises the return."""
    p = policy(1, 2, 2, 4, 1, ddim_steps=3)
    before = {key: value.clone() for key, value in p.network.state_dict().items()}
    train = {"batch_size": 64, "critic_replay_ratio": 64 * 8, "actor_replay_ratio": 64 * 4, "gamma": 0.8}
    _, gained = run(p, 12, n_explore_steps=13, init_temperature=0.02, **train)
    assert np.mean(gained[-3:]) > gained[0] + 0.3
    for key, value in p.network.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_critic_is_warm_before_the_actor_follows_it_also_after_a_resume(monkeypatch):
    calls = []
    monkeypatch.setattr(DSRL, "learn_critic", lambda self: calls.append("critic"))
    monkeypatch.setattr(DSRL, "learn_actor", lambda self, obs: calls.append("actor"))
    settings = {"batch_size": 40, "critic_replay_ratio": 80, "actor_replay_ratio": 40}
    algorithm, _ = run(policy(1, 2, 2, 4, 1, ddim_steps=3), 1, n_explore_steps=11, **settings)
    assert calls == ["critic"] * 7 + 3 * ["critic", "critic", "actor"]  # the 11th, 12th and 13th step
    again = DSRL(algorithm.policy, algorithm.train, 53, torch.Generator().manual_seed(0))
    again.load_state_dict(algorithm.state_dict())
    assert again.warm and not again.exploring
