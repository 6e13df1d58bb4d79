"""Soft actor-critic over the start of a frozen diffusion policy (DSRL, Wagenmaker et al. 2025, arXiv:2506.15799)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agent.config import NUMBER
from agent.finetune.sac import SAC
from model.types import Obs, Sample


class DSRL(SAC):
    """``SAC`` whose actions are starts.

    The first ``n_explore_steps`` steps are the frozen policy's own, from normal starts of deviation ``explore_std``: 1 is how it was trained. Of what
    they show the critic learns ``n_critic_warmup_updates`` minibatches before the actor follows it: a critic that has seen no success leads it astray.

    ``target_entropy: null`` is minus the number of *free* numbers of a start.
    """

    SETTINGS: ClassVar = {**SAC.SETTINGS, "explore_std": NUMBER, "n_critic_warmup_updates": int}

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], n_envs: int, generator: torch.Generator) -> None:
        super().__init__(policy, train, n_envs, generator)
        self.warm = False
        if train["target_entropy"] is None:
            self.target_entropy = -policy.n_numbers

    def act(self, obs: Obs, noise: Tensor) -> Sample:
        """At first as the frozen policy, then as the start's distribution explores."""
        if self.exploring:
            return self.policy.untouched(obs, self.train["explore_std"] * noise)
        return self.policy.sample(obs, False, noise)

    def learn_step(self) -> None:
        """As ``SAC``; the first time, the critic alone before it."""
        if not self.warm:
            self.warm = True
            for _ in range(self.train["n_critic_warmup_updates"]):
                self.learn_critic()
        super().learn_step()

    def state_dict(self) -> dict[str, Any]:
        """As ``SAC``, and whether the critic is warm."""
        return super().state_dict() | {"warm": self.warm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        super().load_state_dict(state)
        self.warm = state["warm"]
