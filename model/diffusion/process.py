"""One reverse step of the denoising chain, in one place: sampling and log-probabilities, DDPM and DDIM, all clip knobs.

Chain *positions* count from the noisiest step, ``i = 0 .. n_steps - 1``, for DDPM (``t = K - 1 - i``) and DDIM alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.common.modules import given_noise
from model.diffusion.schedule import DDIMSchedule, DDPMSchedule, Steps
from model.types import Obs

EVAL_MIN_STD = 1e-3  # floor of the DDPM standard deviation when actions are meant to be the best ones, t > 0


class DiffusionProcess(nn.Module):
    """Base of the policies that denoise: schedules, the reverse step and the noise that drives it.

    Args:
        horizon_steps: ``Ta``. obs_dim: ``Do``. action_dim: ``Da``.
        denoising_steps: DDPM steps of the forward process.
        predict_epsilon: the network predicts the noise; otherwise the clean chunk (DDPM only).
        denoised_clip_value: bound of the predicted clean chunk; None: unbounded.
        randn_clip_value: bound of the noise added by each step (never of the start); None: unbounded.
        final_action_clip_value: bound of the finished chunk (it is the bounded chunk that enters the chain).
        eps_clip_value: bound of the predicted noise, DDIM only.
        use_ddim: sample with DDIM over ``ddim_steps`` steps.
        start_std: deviation of the start. 1 is what the network learned from; with 0 (and DDIM) the policy has no randomness left and
            does what lies in the middle of what it would do.

    Raises:
        ValueError: naming the key that does not fit.
    """

    def __init__(
        self,
        horizon_steps: int,
        obs_dim: int,
        action_dim: int,
        denoising_steps: int = 100,
        predict_epsilon: bool = True,
        denoised_clip_value: float | None = 1.0,
        randn_clip_value: float | None = 10.0,
        final_action_clip_value: float | None = None,
        eps_clip_value: float | None = None,
        use_ddim: bool = False,
        ddim_steps: int | None = None,
        start_std: float = 1.0,
    ) -> None:
        super().__init__()
        if not start_std >= 0:
            raise ValueError(f"start_std: expected a number from 0 on, found {start_std}")
        if use_ddim and not predict_epsilon:
            raise ValueError("use_ddim: DDIM needs a network that predicts the noise; set predict_epsilon: True")
        if use_ddim and ddim_steps is None:
            raise ValueError(
                "ddim_steps: use_ddim is True, but ddim_steps is not set; set it (the published value is 5)"
            )
        self.horizon_steps = horizon_steps
        self.obs_dim = obs_dim
        self.action_dim = action_dim
        self.denoising_steps = denoising_steps
        self.predict_epsilon = predict_epsilon
        self.denoised_clip_value = denoised_clip_value
        self.randn_clip_value = randn_clip_value
        self.final_action_clip_value = final_action_clip_value
        self.eps_clip_value = eps_clip_value
        self.use_ddim, self.start_std = use_ddim, start_std
        self.schedule = DDPMSchedule(denoising_steps)
        self.ddim = DDIMSchedule(denoising_steps, ddim_steps) if use_ddim and ddim_steps is not None else None
        self.n_steps = self.schedule.n_steps if self.ddim is None else self.ddim.n_steps

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """``(n_steps + 1, Ta, Da)``: the normal numbers that one row of ``sample`` consumes."""
        return (self.n_steps + 1, self.horizon_steps, self.action_dim)

    def step_mean_std(
        self, network: nn.Module, x: Tensor, position: Steps, obs: Obs, eta: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean ``(B, Ta, Da)`` and raw standard deviation (broadcastable) of the sample after ``x (B, Ta, Da)``.

        Args:
            network: who predicts.
            position: chain position, one ``int`` or ``(B,)`` int64.
            obs: its rows match those of ``x``.
            eta: DDIM noise level ``(B, 1)`` or ``(B, Da)``; None is 0. DDPM ignores it.
        """
        if self.ddim is None:
            t: Steps = self.n_steps - 1 - position
        else:
            t = self.ddim.times[position]
        steps = t.expand(x.shape[0]) if isinstance(t, Tensor) else x.new_full((x.shape[0],), t, dtype=torch.long)
        output = network(x, steps, obs)
        if self.ddim is None:
            x0 = self.schedule.predict_x0(x, t, output) if self.predict_epsilon else output
            return self.schedule.posterior_mean_std(_clip(x0, self.denoised_clip_value), x, t)
        x0, eps = self.ddim.predict_x0(x, position, output), output
        if self.denoised_clip_value is not None:
            x0 = _clip(x0, self.denoised_clip_value)
            eps = self.ddim.predict_eps(x, position, x0)
        return self.ddim.mean_std(x0, _clip(eps, self.eps_clip_value), position, eta)

    def eval_std(self, std: Tensor, position: int) -> Tensor:
        """The deviation that ``deterministic=True`` samples with: DDPM at least 1e-3 and 0 at the last step, DDIM 0."""
        if self.ddim is not None or position == self.n_steps - 1:
            return torch.zeros_like(std)
        return std.clamp(min=EVAL_MIN_STD)

    def finish(self, x: Tensor, position: int) -> Tensor:
        """Bound the finished chunk (after the last position) by ``final_action_clip_value``."""
        return _clip(x, self.final_action_clip_value) if position == self.n_steps - 1 else x

    def prepare_noise(self, obs: Obs, noise: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The start ``(B, Ta, Da)``, scaled by ``start_std``, and the steps' noise ``(B, n_steps, Ta, Da)``, given or drawn; only the latter is
        bounded."""
        return self.scaled(given_noise(obs["state"], self.noise_shape, noise, generator))

    def scaled(self, noise: Tensor, start_std: float | None = None) -> tuple[Tensor, Tensor]:
        """``noise (B, n_steps + 1, Ta, Da)`` as ``prepare_noise`` gives it; with ``start_std`` in place of the policy's own, if given."""
        start = noise[:, 0] * (self.start_std if start_std is None else start_std)
        return start, _clip(noise[:, 1:], self.randn_clip_value)


def tabulate_time(network: nn.Module, denoising_steps: int) -> None:
    """Tell a network that can make use of it how many diffusion steps there are."""
    tabulate = getattr(network, "tabulate_time", None)
    if tabulate is not None:
        tabulate(denoising_steps)


def _clip(x: Tensor, bound: float | None) -> Tensor:
    """``x`` within ``+-bound``, never in place: ``x`` may be a network's output, which autograd still needs."""
    return x if bound is None else x.clamp(-bound, bound)
