"""Diffusion Q-learning (Wang et al., arXiv:2208.06193): imitate the buffer, and follow the critic's gradient through the whole chain.

``loss = |eps - eps_theta|^2 (actions of the buffer) - eta Q(s, a_theta) / mean |Q|``, with one of two critics, drawn each time. In the published
code the first term imitated the policy's own samples.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from agent.config import NUMBER
from agent.finetune.off_policy import PASSES, OffPolicy, squared_errors, td_target
from agent.finetune.replay import Transitions
from agent.finetune.rollout import Rollout
from model.diffusion.actor_critic import follow, smallest


class DQL(OffPolicy):
    """In every minibatch first the critic, then, after the warm-up, the actor."""

    HEADLINE = (("actor loss", "loss/actor", ".4f"), ("critic loss", "loss/critic", ".4f"))
    SETTINGS: ClassVar = {**OffPolicy.SETTINGS, **PASSES, "eta": NUMBER, "target_ema_rate": NUMBER}

    def learn(self, rollout: Rollout, iteration: int) -> None:
        """``replay_ratio`` times as many chunks as were collected."""
        for _ in range(self.n_batches(rollout)):
            batch = self.batch()
            self._learn_critic(batch)
            if iteration >= self.train["n_critic_warmup_itr"]:
                self._learn_actor(batch)

    def _learn_critic(self, batch: Transitions) -> None:
        policy = self.policy
        with torch.no_grad():
            actions = policy.denoise(batch.next_obs, generator=self.generator)
            target = td_target(batch, smallest(policy.critic_target, batch.next_obs, actions))
        self.step("critic", squared_errors(policy.critic(batch.obs, batch.actions), target))
        follow(policy.critic_target, policy.critic, self.train["target_ema_rate"])

    def _learn_actor(self, batch: Transitions) -> None:
        policy = self.policy
        values = policy.critic(batch.obs, policy.denoise(batch.obs, generator=self.generator))
        heads = bool(torch.rand((), generator=self.generator, device=self.generator.device) < 0.5)
        q, scale = values if heads else values[::-1]
        imitation = policy.regression_errors(batch.obs, batch.actions, self.generator).mean()
        self.means.add(imitation=imitation, q=q.mean())
        self.step("actor", imitation - self.train["eta"] * q.mean() / scale.detach().abs().mean())
