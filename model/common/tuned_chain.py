"""What the policies share that PPO fine-tunes step by step: a frozen base, a tuned copy of it, a critic, and what each of the chain's
``K`` steps counts.

Clip ranges widen along the chain, ``base + (coef - base) (exp(rate j / (K - 1)) - 1) / (exp(rate) - 1)``, and
advantages are discounted towards its noisy end, ``gamma^(K - 1 - j)``; ``j = 0`` is the noisiest tuned step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from model.common.modules import load_pretrained
from model.common.vision import encode_obs
from model.types import Obs


class TunedChain(nn.Module):
    """Base class; who inherits calls ``_tune`` and has ``log_prob``.

    The ``state_dict`` has the published names: ``network.*`` and ``actor.*`` (the same frozen tensors), ``actor_ft.*`` and
    ``critic.*``.

    Args (of the constructors):
        actor: a fresh network; it becomes the frozen base. ``load_base`` fills it.
        critic: observation to value ``(B,)``.
        gamma_denoising: discount along the chain.
        clip_ploss_coef, clip_ploss_coef_base, clip_ploss_coef_rate: PPO clip range at the last and first tuned step,
            and how it grows.
        clip_vloss_coef, clip_advantage_lower_quantile, clip_advantage_upper_quantile, norm_adv: kept for the loss in
            ``agent``.
    """

    n_chain_steps: int  # K
    clip_ranges: Tensor
    denoising_discounts: Tensor

    def _tune(
        self,
        actor: nn.Module,
        critic: nn.Module,
        n_chain_steps: int,
        gamma_denoising: float = 0.99,
        clip_ploss_coef: float = 0.01,
        clip_ploss_coef_base: float = 1e-3,
        clip_ploss_coef_rate: float = 3,
        clip_vloss_coef: float | None = None,
        clip_advantage_lower_quantile: float = 0,
        clip_advantage_upper_quantile: float = 1,
        norm_adv: bool = True,
    ) -> None:
        self.gamma_denoising = gamma_denoising
        self.clip_vloss_coef, self.norm_adv = clip_vloss_coef, norm_adv
        self.clip_advantage_lower_quantile = clip_advantage_lower_quantile
        self.clip_advantage_upper_quantile = clip_advantage_upper_quantile
        self.network = actor.requires_grad_(False)
        self.actor = self.network  # one module, two published names
        self.actor_ft = copy.deepcopy(actor).requires_grad_(True)
        self.critic = critic
        self._clip = (clip_ploss_coef, clip_ploss_coef_base, clip_ploss_coef_rate)
        for name in ("clip_ranges", "denoising_discounts"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.set_chain_steps(n_chain_steps)
        self.network.eval()

    def set_chain_steps(self, n_chain_steps: int) -> None:
        """``K``, and what each of the steps counts."""
        self.n_chain_steps, device = n_chain_steps, self.clip_ranges.device
        self.clip_ranges = _clip_ranges(n_chain_steps, *self._clip).to(device)
        discounts = self.gamma_denoising ** torch.arange(n_chain_steps - 1, -1, -1, dtype=torch.float64)
        self.denoising_discounts = discounts.float().to(device)

    def train(self, mode: bool = True) -> TunedChain:
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

    def encode(self, obs: Obs) -> Obs:
        """``obs`` as the tuned copy sees it, differentiable: images replaced by features; state alone stays as it is.

        ``log_prob`` and ``chain_log_probs`` take either; who asks for several steps of one observation encodes it once.
        """
        return encode_obs(self.actor_ft, obs)

    def log_prob(self, obs: Obs, x: Tensor, x_next: Tensor, step: Tensor, reward_horizon: int | None = None) -> Tensor:
        """Log-probability of single chain steps under the tuned weights, differentiable.

        Args:
            obs: rows match those of ``x``; encoded or not.
            x, x_next: ``(B, Ta, Da)``, ``chains[:, j]`` and ``chains[:, j + 1]``.
            step: ``(B,)`` int64, the position ``j`` in ``0 .. K - 1``, 0 the noisiest.
            reward_horizon: how many chunk steps count; None: the one given to the constructor.

        Returns:
            ``(B,)``: element-wise log-densities, averaged over the counted steps and ``Da``.
        """
        raise NotImplementedError

    def chain_log_probs(self, obs: Obs, chains: Tensor, reward_horizon: int | None = None) -> Tensor:
        """``log_prob`` of all ``K`` steps of ``chains (B, K + 1, Ta, Da)``, as ``(B, K)``."""
        k = self.n_chain_steps
        obs = self.encode(obs)
        rows = {key: value.repeat_interleave(k, dim=0) for key, value in obs.items()}
        step = torch.arange(k, device=chains.device).repeat(chains.shape[0])
        x, x_next = chains[:, :-1].flatten(0, 1), chains[:, 1:].flatten(0, 1)
        return self.log_prob(rows, x, x_next, step, reward_horizon).view(-1, k)

    def value(self, obs: Obs) -> Tensor:
        """The critic's value, ``(B,)``."""
        return self.critic(obs)

    def clip_range(self, step: Tensor) -> Tensor:
        """PPO's clip range at chain positions ``step (B,)``, as ``(B,)``."""
        return self.clip_ranges[step]

    def denoising_discount(self, step: Tensor) -> Tensor:
        """``gamma_denoising^(K - 1 - j)`` at chain positions ``step (B,)``, as ``(B,)``."""
        return self.denoising_discounts[step]

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What the actor's optimiser trains: the tuned copy."""
        return self.actor_ft.parameters()

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What the critic's optimiser trains."""
        return self.critic.parameters()

    def eta_parameters(self) -> Iterator[nn.Parameter]:
        """What the noise level's own optimiser trains, if it has one."""
        return iter(())


def _clip_ranges(k: int, coef: float, base: float, rate: float) -> Tensor:
    """``(K,)``, exponential from ``base`` to ``coef``; linear where ``rate`` is 0; just ``coef`` for ``K = 1``."""
    if k == 1:
        return torch.tensor([coef], dtype=torch.float32)
    fraction = torch.linspace(0, 1, k, dtype=torch.float64)
    if rate != 0:
        fraction = torch.expm1(rate * fraction) / math.expm1(rate)
    return (base + (coef - base) * fraction).float()
