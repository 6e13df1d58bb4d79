"""Running reward scaling: rewards divided by the standard deviation of the discounted sum that they build up (Engstrom et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agent.metrics import RunningMeanStd


class RunningRewardScaler:
    """Per environment ``g <- r + gamma * g`` (restarted with every episode); rewards are divided by the running deviation of all ``g``.

    Args:
        n_envs: N.
        gamma: the discount of the returns that the rewards will be summed into.
        clip: scaled rewards are clipped to +-clip.
    """

    def __init__(self, n_envs: int, gamma: float, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        self.gamma, self.clip, self.epsilon = gamma, clip, epsilon
        self.running = torch.zeros(n_envs, dtype=torch.float64)
        self.statistics = RunningMeanStd()

    def __call__(self, rewards: Tensor, firsts: Tensor) -> Tensor:
        """Scale (S, N) rewards; ``firsts[t, i]`` says that step t is the first of an episode. Updates the statistics."""
        sums = torch.empty(rewards.shape, dtype=torch.float64)
        r, f = rewards.double().cpu(), firsts.double().cpu()
        for t in range(len(r)):
            self.running = r[t] + self.gamma * (1 - f[t]) * self.running
            sums[t] = self.running
        self.statistics.update(sums.numpy())
        return (rewards / (self.statistics.var + self.epsilon) ** 0.5).clamp(-self.clip, self.clip)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"running": self.running.clone(), "statistics": self.statistics.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.running = state["running"].clone()
        self.statistics.load_state_dict(state["statistics"])
