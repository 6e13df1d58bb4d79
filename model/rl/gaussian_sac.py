"""Soft actor-critic (arXiv:1812.05905): a squashed Gaussian policy and a double critic."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from model.diffusion.actor_critic import frozen_copy, smallest
from model.rl.squashed import SquashedGaussian
from model.types import Obs


class SAC_Gaussian(SquashedGaussian):  # noqa: N801 (published name)
    """Keys ``network.*``, ``critic.*`` and ``target_critic.*``.

    Args:
        critic: a double critic of an observation and a chunk.

    The others are explained in ``SquashedGaussian``.
    """

    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module,
        horizon_steps: int,
        tanh_output: bool = True,
        randn_clip_value: float | None = 10.0,
    ) -> None:
        super().__init__(actor, horizon_steps, tanh_output, randn_clip_value)
        self.critic, self.target_critic = critic, frozen_copy(critic)

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What the critic's optimiser trains."""
        return self.critic.parameters()

    def values(self, obs: Obs, actions: Tensor) -> tuple[Tensor, ...]:
        """Every critic's, ``(B,)`` each: what regresses."""
        return self.critic(obs, actions)

    def target_value(self, obs: Obs, actions: Tensor) -> Tensor:
        """What a next chunk is worth, ``(B,)``: the smaller of the slow critics' values."""
        return smallest(self.target_critic, obs, actions)

    def actor_value(self, obs: Obs, actions: Tensor) -> Tensor:
        """What the actor maximises, ``(B,)``: the smaller of the critics' values."""
        return smallest(self.critic, obs, actions)
