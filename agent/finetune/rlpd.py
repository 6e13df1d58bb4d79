"""RL with prior data (Ball et al., arXiv:2302.02948): SAC whose minibatches are one half demonstrations, with an ensemble of critics.

A target asks two members of the slow ensemble, drawn each time; the actor maximises the mean of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agent.dataset.transitions import StitchedSequenceQLearningDataset
from agent.errors import UsageError
from agent.finetune.replay import Transitions, mixed
from agent.finetune.sac import SoftActorCritic
from model.diffusion.actor_critic import follow
from model.types import Obs


def from_both(algorithm: Any, n_offline: int) -> Transitions:
    """A minibatch of which ``n_offline`` are the demonstrations' and the others the replay buffer's."""
    train, g = algorithm.train, algorithm.generator
    if not n_offline:
        return algorithm.batch()
    offline = algorithm.offline.sample(n_offline, g, train["gamma"], train["scale_reward_factor"])
    rest = train["batch_size"] - n_offline
    if not rest:
        return offline
    return mixed(offline, algorithm.replay.sample(rest, g, train["gamma"], train["n_step_returns"]))


def no_steps_offline(train: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` where returns of several chunks are asked for, which demonstrations' transitions do not have."""
    if train["n_step_returns"] != 1:
        raise UsageError(f"train.n_step_returns: with demonstrations only 1, found {train['n_step_returns']}")


class RLPD(SoftActorCritic):
    """``critic_num_update`` minibatches of the critics and one of the actor after every step."""

    SETTINGS: ClassVar = {**SoftActorCritic.SETTINGS, "critic_num_update": int}

    def __init__(
        self,
        policy: nn.Module,
        train: Mapping[str, Any],
        n_envs: int,
        generator: torch.Generator,
        offline: StitchedSequenceQLearningDataset,
    ) -> None:
        super().__init__(policy, train, n_envs, generator)
        no_steps_offline(train)
        self.offline = offline

    def next_value(self, obs: Obs, actions: Tensor) -> Tensor:
        """The smaller of two members', drawn each time."""
        return self.policy.target_value(obs, actions, self.policy.draw_members(self.generator))

    def learn_step(self) -> None:
        """Critics, then the actor on the last minibatch."""
        policy = self.policy
        for _ in range(self.train["critic_num_update"]):
            batch = from_both(self, self.train["batch_size"] // 2)
            target = self.soft_target(batch, policy.backup_entropy)
            self.step("critic", (policy.critic_networks(batch.obs, batch.actions) - target).square().mean())
            follow(policy.target_networks, policy.critic_networks, self.train["target_ema_rate"])
        self.learn_actor(batch.obs)
