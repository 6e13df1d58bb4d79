"""Generalised advantage estimation (Schulman et al. 2016), cut where an episode ends and bootstrapped where only its time ran out."""

from __future__ import annotations

import torch
from torch import Tensor


def generalized_advantage(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    final_values: Tensor,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of S steps in N environments.

    ``delta_t = r_t + gamma * V_next * (1 - terminated_t) - V_t`` and ``A_t = delta_t + gamma * lam * A_{t+1}``, the second term only while
    the episode goes on. ``V_next`` is ``values[t + 1]``, but ``final_values[t]`` where the episode was truncated at ``t`` (the value of its
    own last observation, never of the next episode's first) and at the last step (the value of the observation it led to). A step that is
    both terminated and truncated has no future.

    Args:
        rewards, values: (S, N) float.
        terminated, truncated: (S, N) bool.
        final_values: (S, N) float; read only where ``truncated`` and in the last row.
        gamma: discount per step (here: per action chunk).
        lam: trace decay.

    Returns:
        advantages, returns: (S, N), ``returns = advantages + values``.
    """
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    ended = terminated | truncated
    next_values = torch.where(truncated, final_values, torch.cat([values[1:], final_values[-1:]]))
    deltas = rewards + gamma * torch.where(terminated, zero, next_values) - values
    advantages = torch.empty_like(deltas)
    trace = torch.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        trace = deltas[t] + gamma * lam * torch.where(
            ended[t], zero, trace
        )  # selected, not multiplied: 0 * NaN of a broken episode is NaN
        advantages[t] = trace
    return advantages, advantages + values
