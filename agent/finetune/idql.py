"""Implicit diffusion Q-learning (Hansen-Estruch et al., arXiv:2304.10573), on line.

``V`` regresses on the target critic by expectiles, ``Q`` on reward and ``V`` of what follows; the policy imitates the buffer, and acts by
choosing among its samples (``model.diffusion.diffusion_idql``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agent.config import NUMBER
from agent.finetune.off_policy import PASSES, OffPolicy, squared_errors, td_target
from agent.finetune.rollout import Rollout
from model.diffusion.actor_critic import follow, smallest

EXPECTILE = 0.8


def expectile_loss(difference: Tensor, expectile: float = EXPECTILE) -> Tensor:
    """Mean square of ``difference (B,)``, weighted ``expectile`` above 0 and ``1 - expectile`` below, 0-d."""
    return (torch.where(difference > 0, expectile, 1 - expectile) * difference.square()).mean()


class IDQL(OffPolicy):
    """In every minibatch ``V``, ``Q`` and, after the warm-up, the actor."""

    HEADLINE = (
        ("actor loss", "loss/actor", ".4f"),
        ("critic loss", "loss/critic", ".4f"),
        ("V loss", "loss/value", ".4f"),
    )
    SETTINGS: ClassVar = {
        **OffPolicy.SETTINGS,
        **PASSES,
        "critic_tau": NUMBER,
        "eval_sample_num": int,
        "eval_deterministic": bool,
        "use_expectile_exploration": bool,
    }

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], n_envs: int, generator: torch.Generator) -> None:
        super().__init__(policy, train, n_envs, generator)
        self.optimize("value", policy.value_parameters(), prefix="critic_")

    def learn(self, rollout: Rollout, iteration: int) -> None:
        """``replay_ratio`` times as many chunks as were collected."""
        policy = self.policy
        for _ in range(self.n_batches(rollout)):
            batch = self.batch()
            with torch.no_grad():
                q = smallest(policy.target_q, batch.obs, batch.actions)
            self.step("value", expectile_loss(q - policy.critic_v(batch.obs)))
            with torch.no_grad():
                target = td_target(batch, policy.critic_v(batch.next_obs))
            self.step("critic", squared_errors(policy.critic_q(batch.obs, batch.actions), target))
            follow(policy.target_q, policy.critic_q, self.train["critic_tau"])
            if iteration >= self.train["n_critic_warmup_itr"]:
                self.step("actor", policy.regression_errors(batch.obs, batch.actions, self.generator).mean())
