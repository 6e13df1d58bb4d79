"""The dispersive loss in training: which layer, how much of it, against which features; and what of that changes on the way.

Beyond the paper (its open questions 2 to 4):

* ``layer: auto``. For the first ``auto_epochs`` epochs nothing is dispersed. Whoever trains reports after each of them how each layer is
  (``consider``), and after the last the layer is chosen by ``choose_layer``.
* ``weight: adaptive``. Spread what has collapsed, as far as it has, and nothing else. Collapsed are features that use fewer directions than the
  observations they are made of: every ``ADAPT_EVERY`` steps the effective ranks of both are compared on the batch, and the weight is the
  share of the observations' that the features lack (0 where they lack none) times a full weight, with which the dispersive gradient's norm in the
  network's parameters is ``balance`` times the regression's (geometric mean over the last few comparisons), at most ``MAX_WEIGHT``: a saturated
  loss, whose gradient vanishes, must not be made up for. Balanced gradients alone did harm: measured in cfg/pretraining.md.
* ``queue``. The last so many rows of features, of earlier batches, are compared with, too (``dispersive_loss``).

All of it is in ``state_dict``: a resumed run is the one that was left alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from model.common.dispersive_loss import DispersiveLoss
from model.common.feature_diagnostics import effective_rank

AUTO, ADAPTIVE = "auto", "adaptive"
CANDIDATES = ("early", "mid", "late")
ADAPT_EVERY = 32  # training steps between two comparisons: a backward pass more in so many costs 2 %
RANK_ROWS = 64  # of the batch, whose eigenvalues cost half a millisecond
MAX_WEIGHT = 1.0
_MEMORY = 0.8  # of the mean over comparisons


class Dispersion:
    """The regulariser of ``network``.

    Args:
        network: declares ``hidden_layers``.
        settings: of the loss; its ``layer`` is replaced.
        layer: one of ``model.common.dispersive_loss.LAYERS``, or ``"auto"``.
        weight: a number, or ``"adaptive"``.
        queue: rows of earlier batches to compare with.
        balance: of an adaptive weight.
        auto_epochs: after how many epochs ``"auto"`` chooses.

    Raises:
        ValueError: naming the key that does not fit; also a network of fewer than three hidden layers.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: DispersiveLoss,
        layer: str,
        weight: float | str,
        queue: int = 0,
        balance: float = 0.1,
        auto_epochs: int = 3,
    ) -> None:
        self.network, self.queue, self.balance, self.auto_epochs = network, queue, balance, auto_epochs
        self.adaptive, self.automatic = weight == ADAPTIVE, layer == AUTO
        if not self.adaptive and isinstance(weight, str):
            raise ValueError(f"dispersive_loss_weight: expected a number or {ADAPTIVE}, found {weight!r}")
        if queue < 0 or (queue and settings.variant == "released"):
            raise ValueError(f"dispersive_queue: expected 0 (released) or a number of rows, found {queue}")
        if self.adaptive and not balance > 0:
            raise ValueError(f"dispersive_balance: expected a positive number, found {balance}")
        if self.automatic and auto_epochs < 1:
            raise ValueError(f"dispersive_auto_epochs: expected at least 1, found {auto_epochs}")
        self.settings = settings if self.automatic else replace(settings, layer=layer)
        self.modules = self.settings.modules(network)
        if self.automatic:
            self.modules = []
        self.weight = 0.0 if self.adaptive else float(weight)
        self.steps, self.seen, self._log_ratio = 0, [], None
        self.ranks: dict[str, float] = {}  # at the last comparison of an adaptive weight
        self._queues: list[Tensor] = []

    @property
    def undecided(self) -> bool:
        """Whether the layer is still to be chosen; until then there is no loss."""
        return not self.modules

    def loss(self, features: Sequence[Tensor], training: bool = False) -> Tensor:
        """Of recorded features, 0-d, not weighted. In training it is against the queue, which these features then join."""
        if not training or not self.queue:
            return self.settings(features)
        rows = [z.flatten(1) for z in features]
        queues = [q.to(z.device, z.dtype) for q, z in zip(self._queues, rows, strict=True)] if self._queues else []
        loss = self.settings(rows, queues)
        old = queues or [z[:0] for z in rows]
        self._queues = [torch.cat([q, z.detach()])[-self.queue :] for q, z in zip(old, rows, strict=True)]
        return loss

    def step(self, error: Tensor, dispersive: Tensor, features: Sequence[Tensor], states: Tensor) -> None:
        """Count one step of training with these two losses, whose graphs are still there; see ``weight``.

        Args:
            error: of the regression, 0-d.
            dispersive: 0-d, not weighted.
            features: as recorded, ``(B, ...)`` each.
            states: ``(B, To, Do)`` the observations without their images.
        """
        if self.adaptive and self.steps % ADAPT_EVERY == 0:
            lacking = self._lacking(features, states)
            self.weight = lacking * self._full_weight(error, dispersive) if lacking else 0.0
        self.steps += 1

    def _lacking(self, features: Sequence[Tensor], states: Tensor) -> float:
        """Which share of the states' directions the features do not have, of the layer that lacks most."""
        had = min(float(effective_rank(z[:RANK_ROWS])) for z in features)
        self.ranks = {"feature_rank": had, "state_rank": float(effective_rank(states[:RANK_ROWS]))}
        return max(0.0, 1.0 - had / self.ranks["state_rank"])

    def _full_weight(self, error: Tensor, dispersive: Tensor) -> float:
        """With which the gradients are in balance."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        norms = [float(gradient_norm(loss, parameters)) for loss in (error, dispersive)]
        largest = math.log(MAX_WEIGHT / self.balance)
        ratio = min(largest, math.log(norms[0] / norms[1])) if min(norms) > 0 else largest
        old = ratio if self._log_ratio is None else self._log_ratio
        self._log_ratio = _MEMORY * old + (1 - _MEMORY) * ratio
        return self.balance * math.exp(self._log_ratio)

    def consider(self, reports: Mapping[str, Mapping[str, float]]) -> str | None:
        """One more epoch's report on each of ``CANDIDATES``; returns the layer once it is chosen."""
        self.seen.append({layer: dict(reports[layer]) for layer in CANDIDATES})
        if len(self.seen) < self.auto_epochs:
            return None
        self._settle(choose_layer(self.seen))
        return self.settings.layer

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, names and tensors."""
        return {
            "layer": None if self.undecided else self.settings.layer,
            "seen": self.seen,
            "weight": self.weight,
            "log_ratio": self._log_ratio,
            "ranks": dict(self.ranks),
            "steps": self.steps,
            "queues": list(self._queues),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        if state["layer"] is not None:
            self._settle(state["layer"])
        self.seen, self.steps, self._log_ratio = list(state["seen"]), state["steps"], state["log_ratio"]
        self.weight, self._queues = state["weight"], list(state["queues"])
        self.ranks = dict(state.get("ranks", {}))  # older checkpoints have none

    def _settle(self, layer: str) -> None:
        self.settings = replace(self.settings, layer=layer)
        self.modules = self.settings.modules(self.network)


def choose_layer(seen: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """The layer of ``CANDIDATES`` to disperse, from reports on each of them.

    The one of the highest effective rank, mean over the reports: distances grow along the directions that features have, and where there are
    many, little is distorted. The lowest, where there seems to be most to gain, was tried first, and was the worst on Hopper (cfg/pretraining.md).
    """
    return max(CANDIDATES, key=lambda layer: sum(report[layer]["effective_rank"] for report in seen))


def gradient_norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The Euclidean norm of the loss's gradient, all parameters together; the graph is kept."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.stack([g.norm() for g in gradients if g is not None]).norm()
