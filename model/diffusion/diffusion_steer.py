"""A diffusion policy that is steered rather than changed: its weights stay, and PPO learns from which noise it starts.

With a deterministic sampler (DDIM without noise) an action chunk is a function of the observation and of the start ``x_K``.
DPPO (arXiv:2409.00588) leaves ``x_K ~ N(0, I)`` to chance and adds noise to later steps to explore. Here ``x_K ~ N(mean(obs),
std)`` is the action, and exploring is what the base does anyway: at the beginning (mean 0, deviation 1) it succeeds exactly as
often, and every chunk it tries is one that the demonstrations allow for. Choosing the start by reinforcement learning is "diffusion
steering" (DSRL, Wagenmaker et al. 2025, arXiv:2506.15799, there off-policy); PPO needs no more of it than one density.

A start that is the same for several steps of the chunk has fewer dimensions to try and moves the hand further: noise that is
drawn for each step mostly cancels over a chunk, and what a chunk did is easier to say of few numbers than of many.

What steering cannot do is act in a way that no start leads to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.common.gaussian import HALF_LOG_2PI
from model.common.modules import passes_on
from model.common.one_step import OneStep, chain_of
from model.diffusion.steered import Steered
from model.types import Obs, Sample


class SteeredDiffusion(OneStep, Steered):
    """Frozen denoiser, the distribution of its start, and a critic; to PPO a chain of one step, ``K = 1``. Images are encoded once per rollout:
    learning from them costs what learning from states does.

    The ``state_dict`` is ``network.*`` (frozen), ``steer.*`` and ``critic.*``.

    Args:
        actor: a fresh denoiser; ``load_base`` fills it.
        steer: observation to mean ``(B, Ts, Da)`` and deviation (broadcastable) of the start; its mean is set to 0. Its
            ``horizon_steps`` is ``Ts``, see ``Steered``.
        critic: observation to value ``(B,)``.
        clip_ploss_coef: PPO's clip range. The density is that of the whole start, a sum over ``(Ts, Da)``, not a mean.

    The others are explained in ``OneStep`` and ``Steered``.

    Raises:
        ValueError: naming the key that does not fit.
    """

    @passes_on(Steered.__init__, "actor", "start_steps")
    def __init__(
        self,
        actor: nn.Module,
        steer: nn.Module,
        critic: nn.Module,
        clip_ploss_coef: float = 0.2,
        clip_vloss_coef: float | None = None,
        clip_advantage_lower_quantile: float = 0,
        clip_advantage_upper_quantile: float = 1,
        norm_adv: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(actor, steer.horizon_steps, **settings)
        self.steer, self.critic = steer, critic
        _zero_last_layer(steer)
        self._one_step(
            clip_ploss_coef, clip_vloss_coef, clip_advantage_lower_quantile, clip_advantage_upper_quantile, norm_adv
        )

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_chain: bool = True,
    ) -> Sample:
        """One action chunk per row, from the mean start or, unless ``deterministic``, from a draw.

        Args:
            obs: ``{"state": (B, To, Do)[, "rgb": (B, To, C, H, W)]}``; images are encoded once.
            noise: ``(B, 1, Ta, Da)`` standard normal numbers; None draws them from ``generator``.
            return_chain: also return ``chains (B, 2, Ta, Da)``, which end in the *start*, and, unless deterministic, ``log_probs (B, 1)``.
        """
        obs = self.encode(obs)
        mean, std = self.steer(self.seen(obs))
        z = mean if deterministic else mean + std * self.once(self.prepare_noise(obs, noise, generator)[0])
        x = self.denoise(obs, z)
        if not return_chain:
            return Sample(x)
        return Sample(x, chain_of(self.whole(z)), None if deterministic else _log_density(z, mean, std)[:, None])

    def log_prob(self, obs: Obs, x: Tensor, x_next: Tensor, step: Tensor) -> Tensor:
        """Log-probability ``(B,)`` of the starts ``x_next (B, Ta, Da)``, differentiable. ``x`` and ``step`` say nothing where the
        chain has one step."""
        return _log_density(self.once(x_next), *self.steer(self.seen(obs)))

    def chain_log_probs(self, obs: Obs, chains: Tensor) -> Tensor:
        """``log_prob`` of ``chains (B, 2, Ta, Da)``, as ``(B, 1)``."""
        return self.log_prob(obs, chains[:, 0], chains[:, 1], torch.zeros(len(chains)))[:, None]

    @torch.no_grad()
    def base_chains(self, obs: Obs, generator: torch.Generator) -> Tensor:
        """What the base would do: ``chains (B, 2, Ta, Da)`` from nothing to a standard normal start."""
        start = self.prepare_noise(obs, None, generator)[0]
        return chain_of(start)

    def base_divergence(self, obs: Obs, x: Tensor, step: Tensor) -> Tensor:
        """KL divergence ``(B,)`` of the start's distribution from the standard normal one, differentiable."""
        mean, std = self.steer(self.seen(obs))
        return (0.5 * (mean.square() + std.square() - 1) - std.log()).sum(dim=(1, 2))

    def value(self, obs: Obs) -> Tensor:
        """The critic's value, ``(B,)``."""
        return self.critic(self.seen(obs))

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What the actor's optimiser trains: the start's distribution."""
        return self.steer.parameters()


def _log_density(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Of starts ``z (B, Ts, Da)``, ``(B,)``."""
    u = (z - mean) / std
    return (-0.5 * u.square() - std.log() - HALF_LOG_2PI).sum(dim=(1, 2))


def _zero_last_layer(network: nn.Module) -> None:
    """The mean starts at 0: the base as it is."""
    last = [module for module in network.mlp_mean.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
