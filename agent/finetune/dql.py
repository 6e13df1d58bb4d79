"""Diffusion Q-learning (Wang et al., arXiv:2208.06193): imitate the buffer, and follow the critic's gradient through the whole chain.

``loss = |eps - eps_theta|^2 (actions of the buffer) - eta Q(s, a_theta) / mean |Q|``, with one of two critics, drawn each time. In the published
code the first term imitated the policy's own samples.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from agent.config import NUMBER
from agent.finetune.q_learning import QLearner
from agent.finetune.replay import Transitions


class DQL(QLearner):
    """See the module."""

    SETTINGS: ClassVar = {**QLearner.SETTINGS, "eta": NUMBER, "target_ema_rate": NUMBER}

    def learn_actor(self, batch: Transitions) -> None:
        """Imitation, less the value of what it would do."""
        policy = self.policy
        values = policy.critic(batch.obs, policy.denoise(batch.obs, generator=self.generator))
        heads = bool(torch.rand((), generator=self.generator, device=self.generator.device) < 0.5)
        q, scale = values if heads else values[::-1]
        imitation = policy.regression_errors(batch.obs, batch.actions, self.generator).mean()
        self.means.add(imitation=imitation, q=q.mean())
        self.step("actor", imitation - self.train["eta"] * q.mean() / scale.detach().abs().mean())
