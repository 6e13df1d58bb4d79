"""The diffusion policy that PPO tunes by the likelihood of whole action chunks (DPPO's "exact" comparison).

To the loop it is a chain of one step, ``K = 1``, from what the likelihood's probes are made of to the action chunk, so that a chunk is scored with
the same probes whenever it is scored, and the importance ratio before an update is 1. (Published: new ones each time, and a ratio that is noise.)

Steps ``t < ft_denoising_steps`` are those of the tuned network, in value and divergence alike (published: the divergence is the base's, always).
The likelihood is that of the networks' probability flow, in nats per number as everywhere in this project (published: bits, of which PPO's ``exp``
is no ratio), and never clamped. Chunks are sampled as ``PPODiffusion`` samples them, with a floor under each step's noise that the flow knows
nothing of: a chunk's likelihood is a model of how it was made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.common.modules import given_noise, passes_on
from model.common.tuned_chain import TunedChain
from model.common.vision import encode_obs
from model.diffusion.diffusion_ppo import PPODiffusion
from model.diffusion.exact_likelihood import ExactLikelihood
from model.types import Obs, Sample


class PPOExactDiffusion(PPODiffusion):
    """Frozen base, tuned copy, critic; the ``state_dict`` is that of ``PPODiffusion`` without DDIM.

    Args:
        clip_ploss_coef: PPO's clip range.
        sde_method, sde_step_size, sde_rtol, sde_atol: how the flow is integrated; see ``ExactLikelihood``.
        sde_hutchinson_type, sde_num_epsilon: what the probes of the divergence are, and how many.

    The others are explained in ``PPODiffusion``.

    Raises:
        ValueError: naming the key that does not fit.
    """

    base_divergence = None  # of single steps, which are no actions here

    @passes_on(
        PPODiffusion.__init__,
        *(
            "min_logprob_denoising_std",
            "use_ddim",
            "ddim_steps",
            "eta",
            "learn_eta",
            "eps_clip_value",
            "reward_horizon",
            "start_std",
        ),
        *("gamma_denoising", "clip_ploss_coef_base", "clip_ploss_coef_rate"),
    )
    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module,
        clip_ploss_coef: float = 0.01,
        sde_method: str = "midpoint",
        sde_step_size: float = 0.1,
        sde_rtol: float = 1e-4,
        sde_atol: float = 1e-4,
        sde_hutchinson_type: str = "Rademacher",
        sde_num_epsilon: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(actor, critic, clip_ploss_coef=clip_ploss_coef, **settings)
        self.likelihood = ExactLikelihood(
            self.schedule,
            self.horizon_steps * self.action_dim,
            sde_method,
            sde_step_size,
            sde_rtol,
            sde_atol,
            sde_hutchinson_type,
            sde_num_epsilon,
        )

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """``(n_steps + 2, Ta, Da)``: as ``PPODiffusion``, and at the end what the probes are made of."""
        return (self.n_steps + 2, self.horizon_steps, self.action_dim)

    def set_chain_steps(self, n_chain_steps: int) -> None:
        """So many denoising steps are tuned; the chain has one step, whatever that number is."""
        self.ft_denoising_steps = n_chain_steps
        TunedChain.set_chain_steps(self, 1)

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_chain: bool = True,
    ) -> Sample:
        """As ``PPODiffusion.sample``, but for ``chains (B, 2, Ta, Da)`` and ``log_probs (B, 1)``."""
        chains = self._chains(self.actor_ft, obs, deterministic, noise, generator)
        if not return_chain:
            return Sample(chains[:, 1])
        return Sample(chains[:, 1], chains, None if deterministic else self.chain_log_probs(obs, chains))

    def _chains(
        self, last: nn.Module, obs: Obs, deterministic: bool, noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """What the probes are made of, and the chunk that ``last`` denoises in the end: ``(B, 2, Ta, Da)``."""
        noise = given_noise(obs["state"], self.noise_shape, noise, generator)
        chunk = self._sample(last, obs, deterministic, noise, None, return_chain=False).trajectories
        return torch.stack([noise[:, -1], chunk], dim=1)

    def encode(self, obs: Obs) -> Obs:
        """``obs`` as it is: base and tuned network have eyes of their own, and look once per likelihood."""
        return obs

    def log_prob(self, obs: Obs, x: Tensor, x_next: Tensor, step: Tensor, reward_horizon: int | None = None) -> Tensor:
        """Log-density ``(B,)`` of the chunks ``x_next (B, Ta, Da)``, nats per number, differentiable in the tuned weights.

        Args:
            obs: of the chunks' rows, not encoded.
            x: what their probes are made of.
            step, reward_horizon: say nothing; all of a chunk counts.
        """
        return self._log_density(self.actor_ft, obs, x, x_next)

    def _log_density(self, last: nn.Module, obs: Obs, x: Tensor, x_next: Tensor) -> Tensor:
        """``log_prob`` where ``last`` is the network of the tuned steps."""
        networks = [last, self.network]
        seen = [encode_obs(network, obs) for network in networks]

        def score(at: Tensor, t: int) -> Tensor:
            base = t >= self.ft_denoising_steps
            output = networks[base](at, at.new_full((len(at),), t, dtype=torch.long), seen[base])
            std, fading = self.schedule.sqrt_one_minus_alphas_cumprod[t], self.schedule.sqrt_alphas_cumprod[t]
            return output / std if self.predict_epsilon else (at - fading * output) / std.square()

        return self.likelihood(x_next, x, score)

    @torch.no_grad()
    def base_chains(self, obs: Obs, generator: torch.Generator) -> Tensor:
        """What the base alone would do while exploring: ``chains (B, 2, Ta, Da)``."""
        return self._chains(self.network, obs, False, None, generator)
