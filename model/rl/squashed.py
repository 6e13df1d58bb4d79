"""A Gaussian policy whose actions are squashed into (-1, 1): what SAC, RLPD and Cal-QL share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.common.gaussian import HALF_LOG_2PI, GaussianModel
from model.common.modules import load_pretrained
from model.types import Obs, Sample


class SquashedGaussian(GaussianModel):
    """``a = tanh(mean + std z)``; keys ``network.*`` and whatever a subclass adds.

    Args:
        actor: as ``GaussianModel``'s network; its own ``tanh_output`` should be off, or the mean is squashed twice.
        tanh_output: squash at all.

    The others are explained in ``GaussianModel``.
    """

    n_chain_steps = 0  # K: off-policy

    def __init__(
        self, actor: nn.Module, horizon_steps: int, tanh_output: bool = True, randn_clip_value: float | None = 10.0
    ) -> None:
        super().__init__(actor, horizon_steps, randn_clip_value)
        self.tanh_output = tanh_output

    def load_base(self, state_dict: Mapping[str, Tensor]) -> None:
        """Start from a pre-trained policy's weights, ``network.*``.

        Raises:
            StateDictError: a key is missing, unexpected or of another shape.
        """
        load_pretrained(self.network, state_dict)

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = True,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Sample:
        """As ``GaussianModel.sample``, squashed."""
        x = self.draw(obs, deterministic, noise, generator)[0]
        return Sample(x.tanh() if self.tanh_output else x)

    def sample_with_log_prob(self, obs: Obs, generator: torch.Generator, n: int = 1) -> tuple[Tensor, Tensor]:
        """``n`` draws per row, differentiable: actions ``(n * B, Ta, Da)``, all rows once, then again, and their log-densities
        ``(n * B,)``, sums over ``(Ta, Da)``."""
        mean, std = self.network(obs)
        mean, std = (x.expand_as(mean).repeat(n, 1, 1) for x in (mean, std))
        z = self.bounded(self.noise(mean, None, generator)[:, 0])
        x = mean + std * z
        density = -0.5 * z.square() - std.log() - HALF_LOG_2PI
        if not self.tanh_output:
            return x, density.sum(dim=(1, 2))
        stretch = 2 * (math.log(2) - x - F.softplus(-2 * x))  # log(1 - tanh(x)^2), without cancellation
        return x.tanh(), (density - stretch).sum(dim=(1, 2))

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What the actor's optimiser trains."""
        return self.network.parameters()
