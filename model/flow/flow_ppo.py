"""The flow policy that PPO fine-tunes: noise is injected into every Euler step, which makes the flow a Markov chain (ReinFlow,
arXiv:2505.22094).

``x_{k+1} ~ N(x_k + u(x_k, t_k, obs) / K, diag(sigma(t_k, obs)^2))``, ``t_k = k / K`` in sampling and in scoring, ``k = 0 .. K - 1``

To PPO every step is an action of its own, as in ``PPODiffusion``. Conventions, where the published code differs:

* A step's log-probability is the exact normal log-density, averaged over ``(Ta, Da)`` as everywhere in this project: never clamped, never
  divided by the chain's length (ReinFlow clips one ratio per chunk, of the whole chain's density to the power ``1 / ((K + 1) Ta Da)``).
* The chain is not bounded anywhere, so that its densities are exact and no gradient is lost where an action saturates. What is executed
  is the chain's end within [-1, 1].
* The start ``x_0`` has the same density under every policy, and is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.common.gaussian import GaussianModel
from model.common.mlp import MLP
from model.common.modules import passes_on
from model.common.tuned_chain import TunedChain
from model.common.vision import encode_obs
from model.flow.process import FlowProcess, bounded
from model.types import Obs, Sample


class NoiseNet(nn.Module):
    """How much noise each step injects: ``(t, state)`` to deviations ``(B, Ta, Da)`` within ``[min_std, max_std]``.

    ``log sigma = lo + (hi - lo) (tanh(z) + 1) / 2``; at first ``z = 0``, the bounds' geometric mean, whatever the observation. Of an image
    policy's observation it sees the state.

    Args:
        cond_dim: ``To * Do``.
        horizon_steps: ``Ta``. action_dim: ``Da``.
        mlp_dims: hidden widths.
        min_std, max_std: the bounds; equal ones are a constant.

    Raises:
        ValueError: bounds that are none.
    """

    def __init__(
        self,
        cond_dim: int,
        horizon_steps: int,
        action_dim: int,
        mlp_dims: Sequence[int] = (64, 64),
        min_std: float = 0.08,
        max_std: float = 0.16,
    ) -> None:
        super().__init__()
        if not 0 < min_std <= max_std:
            raise ValueError(f"noise: expected 0 < min_std <= max_std, found {min_std} and {max_std}")
        self.shape, self.bounds = (horizon_steps, action_dim), (math.log(min_std), math.log(max_std))
        self.mlp = MLP([1 + cond_dim, *mlp_dims, horizon_steps * action_dim], activation_type="Tanh")
        nn.init.zeros_(self.mlp.moduleList[-1].linear_1.weight)
        nn.init.zeros_(self.mlp.moduleList[-1].linear_1.bias)

    def forward(self, obs: Obs, t: Tensor) -> Tensor:
        """``obs["state"] (B, To, Do)``, ``t (B,)`` to ``(B, Ta, Da)``."""
        z = self.mlp(torch.cat([t[:, None], obs["state"].flatten(1)], dim=1)).view(-1, *self.shape)
        low, high = self.bounds
        return torch.exp(low + (high - low) * (torch.tanh(z) + 1) / 2)


class PPOFlow(FlowProcess, TunedChain):
    """Frozen base, tuned copy, critic and noise; all ``K`` sampling steps are tuned.

    The ``state_dict`` has the names of ``TunedChain`` and ``noise.*``.

    Args:
        noise: a ``NoiseNet``; it learns with the actor and is silent in evaluation.
        average_velocity: of the base: False for ``FlowModel``, True for ``ShortcutModel`` and ``MeanFlowModel``.
        reward_horizon: how many steps of the chunk count in log-probabilities; None: all.

    The others are explained in ``FlowProcess`` and ``TunedChain``.

    Raises:
        ValueError: naming the key that does not fit.
    """

    @passes_on(TunedChain._tune, "n_chain_steps")
    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module,
        noise: nn.Module,
        horizon_steps: int,
        obs_dim: int,
        action_dim: int,
        sampling_steps: int,
        average_velocity: bool,
        gamma_denoising: float = 1.0,
        clip_ploss_coef_base: float = 0.01,
        reward_horizon: int | None = None,
        **tuning: Any,
    ) -> None:
        super().__init__(horizon_steps, obs_dim, action_dim, sampling_steps, average_velocity)
        self.n_draws, self.reward_horizon = sampling_steps + 1, reward_horizon
        tuning |= {"gamma_denoising": gamma_denoising, "clip_ploss_coef_base": clip_ploss_coef_base}
        self._tune(actor, critic, sampling_steps, **tuning)
        self.noise = noise

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_chain: bool = True,
    ) -> Sample:
        """One action chunk per row.

        Args:
            obs: ``{"state": (B, To, Do)[, "rgb": (B, To, C, H, W)]}``; images are encoded once.
            deterministic: inject nothing; the start is random all the same.
            noise: ``(B, *noise_shape)`` standard normal numbers, the start first; None draws them from ``generator``.
            return_chain: also return ``chains (B, K + 1, Ta, Da)`` and, unless deterministic, ``log_probs (B, K)``,
                which are those of ``log_prob`` under the same weights.
        """
        return self._sample(self.actor_ft, obs, deterministic, noise, generator, return_chain)

    def _sample(
        self,
        network: nn.Module,
        obs: Obs,
        deterministic: bool,
        noise: Tensor | None,
        generator: torch.Generator | None,
        return_chain: bool,
    ) -> Sample:
        """``sample`` along the velocities of ``network``."""
        given = self.given_noise(obs, noise, generator)
        x, obs = given[:, 0], encode_obs(network, obs)
        chain, log_probs = [x], []
        for k in range(self.sampling_steps):
            x = self.euler(network, x, k, obs)
            if not deterministic:
                mean, std = x, self.noise(obs, self.start_times(x, k))
                x = mean + std * given[:, k + 1]
                log_probs.append(self._log_density(x, mean, std))
            chain.append(x)
        if not return_chain:
            return Sample(bounded(x))
        return Sample(bounded(x), torch.stack(chain, dim=1), torch.stack(log_probs, dim=1) if log_probs else None)

    @torch.no_grad()
    def base_chains(self, obs: Obs, generator: torch.Generator) -> Tensor:
        """Where the base's velocities lead under the same injected noise: ``chains (B, K + 1, Ta, Da)``."""
        return self._sample(self.network, obs, False, None, generator, True).chains

    def base_divergence(self, obs: Obs, x: Tensor, step: Tensor) -> Tensor:
        """KL divergence ``(B,)`` of the step after ``x (B, Ta, Da)`` under the tuned velocities from that under the base's, both with
        the tuned noise; mean over the counted steps and ``Da``. ``obs`` not encoded: each network has its own eyes."""
        mean, std = self.euler(self.actor_ft, x, step, obs), self.noise(obs, self.start_times(x, step))
        with torch.no_grad():
            base = self.euler(self.network, x, step, obs)
        return 0.5 * ((mean - base) / std)[:, : self.reward_horizon].square().mean(dim=(1, 2))

    def log_prob(self, obs: Obs, x: Tensor, x_next: Tensor, step: Tensor, reward_horizon: int | None = None) -> Tensor:
        """As in ``TunedChain``, differentiable in ``noise``, too; see the module's text for what it is exactly."""
        mean, std = self.euler(self.actor_ft, x, step, obs), self.noise(obs, self.start_times(x, step))
        return self._log_density(x_next, mean, std, reward_horizon)

    def _log_density(self, x: Tensor, mean: Tensor, std: Tensor, reward_horizon: int | None = None) -> Tensor:
        horizon = self.reward_horizon if reward_horizon is None else reward_horizon
        return GaussianModel.log_density(x[:, :horizon], mean[:, :horizon], std[:, :horizon])

    def entropy_proxy(self, obs: Obs) -> Tensor:
        """Mean entropy per step and dimension (nats), 0-d: what an entropy bonus pushes up."""
        state = obs["state"]
        stds = [self.noise(obs, self.start_times(state, k)) for k in range(self.sampling_steps)]
        return GaussianModel.entropy(state, torch.stack(stds))

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What the actor's optimiser trains: the tuned copy and the noise."""
        return itertools.chain(self.actor_ft.parameters(), self.noise.parameters())
