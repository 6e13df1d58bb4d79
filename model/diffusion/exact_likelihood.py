"""The density of a denoiser's probability flow, by the instantaneous change of variables (Song et al. 2021, arXiv:2011.13456).

The flow carries an action chunk ``x`` from ``u = 0``, where it is executed, to ``u = 1``, where it is noise:

``dx/du = rate(u) (g(x, u) - x)``, with ``g`` minus the score, ``g = eps / sqrt(1 - abar)``, and ``rate = -1/2 d log(abar)/du``

``log p(x at 0) = log N(x at 1; 0, I) + integral of div(dx/du) du``

``abar(u)`` is the cosine that the noise schedule samples: step ``t`` of ``K`` is at ``u = (t + 1) / K``. (The published rate is that of one step, not
``K`` times that: its flow ends where the data begin.) Between two steps ``g`` is interpolated; before the first it is that of the first. The rate
is bounded as the schedule bounds its last one.

The divergence is estimated with probes ``v``, ``E[v' J v] = trace J`` (Hutchinson 1990): ``n`` of them, which are one draw and its products with the
rows of a Hadamard matrix, orthogonal where ``n`` allows it. For ``n`` a power of two that is at least ``Ta Da`` the estimate is the trace itself.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model.common.gaussian import HALF_LOG_2PI
from model.diffusion.schedule import COSINE_OFFSET, MAX_BETA, DDPMSchedule

Score = Callable[[Tensor, int], Tensor]  # of chunks (B, Ta, Da) at a step t: g, of their shape

PROBES = ("Rademacher", "Gaussian")
FIXED_STEPS, ADAPTIVE = ("euler", "midpoint", "rk4"), ("dopri5", "dopri8", "bosh3", "adaptive_heun")
_SNAP = 1e-3  # of a step: a time that is nearer to one is that one


class ExactLikelihood(nn.Module):
    """Settings of the integration; no weights of its own.

    Args:
        schedule: whose steps the scores belong to.
        numbers: ``Ta Da``.
        method: a solver of torchdiffeq.
        step_size: of solvers with fixed steps, in ``(0, 1]``; of the others ``rtol`` and ``atol`` count.
        probes: how they are distributed, one of ``PROBES``.
        n_probes: how many.

    Raises:
        ValueError: naming the key that does not fit.
    """

    signs: Tensor

    def __init__(
        self,
        schedule: DDPMSchedule,
        numbers: int,
        method: str,
        step_size: float,
        rtol: float,
        atol: float,
        probes: str,
        n_probes: int,
    ) -> None:
        super().__init__()
        if probes not in PROBES:
            raise ValueError(f"sde_hutchinson_type: expected {' or '.join(PROBES)}, found {probes!r}")
        if n_probes < 1:
            raise ValueError(f"sde_num_epsilon: expected at least 1, found {n_probes}")
        if not 0 < step_size <= 1:
            raise ValueError(f"sde_step_size: expected a number in (0, 1], found {step_size}")
        self.n_steps, self.binary = schedule.n_steps, probes == "Rademacher"
        self.max_rate = -0.5 * schedule.n_steps * math.log(1 - MAX_BETA)
        self.options = _solver(method, step_size, rtol, atol)
        self.register_buffer("signs", _hadamard(n_probes, numbers), persistent=False)

    def forward(self, x: Tensor, noise: Tensor, score: Score) -> Tensor:
        """Log-density ``(B,)`` of chunks ``x (B, Ta, Da)``, nats per number; differentiable in what ``score`` depends on.

        Args:
            noise: standard normal, of the shape of ``x``: what the probes are made of. It decides about the estimate's error, and must be
                the same for two densities that are to be compared.
        """
        from torchdiffeq import odeint

        draw = noise.sign() if self.binary else noise
        probes = (self.signs[:, None] * draw.flatten(1)).view(-1, *x.shape)
        keep = torch.is_grad_enabled()

        def change(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            at, rate = state[0], self.rate(float(u))
            with torch.enable_grad():
                at = at if at.requires_grad else at.detach().requires_grad_()
                g = self._interpolated(score, at, float(u))
                divergence = _trace(g, at, probes, keep)
            return rate * (g - at), rate * (divergence - at[0].numel())

        times = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
        moved, density = odeint(change, (x, x.new_zeros(len(x))), times, **self.options)
        end = -0.5 * moved[-1].square() - HALF_LOG_2PI
        return end.mean(dim=(1, 2)) + density[-1] / x[0].numel()

    def rate(self, u: float) -> float:
        """How fast the data fade, ``-1/2 d log(abar)/du``."""
        turn = math.pi / 2 / (1 + COSINE_OFFSET)  # abar = cos(turn (u + offset))^2, but for a factor
        return turn / max(1 / math.tan(turn * (u + COSINE_OFFSET)), turn / self.max_rate)

    def _interpolated(self, score: Score, x: Tensor, u: float) -> Tensor:
        """``g`` between the two steps that ``u`` lies between; one evaluation where it is at one."""
        position = min(max(u * self.n_steps - 1, 0.0), self.n_steps - 1.0)
        lower = int(position + _SNAP)
        share = position - lower
        if share < _SNAP:
            return score(x, lower)
        return torch.lerp(score(x, lower), score(x, lower + 1), share)


def _solver(method: str, step_size: float, rtol: float, atol: float) -> dict[str, Any]:
    """Arguments of ``torchdiffeq.odeint``.

    Raises:
        ImportError: torchdiffeq is not installed.
        ValueError: no such method.
    """
    if importlib.util.find_spec("torchdiffeq") is None:
        raise ImportError(
            "exact likelihoods are integrated by torchdiffeq, which is not installed: pip install -e .[exact]"
        )
    if method in FIXED_STEPS:
        return {"method": method, "options": {"step_size": step_size}}
    if method in ADAPTIVE:
        return {"method": method, "rtol": rtol, "atol": atol}
    raise ValueError(f"sde_method: expected one of {', '.join(FIXED_STEPS + ADAPTIVE)}, found {method!r}")


def _hadamard(n: int, numbers: int) -> Tensor:
    """The first ``n`` rows and ``numbers`` columns of Sylvester's matrix, of +1 and -1; rows are orthogonal over a power of two columns."""
    return torch.tensor([[1.0 - 2 * ((row & column).bit_count() % 2) for column in range(numbers)] for row in range(n)])


def _trace(g: Tensor, x: Tensor, probes: Tensor, keep: bool) -> Tensor:
    """Mean over ``probes (n, B, Ta, Da)`` of ``v' (dg/dx) v``, ``(B,)``; ``keep``: differentiable."""
    last, total = len(probes) - 1, 0.0
    for i, v in enumerate(probes):
        (product,) = torch.autograd.grad(g, x, v, create_graph=keep, retain_graph=keep or i < last)
        total = total + (product * v).sum(dim=(1, 2))
    return total / len(probes)
