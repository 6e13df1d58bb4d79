"""Weights read from published files against an independent account of the method: plain numpy in float64, diffusers' schedulers,
torch's distributions. Networks, denoising steps, log-probabilities and PPO's loss, all to 1e-5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from agent.checkpoint import load_policy
from agent.finetune.objective import clipped_objective, value_objective
from agent.finetune.ppo import PPO
from tests import published_files as files
from tests.agent.test_ppo import TRAIN
from tests.published_files import DA, DDIM, DO, FINETUNED, PRETRAINED, TA, TIME, TUNED, K, put

B = 29
Arrays = dict[str, np.ndarray]


def close(ours: torch.Tensor, oracle: np.ndarray | torch.Tensor) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), np.asarray(oracle), rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------- the method, in plain numpy


def arrays(state: dict[str, torch.Tensor], prefix: str) -> Arrays:
    return {key.removeprefix(prefix): x.double().numpy() for key, x in state.items() if key.startswith(prefix)}


def linear(w: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.log1p(np.exp(x)))


def residual(w: Arrays, name: str, x: np.ndarray, f) -> np.ndarray:
    """One pre-activation block between two linear layers, and nothing before the last."""
    h = linear(w, f"{name}.layers.0", x)
    h = h + linear(w, f"{name}.layers.1.l2", f(linear(w, f"{name}.layers.1.l1", f(h))))
    return linear(w, f"{name}.layers.2", h)


def denoiser(w: Arrays, x: np.ndarray, t: np.ndarray, state: np.ndarray) -> np.ndarray:
    """``[actions, time, state]`` through the perceptron."""
    half = TIME // 2
    angles = t[:, None] * np.exp(-np.arange(half) * np.log(10000) / (half - 1))
    time = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    time = linear(w, "time_embedding.3", mish(linear(w, "time_embedding.1", time)))
    inputs = np.concatenate([x.reshape(len(x), -1), time, state.reshape(len(x), -1)], axis=1)
    return residual(w, "mlp_mean", inputs, lambda h: np.maximum(h, 0)).reshape(x.shape)


def betas() -> np.ndarray:
    u = np.arange(K + 1) / K
    abar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.clip(1 - abar[1:] / abar[:-1], 0, 0.999)


def posterior(x: np.ndarray, eps: np.ndarray, t: int) -> tuple[np.ndarray, float]:
    """DDPM's mean and deviation of the step below ``t``; the clean chunk is clipped to 1."""
    beta = betas()
    abar = np.cumprod(1 - beta)
    before = abar[t - 1] if t > 0 else 1.0
    x0 = np.clip(np.sqrt(1 / abar[t]) * x - np.sqrt(1 / abar[t] - 1) * eps, -1, 1)
    mean = beta[t] * np.sqrt(before) / (1 - abar[t]) * x0 + (1 - before) * np.sqrt(1 - beta[t]) / (1 - abar[t]) * x
    return mean, float(np.sqrt(max(beta[t] * (1 - before) / (1 - abar[t]), 1e-20)))


def chain_log_probs(w: Arrays, state: np.ndarray, chains: np.ndarray, horizon: int) -> np.ndarray:
    """Of the ``TUNED`` last steps, noisiest first: clamped, then averaged over the counted actions."""
    out = []
    for j in range(TUNED):
        t = TUNED - 1 - j
        eps = denoiser(w, chains[:, j], np.full(len(state), t), state)
        mean, std = posterior(chains[:, j], eps, t)
        density = Normal(torch.from_numpy(mean), max(std, 0.1)).log_prob(torch.from_numpy(chains[:, j + 1]))
        out.append(density.clamp(-5, 2)[:, :horizon].mean(dim=(1, 2)).numpy())
    return np.stack(out, axis=1)


