"""Gaussian policies: one normal distribution per observation, independent in every step and dimension of the chunk.

``GaussianModel`` is the pre-trained one (maximum likelihood); ``model.rl.gaussian_ppo.PPO_Gaussian`` fine-tunes it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.types import Batch, Losses, Obs, Sample, ShapeError

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class GaussianModel(nn.Module):
    """A policy ``N(mean(obs), std(obs))``; its ``state_dict`` is exactly ``network.*``.

    Args:
        network: observation to mean ``(B, Ta, Da)`` and deviation (broadcastable); it has ``action_dim``.
        horizon_steps: ``Ta``.
        randn_clip_value: bound of the standard normal numbers that exploration draws; None: unbounded.
    """

    def __init__(self, network: nn.Module, horizon_steps: int, randn_clip_value: float | None = 10.0) -> None:
        super().__init__()
        self.network = network
        self.horizon_steps, self.action_dim = horizon_steps, network.action_dim
        self.randn_clip_value = randn_clip_value

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """``(1, Ta, Da)``: the normal numbers that one row of ``sample`` consumes."""
        return (1, self.horizon_steps, self.action_dim)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """Negative log-likelihood of the demonstrated actions, mean over everything. ``generator`` is not used.

        Raises:
            ShapeError: the actions are not ``(B, Ta, Da)``.
        """
        x = batch.actions
        if tuple(x.shape[1:]) != self.noise_shape[1:]:
            expected = ("B", self.horizon_steps, self.action_dim)
            raise ShapeError(f"actions: expected (B, horizon_steps, action_dim) = {expected}, found {tuple(x.shape)}")
        total = -log_density(x, *self.network(batch.conditions)).mean()
        return Losses(total, {"nll loss": total.detach()})

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = True,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Sample:
        """One action chunk per row: the mean, or, unless ``deterministic``, a draw.

        Args:
            obs: ``{"state": (B, To, Do)}``.
            noise: ``(B, 1, Ta, Da)`` standard normal numbers; None draws them from ``generator``.
        """
        return Sample(self.draw(obs, deterministic, noise, generator)[0])

    def draw(
        self, obs: Obs, deterministic: bool, noise: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The chunk ``(B, Ta, Da)``, and the mean and deviation it was drawn with.

        Raises:
            ShapeError: ``noise`` is not ``(B, 1, Ta, Da)``.
        """
        mean, std = self.network(obs)
        if deterministic:
            return mean, mean, std
        if noise is None:
            device = mean.device if generator is None else generator.device
            noise = torch.randn(len(mean), *self.noise_shape, generator=generator, device=device).to(mean.device)
        elif tuple(noise.shape) != (len(mean), *self.noise_shape):
            expected = (len(mean), *self.noise_shape)
            raise ShapeError(f"noise: expected (B, 1, Ta, Da) = {expected}, found {tuple(noise.shape)}")
        bound = self.randn_clip_value
        z = noise[:, 0] if bound is None else noise[:, 0].clamp(-bound, bound)
        return mean + std * z, mean, std


def log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of independent normal distributions, averaged over ``(Ta, Da)``: ``(B,)``."""
    z = (x - mean) / std
    return (-0.5 * z.square() - std.log() - _HALF_LOG_2PI).mean(dim=(1, 2))


def entropy(std: Tensor) -> Tensor:
    """Mean entropy per dimension (nats) of normal distributions of deviation ``std``, 0-d."""
    return 0.5 + _HALF_LOG_2PI + std.log().mean()
