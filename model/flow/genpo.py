"""GenPO: a flow policy whose likelihood is exact, for PPO from nothing (arXiv:2505.18763).

The action is doubled, ``(x, y)``, so that the flow can be inverted; what is executed is ``(x + y) / 2``. From ``(x_0, y_0) ~ N(0, I)``,
``K`` steps of length ``1 / K`` at ``t_k = k / K``:

``x' = x + v(y, t_k) / K``, ``y' = y + v(x', t_k) / K``, then they are mixed: ``x = p x' + (1 - p) y'``, ``y = p y' + (1 - p) x``

The couplings keep volumes, a mixing step has the determinant ``p^2`` per pair of numbers. So ``log pi(x, y | obs) = log N(x_0) + log N(y_0)
- 2 K Ta Da log p``, with ``(x_0, y_0)`` found by running the steps backwards.

Convention: as everywhere in this project, log-probabilities are means, here over all ``2 Ta Da`` numbers (the published ratio is the joint
one). The published compression loss ``|x - y|`` is left out, as in its Ant configuration.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from model.common.gaussian import HALF_LOG_2PI
from model.common.modules import passes_on
from model.common.tuned_chain import TunedChain
from model.flow.process import FlowProcess, bounded
from model.types import Obs, Sample


class GenPO(FlowProcess, TunedChain):
    """To the loop a chain of one step, from ``x`` to ``y``; both together are the action.

    Args:
        mixing: ``p``, in (0, 1]; 1 does not mix.

    The others are explained in ``FlowProcess`` and ``TunedChain``.

    Raises:
        ValueError: naming the key that does not fit.
    """

    n_draws = 2  # where x and y start

    @passes_on(TunedChain._tune, "n_chain_steps", "gamma_denoising", "clip_ploss_coef_base", "clip_ploss_coef_rate")
    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module,
        horizon_steps: int,
        obs_dim: int,
        action_dim: int,
        sampling_steps: int = 5,
        mixing: float = 0.95,
        clip_ploss_coef: float = 0.05,
        **tuning: Any,
    ) -> None:
        super().__init__(horizon_steps, obs_dim, action_dim, sampling_steps, average_velocity=False)
        if not 0 < mixing <= 1:
            raise ValueError(f"mixing: expected a number in (0, 1], found {mixing}")
        self.mixing = mixing
        self._tune(actor, critic, 1, 1.0, clip_ploss_coef, clip_ploss_coef, 0, **tuning)

    def forward(self, x: Tensor, y: Tensor, obs: Obs) -> tuple[Tensor, Tensor]:
        """The doubled action that noise ``x, y (B, Ta, Da)`` becomes."""
        p, k_steps = self.mixing, self.sampling_steps
        for k in range(k_steps):
            x = x + self.velocity(self.actor_ft, y, k, obs) / k_steps
            y = y + self.velocity(self.actor_ft, x, k, obs) / k_steps
            x = p * x + (1 - p) * y
            y = p * y + (1 - p) * x
        return x, y

    def inverse(self, x: Tensor, y: Tensor, obs: Obs) -> tuple[Tensor, Tensor]:
        """The noise that becomes the doubled action ``x, y (B, Ta, Da)``."""
        p, k_steps = self.mixing, self.sampling_steps
        for k in reversed(range(k_steps)):
            y = (y - (1 - p) * x) / p
            x = (x - (1 - p) * y) / p
            y = y - self.velocity(self.actor_ft, x, k, obs) / k_steps
            x = x - self.velocity(self.actor_ft, y, k, obs) / k_steps
        return x, y

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_chain: bool = True,
    ) -> Sample:
        """One action chunk per row; arguments as in ``PPOFlow.sample``. ``deterministic`` starts at zero, where the noise is most
        probable."""
        given = self.given_noise(obs, noise, generator)
        obs = self.encode(obs)
        x, y = self(*(given * 0 if deterministic else given).unbind(1), obs)
        chunk = bounded((x + y) / 2)
        if not return_chain:
            return Sample(chunk)
        return Sample(chunk, torch.stack([x, y], dim=1), None if deterministic else self._log_density(given)[:, None])

    def log_prob(self, obs: Obs, x: Tensor, x_next: Tensor, step: Tensor, reward_horizon: int | None = None) -> Tensor:
        """Of the doubled action ``(x, x_next)``, a mean over all its numbers; every one of them counts, whatever ``reward_horizon``."""
        return self._log_density(torch.stack(self.inverse(x, x_next, obs), dim=1))

    def _log_density(self, start: Tensor) -> Tensor:
        """Of what noise ``start (B, 2, Ta, Da)`` becomes, ``(B,)``."""
        return (-0.5 * start.square() - HALF_LOG_2PI).mean(dim=(1, 2, 3)) - self.sampling_steps * math.log(self.mixing)

    def entropy_proxy(self, obs: Obs) -> Tensor:
        """Minus the mean log-probability of one draw per row, 0-d."""
        start = self.given_noise(obs, None, None)
        return -self.log_prob(obs, *self(*start.unbind(1), obs), torch.zeros(1)).mean()
