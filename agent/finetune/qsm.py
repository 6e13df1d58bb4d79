"""Q-score matching (Psenka et al., arXiv:2312.11752): the denoiser's score at a noised action is regressed on the critic's gradient there.

``loss = |-eps_theta(a_t, t) - q_grad_coeff * mean of dQ_i/da (a_t)|^2`` at a random step ``t`` of every chunk.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from agent.config import NUMBER
from agent.finetune.q_learning import QLearner
from agent.finetune.replay import Transitions


class QSM(QLearner):
    """See the module."""

    RATE = "critic_tau"

    SETTINGS: ClassVar = {**QLearner.SETTINGS, "q_grad_coeff": NUMBER, "critic_tau": NUMBER}

    def critics(self) -> tuple[nn.Module, nn.Module]:
        """The critic, and its slower copy."""
        return self.policy.critic_q, self.policy.target_q

    def learn_actor(self, batch: Transitions) -> None:
        """One step of score matching."""
        self.step("actor", self.score_loss(batch))

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
