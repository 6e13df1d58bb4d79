"""A diffusion policy that is fine-tuned as a whole: every denoising step, by (weighted) regression on actions.

The base of all off-policy diffusion policies. Reward-weighted regression needs nothing else (Peters & Schaal 2007; DRWR in
arXiv:2409.00588). This file knows tensors only; the update is in ``agent``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.common.modules import load_pretrained, passes_on
from model.diffusion.process import DiffusionProcess, tabulate_time
from model.types import Obs, Sample


class RWRDiffusion(DiffusionProcess):
    """A denoising network that is tuned; its ``state_dict`` is exactly ``network.*``.

    Args:
        network: ``(x, t, obs) -> prediction``.
        min_sampling_denoising_std: floor of every step's deviation while exploring.
        explore_start_std: deviation of the start while exploring; None: ``start_std``, as in evaluation.

    The others are explained in ``DiffusionProcess``.

    Raises:
        ValueError: naming the key that does not fit.
    """

    n_chain_steps = 0  # K: to the loop an action is an action, however it was denoised

    @passes_on(DiffusionProcess.__init__)
    def __init__(
        self,
        network: nn.Module,
        min_sampling_denoising_std: float = 0.1,
        explore_start_std: float | None = None,
        **process: Any,
    ) -> None:
        super().__init__(**process)
        if explore_start_std is not None and not explore_start_std >= 0:
            raise ValueError(f"explore_start_std: expected a number from 0 on, or null, found {explore_start_std}")
        self.explore_start_std = explore_start_std
        tabulate_time(network, self.denoising_steps)
        self.network = network
        self.min_sampling_denoising_std = min_sampling_denoising_std

    def load_base(self, state_dict: Mapping[str, Tensor]) -> None:
        """Start from a pre-trained policy's weights, ``network.*``.

        Raises:
            StateDictError: a key is missing, unexpected or of another shape.
        """
        load_pretrained(self.network, state_dict)

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What the actor's optimiser trains."""
        return self.network.parameters()

    def regression_errors(
        self, obs: Obs, actions: Tensor, generator: torch.Generator, network: nn.Module | None = None
    ) -> Tensor:
        """Squared errors of the denoiser on noised ``actions (B, Ta, Da)``, at a random step each: ``(B,)``. ``network`` denoises in place
        of the tuned one."""
        t = torch.randint(self.denoising_steps, (len(actions),), generator=generator, device=actions.device)
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        network = self.network if network is None else network
        prediction = network(self.schedule.q_sample(actions, t, noise), t, obs)
        return (prediction - (noise if self.predict_epsilon else actions)).square().mean(dim=(1, 2))

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = True,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Sample:
        """Denoise one action chunk per row.

        Args:
            deterministic: evaluate (DDPM deviation at least 1e-3 and 0 at the end; DDIM without noise) instead of explore.
            noise: ``(B, *noise_shape)`` standard normal numbers, the start first; None draws them from ``generator``.
        """
        return Sample(self.denoise(obs, deterministic, noise, generator))

    def denoise(
        self,
        obs: Obs,
        deterministic: bool = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        network: nn.Module | None = None,
    ) -> Tensor:
        """As ``sample``, differentiable: ``(B, Ta, Da)``. ``network`` denoises in place of the tuned one."""
        x, step_noise = self.prepare_noise(obs, noise, generator, None if deterministic else self.explore_start_std)
        return self._chain(obs, deterministic, x, step_noise, self.network if network is None else network)

    def _chain(self, obs: Obs, deterministic: bool, x: Tensor, step_noise: Tensor, network: nn.Module) -> Tensor:
        """From the start ``x (B, Ta, Da)`` to the end, with the steps' noise ``(B, n_steps, Ta, Da)``."""
        for i in range(self.n_steps):
            mean, std = self.step_mean_std(network, x, i, obs)
            std = self.eval_std(std, i) if deterministic else std.clamp(min=self.min_sampling_denoising_std)
            x = self.finish(mean + std * step_noise[:, i], i)
        return x
