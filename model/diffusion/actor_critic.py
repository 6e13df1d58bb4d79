"""A diffusion policy with critics: what AWR, DIPO, DQL and QSM share."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.diffusion.diffusion_rwr import RWRDiffusion
from model.types import Obs


class ActorCriticDiffusion(RWRDiffusion):
    """``network.*`` and ``actor.*`` (the same, tuned tensors), and critics under the names that ``_judge`` gives them.

    Args:
        actor: a denoising network.
        critic: what judges it.

    The others are explained in ``RWRDiffusion``.
    """

    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module,
        horizon_steps: int,
        obs_dim: int,
        action_dim: int,
        denoising_steps: int = 100,
        predict_epsilon: bool = True,
        denoised_clip_value: float | None = 1.0,
        randn_clip_value: float | None = 10.0,
        final_action_clip_value: float | None = None,
        eps_clip_value: float | None = None,
        use_ddim: bool = False,
        ddim_steps: int | None = None,
        min_sampling_denoising_std: float = 0.1,
    ) -> None:
        super().__init__(
            actor,
            horizon_steps,
            obs_dim,
            action_dim,
            denoising_steps,
            predict_epsilon,
            denoised_clip_value,
            randn_clip_value,
            final_action_clip_value,
            eps_clip_value,
            use_ddim,
            ddim_steps,
            min_sampling_denoising_std,
        )
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
