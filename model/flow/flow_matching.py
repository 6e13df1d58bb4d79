"""Flow-matching policies, pre-trained: rectified flow, shortcut models and MeanFlow, optionally with dispersed features.

All three regress velocities on straight lines from noise to demonstrated chunks, ``v = x_1 - x_0`` at ``x_t``:

=================== ========================================= ==============================================================
policy              the network predicts                      what it is trained on
=================== ========================================= ==============================================================
``FlowModel``       ``v(x, t)``                               ``v``, ``t`` uniform (rectified flow, arXiv:2209.03003)
``ShortcutModel``   ``u(x, t, d)``, the mean velocity over    ``d = 0``: as above; a quarter of the batch, ``d`` a power of
                    the step from ``t`` to ``t + d``          1/2: the mean of its own two half steps (arXiv:2410.12557)
``MeanFlowModel``   the same                                  half of the batch: ``v + d du/dt`` (arXiv:2505.13447)
=================== ========================================= ==============================================================

MeanFlow's identity: differentiate ``(r - t) u(x_t, t, r - t) = integral of v from t to r`` in ``t``, with ``r`` fixed, along the
path: ``u = v + (r - t) du/dt``, where ``du/dt`` is the directional derivative of ``u(x, t, d)`` towards ``(v, 1, -1)``, computed
forward (``torch.func.jvp``) and not differentiated. So one step, ``x_0 + u(x_0, 0, 1)``, ends at an action chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.common.modules import passes_on
from model.common.regression import RegressionPolicy
from model.common.vision import encode_obs
from model.flow.process import FlowProcess, bounded
from model.types import Batch, Obs, Sample


class FlowModel(FlowProcess, RegressionPolicy):
    """Rectified flow; the ``state_dict`` is exactly ``network.*``.

    Args:
        network: ``(x, times, obs) -> velocity``, any network that denoises; with a dispersive loss it also declares
            ``hidden_layers``.

    The others are explained in ``FlowProcess`` and ``RegressionPolicy``.

    Raises:
        ValueError: naming the key that does not fit; with a dispersive loss also a network of fewer than three hidden
            layers.
    """

    regression, n_draws = "flow", 1
    averaged = 0.0  # share of each batch that is trained on mean velocities over a step; the rest has d = 0

    @passes_on(RegressionPolicy._disperse)
    def __init__(
        self,
        network: nn.Module,
        horizon_steps: int,
        obs_dim: int,
        action_dim: int,
        sampling_steps: int = 4,
        **dispersion: Any,
    ) -> None:
        super().__init__(horizon_steps, obs_dim, action_dim, sampling_steps, average_velocity=self.averaged > 0)
        self.network = network
        self._disperse(**dispersion)

    def _task(self, batch: Batch, generator: torch.Generator | None) -> tuple[tuple, Tensor]:
        """Points on lines from noise to the demonstrated chunks, and the velocities there."""
        x1, cond = batch.actions, batch.conditions
        draw = _Draw(x1, generator)
        x0, t = draw.normal(*x1.shape), draw.uniform(len(x1))
        if self.training and getattr(self.network, "augment", False):
            cond = self.network.augmented(cond, generator)
        cond = encode_obs(self.network, cond)
        d, n = torch.zeros_like(t), round(self.averaged * len(x1))
        if n:
            t[:n], d[:n] = self._steps(n, draw)
        x, v = torch.lerp(x0, x1, t[:, None, None]), x1 - x0
        if n:
            seen = {key: value[:n].detach() for key, value in cond.items()}
            with torch.no_grad():
                v[:n] = self._mean_velocity(x[:n], v[:n], t[:n], d[:n], seen)
        return (x, self.times(t, d), cond), v

    def _steps(self, n: int, draw: _Draw) -> tuple[Tensor, Tensor]:
        """Starts ``t`` and lengths ``d``, ``(n,)`` each, of the steps over which mean velocities are trained."""
        raise NotImplementedError

    def _mean_velocity(self, x: Tensor, v: Tensor, t: Tensor, d: Tensor, cond: Obs) -> Tensor:
        """What to regress on for steps from ``t`` to ``t + d``, starting at ``x`` with velocity ``v``, ``(n, Ta, Da)``."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = True,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Sample:
        """One action chunk per row, ``sampling_steps`` Euler steps from noise; no chain.

        Args:
            obs: ``{"state": (B, To, Do)[, "rgb": (B, To, C, H, W)]}``; images are encoded once.
            deterministic: makes no difference: only the start is random.
            noise: ``(B, *noise_shape)`` standard normal numbers; None draws them from ``generator``.
        """
        x = self.given_noise(obs, noise, generator)[:, 0]
        obs = encode_obs(self.network, obs)
        for k in range(self.sampling_steps):
            x = self.euler(self.network, x, k, obs)
        return Sample(bounded(x))


class ShortcutModel(FlowModel):
    """Steps of length 1, 1/2, ... 1/128 are taught to lead where two half steps lead; see ``FlowModel``."""

    averaged = 0.25
    levels = 8  # of step lengths; halves of the shortest are taken at the velocity of their start, d = 0

    def _steps(self, n: int, draw: _Draw) -> tuple[Tensor, Tensor]:
        d = 0.5 ** (draw.uniform(n) * self.levels).floor()
        return (draw.uniform(n) / d).floor() * d, d

    def _mean_velocity(self, x: Tensor, v: Tensor, t: Tensor, d: Tensor, cond: Obs) -> Tensor:
        half = d / 2
        told = half.masked_fill(d == 0.5 ** (self.levels - 1), 0)
        first = self.network(x, self.times(t, told), cond)
        there = x + half[:, None, None] * first
        return (first + self.network(there, self.times(t + half, told), cond)) / 2


class MeanFlowModel(FlowModel):
    """Mean velocities from MeanFlow's identity; one step is enough. See ``FlowModel`` and the module's text."""

    averaged = 0.5

    def _steps(self, n: int, draw: _Draw) -> tuple[Tensor, Tensor]:
        ends = draw.uniform(2, n)
        t = ends.amin(dim=0)
        return t, ends.amax(dim=0) - t

    def _mean_velocity(self, x: Tensor, v: Tensor, t: Tensor, d: Tensor, cond: Obs) -> Tensor:
        def u(x: Tensor, t: Tensor, d: Tensor) -> Tensor:
            return self.network(x, self.times(t, d), cond)

        _, slope = torch.func.jvp(u, (x, t, d), (v, torch.ones_like(t), -torch.ones_like(d)))
        return v + d[:, None, None] * slope


class _Draw:
    """Random numbers of the type and on the device of ``like``, drawn where ``generator`` lives."""

    def __init__(self, like: Tensor, generator: torch.Generator | None) -> None:
        self.like, self.generator = like, generator
        self.source = like.device if generator is None else generator.device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.source, dtype=self.like.dtype).to(
            self.like.device
        )

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.source, dtype=self.like.dtype).to(
            self.like.device
        )
