"""DIPO (arXiv:2305.13122): actions that the critic's gradient has improved are what the tuned network regresses on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.diffusion.actor_critic import ActorCriticDiffusion, frozen_copy
from model.types import Obs


class DIPODiffusion(ActorCriticDiffusion):
    """Keys as ``DQLDiffusion``, and ``actor_target.*``: a slower copy of the network, whose actions the critic's targets ask for."""

    def _judge(self, critic: nn.Module) -> None:
        super()._judge(critic)
        self.actor_target = frozen_copy(self.network)

    def load_base(self, state_dict: dict[str, Tensor]) -> None:
        """As ``RWRDiffusion.load_base``; the slower copy starts there, too."""
        super().load_base(state_dict)
        self.actor_target.load_state_dict(self.network.state_dict())

    @torch.no_grad()
    def target_actions(self, obs: Obs, generator: torch.Generator) -> Tensor:
        """What the slower copy would explore, ``(B, Ta, Da)``."""
        return self.denoise(obs, generator=generator, network=self.actor_target)
