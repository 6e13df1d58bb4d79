"""The published Lift networks and frozen/fine-tuned policy, the straightforward way: what a careful reader of the
papers would write.

Residual MLPs and the DDPM sampling of DPPO (Ren et al. 2024, eqs. 4-6), with the published work per call: the
frozen network sees the full batch at *every* denoising step, and the fine-tuned one the rows of the last ``K``
steps again, in sampling and in the loss. Keys of ``Denoiser`` are the published ones, so that weights can be exchanged.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn


class ResidualNet(nn.Module):
    """Input projection, one pre-activation block, output projection: the published residual MLP of three equal
    widths.
    """

    def __init__(self, n_in: int, width: int, n_out: int, activation: str = "Mish") -> None:
        super().__init__()
        block = ResidualBlock(width, activation)
        self.layers = nn.ModuleList([nn.Linear(n_in, width), block, nn.Linear(width, n_out)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in) -> (B, n_out)."""
        for layer in self.layers:
            x = layer(x)
        return x


class ResidualBlock(nn.Module):
    """x + l2(act(l1(act(x))))."""

    def __init__(self, width: int, activation: str = "Mish") -> None:
        super().__init__()
        self.l1, self.l2, self.act = nn.Linear(width, width), nn.Linear(width, width), getattr(nn, activation)()

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return x + self.l2(self.act(self.l1(self.act(x))))


class Sinusoid(nn.Module):
    """Sinusoidal embedding of the denoising step, (B,) -> (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        """[sin, cos] of t at geometrically spaced frequencies."""
        half = self.dim // 2
        frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
        angles = t[:, None] * frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Denoiser(nn.Module):
    """Noise prediction from (noisy chunk, step, state)."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        width: int = 512,
        time_dim: int = 16,
        activation: str = "Mish",
    ) -> None:
        super().__init__()
        self.time_embedding = nn.Sequential(
            Sinusoid(time_dim), nn.Linear(time_dim, 2 * time_dim), nn.Mish(), nn.Linear(2 * time_dim, time_dim)
        )
        flat = horizon * action_dim
        self.mlp_mean = ResidualNet(flat + time_dim + obs_dim, width, flat, activation)

    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> Tensor:
        """(B, Ta, Da), (B,), (B, Do) -> (B, Ta, Da)."""
        features = torch.cat([x.flatten(1), self.time_embedding(t), state], dim=-1)
        return self.mlp_mean(features).view(x.shape)


def cosine_schedule(steps: int) -> dict[str, Tensor]:
    """Tables of the cosine DDPM schedule (Nichol & Dhariwal 2021), float32, (steps,) each."""
    f = np.cos((np.linspace(0, 1, steps + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.clip(1 - f[1:] / f[:-1], 0, 0.999)
    alpha_bar = np.cumprod(1 - beta)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    variance = beta * (1 - before) / (1 - alpha_bar)
    tables = {
        "x0_from_x": np.sqrt(1 / alpha_bar),
        "x0_from_noise": np.sqrt(1 / alpha_bar - 1),
        "mean_from_x0": beta * np.sqrt(before) / (1 - alpha_bar),
        "mean_from_x": (1 - before) * np.sqrt(1 - beta) / (1 - alpha_bar),
        "std": np.sqrt(np.maximum(variance, 1e-20)),
    }
    return {name: torch.tensor(table, dtype=torch.float32) for name, table in tables.items()}


class ReferencePolicy(nn.Module):
    """Frozen denoiser ``actor``, its fine-tuned copy ``actor_ft`` for the last ``ft_steps`` of ``steps``, and a
    ``critic``.
    """

    def __init__(
        self,
        actor: Denoiser,
        critic: nn.Module,
        steps: int = 20,
        ft_steps: int = 10,
        horizon: int = 4,
        action_dim: int = 7,
    ) -> None:
        super().__init__()
        self.actor, self.actor_ft, self.critic = actor, copy.deepcopy(actor), critic
        self.actor.requires_grad_(False)
        self.steps, self.ft_steps, self.chunk = steps, ft_steps, (horizon, action_dim)
        self.tables = cosine_schedule(steps)
        self.min_std, self.noise_clip = 0.1, 3.0

    def mean_std(self, x: Tensor, t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the reverse step from x_t, (B, Ta, Da) and (B, 1, 1): frozen network on all rows, fine-tuned
        where t < K.
        """
        noise = self.actor(x, t, state)
        tuned = torch.where(t < self.ft_steps)[0]
        if len(tuned):
            noise[tuned] = self.actor_ft(x[tuned], t[tuned], state[tuned])
        at = {name: table[t][:, None, None] for name, table in self.tables.items()}
        x0 = (at["x0_from_x"] * x - at["x0_from_noise"] * noise).clamp(-1, 1)
        return at["mean_from_x0"] * x0 + at["mean_from_x"] * x, at["std"].clamp(min=self.min_std)

    @torch.no_grad()
    def sample(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Do) -> action chunk (B, Ta, Da) and chain (B, K + 1, Ta, Da), noisiest first."""
        x = torch.randn(len(state), *self.chunk)
        chain = [x] if self.ft_steps == self.steps else []
        for step in reversed(range(self.steps)):
            mean, std = self.mean_std(x, torch.full((len(x),), step), state)
            x = mean + std * torch.randn_like(x).clamp(-self.noise_clip, self.noise_clip)
            if step <= self.ft_steps:
                chain.append(x)
        return x, torch.stack(chain, dim=1)

    def log_probs(self, state: Tensor, chain: Tensor) -> Tensor:
        """Element-wise log-densities of all K transitions, (B * K, Ta, Da): rows sample-major, noisiest step first."""
        k = self.ft_steps
        t = torch.arange(k - 1, -1, -1).repeat(len(chain))
        mean, std = self.mean_std(chain[:, :-1].flatten(0, 1), t, state.repeat_interleave(k, dim=0))
        return torch.distributions.Normal(mean, std.expand_as(mean)).log_prob(chain[:, 1:].flatten(0, 1))

    def value(self, state: Tensor) -> Tensor:
        """(B, Do) -> (B,)."""
        return self.critic(state).squeeze(-1)
