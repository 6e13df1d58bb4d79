"""Diffusion steering as published (DSRL, Wagenmaker et al. 2025, arXiv:2506.15799, "noise actions"): soft actor-critic over the start.

The diffusion policy stays as it is, and its start is the action of a soft actor-critic: to it the frozen policy is a part of the world. PPO over
the start (``SteeredDiffusion``) uses an episode once; here every chunk is learned from again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.common.modules import passes_on
from model.diffusion.actor_critic import frozen_copy, smallest
from model.diffusion.steered import Steered
from model.rl.squashed import SquashedGaussian
from model.types import Obs, Sample


class DSRLDiffusion(Steered):
    """Frozen denoiser, squashed Gaussian start ``bound * tanh(mean + std z)``, and a double critic of observations and starts. Made for states: a
    replay buffer keeps images as they are, and every minibatch would encode its own again.

    The ``state_dict`` is ``network.*`` (frozen), ``start.network.*``, ``critic.*`` and ``target_critic.*``.

    Args:
        actor: a fresh denoiser; ``load_base`` fills it.
        steer: observation to mean and deviation of the start before it is squashed; its ``horizon_steps`` is ``Ts``, see ``Steered``.
        critic: a double critic of an observation and a start ``(B, Ts, Da)``.
        bound: largest coordinate of a start. Standard normal starts are what the denoiser knows: 1 to 2.
        randn_clip_value: bound of the standard normal numbers that exploration draws; None: unbounded.

    The others are explained in ``Steered``.

    Raises:
        ValueError: naming the key that does not fit.
    """

    n_chain_steps = 0  # K: off-policy

    @passes_on(Steered.__init__, "actor", "start_steps")
    def __init__(
        self,
        actor: nn.Module,
        steer: nn.Module,
        critic: nn.Module,
        bound: float = 1.5,
        randn_clip_value: float | None = 10.0,
        **settings: Any,
    ) -> None:
        super().__init__(actor, steer.horizon_steps, **settings)
        if not bound > 0:
            raise ValueError(f"bound: expected a number above 0, found {bound}")
        self.bound = bound
        self.start = SquashedGaussian(steer, steer.horizon_steps, randn_clip_value=randn_clip_value)
        self.critic, self.target_critic = critic, frozen_copy(critic)

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = True,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Sample:
        """One action chunk per row, from the squashed mean start or, unless ``deterministic``, from a draw.

        Args:
            obs: ``{"state": (B, To, Do)[, "rgb": (B, To, C, H, W)]}``; images are encoded once.
            noise: ``(B, 1, Ta, Da)`` standard normal numbers; None draws them from ``generator``.

        Returns:
            The chunk; ``chains (B, 1, Ta, Da)`` is its *start*, what a replay buffer is to keep.
        """
        obs = self.encode(obs)
        draw = self.once(self.prepare_noise(obs, noise, generator)[0])
        z = self.bound * self.start.sample(self.seen(obs), deterministic, draw[:, None]).trajectories
        return self._acted(obs, z)

    @torch.no_grad()
    def untouched(self, obs: Obs, noise: Tensor) -> Sample:
        """As ``sample``, from the start ``noise (B, 1, Ta, Da)`` within the bound: what the frozen policy makes of it by itself."""
        obs = self.encode(obs)
        return self._acted(obs, self.once(self.prepare_noise(obs, noise, None)[0]).clamp(-self.bound, self.bound))

    def executed(self, obs: Obs, start: Tensor) -> Tensor:
        """The chunk ``(B, Ta, Da)`` that follows from the start ``(B, Ta, Da)`` that a replay buffer kept."""
        return self.denoise(self.encode(obs), self.once(start))

    def _acted(self, obs: Obs, start: Tensor) -> Sample:
        return Sample(self.denoise(obs, start), self.whole(start)[:, None])

    def sample_with_log_prob(self, obs: Obs, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A draw per row, differentiable: starts ``(B, Ta, Da)``, and the log-densities ``(B,)`` of what was scaled by ``bound``."""
        a, log_prob = self.start.sample_with_log_prob(self.seen(obs), generator)
        return self.whole(self.bound * a), log_prob

    @property
    def n_numbers(self) -> int:
        """``Ts * Da``: of the numbers that make a start, how many are free."""
        return self.start.horizon_steps * self.action_dim

    def values(self, obs: Obs, actions: Tensor) -> tuple[Tensor, ...]:
        """Every critic's, of the starts ``actions (B, Ta, Da)``, ``(B,)`` each: what regresses."""
        return self.critic(self.seen(obs), self.once(actions))

    def target_value(self, obs: Obs, actions: Tensor) -> Tensor:
        """What a next start is worth, ``(B,)``: the smaller of the slow critics' values."""
        return smallest(self.target_critic, self.seen(obs), self.once(actions))

    def actor_value(self, obs: Obs, actions: Tensor) -> Tensor:
        """What the actor maximises, ``(B,)``: the smaller of the critics' values."""
        return smallest(self.critic, self.seen(obs), self.once(actions))

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What the actor's optimiser trains: the start's distribution."""
        return self.start.parameters()

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What the critic's optimiser trains."""
        return self.critic.parameters()
