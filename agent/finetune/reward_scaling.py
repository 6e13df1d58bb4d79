"""Running reward scaling: rewards divided by the standard deviation of the discounted sum that they build up (Engstrom et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RunningRewardScaler:
    """Per environment ``g <- r + gamma * g`` (restarted with every episode); rewards are divided by the running deviation of all ``g``.

    Mean and variance are merged batch by batch (Chan et al. 1979), unbiased, from a prior of count 1e-4, mean 0 and variance 1.

    Args:
        n_envs: N.
        gamma: the discount of the returns that the rewards will be summed into.
        clip: scaled rewards are clipped to +-clip.
    """

    def __init__(self, n_envs: int, gamma: float, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        self.gamma, self.clip, self.epsilon = gamma, clip, epsilon
        self.running = torch.zeros(n_envs, dtype=torch.float64)
        self.mean, self.var, self.count = 0.0, 1.0, 1e-4

    def __call__(self, rewards: Tensor, firsts: Tensor) -> Tensor:
        """Scale (S, N) rewards; ``firsts[t, i]`` says that step t is the first of an episode. Updates the statistics."""
        sums = torch.empty(rewards.shape, dtype=torch.float64)
        r, f = rewards.double().cpu(), firsts.double().cpu()
        for t in range(len(r)):
            self.running = r[t] + self.gamma * (1 - f[t]) * self.running
            sums[t] = self.running
        self._merge(float(sums.mean()), float(sums.var(correction=0)), sums.numel())
        return (rewards / (self.var + self.epsilon) ** 0.5).clamp(-self.clip, self.clip)

    def _merge(self, mean: float, var: float, count: int) -> None:
        total = self.count + count
        delta = mean - self.mean
        m2 = self.var * self.count + var * count + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.var = m2 / (total - 1)
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"running": self.running.clone(), "mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.running = state["running"].clone()
        self.mean, self.var, self.count = state["mean"], state["var"], state["count"]
