"""What DQL, DIPO and QSM share: a double critic of chunks that asks the policy itself what it would do next, and an actor that follows it."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from agent.finetune.off_policy import PASSES, OffPolicy, squared_errors, td_target
from agent.finetune.replay import Transitions
from agent.finetune.rollout import Rollout
from model.diffusion.actor_critic import follow, smallest


class QLearner(OffPolicy):
    """In every minibatch first the critic, then, after the warm-up, the actor; ``replay_ratio`` times as many chunks as were collected.

    ``Q_i(s, a) -> r + discount min Q'(s', a')``, with ``a'`` what ``next_actions`` explores, and ``Q'`` a slower copy of the critic.
    """

    HEADLINE = (("actor loss", "loss/actor", ".4f"), ("critic loss", "loss/critic", ".4f"))
    SETTINGS: ClassVar = {**OffPolicy.SETTINGS, **PASSES}
    RATE = "target_ema_rate"  # the setting that says how fast the slow critic follows

    def learn(self, rollout: Rollout, iteration: int) -> None:
        """See the class."""
        for _ in range(self.n_batches(rollout)):
            batch = self.batch()
            self._learn_critic(batch)
            if iteration >= self.train["n_critic_warmup_itr"]:
                self.learn_actor(batch)

    @abstractmethod
    def learn_actor(self, batch: Transitions) -> None:
        """One step of the actor."""

    def critics(self) -> tuple[nn.Module, nn.Module]:
        """The critic, and its slower copy."""
        return self.policy.critic, self.policy.critic_target

    def next_actions(self, batch: Transitions) -> Tensor:
        """``(B, Ta, Da)``."""
        return self.policy.denoise(batch.next_obs, generator=self.generator)

    def _learn_critic(self, batch: Transitions) -> None:
        critic, slow = self.critics()
        with torch.no_grad():
            target = td_target(batch, smallest(slow, batch.next_obs, self.next_actions(batch)))
        self.step("critic", squared_errors(critic(batch.obs, batch.actions), target))
        follow(slow, critic, self.train[self.RATE])
