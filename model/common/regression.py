"""What the policies share that learn to predict a vector per action (noise, velocity): a mean squared error over one forward
pass, to which the dispersive loss on hidden features may be added.

``L = mean |network(...) - target|^2 + weight * L_dispersive(hidden features)``
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.common.dispersion import Dispersion, gradient_norm
from model.common.dispersive_loss import DispersiveLoss, record_outputs
from model.types import Batch, Losses, ShapeError


class RegressionPolicy(nn.Module):
    """Base class; who inherits sets ``network``, ``horizon_steps``, ``action_dim`` and calls ``_disperse``.

    Args (of the constructors):
        use_dispersive_loss: regularise the hidden features.
        dispersive_loss_weight: factor of that part in the total, or ``adaptive``.
        dispersive_loss_temperature, dispersive_loss_type, dispersive_loss_variant, dispersive_loss_self_pairs,
        dispersive_loss_group_size: see ``model.common.dispersive_loss``.
        dispersive_loss_layer, dispersive_queue, dispersive_balance, dispersive_auto_epochs: see ``model.common.dispersion``.
    """

    regression = "regression"  # what is regressed, in the names of losses
    network: nn.Module
    horizon_steps: int
    action_dim: int

    def _disperse(
        self,
        use_dispersive_loss: bool = False,
        dispersive_loss_weight: float | str = 0.5,
        dispersive_loss_temperature: float = 0.5,
        dispersive_loss_type: str = "infonce_l2",
        dispersive_loss_layer: str = "early",
        dispersive_loss_variant: str = "corrected",
        dispersive_loss_self_pairs: bool = True,
        dispersive_loss_group_size: int | None = 32,
        dispersive_queue: int = 0,
        dispersive_balance: float = 0.1,
        dispersive_auto_epochs: int = 3,
    ) -> None:
        """Settle the regulariser. Too few hidden layers are said now, not in the first batch."""
        self.dispersion: Dispersion | None = None
        if use_dispersive_loss:
            settings = DispersiveLoss(
                dispersive_loss_type,
                dispersive_loss_temperature,
                variant=dispersive_loss_variant,
                self_pairs=dispersive_loss_self_pairs,
                group_size=dispersive_loss_group_size,
            )
            self.dispersion = Dispersion(
                self.network,
                settings,
                dispersive_loss_layer,
                dispersive_loss_weight,
                dispersive_queue,
                dispersive_balance,
                dispersive_auto_epochs,
            )

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """The training loss and its parts: ``"<regression> loss"`` and, if used, ``"dispersive loss"`` (unweighted) and an
        adaptive ``"dispersive weight"``.

        Args:
            batch: actions ``(B, Ta, Da)`` in [-1, 1] and the observations they answer to.
            generator: draws times, noise and, in training mode, the shifts of images (if the network's ``augment`` asks
                for them).

        Raises:
            ShapeError: the actions are not ``(B, Ta, Da)``.
            ValueError: a dispersive loss over a batch of one sample.
        """
        prediction, target, features = self._predict(batch, generator)
        error = F.mse_loss(prediction, target)
        name = f"{self.regression} loss"
        dispersion = self.dispersion
        if dispersion is None or dispersion.undecided:
            return Losses(error, {name: error.detach()})
        dispersive = dispersion.loss(features, self.training)
        if self.training and torch.is_grad_enabled():
            dispersion.step(error, dispersive, features, batch.conditions["state"])
        parts = {name: error.detach(), "dispersive loss": dispersive.detach()}
        if dispersion.adaptive:
            parts["dispersive weight"] = error.new_tensor(dispersion.weight)
        return Losses(error + dispersion.weight * dispersive, parts)

    def diagnostics(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Whether the dispersive loss acts, as 0-d tensors.

        * ``gradient_norm_<regression>`` and ``gradient_norm_dispersive`` (unweighted) in the network's parameters, and
          ``gradient_norm_ratio``, weighted dispersive to regression (absent with weight 0)
        * ``feature_rank`` and ``state_rank``, which an adaptive weight was last set by
        * ``gap_to_floor``: the loss minus its lowest value; ``saturation`` (see ``DispersiveLoss``); NaN where it has no floor

        Parameters' ``.grad`` are not touched. Empty without a dispersive loss. Costs a forward and two backward passes.
        """
        dispersion = self.dispersion
        if dispersion is None or dispersion.undecided:
            return {}
        with torch.enable_grad():
            prediction, target, features = self._predict(batch, generator)
            parameters = [p for p in self.network.parameters() if p.requires_grad]
            error = gradient_norm(F.mse_loss(prediction, target), parameters)
            loss = dispersion.settings(features)
            dispersive = gradient_norm(loss, parameters)
        loss, n = loss.detach(), len(features[0])
        floor = dispersion.settings.floor(n)
        report = {name: loss.new_tensor(rank) for name, rank in dispersion.ranks.items()} | {
            f"gradient_norm_{self.regression}": error,
            "gradient_norm_dispersive": dispersive,
            "gap_to_floor": loss - floor if math.isfinite(floor) else torch.full_like(loss, math.nan),
            "saturation": dispersion.settings.saturation(loss, n)
            if math.isfinite(floor)
            else torch.full_like(loss, math.nan),
        }
        if dispersion.weight:
            report["gradient_norm_ratio"] = dispersion.weight * dispersive / error
        return report

    def _predict(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Prediction and target ``(B, Ta, Da)`` of one batch, and its recorded features: one forward pass."""
        x = batch.actions
        if tuple(x.shape[1:]) != (self.horizon_steps, self.action_dim):
            expected = ("B", self.horizon_steps, self.action_dim)
            raise ShapeError(f"actions: expected (B, horizon_steps, action_dim) = {expected}, found {tuple(x.shape)}")
        inputs, target = self._task(batch, generator)
        with record_outputs([] if self.dispersion is None else self.dispersion.modules) as features:
            prediction = self.network(*inputs)
        return prediction, target, features

    def _task(self, batch: Batch, generator: torch.Generator | None) -> tuple[tuple, Tensor]:
        """What the network is given, and what it should say."""
        raise NotImplementedError
