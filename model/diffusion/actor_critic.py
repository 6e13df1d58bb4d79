"""A diffusion policy with critics: what AWR, DIPO, DQL and QSM share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.common.modules import passes_on
from model.diffusion.diffusion_rwr import RWRDiffusion
from model.types import Obs


class ActorCriticDiffusion(RWRDiffusion):
    """``network.*`` and ``actor.*`` (the same, tuned tensors), and critics under the names that ``_judge`` gives them.

    Args:
        actor: a denoising network.
        critic: what judges it.

    The others are explained in ``RWRDiffusion``.
    """

    @passes_on(RWRDiffusion.__init__, "network")
    def __init__(self, actor: nn.Module, critic: nn.Module, **settings: Any) -> None:
        super().__init__(actor, **settings)
        self.actor = self.network  # one module, two published names
        self._judge(critic)

    def _judge(self, critic: nn.Module) -> None:
        """Keep the critic, and a target that follows it."""
        self.critic, self.critic_target = critic, frozen_copy(critic)

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What the critic's optimiser trains."""
        return self.critic.parameters()


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy that no optimiser moves."""
    return copy.deepcopy(module).requires_grad_(False)


def smallest(critic: nn.Module, obs: Obs, actions: Tensor) -> Tensor:
    """The smaller of a double critic's two values, ``(B,)``."""
    return torch.stack(critic(obs, actions)).amin(dim=0)


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move the parameters of ``target`` by the fraction ``rate`` towards those of ``source``."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)
