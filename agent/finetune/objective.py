"""The two losses of PPO (Schulman et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # what is clipped has no gradient; but of an infinite ratio none is not a number


def clipped_objective(log_ratio: Tensor, advantages: Tensor, clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped surrogate (PPO, eq. 7), to be minimised.

    Args:
        log_ratio: (B,) new minus old log-probability.
        advantages: (B,).
        clip: (B,) or scalar epsilon.

    Returns:
        loss, approximate KL divergence ``E[(r - 1) - log r]`` (Schulman 2020) and clipped fraction, all 0-d; the last two detached.
    """
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    loss = -torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    with torch.no_grad():
        approx_kl = (ratio - 1 - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > clip).float().mean()
    return loss, approx_kl, clip_fraction


def value_objective(values: Tensor, returns: Tensor, old_values: Tensor, clip: float | None) -> Tensor:
    """Half the mean squared error of (B,) values; with ``clip``, pessimistic about moves of more than ``clip`` from the old ones."""
    loss = (values - returns).square()
    if clip is not None:
        kept = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (kept - returns).square())
    return 0.5 * loss.mean()
