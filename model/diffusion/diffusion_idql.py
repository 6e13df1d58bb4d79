"""Implicit diffusion Q-learning (arXiv:2304.10573): the policy imitates, and acting is choosing among several of its samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.common.modules import passes_on
from model.diffusion.actor_critic import frozen_copy, smallest
from model.diffusion.diffusion_rwr import RWRDiffusion
from model.types import Obs, Sample

EXPLORE_GOOD, EXPLORE_BAD = (
    0.7,
    0.3,
)  # relative chances of samples that are better and worse than the observation's value


class IDQLDiffusion(RWRDiffusion):
    """Keys ``network.*``, ``actor.*`` (the same tensors), ``critic_q.*``, ``target_q.*`` and ``critic_v.*``.

    Args:
        actor: a denoising network.
        critic_q: double value of an observation and a chunk. critic_v: value of an observation.
        num_sample: chunks among which one is chosen.
        expectile_exploration: while exploring, draw among them with the chances that the expectile of the value implies; else the best.
        eval_deterministic: in evaluation take the best; else draw as in exploration.

    The others are explained in ``RWRDiffusion``.

    Raises:
        ValueError: naming the key that does not fit.
    """

    @passes_on(RWRDiffusion.__init__, "network")
    def __init__(
        self,
        actor: nn.Module,
        critic_q: nn.Module,
        critic_v: nn.Module,
        num_sample: int = 10,
        expectile_exploration: bool = True,
        eval_deterministic: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(actor, **settings)
        if num_sample < 1:
            raise ValueError(f"num_sample: expected at least 1, found {num_sample}")
        self.num_sample = num_sample
        self.expectile_exploration, self.eval_deterministic = expectile_exploration, eval_deterministic
        self.actor = self.network  # one module, two published names
        self.critic_q, self.target_q, self.critic_v = critic_q, frozen_copy(critic_q), critic_v

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """``(num_sample, n_steps + 2, Ta, Da)``: of every sample its chain's numbers, and a block of which one draws lots."""
        n, *chunk = super().noise_shape
        return (self.num_sample, n + 1, *chunk)

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What the optimiser of the chunks' values trains."""
        return self.critic_q.parameters()

    def value_parameters(self) -> Iterator[nn.Parameter]:
        """What the optimiser of the observations' values trains."""
        return self.critic_v.parameters()

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = True,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Sample:
        """The chosen one of ``num_sample`` chunks per row; ``noise (B, *noise_shape)``."""
        b, s = len(obs["state"]), self.num_sample
        if noise is None:
            noise = torch.randn(b, *self.noise_shape, generator=generator, device=obs["state"].device)
        rows = {key: value.repeat_interleave(s, dim=0) for key, value in obs.items()}
        chain, lots = noise.flatten(0, 1)[:, :-1], noise[:, :, -1, 0, 0]
        actions = self._from_noise(rows, deterministic, chain, self.network)
        q = smallest(self.target_q, rows, actions).view(b, s)
        if self.eval_deterministic if deterministic else not self.expectile_exploration:
            choice = q.argmax(dim=1)
        else:
            good = q > self.critic_v(obs)[:, None]
            chances = torch.where(good, EXPLORE_GOOD, EXPLORE_BAD)
            uniform = torch.special.ndtr(lots).clamp(1e-6, 1 - 1e-6)
            choice = (uniform.log() / chances).argmax(dim=1)  # exponential races: P(i) is proportional to chances_i
        return Sample(actions.view(b, s, *actions.shape[1:])[torch.arange(b, device=choice.device), choice])
