"""What the policies share that learn to predict a vector per action (noise, velocity): a mean squared error over one forward
pass, to which the dispersive loss on hidden features may be added.

``L = mean |network(...) - target|^2 + weight * L_dispersive(hidden features)``
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.common.dispersive_loss import DispersiveLoss, feature_diagnostics, record_outputs
from model.types import Batch, Losses, ShapeError


class RegressionPolicy(nn.Module):
    """Base class; who inherits sets ``network``, ``horizon_steps``, ``action_dim`` and calls ``_disperse``.

    Args (of the constructors):
        use_dispersive_loss: regularise the hidden features.
        dispersive_loss_weight: factor of that part in the total.
        dispersive_loss_temperature, dispersive_loss_type, dispersive_loss_layer, dispersive_loss_variant,
        dispersive_loss_self_pairs, dispersive_loss_group_size: see ``model.common.dispersive_loss``.
    """

    regression = "regression"  # what is regressed, in the names of losses
    network: nn.Module
    horizon_steps: int
    action_dim: int

    def _disperse(
        self,
        use_dispersive_loss: bool = False,
        dispersive_loss_weight: float = 0.5,
        dispersive_loss_temperature: float = 0.5,
        dispersive_loss_type: str = "infonce_l2",
        dispersive_loss_layer: str = "early",
        dispersive_loss_variant: str = "corrected",
        dispersive_loss_self_pairs: bool = True,
        dispersive_loss_group_size: int | None = 32,
    ) -> None:
        """Settle the regulariser; see ``model.common.dispersive_loss``. Too few hidden layers are said now, not in the first
        batch."""
        self.dispersive_loss_weight = dispersive_loss_weight
        self.dispersive: DispersiveLoss | None = None
        if use_dispersive_loss:
            self.dispersive = DispersiveLoss(
                dispersive_loss_type,
                dispersive_loss_temperature,
                dispersive_loss_layer,
                dispersive_loss_variant,
                dispersive_loss_self_pairs,
                dispersive_loss_group_size,
            )
            self.dispersive.modules(self.network)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """The training loss and its parts: ``"<regression> loss"`` and, if used, ``"dispersive loss"`` (unweighted).

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
        if self.dispersive is None:
            return Losses(error, {name: error.detach()})
        dispersive = self.dispersive(features)
        parts = {name: error.detach(), "dispersive loss": dispersive.detach()}
        return Losses(error + self.dispersive_loss_weight * dispersive, parts)

    def diagnostics(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Whether the dispersive loss acts, as 0-d tensors.

        ``feature_diagnostics`` of the first recorded layer, the norms of both losses' gradients in the network's
        parameters, ``gradient_norm_<regression>`` and ``gradient_norm_dispersive`` (unweighted), and
        ``gradient_norm_ratio``, weighted dispersive to regression.

        Parameters' ``.grad`` are not touched. Empty without a dispersive loss. Costs a forward and two backward passes.
        """
        if self.dispersive is None:
            return {}
        with torch.enable_grad():
            prediction, target, features = self._predict(batch, generator)
            parameters = [p for p in self.network.parameters() if p.requires_grad]
            error = _gradient_norm(F.mse_loss(prediction, target), parameters)
            dispersive = _gradient_norm(self.dispersive(features), parameters)
        report = feature_diagnostics(features[0], self.dispersive)
        report[f"gradient_norm_{self.regression}"] = error
        report["gradient_norm_dispersive"] = dispersive
        report["gradient_norm_ratio"] = self.dispersive_loss_weight * dispersive / error
        return report

    def _predict(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Prediction and target ``(B, Ta, Da)`` of one batch, and its recorded features: one forward pass."""
        x = batch.actions
        if tuple(x.shape[1:]) != (self.horizon_steps, self.action_dim):
            expected = ("B", self.horizon_steps, self.action_dim)
            raise ShapeError(f"actions: expected (B, horizon_steps, action_dim) = {expected}, found {tuple(x.shape)}")
        inputs, target = self._task(batch, generator)
        with record_outputs(self.dispersive.modules(self.network) if self.dispersive is not None else []) as features:
            prediction = self.network(*inputs)
        return prediction, target, features

    def _task(self, batch: Batch, generator: torch.Generator | None) -> tuple[tuple, Tensor]:
        """What the network is given, and what it should say."""
        raise NotImplementedError


def _gradient_norm(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """The Euclidean norm of the loss's gradient, all parameters together; the graph is kept."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.stack([g.norm() for g in gradients if g is not None]).norm()
