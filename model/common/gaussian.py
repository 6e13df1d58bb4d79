"""Gaussian policies: one normal distribution per observation, independent in every step and dimension of the chunk.

``GaussianModel`` is the pre-trained one (maximum likelihood); ``model.rl.gaussian_ppo.PPO_Gaussian`` fine-tunes it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.common.modules import given_noise
from model.types import Batch, Losses, Obs, Sample, ShapeError

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class GaussianModel(nn.Module):
    """A policy ``N(mean(obs), std(obs))``; its ``state_dict`` is exactly ``network.*``.

    Args:
        network: observation to mean ``(B, Ta, Da)`` and deviation (broadcastable); it has ``action_dim``.
        horizon_steps: ``Ta``.
        randn_clip_value: bound of the standard normal numbers that exploration draws; None: unbounded.
    """

    n_draws = 1  # blocks of (Ta, Da) standard normal numbers that one action chunk consumes

    def __init__(self, network: nn.Module, horizon_steps: int, randn_clip_value: float | None = 10.0) -> None:
        super().__init__()
        self.network = network
        self.horizon_steps, self.action_dim = horizon_steps, network.action_dim
        self.randn_clip_value = randn_clip_value

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """``(n_draws, Ta, Da)``: the normal numbers that one row of ``sample`` consumes."""
        return (self.n_draws, self.horizon_steps, self.action_dim)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """Negative log-likelihood of the demonstrated actions, mean over everything.

        Args:
            batch: actions ``(B, Ta, Da)`` in [-1, 1] and the observations they answer to.
            generator: draws, in training mode, the shifts of images (if the network's ``augment`` asks for them).

        Raises:
            ShapeError: the actions are not ``(B, Ta, Da)``.
        """
        x, cond = batch.actions, batch.conditions
        if tuple(x.shape[1:]) != self.noise_shape[1:]:
            expected = ("B", self.horizon_steps, self.action_dim)
            raise ShapeError(f"actions: expected (B, horizon_steps, action_dim) = {expected}, found {tuple(x.shape)}")
        if self.training and getattr(self.network, "augment", False):
            cond = self.network.augmented(cond, generator)
        total = -self.log_density(x, *self.network(cond)).mean()
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
            obs: ``{"state": (B, To, Do)[, "rgb": (B, To, C, H, W)]}``.
            noise: ``(B, *noise_shape)`` standard normal numbers; None draws them from ``generator``.
        """
        return Sample(self.draw(obs, deterministic, noise, generator)[0])

    def draw(
        self, obs: Obs, deterministic: bool, noise: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """The chunk ``(B, Ta, Da)``, and what the network says of it: the mean and deviation it was drawn with.

        Raises:
            ShapeError: ``noise`` is not ``(B, *noise_shape)``.
        """
        mean, std = self.network(obs)
        if deterministic:
            return mean, mean, std
        return mean + std * self.bounded(self.noise(mean, noise, generator)[:, 0]), mean, std

    def noise(self, mean: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """``(B, *noise_shape)``, given or drawn, for the rows and on the device of ``mean``."""
        return given_noise(mean, self.noise_shape, noise, generator)

    def bounded(self, z: Tensor) -> Tensor:
        """``z`` within ``+-randn_clip_value``."""
        bound = self.randn_clip_value
        return z if bound is None else z.clamp(-bound, bound)

    @staticmethod
    def log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Log-density of the chunks ``x (B, Ta, Da)``, averaged over ``(Ta, Da)``: ``(B,)``."""
        z = (x - mean) / std
        return (-0.5 * z.square() - std.log() - HALF_LOG_2PI).mean(dim=(1, 2))

    @staticmethod
    def entropy(mean: Tensor, std: Tensor) -> Tensor:
        """Mean entropy per dimension (nats), 0-d."""
        return 0.5 + HALF_LOG_2PI + std.log().mean()
