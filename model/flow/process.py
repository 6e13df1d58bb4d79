"""One Euler step of a flow from noise to action chunks, in one place: for sampling and for log-probabilities.

Time runs from 0, standard normal noise ``x_0``, to 1, the action chunk ``x_1``, along straight lines ``x_t = (1 - t) x_0 + t x_1``
(Liu et al., arXiv:2209.03003; the published MeanFlow code counts backwards). ``K = sampling_steps`` steps, ``k = 0 .. K - 1``, begin
at ``t_k = k / K``, wherever a chain is sampled or scored.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.common.modules import given_noise
from model.types import Obs

TIME_SCALE = 10.0  # times in [0, 1] enter the sinusoidal embedding as 0 .. 10: then more than its first frequency tells them apart


class FlowProcess(nn.Module):
    """Base of the policies that follow a velocity field.

    Args:
        horizon_steps: ``Ta``. obs_dim: ``Do``. action_dim: ``Da``.
        sampling_steps: ``K``, Euler steps from noise to an action chunk.
        average_velocity: the network answers to ``(t, d)`` with the mean velocity over the step from ``t`` to ``t + d``;
            otherwise to ``t`` with the velocity there.

    Raises:
        ValueError: no sampling steps.
    """

    n_draws: int  # blocks of (Ta, Da) standard normal numbers that one action chunk consumes

    def __init__(
        self, horizon_steps: int, obs_dim: int, action_dim: int, sampling_steps: int, average_velocity: bool
    ) -> None:
        super().__init__()
        if sampling_steps < 1:
            raise ValueError(f"sampling_steps: expected at least 1, found {sampling_steps}")
        self.horizon_steps, self.obs_dim, self.action_dim = horizon_steps, obs_dim, action_dim
        self.sampling_steps, self.average_velocity = sampling_steps, average_velocity

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """``(n_draws, Ta, Da)``: the normal numbers that one row of ``sample`` consumes, the start first."""
        return (self.n_draws, self.horizon_steps, self.action_dim)

    def times(self, t: Tensor, d: Tensor) -> Tensor:
        """What the network is told of a step from ``t (B,)`` to ``t + d``: ``(B, 2)`` or, without ``average_velocity``, ``(B,)``."""
        return TIME_SCALE * (torch.stack([t, d], dim=1) if self.average_velocity else t)

    def start_times(self, x: Tensor, position: int | Tensor) -> Tensor:
        """``t_k`` of the steps at ``position`` (one for all, or ``(B,)``), as ``(B,)``."""
        if isinstance(position, Tensor):
            return position.to(x.dtype) / self.sampling_steps
        # not len(x), which torch.export would take for a constant
        return x.new_full((x.shape[0],), position / self.sampling_steps)

    def velocity(self, network: nn.Module, x: Tensor, position: int | Tensor, obs: Obs) -> Tensor:
        """Of step ``position`` (one for all, or ``(B,)``) at ``x (B, Ta, Da)``."""
        t = self.start_times(x, position)
        return network(x, self.times(t, torch.full_like(t, 1 / self.sampling_steps)), obs)

    def euler(self, network: nn.Module, x: Tensor, position: int | Tensor, obs: Obs) -> Tensor:
        """Where that step leads."""
        return x + self.velocity(network, x, position, obs) / self.sampling_steps

    def given_noise(self, obs: Obs, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """``(B, *noise_shape)`` standard normal numbers, given or drawn."""
        return given_noise(obs["state"], self.noise_shape, noise, generator)


def bounded(x: Tensor) -> Tensor:
    """A finished chunk as it is executed: within [-1, 1]."""
    return x.clamp(-1, 1)
