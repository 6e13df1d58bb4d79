"""RL with prior data (Ball et al., arXiv:2302.02948): SAC whose minibatches are one half demonstrations, with an ensemble of critics.

A target asks two members of the slow ensemble, drawn each time; the actor maximises the mean of all.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from agent.finetune.demonstrations import WithDemonstrations
from agent.finetune.sac import SoftActorCritic
from model.diffusion.actor_critic import follow
from model.types import Obs


class RLPD(WithDemonstrations, SoftActorCritic):
    """``critic_num_update`` minibatches of the critics and one of the actor after every step."""

    SETTINGS: ClassVar = {**SoftActorCritic.SETTINGS, "critic_num_update": int}

    def next_value(self, obs: Obs, actions: Tensor) -> Tensor:
        """The smaller of two members', drawn each time."""
        return self.policy.target_value(obs, actions, self.policy.draw_members(self.generator))

    def learn_step(self) -> None:
        """Critics, then the actor on the last minibatch."""
        policy = self.policy
        for _ in range(self.train["critic_num_update"]):
            batch = self.from_both(self.train["batch_size"] // 2)
            target = self.soft_target(batch, policy.backup_entropy)
            self.step("critic", (policy.critic_networks(batch.obs, batch.actions) - target).square().mean())
            follow(policy.target_networks, policy.critic_networks, self.train["target_ema_rate"])
        self.learn_actor(batch.obs)
