"""The pre-trained diffusion policy: a supervised loss, optionally with dispersed features, and sampling.

``L = mean |network(x_t, t, obs) - eps|^2 + weight * L_dispersive(hidden features)``, ``t`` uniform, in one forward
pass. DDPM (arXiv:2006.11239), Diffusion Policy (arXiv:2303.04137), D2PPO.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.common.modules import passes_on
from model.common.regression import RegressionPolicy
from model.common.vision import encode_obs
from model.diffusion.process import DiffusionProcess, tabulate_time
from model.types import Batch, Obs, Sample


class DiffusionModel(DiffusionProcess, RegressionPolicy):
    """A denoising policy; its ``state_dict`` is exactly ``network.*``.

    Args:
        network: ``(x, t, obs) -> prediction``; with a dispersive loss it also declares ``hidden_layers``.

    The others are explained in ``DiffusionProcess`` and ``RegressionPolicy``.

    Raises:
        ValueError: naming the key that does not fit; with a dispersive loss also a network of fewer than three hidden
            layers.
    """

    regression = "diffusion"

    @passes_on(RegressionPolicy._disperse)
    def __init__(
        self,
        network: nn.Module,
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
        **dispersion: Any,
    ) -> None:
        super().__init__(
            horizon_steps,
            obs_dim,
            action_dim,
            denoising_steps,
            predict_epsilon,
            denoised_clip_value,
            randn_clip_value,
            final_action_clip_value,
            eps_clip_value,
            use_ddim,
            ddim_steps,
            start_std,
        )
        tabulate_time(network, denoising_steps)
        self.network = network
        self._disperse(**dispersion)

    def _task(self, batch: Batch, generator: torch.Generator | None) -> tuple[tuple, Tensor]:
        """A noised batch at random steps, and the noise in it (or the clean chunk)."""
        x0 = batch.actions
        device = x0.device if generator is None else generator.device
        t = torch.randint(self.denoising_steps, (x0.shape[0],), generator=generator, device=device).to(x0.device)
        noise = torch.randn(x0.shape, generator=generator, device=device, dtype=x0.dtype).to(x0.device)
        x = self.schedule.q_sample(x0, t, noise)
        cond = batch.conditions
        if self.training and getattr(self.network, "augment", False):
            cond = self.network.augmented(cond, generator)
        return (x, t, cond), noise if self.predict_epsilon else x0

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = True,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Sample:
        """Denoise one action chunk per row; no chain.

        Args:
            obs: ``{"state": (B, To, Do)[, "rgb": (B, To, C, H, W)]}``; images are encoded once.
            deterministic: DDPM deviation at least 1e-3 before the last step and 0 there; else the posterior's own. DDIM
                adds no noise in either case (``eta = 0``).
            noise: ``(B, *noise_shape)`` standard normal numbers, the start first; None draws them from ``generator``.
        """
        x, step_noise = self.prepare_noise(obs, noise, generator)
        obs = encode_obs(self.network, obs)
        for i in range(self.n_steps):
            mean, std = self.step_mean_std(self.network, x, i, obs)
            if deterministic:
                std = self.eval_std(std, i)
            x = self.finish(mean + std * step_noise[:, i], i)
        return Sample(x)
