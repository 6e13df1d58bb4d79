"""The policy that PPO fine-tunes: a frozen base for the first denoising steps, a tuned copy for the last ``K``.

DPPO (arXiv:2409.00588) treats each of the last ``K`` denoising steps as an action of a Markov chain inside the
environment's one:

``log p(x_{j+1} | x_j, obs) = log N(x_{j+1}; mean_j, max(std_j, min_logprob_denoising_std))``

Clip ranges widen along the chain, ``base + (coef - base) (exp(rate j / (K - 1)) - 1) / (exp(rate) - 1)``, and
advantages are discounted towards its noisy end, ``gamma^(K - 1 - j)``; ``j = 0`` is the noisiest tuned step. This
file knows tensors only; the loss is in ``agent``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from model.common.modules import load_pretrained
from model.common.vision import encode_obs
from model.diffusion.eta import EtaFixed
from model.diffusion.process import DiffusionProcess, tabulate_time
from model.types import Obs, Sample

_LOG_PROB_MIN, _LOG_PROB_MAX = -5.0, 2.0  # element-wise bounds of the log-density, as published
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class PPODiffusion(DiffusionProcess):
    """Frozen base, tuned copy, critic and (DDIM) noise level.

    The ``state_dict`` has the published names: ``network.*`` and ``actor.*`` (the same frozen tensors), ``actor_ft.*``,
    ``critic.*`` and, for DDIM, ``eta.*``.

    Args:
        actor: a fresh denoising network; it becomes the frozen base. ``load_base`` fills it.
        critic: observation to value ``(B,)``.
        ft_denoising_steps: ``K``, how many of the last steps are tuned.
        min_sampling_denoising_std: floor of every step's deviation while exploring (base steps included).
        min_logprob_denoising_std: floor of the deviation inside the log-probability.
        gamma_denoising: discount along the chain.
        clip_ploss_coef, clip_ploss_coef_base, clip_ploss_coef_rate: PPO clip range at the last and first tuned step,
            and how it grows.
        clip_vloss_coef, clip_advantage_lower_quantile, clip_advantage_upper_quantile, norm_adv: kept for the loss in
            ``agent``.
        eta: DDIM noise level; None is ``EtaFixed`` at 1. Without DDIM it is not used and not stored.
        learn_eta: train ``eta`` (DDIM only); otherwise it is frozen.
        reward_horizon: how many steps of the chunk count in log-probabilities; None: all.

    The others are explained in ``DiffusionProcess``.

    Raises:
        ValueError: naming the key that does not fit.
    """

    clip_ranges: Tensor
    denoising_discounts: Tensor

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
        gamma_denoising: float = 0.99,
        clip_ploss_coef: float = 0.01,
        clip_ploss_coef_base: float = 1e-3,
        clip_ploss_coef_rate: float = 3,
        clip_vloss_coef: float | None = None,
        clip_advantage_lower_quantile: float = 0,
        clip_advantage_upper_quantile: float = 1,
        norm_adv: bool = True,
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
        )
        self._check(ft_denoising_steps, learn_eta)
        self.ft_denoising_steps = ft_denoising_steps
        self.min_sampling_denoising_std = min_sampling_denoising_std
        self.min_logprob_denoising_std = min_logprob_denoising_std
        self.gamma_denoising = gamma_denoising
        self.clip_vloss_coef = clip_vloss_coef
        self.clip_advantage_lower_quantile = clip_advantage_lower_quantile
        self.clip_advantage_upper_quantile = clip_advantage_upper_quantile
        self.norm_adv = norm_adv
        self.learn_eta = learn_eta
        self.reward_horizon = reward_horizon
        tabulate_time(actor, denoising_steps)
        self.network = actor.requires_grad_(False)
        self.actor = self.network  # one module, two published names
        self.actor_ft = copy.deepcopy(actor).requires_grad_(True)
        self.critic = critic
        if use_ddim:
            self.eta = (EtaFixed(base_eta=1.0) if eta is None else eta).requires_grad_(learn_eta)
        ranges = _clip_ranges(ft_denoising_steps, clip_ploss_coef, clip_ploss_coef_base, clip_ploss_coef_rate)
        self.register_buffer("clip_ranges", ranges, persistent=False)
        discounts = gamma_denoising ** torch.arange(ft_denoising_steps - 1, -1, -1, dtype=torch.float64)
        self.register_buffer("denoising_discounts", discounts.float(), persistent=False)
        self.network.eval()

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

    @property
    def n_chain_steps(self) -> int:
        """``K``."""
        return self.ft_denoising_steps

    def train(self, mode: bool = True) -> PPODiffusion:
        """Like ``nn.Module.train``, but the frozen base stays in evaluation mode (no dropout)."""
        super().train(mode)
        self.network.eval()
        return self

    def load_base(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load pre-trained weights (``network.*``) into the base and, in place, into the tuned copy.

        Raises:
            StateDictError: a key is missing, unexpected or of another shape.
        """
        load_pretrained(self.network, state_dict)
        self.actor_ft.load_state_dict(self.network.state_dict(), strict=True)

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
        x, step_noise = self.prepare_noise(obs, noise, generator)
        eta = None if deterministic or not self.use_ddim else self.eta(obs)
        n_base = self.n_steps - self.ft_denoising_steps
        network, seen = self.network, encode_obs(self.network, obs) if n_base > 0 else obs
        chain, log_probs = [], []
        for i in range(self.n_steps):
            tuned = i >= n_base
            if i == n_base:
                network, seen = self.actor_ft, self.encode(obs)
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

    def encode(self, obs: Obs) -> Obs:
        """``obs`` as the tuned copy sees it, differentiable: images replaced by features; state alone stays as it is.

        ``log_prob`` and ``chain_log_probs`` take either; who asks for several steps of one observation encodes it once.
        """
        return encode_obs(self.actor_ft, obs)

    def log_prob(self, obs: Obs, x: Tensor, x_next: Tensor, step: Tensor, reward_horizon: int | None = None) -> Tensor:
        """Log-probability of single chain steps under the tuned weights, differentiable in them (and in ``eta``).

        Args:
            obs: rows match those of ``x``; encoded or not.
            x, x_next: ``(B, Ta, Da)``, ``chains[:, j]`` and ``chains[:, j + 1]``.
            step: ``(B,)`` int64, the position ``j`` in ``0 .. K - 1``, 0 the noisiest.
            reward_horizon: how many chunk steps count; None: the one given to the constructor.

        Returns:
            ``(B,)``: element-wise normal log-densities, clamped to [-5, 2], averaged over the counted steps and ``Da``.
        """
        eta = self.eta(obs) if self.use_ddim else None
        position = step + (self.n_steps - self.ft_denoising_steps)
        mean, std = self.step_mean_std(self.actor_ft, x, position, obs, eta)
        return self._log_density(x_next, mean, std, reward_horizon)

    def chain_log_probs(self, obs: Obs, chains: Tensor, reward_horizon: int | None = None) -> Tensor:
        """``log_prob`` of all ``K`` steps of ``chains (B, K + 1, Ta, Da)``, as ``(B, K)``."""
        k = self.ft_denoising_steps
        obs = self.encode(obs)
        rows = {key: value.repeat_interleave(k, dim=0) for key, value in obs.items()}
        step = torch.arange(k, device=chains.device).repeat(chains.shape[0])
        x, x_next = chains[:, :-1].flatten(0, 1), chains[:, 1:].flatten(0, 1)
        return self.log_prob(rows, x, x_next, step, reward_horizon).view(-1, k)

    def _log_density(self, x: Tensor, mean: Tensor, std: Tensor, reward_horizon: int | None = None) -> Tensor:
        std = std.clamp(min=self.min_logprob_denoising_std)
        z = (x - mean) / std
        density = (z.square() * -0.5 - (std.log() + _HALF_LOG_2PI)).clamp(_LOG_PROB_MIN, _LOG_PROB_MAX)
        horizon = self.reward_horizon if reward_horizon is None else reward_horizon
        return density[:, :horizon].mean(dim=(1, 2))

    def value(self, obs: Obs) -> Tensor:
        """The critic's value, ``(B,)``."""
        return self.critic(obs)

    def clip_range(self, step: Tensor) -> Tensor:
        """PPO's clip range at chain positions ``step (B,)``, as ``(B,)``."""
        return self.clip_ranges[step]

    def denoising_discount(self, step: Tensor) -> Tensor:
        """``gamma_denoising^(K - 1 - j)`` at chain positions ``step (B,)``, as ``(B,)``."""
        return self.denoising_discounts[step]

    def entropy_proxy(self, obs: Obs) -> Tensor:
        """The mean noise level, 0-d: what an entropy bonus pushes up. Constant 1 for DDPM."""
        return self.eta(obs).mean() if self.use_ddim else torch.ones((), device=obs["state"].device)

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What the actor's optimiser trains: the tuned copy."""
        return self.actor_ft.parameters()

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What the critic's optimiser trains."""
        return self.critic.parameters()

    def eta_parameters(self) -> Iterator[nn.Parameter]:
        """What the noise level's optimiser trains; empty unless ``learn_eta``."""
        return self.eta.parameters() if self.learn_eta else iter(())


def _clip_ranges(k: int, coef: float, base: float, rate: float) -> Tensor:
    """``(K,)``, exponential from ``base`` to ``coef``; linear where ``rate`` is 0; just ``coef`` for ``K = 1``."""
    if k == 1:
        return torch.tensor([coef], dtype=torch.float32)
    fraction = torch.linspace(0, 1, k, dtype=torch.float64)
    if rate != 0:
        fraction = torch.expm1(rate * fraction) / math.expm1(rate)
    return (base + (coef - base) * fraction).float()
