"""How much of PPO's gradient is signal, and which trace decay (``train.gae_lambda``) has most of it.

A policy gradient of one rollout is mostly noise. With a long trace an action is credited with everything that comes after it: unbiased
and noisy. With a short one it is credited with the change of the critic's opinion: quiet, and as wrong as the critic. Which is better is a
question about the task and the critic, and one rollout can answer it: the gradient of one half of the environments, with whatever decay,
is held against the gradient of the other half with decay 1, in which the critic is only a baseline and cannot mislead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from agent.finetune.minibatch import Data

LAMBDAS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 1.0)
ROWS = 2000  # whose graphs are in memory at once


def gradient_signal(
    policy: nn.Module,
    data: Data,
    rows: Tensor,
    n_envs: int,
    advantages_of: Callable[[float], Tensor],
    rows_at_once: int,
) -> dict[str, float]:
    """Cosines between held-out gradients of the actor; the policy is left as it is.

    The gradient is that of PPO's objective before the first update (ratio 1, nothing clipped). The expected cosine is small where
    there is much noise; what matters is which decay has the largest, on average over iterations.

    Args:
        data: S * N chunks, those of environment ``n`` in rows ``n, n + N, ...``.
        rows: (M,) those that count.
        n_envs: N, at least two.
        advantages_of: decay to advantages, (S * N,).
        rows_at_once: of observations.

    Returns:
        ``signal/lambda_<decay>`` for each of ``LAMBDAS``: the mean of both directions.
    """
    parameters = [p for p in policy.actor_parameters() if p.requires_grad]
    weights = torch.stack([_centred(advantages_of(decay), rows) for decay in LAMBDAS])  # (L, S * N)
    halves = [_gradients(policy, parameters, data, some, weights, rows_at_once) for some in _split(rows, n_envs)]
    cosines = []
    for ours, other in (halves, halves[::-1]):
        cosines.append(torch.nn.functional.cosine_similarity(ours, other[-1:], dim=1))
    return {f"signal/lambda_{decay:g}": float(x) for decay, x in zip(LAMBDAS, sum(cosines) / 2, strict=True)}


def _split(rows: Tensor, n_envs: int) -> tuple[Tensor, Tensor]:
    """Those of even and of odd environments: no episode is in both."""
    odd = rows % n_envs % 2 == 1
    return rows[~odd], rows[odd]


def _centred(advantages: Tensor, rows: Tensor) -> Tensor:
    return advantages - advantages[rows].mean()


def _gradients(
    policy: nn.Module, parameters: list[nn.Parameter], data: Data, rows: Tensor, weights: Tensor, rows_at_once: int
) -> Tensor:
    """Of ``sum_i weights[l, i] * sum_k discount_k * log_prob_ik``, (L, number of parameters)."""
    n_steps = data.log_probs.shape[1]
    total = torch.zeros(len(weights), sum(p.numel() for p in parameters), device=weights.device)
    for some in rows.split(max(1, min(rows_at_once, ROWS) // n_steps)):
        log_probs = policy.chain_log_probs(data.look(some), data.chains[some])
        step = torch.arange(n_steps, device=rows.device)
        said = (log_probs * policy.denoising_discount(step)).sum(1)
        for i, weight in enumerate(weights[:, some]):
            grads = torch.autograd.grad(said, parameters, weight, retain_graph=i + 1 < len(weights), allow_unused=True)
            flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
            total[i] += torch.cat([g.flatten() for g in flat])
    return total
