"""Reward-weighted regression of a diffusion policy (DRWR in arXiv:2409.00588).

On-policy: every chunk of a finished episode is regressed on with the weight ``min(exp(beta G), max)``, ``G`` the standardised discounted
return from there. Episodes that the rollout leaves unfinished have no return, and no say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agent.config import NUMBER, SCHEDULE, optional
from agent.finetune.minibatch import take
from agent.finetune.off_policy import Learner
from agent.finetune.rollout import Rollout


def returns_to_go(rewards: Tensor, ended: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Discounted sums (S, N) of rewards (S, N) up to the episode's end, and whether it came (S, N)."""
    returns, known = torch.zeros_like(rewards), torch.zeros_like(ended)
    following, came = torch.zeros_like(rewards[0]), torch.zeros_like(ended[0])
    for s in range(len(rewards) - 1, -1, -1):
        following = rewards[s] + gamma * torch.where(ended[s], 0.0, following)
        came = ended[s] | came
        returns[s], known[s] = following, came
    return returns, known


def exponential_weights(scores: Tensor, beta: float, largest: float, epsilon: float = 1e-3) -> Tensor:
    """``min(exp(beta x standardised scores), largest)``, ``(B,)``."""
    standard = (scores - scores.mean()) / (scores.std() + epsilon)
    return (beta * standard).exp().clamp(max=largest)


class RWR(Learner):
    """Weighted regression on each rollout, ``update_epochs`` times."""

    HEADLINE = (("loss", "loss/actor", ".4f"),)
    SETTINGS: ClassVar = {
        "lr": NUMBER,
        "weight_decay": NUMBER,
        "lr_scheduler": SCHEDULE,
        "beta": NUMBER,
        "max_reward_weight": NUMBER,
        "batch_size": int,
        "update_epochs": int,
        "max_grad_norm": optional(NUMBER),
    }

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], n_envs: int, generator: torch.Generator) -> None:
        super().__init__(policy, train, n_envs, generator)
        self.optimize("actor", policy.actor_parameters(), prefix="")

    def learn(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Regress on what came to an end; nothing, if nothing did."""
        train, ended = self.train, rollout.terminated | rollout.truncated
        returns, known = returns_to_go(rollout.rewards, ended, train["gamma"])
        rows = (known & rollout.valid).flatten().nonzero()[:, 0]
        metrics = {"chunks_with_return": float(len(rows))}
        if len(rows) < 2:
            return metrics
        obs = {key: value.flatten(0, 1) for key, value in rollout.obs.items()}
        actions = rollout.chains[:, :, -1].flatten(0, 1)
        weights = torch.zeros(ended.numel(), device=rows.device)
        weights[rows] = exponential_weights(returns.flatten()[rows], train["beta"], train["max_reward_weight"])
        parts = max(1, round(len(rows) / train["batch_size"]))
        for _ in range(train["update_epochs"]):
            order = torch.randperm(len(rows), generator=self.generator, device=rows.device)
            for some in rows[order].tensor_split(parts):
                errors = self.policy.regression_errors(take(obs, some), actions[some], self.generator)
                self.step("actor", (weights[some] * errors).mean())
        return metrics | {"weights/mean": float(weights[rows].mean())}
