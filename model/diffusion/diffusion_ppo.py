"""The policy that PPO fine-tunes: a frozen base for the first denoising steps, a tuned copy for the last ``K``.

DPPO (arXiv:2409.00588) treats each of the last ``K`` denoising steps as an action of a Markov chain inside the
environment's one:

``log p(x_{j+1} | x_j, obs) = log N(x_{j+1}; mean_j, max(std_j, min_logprob_denoising_std))``

This file knows tensors only; the loss is in ``agent``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.common.modules import passes_on
from model.common.tuned_chain import TunedChain
from model.common.vision import encode_obs
from model.diffusion.eta import EtaFixed
from model.diffusion.process import DiffusionProcess, tabulate_time
from model.types import Obs, Sample

_LOG_PROB_MIN, _LOG_PROB_MAX = -5.0, 2.0  # element-wise bounds of the log-density, as published
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class PPODiffusion(DiffusionProcess, TunedChain):
    """Frozen base, tuned copy, critic and (DDIM) noise level.

    The ``state_dict`` has the published names: those of ``TunedChain`` and, for DDIM, ``eta.*``.

    Args:
        ft_denoising_steps: ``K``, how many of the last steps are tuned.
        min_sampling_denoising_std: floor of every step's deviation while exploring (base steps included).
        min_logprob_denoising_std: floor of the deviation inside the log-probability.
        eta: DDIM noise level; None is ``EtaFixed`` at 1. Without DDIM it is not used and not stored.
        learn_eta: train ``eta`` (DDIM only); otherwise it is frozen.
        reward_horizon: how many steps of the chunk count in log-probabilities; None: all.

    The others are explained in ``DiffusionProcess`` and ``TunedChain``.

    Raises:
        ValueError: naming the key that does not fit.
    """

    @passes_on(TunedChain._tune, "n_chain_steps")
    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module,
        horizon_steps: int,
        obs_dim: int,
        action_dim: int,
        denoising_steps: int,
        ft_denoising_steps: int,
        min_sampling_denoising_std: float = 0.1,
        min_logprob_denoising_std: float = 0.1,
        use_ddim: bool = False,
        ddim_steps: int | None = None,
        eta: nn.Module | None = None,
        learn_eta: bool = False,
        predict_epsilon: bool = True,
        denoised_clip_value: float | None = 1.0,
        randn_clip_value: float | None = 10.0,
        final_action_clip_value: float | None = None,
        eps_clip_value: float | None = None,
        reward_horizon: int | None = None,
        start_std: float = 1.0,
        **tuning: Any,
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
        self._check(ft_denoising_steps, learn_eta)
        self.ft_denoising_steps = ft_denoising_steps
        self.min_sampling_denoising_std = min_sampling_denoising_std
        self.min_logprob_denoising_std = min_logprob_denoising_std
        self.learn_eta = learn_eta
        self.reward_horizon = reward_horizon
        tabulate_time(actor, denoising_steps)
        self._tune(actor, critic, ft_denoising_steps, **tuning)
        if use_ddim:
            self.eta = (EtaFixed(base_eta=1.0) if eta is None else eta).requires_grad_(learn_eta)

    def _check(self, ft_denoising_steps: int, learn_eta: bool) -> None:
        if ft_denoising_steps < 1:
            raise ValueError(f"ft_denoising_steps: expected at least 1, found {ft_denoising_steps}")
        if ft_denoising_steps > self.denoising_steps:
            raise ValueError(
                f"ft_denoising_steps: expected at most denoising_steps = {self.denoising_steps}, "
                f"found {ft_denoising_steps}"
            )
        if ft_denoising_steps > self.n_steps:
            raise ValueError(
                f"ft_denoising_steps: expected at most ddim_steps = {self.n_steps}, found {ft_denoising_steps}"
            )
        if learn_eta and not self.use_ddim:
            raise ValueError("learn_eta: only DDIM has a noise level to learn; set use_ddim: True or learn_eta: False")

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_chain: bool = True,
    ) -> Sample:
        """Denoise one action chunk per row: base weights down to the last ``K`` steps, tuned weights from there.

        Args:
            obs: ``{"state": (B, To, Do)[, "rgb": (B, To, C, H, W)]}``; base and tuned copy encode images once each.
            deterministic: evaluate (DDPM deviation at least 1e-3 and 0 at the end; DDIM without noise) instead of
                explore.
            noise: ``(B, *noise_shape)`` standard normal numbers, the start first; None draws them from ``generator``.
            return_chain: also return ``chains (B, K + 1, Ta, Da)`` and, unless deterministic, ``log_probs (B, K)``,
                which are those of ``log_prob`` under the same weights.
        """
        return self._sample(self.actor_ft, obs, deterministic, noise, generator, return_chain)

    def _sample(
        self,
        last: nn.Module,
        obs: Obs,
        deterministic: bool,
        noise: Tensor | None,
        generator: torch.Generator | None,
        return_chain: bool,
    ) -> Sample:
        """``sample`` with ``last`` denoising the last ``K`` steps."""
        x, step_noise = self.prepare_noise(obs, noise, generator)
        eta = None if deterministic or not self.use_ddim else self.eta(obs)
        n_base = self.n_steps - self.ft_denoising_steps
        network, seen = self.network, encode_obs(self.network, obs) if n_base > 0 else obs
        chain, log_probs = [], []
        for i in range(self.n_steps):
            tuned = i >= n_base
            if i == n_base:
                network, seen = last, encode_obs(last, obs)
            mean, std = self.step_mean_std(network, x, i, seen, eta)
            noise_std = self.eval_std(std, i) if deterministic else std.clamp(min=self.min_sampling_denoising_std)
            if i == n_base:
                chain.append(x)
            x = self.finish(mean + noise_std * step_noise[:, i], i)
            if tuned and return_chain:
                chain.append(x)
                if not deterministic:
                    log_probs.append(self._log_density(x, mean, std))
        if not return_chain:
            return Sample(x)
        return Sample(x, torch.stack(chain, dim=1), torch.stack(log_probs, dim=1) if log_probs else None)

    def set_chain_steps(self, n_chain_steps: int) -> None:
        """``ft_denoising_steps``, and what each of them counts."""
        super().set_chain_steps(n_chain_steps)
        self.ft_denoising_steps = n_chain_steps

    def tune_last(self, n_chain_steps: int) -> None:
        """From now on only the last so many steps are tuned. The tuned weights as they are become the base: of *all* steps before, as
        published, so also of those that were frozen earlier."""
        self.network.load_state_dict(self.actor_ft.state_dict())
        self.set_chain_steps(n_chain_steps)

    @torch.no_grad()
    def base_chains(self, obs: Obs, generator: torch.Generator) -> Tensor:
        """What the base alone would do while exploring: ``chains (B, K + 1, Ta, Da)``."""
        return self._sample(self.network, obs, False, None, generator, True).chains

    def base_divergence(self, obs: Obs, x: Tensor, step: Tensor) -> Tensor:
        """KL divergence ``(B,)`` of the step after ``x (B, Ta, Da)`` under the tuned weights from that under the base's, mean over the
        counted steps and ``Da``; differentiable in the tuned ones. ``obs`` not encoded: each network has its own eyes."""
        position = step + (self.n_steps - self.ft_denoising_steps)
        eta = self.eta(obs) if self.use_ddim else None
        mean, std = self.step_mean_std(self.actor_ft, x, position, obs, eta)
        with torch.no_grad():
            base, _ = self.step_mean_std(self.network, x, position, obs, eta)
        distance = (mean - base) / std.clamp(min=self.min_logprob_denoising_std)
        return 0.5 * distance[:, : self.reward_horizon].square().mean(dim=(1, 2))

    def log_prob(self, obs: Obs, x: Tensor, x_next: Tensor, step: Tensor, reward_horizon: int | None = None) -> Tensor:
        """As in ``TunedChain``, differentiable in ``eta``, too; element-wise densities are clamped to [-5, 2], as published."""
        eta = self.eta(obs) if self.use_ddim else None
        position = step + (self.n_steps - self.ft_denoising_steps)
        mean, std = self.step_mean_std(self.actor_ft, x, position, obs, eta)
        return self._log_density(x_next, mean, std, reward_horizon)

    def _log_density(self, x: Tensor, mean: Tensor, std: Tensor, reward_horizon: int | None = None) -> Tensor:
        std = std.clamp(min=self.min_logprob_denoising_std)
        z = (x - mean) / std
        density = (z.square() * -0.5 - (std.log() + _HALF_LOG_2PI)).clamp(_LOG_PROB_MIN, _LOG_PROB_MAX)
        horizon = self.reward_horizon if reward_horizon is None else reward_horizon
        return density[:, :horizon].mean(dim=(1, 2))

    def entropy_proxy(self, obs: Obs) -> Tensor:
        """The mean noise level, 0-d: what an entropy bonus pushes up. Constant 1 for DDPM."""
        return self.eta(obs).mean() if self.use_ddim else torch.ones((), device=obs["state"].device)

    def eta_parameters(self) -> Iterator[nn.Parameter]:
        """What the noise level's optimiser trains; empty unless ``learn_eta``."""
        return self.eta.parameters() if self.learn_eta else iter(())
