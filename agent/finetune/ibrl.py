"""Imitation-bootstrapped RL (Hu et al., arXiv:2311.02198): the cloned policy proposes actions beside the one that learns, in acting and in targets.

    critics:  Q_i(s, a) -> r + discount max(Q'(s', a_cloned), Q'(s', a_target)),    Q' the smaller of two slow members, drawn each time
    actor:    maximises the smallest of all critics' values

The replay buffer counts as filled with the demonstrations from the start: minibatches are drawn from both, in proportion to their sizes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from agent.finetune.demonstrations import WithDemonstrations
from agent.finetune.off_policy import td_target
from agent.finetune.replay import Transitions
from agent.finetune.sac import StepLearner
from model.diffusion.actor_critic import follow
from model.types import Obs, Sample


class IBRL(WithDemonstrations, StepLearner):
    """``critic_num_update`` minibatches of the critics and one of the actor after every ``update_freq`` steps."""

    SETTINGS: ClassVar = {**StepLearner.SETTINGS, "critic_num_update": int, "update_freq": int}

    def act(self, obs: Obs, noise: Tensor) -> Sample:
        """Without dropout, which is for learning."""
        self.policy.eval()
        sample = super().act(obs, noise)
        self.policy.train()
        return sample

    def learn_step(self) -> None:
        """Critics, then the actor on the last minibatch."""
        train, policy = self.train, self.policy
        if self.steps % train["update_freq"]:
            return
        share = len(self.offline) / (len(self.offline) + len(self.replay))
        for _ in range(train["critic_num_update"]):
            batch = self.from_both(round(share * train["batch_size"]))
            error = policy.critic_networks(batch.obs, batch.actions) - self.target(batch)
            self.step("critic", error.square().mean())
            follow(policy.target_networks, policy.critic_networks, train["target_ema_rate"])
        z = torch.randn(batch.actions.shape, generator=self.generator, device=batch.actions.device)
        actions = policy.propose(policy.network, batch.obs, z)
        self.step("actor", -policy.critic_networks(batch.obs, actions).amin(dim=0).mean())
        follow(policy.target_actor, policy.network, train["target_ema_rate"])

    @torch.no_grad()
    def target(self, batch: Transitions) -> Tensor:
        """``(B,)``."""
        policy, members = self.policy, self.policy.draw_members(self.generator)
        z = torch.randn(batch.actions.shape, generator=self.generator, device=batch.actions.device)
        proposals = (
            policy.propose(policy.bc_policy, batch.next_obs),
            policy.propose(policy.target_actor, batch.next_obs, z),
        )
        values = [policy.target_value(batch.next_obs, actions, members) for actions in proposals]
        return td_target(batch, torch.maximum(*values))