def numbers(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.fixture
def state() -> torch.Tensor:
    return numbers(B, 1, DO, seed=11)


# ------------------------------------------------------------------------------------------------- and the policies


def test_networks_forward(tmp_path, state):
    content = files.finetuned()
    policy = load_policy(put(tmp_path, content), {"model": FINETUNED})
    x, t = numbers(B, TA, DA, seed=1), torch.arange(B) % K
    for prefix, network in (("actor.", policy.network), ("actor_ft.", policy.actor_ft)):
        oracle = denoiser(arrays(content["model"], prefix), x.numpy(), t.numpy(), state.numpy())
        assert np.abs(oracle).max() > 1
        close(network(x, t, {"state": state}), oracle)
    critic = residual(arrays(content["model"], "critic."), "Q1", state[:, 0].double().numpy(), mish)
    close(policy.value({"state": state}), critic[:, 0])


def test_ddpm_sampling_is_diffusers(tmp_path, state):
    """Averaged weights of a pre-trained file, all steps, one at a time and in a row."""
    diffusers = pytest.importorskip("diffusers")
    content = files.pretrained()
    policy = load_policy(put(tmp_path, content), {"model": PRETRAINED})
    w = arrays(content["ema"], "network.")
    theirs = diffusers.DDPMScheduler(
        K, trained_betas=betas().tolist(), variance_type="fixed_small", clip_sample=True, clip_sample_range=1.0
    )
    noise = numbers(B, *policy.noise_shape, seed=2)
    x = noise[:, 0].double()
    for i, t in enumerate(range(K - 1, -1, -1)):
        eps = torch.from_numpy(denoiser(w, x.numpy(), np.full(B, t), state.numpy()))
        g = torch.Generator().manual_seed(100 + t)
        noise[:, i + 1] = torch.randn(x.shape, generator=g, dtype=torch.float64)
        mean, std = policy.step_mean_std(policy.network, x.float(), i, {"state": state})
        x = theirs.step(eps, t, x, generator=g.manual_seed(100 + t)).prev_sample
        close(mean + (std * noise[:, i + 1] if t > 0 else 0), x)
    assert 0.05 < float((x.abs() < 1).double().mean()) < 1  # clipping acts, and not everywhere
    close(policy.sample({"state": state}, noise=noise).trajectories, x)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_sampling_is_diffusers(tmp_path, state, eta):
    """Base, then tuned weights; ``eta = 1`` is what the file stores as an infinite logit."""
    diffusers = pytest.importorskip("diffusers")
    content = files.finetuned(ddim=True)
    policy = load_policy(put(tmp_path, content), {"model": {**FINETUNED, **DDIM, "min_sampling_denoising_std": 0.0}})
    networks = [arrays(content["model"], prefix) for prefix in ("actor.", "actor_ft.")]
    theirs = diffusers.DDIMScheduler(
        K, trained_betas=betas().tolist(), set_alpha_to_one=True, clip_sample=True, timestep_spacing="leading"
    )
    theirs.set_timesteps(5)
    noise = numbers(B, *policy.noise_shape, seed=3)
    x = noise[:, 0].double()
    for i, t in enumerate(theirs.timesteps.tolist()):
        eps = torch.from_numpy(denoiser(networks[i >= 5 - TUNED], x.numpy(), np.full(B, t), state.numpy()))
        drawn = noise[:, i + 1].double() if eta > 0 else None
        x = theirs.step(eps, t, x, eta=eta, use_clipped_model_output=True, variance_noise=drawn).prev_sample
    close(policy.sample({"state": state}, deterministic=eta == 0, noise=noise).trajectories, x)


def test_log_probabilities_of_a_chain(tmp_path, state):
    content = files.finetuned()
    policy = load_policy(put(tmp_path, content), {"model": {**FINETUNED, "reward_horizon": 2}})
    chains = numbers(B, TUNED + 1, TA, DA, seed=5, scale=0.5)
    w = arrays(content["model"], "actor_ft.")
    oracle = chain_log_probs(w, state.numpy(), chains.double().numpy(), 2)
    close(policy.chain_log_probs({"state": state}, chains), oracle)
    assert oracle.std() > 0.5 and (oracle > -4.9).mean() > 0.9  # the bounds act, and rarely on a whole chunk


def loss_by_hand(w: Arrays, critic: Arrays, data: Arrays) -> tuple[float, float, float, float]:
    """The reference's loss for one minibatch of whole chains: policy, KL, clipped fraction, value."""
    new = chain_log_probs(w, data["state"], data["chains"], 2)
    advantage = (data["advantages"] - data["advantages"].mean()) / (data["advantages"].std(ddof=1) + 1e-8)
    advantage = np.clip(advantage, np.quantile(advantage, 0.1), np.quantile(advantage, 0.9))
    position = np.arange(TUNED)
    advantage = advantage[:, None] * 0.9 ** (TUNED - 1 - position)
    clip = 0.02 + (0.3 - 0.02) * (np.exp(3 * position / (TUNED - 1)) - 1) / (np.exp(3) - 1)
    log_ratio = new - data["old"]
    ratio = np.exp(log_ratio)
    policy = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - clip, 1 + clip)).mean()
    values = residual(critic, "Q1", data["state"][:, 0], mish)[:, 0]
    kept = data["values"] + np.clip(values - data["values"], -0.2, 0.2)
    value = 0.5 * np.maximum((values - data["returns"]) ** 2, (kept - data["returns"]) ** 2).mean()
    return policy, (ratio - 1 - log_ratio).mean(), (np.abs(ratio - 1) > clip).mean(), value


