"""What is measured of hidden features and of the dispersive loss as a policy is pre-trained, and what follows from it: a warning, and
the layer where ``dispersive_loss_layer: auto`` asks for it."""

from __future__ import annotations

import logging

import torch
from torch import nn

from agent.features import LAYERS, diagnose
from model.types import Batch

log = logging.getLogger(__name__)

INERT = 1e-4  # gradient of the dispersive part relative to the other, below which it does nothing
SATURATED = 0.99  # of the way to the loss's floor: from there on it only makes features larger


class Diagnostics:
    """Of one policy in training."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy, self._warned = policy, False

    @property
    def undecided(self) -> bool:
        """Whether the policy's regulariser waits for these diagnostics to choose its layer."""
        dispersion = getattr(self.policy, "dispersion", None)
        return dispersion is not None and dispersion.undecided

    def __call__(self, batch: Batch, batch_size: int, generator: torch.Generator) -> dict[str, float]:
        """Metrics ``features/<layer>/<name>`` (``agent.features``) and, with a dispersive loss, ``dispersive/<name>``
        (``policy.diagnostics``, of the first ``batch_size`` rows: that is what a training step sees)."""
        policy, metrics = self.policy, {}
        if hasattr(policy, "diagnostics"):
            some = Batch(
                batch.actions[:batch_size], {key: value[:batch_size] for key, value in batch.conditions.items()}
            )
            found = {name: float(value) for name, value in policy.diagnostics(some, generator).items()}
            self._warn(found)
            metrics = {f"dispersive/{name}": value for name, value in found.items()}
        if hasattr(policy, "noise_shape"):
            metrics |= diagnose(policy, batch.conditions, generator)
        if self.undecided:
            self._consider(metrics)
        return metrics

    def _consider(self, metrics: dict[str, float]) -> None:
        reports = {layer: {} for layer in LAYERS}
        for key, value in metrics.items():
            kind, _, name = key.partition("/")
            layer, _, name = name.partition("/")
            if kind == "features":
                reports[layer][name] = value
        chosen = self.policy.dispersion.consider(reports)
        if chosen is not None:
            ranks = ", ".join(f"{layer} {reports[layer]['effective_rank']:.1f}" for layer in LAYERS)
            log.info("dispersive_loss_layer: auto chose %s (effective ranks, last epoch: %s)", chosen, ranks)

    def _warn(self, found: dict[str, float]) -> None:
        """Once, where the dispersive loss no longer does what it is for."""
        ratio, saturation = found.get("gradient_norm_ratio", 1.0), found.get("saturation", 0.0)
        if self._warned or not (ratio < INERT or saturation > SATURATED):
            return
        self._warned = True
        if ratio < INERT:
            log.warning(
                "the dispersive loss no longer acts (its gradient is %.1e of the regression's): "
                "try another dispersive_loss_layer, temperature or weight",
                ratio,
            )
        else:
            log.warning(
                "the dispersive loss is saturated (%.1f %% of the way to its floor): features are so far apart that it can only make them "
                "larger. Lower dispersive_loss_weight (or adaptive), raise dispersive_loss_temperature, or choose infonce_cosine, which "
                "does not see lengths",
                100 * saturation,
            )
