"""Noise schedules of denoising diffusion and the closed forms that follow from them.

DDPM (arXiv:2006.11239) with the cosine schedule (arXiv:2102.09672), ``abar(u) = cos^2((u + s) / (1 + s) * pi / 2)``,
``s = 0.008``:

* forward      ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps``
* clean chunk  ``x_0 = sqrt(1 / abar_t) x_t - sqrt(1 / abar_t - 1) eps``
* posterior    ``N(c1_t x_0 + c2_t x_t, var_t)``, ``c1 = beta sqrt(abar_prev) / (1 - abar)``,
  ``c2 = (1 - abar_prev) sqrt(alpha) / (1 - abar)``, ``var = beta (1 - abar_prev) / (1 - abar)``, at least 1e-20

DDIM (arXiv:2010.02502) over ``S`` of the ``K`` steps, evenly spaced from 0 ("leading"), index 0 the noisiest:

* ``sigma = eta sqrt((1 - abar_prev) / (1 - abar) (1 - abar / abar_prev))``
* mean ``sqrt(abar_prev) x_0 + sqrt(max(1 - abar_prev - sigma^2, 0)) eps``

All tables are computed in float64 up to ``beta`` and in float32 from there, like the published code; they are
non-persistent
buffers: they follow ``.to(device)`` and stay out of every ``state_dict``. Steps are an ``int`` (the same for the whole
batch) or an int64 tensor ``(B,)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Steps = int | Tensor

COSINE_OFFSET = 0.008
MAX_BETA = 0.999
_MIN_VARIANCE = 1e-20
_MIN_SIGMA = 1e-10


def cosine_betas(denoising_steps: int) -> Tensor:
    """``beta_t = clip(1 - abar_{t+1} / abar_t, 0, 0.999)`` for ``t = 0 .. K - 1``, as ``(K,)`` float32."""
    if denoising_steps < 1:
        raise ValueError(f"denoising_steps: expected at least 1, found {denoising_steps}")
    u = torch.arange(denoising_steps + 1, dtype=torch.float64) / denoising_steps
    abar = torch.cos((u + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).square()
    return (1 - abar[1:] / abar[:-1]).clamp(0, MAX_BETA).float()


def per_row(table: Tensor, step: Steps) -> Tensor:
    """``table[step]``, a 0-d tensor for an ``int``, ``(B, 1, 1)`` for a tensor: ready to meet ``(B, Ta, Da)``."""
    entry = table[step]
    return entry if isinstance(step, int) else entry.view(-1, 1, 1)


class DDPMSchedule(nn.Module):
    """Tables over all ``K`` diffusion steps ``t``; ``t = K - 1`` is the noisiest."""

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_coef_x0: Tensor
    posterior_coef_xt: Tensor
    posterior_std: Tensor

    def __init__(self, denoising_steps: int) -> None:
        super().__init__()
        betas = cosine_betas(denoising_steps)
        alphas = 1 - betas
        abar = torch.cumprod(alphas, dim=0)
        abar_prev = torch.cat([torch.ones(1), abar[:-1]])
        tables = {
            "betas": betas,
            "alphas_cumprod": abar,
            "sqrt_alphas_cumprod": abar.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
            "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
            "posterior_coef_x0": betas * abar_prev.sqrt() / (1 - abar),
            "posterior_coef_xt": (1 - abar_prev) * alphas.sqrt() / (1 - abar),
            "posterior_std": (betas * (1 - abar_prev) / (1 - abar)).clamp(min=_MIN_VARIANCE).sqrt(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.n_steps = denoising_steps

    def q_sample(self, x0: Tensor, t: Steps, noise: Tensor) -> Tensor:
        """Noise the clean chunk ``x0 (B, Ta, Da)`` to step ``t``."""
        return per_row(self.sqrt_alphas_cumprod, t) * x0 + per_row(self.sqrt_one_minus_alphas_cumprod, t) * noise

    def predict_x0(self, x: Tensor, t: Steps, eps: Tensor) -> Tensor:
        """The clean chunk that ``x`` and its noise ``eps`` imply."""
        return per_row(self.sqrt_recip_alphas_cumprod, t) * x - per_row(self.sqrt_recipm1_alphas_cumprod, t) * eps

    def posterior_mean_std(self, x0: Tensor, x: Tensor, t: Steps) -> tuple[Tensor, Tensor]:
        """Mean ``(B, Ta, Da)`` and standard deviation (broadcastable) of ``x_{t-1}`` given ``x_t`` and ``x_0``."""
        mean = per_row(self.posterior_coef_x0, t) * x0 + per_row(self.posterior_coef_xt, t) * x
        return mean, per_row(self.posterior_std, t)


class DDIMSchedule(nn.Module):
    """Tables over the ``S`` steps that DDIM visits; addressed by index, 0 the noisiest, not by ``t``."""

    times: Tensor
    sqrt_alphas: Tensor
    sqrt_one_minus_alphas: Tensor
    alphas_prev: Tensor
    sqrt_alphas_prev: Tensor
    sigma_unit: Tensor

    def __init__(self, denoising_steps: int, ddim_steps: int) -> None:
        super().__init__()
        if not 1 <= ddim_steps <= denoising_steps:
            raise ValueError(f"ddim_steps: expected 1 to denoising_steps = {denoising_steps}, found {ddim_steps}")
        abar = torch.cumprod(1 - cosine_betas(denoising_steps), dim=0)
        times = (torch.arange(ddim_steps) * (denoising_steps // ddim_steps)).flip(0)
        alphas = abar[times]
        prev = torch.cat([alphas[1:], torch.ones(1)])
        tables = {
            "times": times,
            "alphas": alphas,
            "sqrt_alphas": alphas.sqrt(),
            "sqrt_one_minus_alphas": (1 - alphas).sqrt(),
            "alphas_prev": prev,
            "sqrt_alphas_prev": prev.sqrt(),
            "sigma_unit": ((1 - prev) / (1 - alphas) * (1 - alphas / prev)).clamp(min=0).sqrt(),  # sigma at eta = 1
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.n_steps = ddim_steps

    def predict_x0(self, x: Tensor, index: Steps, eps: Tensor) -> Tensor:
        """The clean chunk that ``x`` and its noise ``eps`` imply."""
        return (x - per_row(self.sqrt_one_minus_alphas, index) * eps) / per_row(self.sqrt_alphas, index)

    def predict_eps(self, x: Tensor, index: Steps, x0: Tensor) -> Tensor:
        """The noise that ``x`` and the clean chunk ``x0`` imply."""
        return (x - per_row(self.sqrt_alphas, index) * x0) / per_row(self.sqrt_one_minus_alphas, index)

    def mean_std(self, x0: Tensor, eps: Tensor, index: Steps, eta: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the next sample.

        Args:
            x0: clean chunk ``(B, Ta, Da)``; ``eps``: noise of the same shape; ``index``: the step.
            eta: noise level ``(B, 1)`` or ``(B, Da)``; None is exactly 0 (deterministic: the deviation is 0, too).
        """
        prev = per_row(self.alphas_prev, index)
        if eta is None:
            return per_row(self.sqrt_alphas_prev, index) * x0 + (1 - prev).sqrt() * eps, torch.zeros_like(prev)
        # the floor keeps the density finite at the last step, where sigma is 0 for every eta
        sigma = (eta.unsqueeze(1) * per_row(self.sigma_unit, index)).clamp(min=_MIN_SIGMA)
        # sqrt has an infinite slope at 0: the floor, far below the mean's resolution, keeps eta's gradient finite
        direction = (1 - prev - sigma.square()).clamp(min=_MIN_VARIANCE).sqrt()
        return per_row(self.sqrt_alphas_prev, index) * x0 + direction * eps, sigma
