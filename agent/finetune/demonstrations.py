"""What the algorithms share that learn from demonstrations beside their own experience."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from agent.dataset.transitions import StitchedSequenceQLearningDataset
from agent.errors import UsageError
from agent.finetune.replay import Transitions, mixed


class WithDemonstrations:
    """Stands before a ``Replaying`` algorithm that has ``own(n)`` in the list of bases: ``offline`` are the demonstrations' transitions.

    Raises:
        UsageError: returns of several chunks are asked for, which demonstrations' transitions do not have; or the algorithm's ``EXTRA`` has
            returns, and the demonstrations were read without.
    """

    def __init__(
        self,
        policy: nn.Module,
        train: Mapping[str, Any],
        n_envs: int,
        generator: torch.Generator,
        offline: StitchedSequenceQLearningDataset,
    ) -> None:
        super().__init__(policy, train, n_envs, generator)
        if train.get("n_step_returns", 1) != 1:
            raise UsageError(f"train.n_step_returns: with demonstrations only 1, found {train['n_step_returns']}")
        if "returns" in self.EXTRA and offline.returns is None:
            raise UsageError("offline_dataset.get_mc_return: the demonstrations' returns are needed; set it to true")
        self.offline = offline

    def from_both(self, n_offline: int) -> Transitions:
        """A minibatch of which ``n_offline`` are the demonstrations' and the others the replay buffer's."""
        train = self.train
        if not n_offline:
            return self.own(train["batch_size"])
        offline = self.offline.sample(n_offline, self.generator, train["gamma"], train.get("scale_reward_factor", 1))
        rest = train["batch_size"] - n_offline
        if not rest:
            return offline
        return mixed(offline, self.own(rest))
