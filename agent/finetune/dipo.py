"""DIPO (Yang et al., arXiv:2305.13122): the critic's gradient improves actions of the buffer, and the policy imitates those.

Improved actions are kept beside the executed ones: values are learned of what was done, with the reward that it earned. (The published code
overwrites the actions, and so has the critic learn what reward they never earned.) The bound of a gradient step is that of one chunk,
whatever the size of the minibatch.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from agent.config import NUMBER
from agent.finetune.q_learning import QLearner
from agent.finetune.replay import Transitions
from model.diffusion.actor_critic import follow, smallest

GRADIENT_BOUND = 0.1  # times the number of a chunk's coordinates: largest norm of the gradient in one chunk


class DIPO(QLearner):
    """See the module."""

    EXTRA = ("improved",)
    SETTINGS: ClassVar = {
        **QLearner.SETTINGS,
        "target_ema_rate": NUMBER,
        "action_lr": NUMBER,
        "action_gradient_steps": int,
    }

    def next_actions(self, batch: Transitions) -> Tensor:
        """Of the slower copy of the policy."""
        return self.policy.target_actions(batch.next_obs, self.generator)

    def learn_actor(self, batch: Transitions) -> None:
        """Imitation of the minibatch's actions, improved once more."""
        kept = self.replay.arrays["improved"]
        actions = self.improve(batch, torch.from_numpy(kept[batch.index]).to(batch.actions.device))
        kept[batch.index] = actions.cpu().numpy()
        self.step("actor", self.policy.regression_errors(batch.obs, actions, self.generator).mean())
        follow(self.policy.actor_target, self.policy.network, self.train["target_ema_rate"])

    def improve(self, batch: Transitions, actions: Tensor) -> Tensor:
        """``actions (B, Ta, Da)`` after a few Adam steps up the smaller critic, within [-1, 1]."""
        actions = actions.clone().requires_grad_()
        optimizer = torch.optim.Adam([actions], self.train["action_lr"], eps=1e-5)
        bound = GRADIENT_BOUND * actions[0].numel()
        for _ in range(self.train["action_gradient_steps"]):
            (gradient,) = torch.autograd.grad(-smallest(self.policy.critic, batch.obs, actions).sum(), actions)
            norm = gradient.flatten(1).norm(dim=1)[:, None, None]
            actions.grad = gradient * (bound / norm.clamp(min=1e-12)).clamp(max=1)
            optimizer.step()
            with torch.no_grad():
                actions.clamp_(-1, 1)
        return actions.detach()
