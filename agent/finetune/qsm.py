"""Q-score matching (Psenka et al., arXiv:2312.11752): the denoiser's score at a noised action is regressed on the critic's gradient there.

``loss = |-eps_theta(a_t, t) - q_grad_coeff * mean of dQ_i/da (a_t)|^2`` at a random step ``t`` of every chunk.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from agent.config import NUMBER
from agent.finetune.off_policy import PASSES, OffPolicy, squared_errors, td_target
from agent.finetune.replay import Transitions
from agent.finetune.rollout import Rollout
from model.diffusion.actor_critic import follow, smallest


class QSM(OffPolicy):
    """In every minibatch first the critic, then, after the warm-up, the actor."""

    HEADLINE = (("actor loss", "loss/actor", ".4f"), ("critic loss", "loss/critic", ".4f"))
    SETTINGS: ClassVar = {**OffPolicy.SETTINGS, **PASSES, "q_grad_coeff": NUMBER, "critic_tau": NUMBER}

    def learn(self, rollout: Rollout, iteration: int) -> None:
        """``replay_ratio`` times as many chunks as were collected."""
        for _ in range(self.n_batches(rollout)):
            batch = self.batch()
            self._learn_critic(batch)
            if iteration >= self.train["n_critic_warmup_itr"]:
                self.step("actor", self.score_loss(batch))

    def _learn_critic(self, batch: Transitions) -> None:
        policy = self.policy
        with torch.no_grad():
            actions = policy.denoise(batch.next_obs, generator=self.generator)
            target = td_target(batch, smallest(policy.target_q, batch.next_obs, actions))
        self.step("critic", squared_errors(policy.critic_q(batch.obs, batch.actions), target))
        follow(policy.target_q, policy.critic_q, self.train["critic_tau"])

    def score_loss(self, batch: Transitions) -> Tensor:
        """0-d."""
        policy, g, actions = self.policy, self.generator, batch.actions
        t = torch.randint(policy.denoising_steps, (len(actions),), generator=g, device=actions.device)
        noise = torch.randn(actions.shape, generator=g, device=actions.device)
        noised = policy.schedule.q_sample(actions, t, noise).requires_grad_()
        values = torch.stack(policy.critic_q(batch.obs, noised)).mean(dim=0)
        (slope,) = torch.autograd.grad(values.sum(), noised)
        noised = noised.detach()
        return (-policy.network(noised, t, batch.obs) - self.train["q_grad_coeff"] * slope).square().mean()
