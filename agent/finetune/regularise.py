"""What may be added to PPO's loss of the actor; all of it is off unless asked for.

* ``train.use_bc_loss``, ``train.bc_loss_coeff``: minus the log-probability of chains that the frozen base policy samples for the minibatch's observations
  (the published option, which crashed there). One chain for every ``K``-th pair, all of its steps: as many pairs as the minibatch has.
* ``train.kl_coef``: the divergence of each step's distribution from what the base's would be, mean over ``(Ta, Da)``.
* ``train.dispersive_loss_weight`` (``_type``, ``_temperature``, ``_layer``): the dispersive loss on hidden features of the *tuned* network, recorded
  in the forward pass that the log-probabilities need anyway. (The published hooks recorded nothing, or the output.)
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from agent.config import NUMBER
from agent.errors import UsageError
from agent.finetune.minibatch import Data, Means
from model.common.dispersion import gradient_norm
from model.common.dispersive_loss import DispersiveLoss, record_outputs

SETTINGS = {
    "use_bc_loss": bool,
    "bc_loss_coeff": NUMBER,
    "kl_coef": NUMBER,
    "dispersive_loss_weight": NUMBER,
    "dispersive_loss_type": str,
    "dispersive_loss_temperature": NUMBER,
    "dispersive_loss_layer": str,
}


class Regulariser:
    """Of a ``ChainPolicy``, by the settings in ``train``.

    Raises:
        UsageError: something is asked of a policy that it cannot do.
    """

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], generator: torch.Generator) -> None:
        self.policy, self.generator, self.means = policy, generator, Means()
        self.cloning = train.get("bc_loss_coeff", 0) if train.get("use_bc_loss") else 0
        self.divergence = train.get("kl_coef", 0)
        self.dispersion = train.get("dispersive_loss_weight", 0)
        for key, method in (("bc_loss_coeff", "base_chains"), ("kl_coef", "base_divergence")):
            wanted = self.cloning if key == "bc_loss_coeff" else self.divergence
            if wanted and not (getattr(policy, method, None) and getattr(policy, "keeps_base", True)):
                raise UsageError(
                    f"train.{key}: {type(policy).__name__} has no base policy to be held to in that way; set it to 0"
                )
        self.disperse, self.layers = None, []
        self._dispersive: Tensor | None = None  # of the last minibatch
        self._ratio: Tensor | None = None  # of gradients, in the first minibatch since ``read``
        if self.dispersion:
            names = {"type": "kind", "temperature": "temperature", "layer": "layer"}
            given = {
                ours: train[f"dispersive_loss_{key}"]
                for key, ours in names.items()
                if f"dispersive_loss_{key}" in train
            }
            try:
                self.disperse = DispersiveLoss(**given)
                self.layers = self.disperse.modules(policy.actor_ft)
            except ValueError as error:
                raise UsageError(f"train.dispersive_loss_weight: {error}") from error

    def recording(self) -> AbstractContextManager[list[Tensor]]:
        """Around the forward pass of the tuned network; what ``loss`` gets as ``features``."""
        return record_outputs(self.layers) if self.layers else nullcontext([])

    def loss(self, data: Data, row: Tensor, step: Tensor, features: list[Tensor]) -> Tensor | None:
        """0-d, to be added to the loss of the pairs ``(row, step)``, (B,) each; None where nothing is asked for."""
        parts = []
        if self.cloning:
            cloning = self._cloning(data, row)
            self.means.add(bc=cloning)
            parts.append(self.cloning * cloning)
        if self.divergence:
            divergence = self.policy.base_divergence(data.look(row), data.chains[row, step], step).mean()
            self.means.add(kl_base=divergence)
            parts.append(self.divergence * divergence)
        if self.disperse is not None:
            dispersive = self.disperse(features)
            self.means.add(dispersive=dispersive)
            parts.append(self.dispersion * dispersive)
            self._dispersive = dispersive
        return torch.stack(parts).sum() if parts else None

    def compare(self, objective: Tensor) -> None:
        """Measure, for the first minibatch after a ``read``, the dispersive gradient's norm relative to that of ``objective``, whose graph
        is still there; call it after ``loss``."""
        if self._dispersive is not None and self._ratio is None:
            parameters = [p for p in self.policy.actor_ft.parameters() if p.requires_grad]
            first, second = (gradient_norm(x, parameters) for x in (objective, self._dispersive))
            self._ratio = self.dispersion * second / first
        self._dispersive = None

    def read(self) -> dict[str, float]:
        """``loss/<name>`` means since the last time, and ``dispersive/gradient_norm_ratio``; ``UsageError`` as ``Means.read``."""
        metrics = self.means.read()
        if self._ratio is not None:
            metrics["dispersive/gradient_norm_ratio"], self._ratio = float(self._ratio), None
        return metrics

    def _cloning(self, data: Data, row: Tensor) -> Tensor:
        obs = data.look(row[:: data.log_probs.shape[1]])
        return -self.policy.chain_log_probs(obs, self.policy.base_chains(obs, self.generator)).mean()
