"""The fine-tuned policy: frozen and tuned weights, chains, log-probabilities, published names, per-step tables."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from model.common.critic import CriticObs
from model.common.modules import strict_load
from model.diffusion.diffusion import DiffusionModel
from model.diffusion.diffusion_ppo import PPODiffusion
from model.diffusion.eta import EtaAction, EtaFixed
from model.diffusion.mlp_diffusion import DiffusionMLP
from model.types import StateDictError

B, TO, TA, DA, DO = 11, 2, 4, 5, 7
DDIM = {"use_ddim": True, "ddim_steps": 5}


def net() -> DiffusionMLP:
    return DiffusionMLP(DA, TA, TO * DO, mlp_dims=[13] * 3, residual_style=True)


def policy(**settings: object) -> PPODiffusion:
    torch.manual_seed(0)
    critic = CriticObs(TO * DO, [17] * 3, residual_style=True)
    defaults = {"horizon_steps": TA, "obs_dim": DO, "action_dim": DA, "denoising_steps": 13, "ft_denoising_steps": 3}
    return PPODiffusion(net(), critic, **{**defaults, **settings})


def observations(n: int = B) -> dict[str, torch.Tensor]:
    return {"state": torch.randn(n, TO, DO, generator=torch.Generator().manual_seed(1))}


def perturb(module: nn.Module, by: float = 0.3) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p += by * torch.randn_like(p)


def test_state_dict_has_the_published_names():
    names = set(net().state_dict())
    critic = {f"critic.{key}" for key in CriticObs(TO * DO, [17] * 3, residual_style=True).state_dict()}
    expected = {f"{part}.{name}" for part in ("network", "actor", "actor_ft") for name in names} | critic
    p = policy()
    assert set(p.state_dict()) == expected
    assert set(policy(eta=EtaFixed()).state_dict()) == expected  # a level without DDIM is not stored
    assert set(policy(**DDIM).state_dict()) == expected | {"eta.eta_logit"}
    assert p.network is p.actor
    assert not any(q.requires_grad for q in p.network.parameters())
    assert all(q.requires_grad for q in [*p.actor_parameters(), *p.critic_parameters()])


@pytest.mark.parametrize("settings", [{}, {"ft_denoising_steps": 13}, DDIM, {**DDIM, "ft_denoising_steps": 5}])
def test_chain_shapes_and_ends(settings: dict):
    p = policy(**settings)
    k = p.n_chain_steps
    noise = torch.randn(B, *p.noise_shape)
    sample = p.sample(observations(), noise=noise)
    assert sample.trajectories.shape == (B, TA, DA)
    assert sample.chains.shape == (B, k + 1, TA, DA)
    assert sample.log_probs.shape == (B, k)
    assert torch.equal(sample.chains[:, -1], sample.trajectories)
    if k == p.n_steps:
        assert torch.equal(sample.chains[:, 0], noise[:, 0])
    bare = p.sample(observations(), noise=noise, return_chain=False)
    assert bare.chains is None
    assert bare.log_probs is None
    assert torch.equal(bare.trajectories, sample.trajectories)


@pytest.mark.parametrize("settings", [{}, {"final_action_clip_value": 0.5}, DDIM, {**DDIM, "reward_horizon": 2}])
def test_sampled_log_probs_are_those_of_log_prob(settings: dict):
    """The PPO ratio is 1 before any update."""
    p = policy(**settings)
    perturb(p.actor_ft)
    obs = observations()
    sample = p.sample(obs, generator=torch.Generator().manual_seed(3))
    new = p.chain_log_probs(obs, sample.chains)
    assert new.requires_grad
    ratio = (new - sample.log_probs).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, DDIM, {"min_logprob_denoising_std": 0.3}])
def test_log_prob_matches_torch_distributions(settings: dict):
    p = policy(**settings)
    perturb(p.actor_ft)
    obs, step = observations(), torch.randint(3, (B,), generator=torch.Generator().manual_seed(2))
    x, x_next = torch.randn(B, TA, DA), torch.randn(B, TA, DA) * 0.3
    eta = torch.ones(B, 1) if p.use_ddim else None
    mean, std = p.step_mean_std(p.actor_ft, x, step + p.n_steps - 3, obs, eta)
    std = std.clamp(min=settings.get("min_logprob_denoising_std", 0.1)).expand_as(mean)
    elements = Normal(mean, std).log_prob(x_next)
    assert (elements < -5).any()
    clamped = elements.clamp(-5, 2)
    torch.testing.assert_close(p.log_prob(obs, x, x_next, step), clamped.mean(dim=(1, 2)), rtol=1e-6, atol=1e-6)
    first = p.log_prob(obs, x, x_next, step, reward_horizon=2)
    torch.testing.assert_close(first, clamped[:, :2].mean(dim=(1, 2)), rtol=1e-6, atol=1e-6)


def test_log_prob_is_clamped_from_above():
    p = policy(min_logprob_denoising_std=1e-3)
    obs, x = observations(), torch.zeros(B, TA, DA)
    mean, _ = p.step_mean_std(p.actor_ft, x, 12, obs)
    last = torch.full((B,), 2)  # the posterior has no deviation there: the density at its mean would be e^5.99
    torch.testing.assert_close(p.log_prob(obs, x, mean, last), torch.full((B,), 2.0))


def test_chain_steps_are_ordered_noisiest_first():
    p = policy()
    perturb(p.actor_ft)
    obs = observations()
    chains = p.sample(obs).chains
    expected = [p.log_prob(obs, chains[:, j], chains[:, j + 1], torch.full((B,), j)) for j in range(3)]
    torch.testing.assert_close(p.chain_log_probs(obs, chains), torch.stack(expected, dim=1))
    assert not torch.allclose(expected[0], expected[1])


@pytest.mark.parametrize("deterministic", [True, False])
def test_each_row_sees_either_the_base_or_the_tuned_network(deterministic: bool):
    for settings, times in (({}, list(range(12, -1, -1))), (DDIM, [8, 6, 4, 2, 0])):
        p = policy(**settings)
        seen: dict[str, list[int]] = {"base": [], "tuned": []}
        p.network.register_forward_hook(lambda _m, a, _o, s=seen: s["base"].extend(a[1].tolist()))
        p.actor_ft.register_forward_hook(lambda _m, a, _o, s=seen: s["tuned"].extend(a[1].tolist()))
        p.sample(observations(1), deterministic)
        assert seen == {"base": times[:-3], "tuned": times[-3:]}


def test_sampling_floors_every_step_and_evaluation_does_not():
    noise = torch.ones(B, 14, TA, DA)
    p = policy(min_sampling_denoising_std=0.25)
    explore = p.sample(observations(), noise=noise)
    mean, std = p.step_mean_std(p.actor_ft, explore.chains[:, -2], 12, observations())
    assert std < 1e-9
    torch.testing.assert_close(explore.trajectories, mean + 0.25)
    best = p.sample(observations(), deterministic=True, noise=noise)
    mean, _ = p.step_mean_std(p.actor_ft, best.chains[:, -2], 12, observations())
    torch.testing.assert_close(best.trajectories, mean)
    assert best.log_probs is None


@pytest.mark.parametrize("settings", [{}, DDIM])
def test_untrained_copy_evaluates_like_the_base_policy(settings: dict):
    base = DiffusionModel(net(), TA, DO, DA, 13, **settings)
    p = policy(**settings)
    p.load_base(base.state_dict())
    noise = torch.randn(B, *p.noise_shape)
    expected = base.sample(observations(), noise=noise).trajectories
    assert torch.equal(p.sample(observations(), deterministic=True, noise=noise).trajectories, expected)


def test_load_base_keeps_parameters_and_copies_them():
    base, p = DiffusionModel(net(), TA, DO, DA, 13), policy()
    perturb(p.actor_ft)
    identity = [id(q) for q in p.parameters()]
    p.load_base(base.state_dict())
    assert [id(q) for q in p.parameters()] == identity
    for a, b, c in zip(base.network.parameters(), p.network.parameters(), p.actor_ft.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert b.data_ptr() != c.data_ptr()


def test_load_base_refuses_what_does_not_fit():
    p = policy()
    with pytest.raises(StateDictError, match="actor.time_embedding.*fine-tuned"):
        p.load_base(p.state_dict())
    weights = {f"network.{k}": v for k, v in net().state_dict().items()}
    del weights["network.mlp_mean.layers.1.l1.bias"]
    with pytest.raises(StateDictError, match="network.mlp_mean.layers.1.l1.bias.*missing"):
        p.load_base(weights)


def test_a_whole_policy_reloads_strictly():
    p, q = policy(**DDIM), policy(**DDIM)
    perturb(p)
    strict_load(q, p.state_dict(), "x")
    noise = torch.randn(B, *p.noise_shape)
    for a, b in zip(p.sample(observations(), noise=noise), q.sample(observations(), noise=noise), strict=True):
        assert torch.equal(a, b)


def test_gradients_reach_the_tuned_copy_and_nothing_else():
    p = policy()
    obs = observations()
    p.chain_log_probs(obs, p.sample(obs).chains).sum().backward()
    assert all(q.grad is not None and q.grad.abs().sum() > 0 for q in p.actor_parameters())
    assert all(q.grad is None for q in [*p.network.parameters(), *p.critic_parameters()])


def test_clip_range_and_discount_check_values():
    """The values of the published configuration: coefficient .01, base .001, rate 3."""
    p = policy(ft_denoising_steps=10, gamma_denoising=0.9)
    expected = [0.001, 0.001187, 0.001447, 0.00181, 0.002317, 0.003025, 0.004013, 0.005391, 0.007315, 0.01]
    step = torch.arange(10)
    torch.testing.assert_close(p.clip_range(step), torch.tensor(expected), rtol=0, atol=6e-7)
    torch.testing.assert_close(p.denoising_discount(step), torch.tensor([0.9**k for k in range(9, -1, -1)]))
    assert p.clip_range(torch.tensor([9, 0, 0])).tolist() == pytest.approx([0.01, 0.001, 0.001])
    five = policy(ft_denoising_steps=5).clip_range(torch.arange(5))
    torch.testing.assert_close(five, torch.tensor([0.001, 0.001527, 0.002642, 0.005002, 0.01]), rtol=0, atol=6e-7)
    assert policy(ft_denoising_steps=1).clip_range(torch.tensor([0])).item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"ft_denoising_steps": 14}, "ft_denoising_steps.*denoising_steps = 13"),
        ({"ft_denoising_steps": 0}, "ft_denoising_steps"),
        ({**DDIM, "ft_denoising_steps": 6}, "ft_denoising_steps.*ddim_steps = 5"),
        ({"learn_eta": True}, "learn_eta"),
        ({"use_ddim": True}, "ddim_steps"),
    ],
)
def test_settings_that_do_not_fit(settings: dict, key: str):
    with pytest.raises(ValueError, match=key):
        policy(**settings)


def test_noise_level_learns_only_when_told():
    obs = observations()
    for learn in (False, True):
        p = policy(
            **DDIM, ft_denoising_steps=5, eta=EtaAction(DA, 0.5), learn_eta=learn, min_logprob_denoising_std=1e-3
        )
        p.chain_log_probs(obs, p.sample(obs).chains).sum().backward()
        assert len(list(p.eta_parameters())) == learn
        assert (p.eta.eta_logit.grad is not None) == learn
        assert p.entropy_proxy(obs).item() == pytest.approx(0.5)
    assert p.eta.eta_logit.grad.abs().min() > 0
    assert policy().entropy_proxy(obs).item() == 1


def test_noise_level_enters_exploration():
    noise = torch.randn(B, 6, TA, DA)
    low, high = (policy(**DDIM, eta=EtaFixed(e, 0.0, 1.0), min_sampling_denoising_std=0.0) for e in (0.0, 1.0))
    a, b = (p.sample(observations(), noise=noise).trajectories for p in (low, high))
    assert not torch.allclose(a, b)
    torch.testing.assert_close(a, low.sample(observations(), deterministic=True, noise=noise).trajectories)


def test_copies_and_modes():
    p = copy.deepcopy(policy(**DDIM))
    assert p.network is p.actor
    p.train()
    assert p.actor_ft.training
    assert not p.network.training
    assert p.value(observations()).shape == (B,)
