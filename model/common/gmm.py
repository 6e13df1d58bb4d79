"""Mixture policies: ``M`` Gaussian modes per observation, each over the whole action chunk.

``GMMModel`` is the pre-trained one (maximum likelihood); ``model.rl.gmm_ppo.PPO_GMM`` fine-tunes it.

Log-densities are those of the whole chunk, divided by its ``Ta * Da`` numbers, so that one mode is exactly the Gaussian policy
and the same clip range, learning rate and KL limit mean the same. (The published code takes the undivided density, far above the
bound of 2 that it also sets: its policy gradient is zero on most tasks.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.gaussian import HALF_LOG_2PI, GaussianModel
from model.types import Obs


class GMMModel(GaussianModel):
    """A policy ``sum_m w_m N(mean_m(obs), std_m(obs))``; its ``state_dict`` is exactly ``network.*``.

    Args:
        network: observation to means ``(B, M, Ta, Da)``, deviations (broadcastable) and logits of the modes ``(B, M)``; it
            has ``action_dim``.

    The others as in ``GaussianModel``.
    """

    n_draws = 2  # one for the actions; the first number of the other draws the mode

    def draw(
        self, obs: Obs, deterministic: bool, noise: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """The chunk ``(B, Ta, Da)``, and the mixture it was drawn from: means, deviations, logits.

        The mode is drawn even if ``deterministic``, as published: it is what the demonstrations left open. The chunk is then
        that mode's mean.

        Raises:
            ShapeError: ``noise`` is not ``(B, 2, Ta, Da)``.
        """
        mean, std, logits = self.network(obs)
        noise = self.noise(mean, noise, generator)
        uniform = torch.special.ndtr(noise[:, 1, 0, 0])
        below = logits.softmax(-1).cumsum(-1)[:, :-1] < uniform[:, None]  # the last mode takes what rounding leaves
        rows, mode = torch.arange(len(mean), device=mean.device), below.sum(-1)
        x = mean[rows, mode]
        if not deterministic:
            x = x + std.expand_as(mean)[rows, mode] * self.bounded(noise[:, 0])
        return x, mean, std, logits

    @staticmethod
    def log_density(x: Tensor, mean: Tensor, std: Tensor, logits: Tensor) -> Tensor:
        """Log-density of the chunks ``x (B, Ta, Da)``, divided by ``Ta * Da``: ``(B,)``."""
        z = (x[:, None] - mean) / std
        modes = (-0.5 * z.square() - std.log() - HALF_LOG_2PI).sum(dim=(2, 3))
        return (logits.log_softmax(-1) + modes).logsumexp(-1) / x[0].numel()

    @staticmethod
    def entropy(mean: Tensor, std: Tensor, logits: Tensor) -> Tensor:
        """Mean entropy per dimension (nats) of the modes, by their weights, 0-d: that of the mixture is at least that."""
        modes = 0.5 + HALF_LOG_2PI + std.log().expand_as(mean).mean(dim=(2, 3))
        return (logits.softmax(-1) * modes).sum(-1).mean()
