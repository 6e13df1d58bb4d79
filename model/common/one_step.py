"""What the policies share that PPO tunes as a chain of one step, ``K = 1``. Of several steps: ``model.common.tuned_chain``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class OneStep:
    """Mixed into an ``nn.Module`` with a ``critic``; its constructor calls ``_one_step``. See ``ChainPolicy`` in ``agent``.

    Args (of the constructors):
        clip_ploss_coef: PPO's clip range.
        clip_vloss_coef, clip_advantage_lower_quantile, clip_advantage_upper_quantile, norm_adv: kept for the loss in
            ``agent``.
    """

    n_chain_steps = 1  # K
    critic: nn.Module

    def _one_step(
        self,
        clip_ploss_coef: float,
        clip_vloss_coef: float | None,
        clip_advantage_lower_quantile: float,
        clip_advantage_upper_quantile: float,
        norm_adv: bool,
    ) -> None:
        self.clip_ploss_coef, self.clip_vloss_coef, self.norm_adv = clip_ploss_coef, clip_vloss_coef, norm_adv
        self.clip_advantage_lower_quantile = clip_advantage_lower_quantile
        self.clip_advantage_upper_quantile = clip_advantage_upper_quantile

    def clip_range(self, step: Tensor) -> Tensor:
        """PPO's clip range, ``(B,)``."""
        return torch.full(step.shape, self.clip_ploss_coef, device=step.device)

    def denoising_discount(self, step: Tensor) -> Tensor:
        """1, as ``(B,)``: the one step of the chain is its last."""
        return torch.ones(step.shape, device=step.device)

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What the critic's optimiser trains."""
        return self.critic.parameters()

    def eta_parameters(self) -> Iterator[nn.Parameter]:
        """None: one step has no noise level of a chain."""
        return iter(())


def chain_of(x: Tensor) -> Tensor:
    """The chain ``(B, 2, Ta, Da)`` of one step, from nothing to ``x (B, Ta, Da)``."""
    return torch.stack([torch.zeros_like(x), x], dim=1)
