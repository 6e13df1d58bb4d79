"""The denoising networks: a perceptron over (noisy action chunk, diffusion step, observation), with or without images.

DPPO (arXiv:2409.00588), appendix; parameter names are the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.common.mlp import MLP, ResidualMLP
from model.common.vision import Vision
from model.common.vit import VitEncoder
from model.diffusion.modules import TimeEmbedding
from model.types import Obs


class DiffusionMLP(nn.Module):
    """Predicts the noise (or the clean chunk) from ``[actions, time embedding, observation]``.

    Args:
        action_dim: ``Da``.
        horizon_steps: ``Ta``.
        cond_dim: ``To * Do``.
        time_dim: width of the time embedding.
        mlp_dims: hidden widths.
        cond_mlp_dims: widths of an observation encoder; None feeds the observation directly.
        activation_type: of every hidden nonlinearity.
        out_activation_type: after the output.
        use_layernorm: in the main perceptron.
        residual_style: ``ResidualMLP`` instead of ``MLP``.
    """

    def __init__(
        self,
        action_dim: int,
        horizon_steps: int,
        cond_dim: int,
        time_dim: int = 16,
        mlp_dims: Sequence[int] = (256, 256),
        cond_mlp_dims: Sequence[int] | None = None,
        activation_type: str = "Mish",
        out_activation_type: str = "Identity",
        use_layernorm: bool = False,
        residual_style: bool = False,
    ) -> None:
        super().__init__()
        self._assemble(
            action_dim,
            horizon_steps,
            cond_dim,
            0,
            time_dim,
            mlp_dims,
            cond_mlp_dims,
            activation_type,
            out_activation_type,
            use_layernorm,
            residual_style,
        )

    def _assemble(
        self,
        action_dim: int,
        horizon_steps: int,
        cond_dim: int,
        feature_dim: int,
        time_dim: int,
        mlp_dims: Sequence[int],
        cond_mlp_dims: Sequence[int] | None,
        activation_type: str,
        out_activation_type: str,
        use_layernorm: bool,
        residual_style: bool,
    ) -> None:
        """Make the layers; ``feature_dim`` columns of something else stand before the observation."""
        self.action_dim = action_dim
        self.horizon_steps = horizon_steps
        self.time_embedding = TimeEmbedding(time_dim, time_dim * 2)
        self.cond_mlp: MLP | None = None
        if cond_mlp_dims is not None:
            self.cond_mlp = MLP([cond_dim, *cond_mlp_dims], activation_type=activation_type)
            cond_dim = cond_mlp_dims[-1]
        flat = action_dim * horizon_steps
        self.mlp_mean = (ResidualMLP if residual_style else MLP)(
            [flat + time_dim + feature_dim + cond_dim, *mlp_dims, flat],
            activation_type=activation_type,
            out_activation_type=out_activation_type,
            use_layernorm=use_layernorm,
        )

    @property
    def hidden_layers(self) -> list[nn.Module]:
        """The modules whose outputs are the hidden features: one per entry of ``mlp_dims``, never the output."""
        return self.mlp_mean.hidden_layers

    def tabulate_time(self, denoising_steps: int) -> None:
        """Promise that ``t < denoising_steps``: the time embedding is then computed once per step, not once per row."""
        self.time_embedding.tabulate(denoising_steps)

    def forward(self, x: Tensor, t: Tensor, cond: Obs) -> Tensor:
        """``x (B, Ta, Da)``, diffusion steps ``t (B,)`` int64 and ``cond["state"] (B, To, Do)`` to ``(B, Ta, Da)``."""
        return self.mlp_mean(torch.cat([x.flatten(1), self.time_embedding(t), self._state(cond)], dim=-1)).view_as(x)

    def _state(self, cond: Obs) -> Tensor:
        state = cond["state"].flatten(1)
        return state if self.cond_mlp is None else self.cond_mlp(state)


class VisionDiffusionMLP(Vision, DiffusionMLP):
    """Predicts the noise (or the clean chunk) from ``[actions, time embedding, visual features, observation]``.

    ``encode`` turns images into features, once per observation; ``forward`` takes either.

    Arguments: of ``Vision``, and as in ``DiffusionMLP``.
    """

    def __init__(
        self,
        backbone: VitEncoder,
        action_dim: int,
        horizon_steps: int,
        cond_dim: int,
        img_cond_steps: int = 1,
        time_dim: int = 16,
        mlp_dims: Sequence[int] = (256, 256),
        cond_mlp_dims: Sequence[int] | None = None,
        activation_type: str = "Mish",
        out_activation_type: str = "Identity",
        use_layernorm: bool = False,
        residual_style: bool = False,
        spatial_emb: int = 0,
        visual_feature_dim: int = 128,
        dropout: float = 0.0,
        num_img: int = 1,
        augment: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        feature_dim = self._see(
            backbone, cond_dim, img_cond_steps, num_img, spatial_emb, visual_feature_dim, dropout, augment
        )
        self._assemble(
            action_dim,
            horizon_steps,
            cond_dim,
            feature_dim,
            time_dim,
            mlp_dims,
            cond_mlp_dims,
            activation_type,
            out_activation_type,
            use_layernorm,
            residual_style,
        )

    def forward(self, x: Tensor, t: Tensor, cond: Obs) -> Tensor:
        """``x (B, Ta, Da)``, diffusion steps ``t (B,)`` int64, ``cond["state"] (B, To, Do)`` and ``cond["rgb"]
        (B, To, C, H, W)`` or ``encode``'s ``cond["features"] (B, F)``, to ``(B, Ta, Da)``."""
        cond = self.encode(cond)
        inputs = [x.flatten(1), self.time_embedding(t), cond["features"], self._state(cond)]
        return self.mlp_mean(torch.cat(inputs, dim=-1)).view_as(x)