def test_loss_of_ppo(tmp_path, state):
    """Value and, by differences, one derivative: of weights from the file, with every option of the loss at work."""
    content = files.finetuned()
    settings = {"clip_ploss_coef": 0.3, "clip_ploss_coef_base": 0.02, "gamma_denoising": 0.9, "clip_vloss_coef": 0.2}
    settings |= {"clip_advantage_lower_quantile": 0.1, "clip_advantage_upper_quantile": 0.9, "reward_horizon": 2}
    policy = load_policy(put(tmp_path, content), {"model": {**FINETUNED, **settings}})
    w, critic = (arrays(content["model"], prefix) for prefix in ("actor_ft.", "critic."))
    chains = numbers(B, TUNED + 1, TA, DA, seed=5, scale=0.5).double().numpy()
    data: Arrays = {"state": state.double().numpy(), "chains": chains}
    data["old"] = chain_log_probs(w, data["state"], chains, 2) + numbers(B, TUNED, seed=6, scale=0.2).double().numpy()
    data |= {
        key: numbers(B, seed=seed).double().numpy() for seed, key in ((7, "advantages"), (8, "values"), (9, "returns"))
    }
    oracle = loss_by_hand(w, critic, data)
    assert 0.2 < oracle[2] < 0.9

    given = {key: torch.from_numpy(x).float() for key, x in data.items()}
    algorithm = PPO(policy, TRAIN, 1, torch.Generator())
    advantages = algorithm._normalise(given["advantages"], torch.arange(B))
    step = torch.arange(TUNED).expand(B, -1)
    weighted = advantages[:, None] * policy.denoising_discount(step)
    obs = {"state": state}
    log_ratio = policy.chain_log_probs(obs, given["chains"]) - given["old"]
    loss, kl, clipped = clipped_objective(log_ratio, weighted, policy.clip_range(step))
    value = value_objective(policy.value(obs), given["returns"], given["values"], policy.clip_vloss_coef)
    for ours, number in zip((loss, kl, clipped, value), oracle, strict=True):
        close(ours, np.float64(number))
    total = oracle[0] + TRAIN["vf_coef"] * oracle[3]
    close(loss + TRAIN["vf_coef"] * value, np.float64(total))

    loss.backward()
    name, place, h = "mlp_mean.layers.1.l1.weight", (5, 7), 1e-5
    moved = [loss_by_hand({**w, name: _moved(w[name], place, sign * h)}, critic, data)[0] for sign in (1, -1)]
    derivative = (moved[0] - moved[1]) / (2 * h)
    assert abs(derivative) > 1e-3
    assert float(policy.actor_ft.mlp_mean.layers[1].l1.weight.grad[place]) == pytest.approx(derivative, rel=1e-3)


def _moved(weight: np.ndarray, place: tuple[int, int], by: float) -> np.ndarray:
    out = weight.copy()
    out[place] += by
    return out
