"""The Gaussian policy that PPO trains, from a pre-trained one or from nothing.

To the loop it is a chain of one step, ``K = 1``: from nothing (zeros) to the action chunk. See
``agent/finetune/algorithm.py`` for what PPO asks of a policy; the loss is in ``agent``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from model.common.gaussian import GaussianModel
from model.common.modules import load_pretrained
from model.common.one_step import OneStep, chain_of
from model.common.vision import encode_obs
from model.types import Obs, Sample


class PPO_Gaussian(OneStep, GaussianModel):  # noqa: N801 (published name)
    """Tuned network, frozen base and critic.

    The ``state_dict`` has the published names: ``network.*`` and ``actor_ft.*`` (the same, tuned tensors), ``actor.*``
    (the frozen base) and ``critic.*``.

    Log-probabilities are means over ``(Ta, Da)``, as published. They are not clamped: the published bound of 2 stops all
    learning where the deviation falls below 0.033. Actions are not bounded either: that the world clips them is part of
    the world.

    Args:
        actor: a fresh network, as ``GaussianModel`` wants it. ``load_base`` fills it; without, training starts from nothing.
        critic: observation to value ``(B,)``.

    The others are explained in ``OneStep`` and ``GaussianModel``.
    """

    keeps_base = True  # beside the tuned network, as published

    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module,
        horizon_steps: int,
        clip_ploss_coef: float = 0.1,
        clip_vloss_coef: float | None = None,
        clip_advantage_lower_quantile: float = 0,
        clip_advantage_upper_quantile: float = 1,
        norm_adv: bool = True,
        randn_clip_value: float | None = 10.0,
    ) -> None:
        super().__init__(actor, horizon_steps, randn_clip_value)
        self.actor_ft = self.network  # one module, two published names
        if self.keeps_base:
            self.actor = copy.deepcopy(actor).requires_grad_(False)
        self.critic = critic
        self._one_step(
            clip_ploss_coef, clip_vloss_coef, clip_advantage_lower_quantile, clip_advantage_upper_quantile, norm_adv
        )

    def load_base(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load pre-trained weights (``network.*``) into the tuned network, in place, and into the frozen base.

        A base of fixed deviation may be tuned with a learned one (``learn_fixed_std``): ``logvar`` then starts at it.

        Raises:
            StateDictError: a key is missing, unexpected or of another shape.
        """
        own = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        start = {key: value for key, value in own.items() if key == "network.logvar"}
        bounds = {key: value for key, value in own.items() if key.startswith("network.logvar_m")}
        load_pretrained(self.network, {**start, **state_dict, **bounds})
        if self.keeps_base:
            self.actor.load_state_dict(self.network.state_dict(), strict=True)

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_chain: bool = True,
    ) -> Sample:
        """As ``GaussianModel.sample``; with ``return_chain`` also ``chains (B, 2, Ta, Da)`` and, unless deterministic,
        ``log_probs (B, 1)``."""
        x, *distribution = self.draw(obs, deterministic, noise, generator)
        if not return_chain:
            return Sample(x)
        return Sample(x, chain_of(x), None if deterministic else self.log_density(x, *distribution)[:, None])

    def encode(self, obs: Obs) -> Obs:
        """``obs`` as the tuned network sees it, differentiable: images replaced by features; state alone stays as it is."""
        return encode_obs(self.network, obs)

    def log_prob(self, obs: Obs, x: Tensor, x_next: Tensor, step: Tensor) -> Tensor:
        """Log-probability ``(B,)`` of the chunks ``x_next (B, Ta, Da)``, differentiable. ``x`` and ``step`` say nothing
        where the chain has one step."""
        return self.log_density(x_next, *self.network(obs))

    def chain_log_probs(self, obs: Obs, chains: Tensor) -> Tensor:
        """``log_prob`` of ``chains (B, 2, Ta, Da)``, as ``(B, 1)``."""
        return self.log_density(chains[:, 1], *self.network(obs))[:, None]

    @torch.no_grad()
    def base_chains(self, obs: Obs, generator: torch.Generator) -> Tensor:
        """What the frozen base would do while exploring: ``chains (B, 2, Ta, Da)``."""
        mean, std = self.actor(obs)
        x = mean + std * self.bounded(self.noise(mean, None, generator)[:, 0])
        return chain_of(x)

    def base_divergence(self, obs: Obs, x: Tensor, step: Tensor) -> Tensor:
        """KL divergence ``(B,)`` of the tuned distribution from the frozen base's, mean over ``(Ta, Da)``; differentiable in the former.
        ``x`` and ``step`` say nothing where the chain has one step."""
        mean, std = self.network(obs)
        with torch.no_grad():
            base, base_std = self.actor(obs)
        distance = (std.square() + (mean - base).square()) / (2 * base_std.square())
        return (base_std.log() - std.log() + distance - 0.5).mean(dim=(1, 2))

    def value(self, obs: Obs) -> Tensor:
        """The critic's value, ``(B,)``."""
        return self.critic(obs)

    def entropy_proxy(self, obs: Obs) -> Tensor:
        """Mean entropy per dimension, 0-d: what an entropy bonus pushes up."""
        return self.entropy(*self.network(obs))

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What the actor's optimiser trains."""
        return self.network.parameters()
