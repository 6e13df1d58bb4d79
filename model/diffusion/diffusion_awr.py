"""Advantage-weighted regression of a diffusion policy (DAWR in arXiv:2409.00588): a tuned network and a critic of observations."""

from __future__ import annotations

from torch import Tensor, nn

from model.diffusion.actor_critic import ActorCriticDiffusion
from model.types import Obs


class AWRDiffusion(ActorCriticDiffusion):
    """Keys ``network.*``, ``actor.*`` (the same tensors) and ``critic.*``; arguments as in ``ActorCriticDiffusion``."""

    def _judge(self, critic: nn.Module) -> None:
        self.critic = critic

    def value(self, obs: Obs) -> Tensor:
        """The critic's value, ``(B,)``."""
        return self.critic(obs)
