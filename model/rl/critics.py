"""An ensemble of critics, and a slow one: what RLPD and IBRL add to a Gaussian policy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.common.ensemble import Ensemble
from model.diffusion.actor_critic import frozen_copy
from model.types import Obs

ASKED = 2  # members of the slow ensemble that a target asks


class EnsembleCritics(nn.Module):
    """Mixed into a policy, whose constructor calls ``_criticise``; keys ``critic_networks.*`` and ``target_networks.*``."""

    def _criticise(self, critic: nn.Module, n_critics: int) -> None:
        """Independently initialised, as the published ones were not.

        Raises:
            ValueError: fewer than two.
        """
        if n_critics < ASKED:
            raise ValueError(f"n_critics: expected at least {ASKED}, found {n_critics}")
        self.n_critics = n_critics
        self.critic_networks = Ensemble(critic, n_critics)
        self.target_networks = frozen_copy(self.critic_networks)

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What the critics' optimiser trains."""
        return self.critic_networks.parameters()

    def draw_members(self, generator: torch.Generator) -> Tensor:
        """Two different ones, ``(2,)`` int64."""
        return torch.randperm(self.n_critics, generator=generator, device=generator.device)[:ASKED]

    def target_value(self, obs: Obs, actions: Tensor, members: Tensor) -> Tensor:
        """The smallest value of the slow ensemble's ``members``, ``(B,)``."""
        return self.target_networks(obs, actions, members).amin(dim=0)
