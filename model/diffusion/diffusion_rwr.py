"""A diffusion policy that is fine-tuned as a whole: every denoising step, by (weighted) regression on actions.

The base of all off-policy diffusion policies. Reward-weighted regression needs nothing else (Peters & Schaal 2007; DRWR in
arXiv:2409.00588). This file knows tensors only; the update is in ``agent``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.common.modules import given_noise, load_pretrained, passes_on
from model.diffusion.process import DiffusionProcess, tabulate_time
from model.types import Obs, Sample


class RWRDiffusion(DiffusionProcess):
    """A denoising network that is tuned; its ``state_dict`` is exactly ``network.*``.

    Args:
        network: ``(x, t, obs) -> prediction``.
        min_sampling_denoising_std: floor of every step's deviation while exploring.
        explore_start_std: deviation of the start while exploring; None: ``start_std``, as in evaluation.
        explore_start_steps: ``Ts``, rows of the start that differ while exploring, a divisor of ``Ta``; each stands for ``Ta / Ts`` steps of the
            chunk, as in DSRL. With few of them a chunk leaves the usual way as a whole instead of trembling about it. None: all ``Ta``.

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
        explore_start_steps: int | None = None,
        **process: Any,
    ) -> None:
        super().__init__(**process)
        if explore_start_std is not None and not explore_start_std >= 0:
            raise ValueError(f"explore_start_std: expected a number from 0 on, or null, found {explore_start_std}")
        start_steps = self.horizon_steps if explore_start_steps is None else explore_start_steps
        if not 0 < start_steps <= self.horizon_steps or self.horizon_steps % start_steps:
            raise ValueError(
                f"explore_start_steps: expected a divisor of horizon_steps = {self.horizon_steps}, or null, found {start_steps}"
            )
        self.explore_start_std, self.start_repeat = explore_start_std, self.horizon_steps // start_steps
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
        noise = given_noise(obs["state"], self.noise_shape, noise, generator)
        return self._from_noise(obs, deterministic, noise, self.network if network is None else network)

    def _from_noise(self, obs: Obs, deterministic: bool, noise: Tensor, network: nn.Module) -> Tensor:
        """The whole chain of ``noise (B, n_steps + 1, Ta, Da)``, its start as evaluation or exploring has it."""
        x, step_noise = self.scaled(noise, None if deterministic else self.explore_start_std)
        if not deterministic:
            x = x[:, :: self.start_repeat].repeat_interleave(self.start_repeat, dim=1)
        return self._chain(obs, deterministic, x, step_noise, network)

    def _chain(self, obs: Obs, deterministic: bool, x: Tensor, step_noise: Tensor, network: nn.Module) -> Tensor:
        """From the start ``x (B, Ta, Da)`` to the end, with the steps' noise ``(B, n_steps, Ta, Da)``."""
        for i in range(self.n_steps):
            mean, std = self.step_mean_std(network, x, i, obs)
            std = self.eval_std(std, i) if deterministic else std.clamp(min=self.min_sampling_denoising_std)
            x = self.finish(mean + std * step_noise[:, i], i)
        return x
