"""Value functions: ``V(obs)`` for PPO, ``Q(obs, action chunk)`` for the off-policy algorithms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.common.mlp import MLP, ResidualMLP
from model.common.vision import Vision
from model.common.vit import VitEncoder
from model.types import Obs


class CriticObs(nn.Module):
    """State value. ``cond_dim = To * Do``; parameters ``Q1.*`` as published."""

    def __init__(
        self,
        cond_dim: int,
        mlp_dims: Sequence[int],
        activation_type: str = "Mish",
        use_layernorm: bool = False,
        residual_style: bool = False,
    ) -> None:
        super().__init__()
        self.Q1 = (ResidualMLP if residual_style else MLP)(
            [cond_dim, *mlp_dims, 1], activation_type=activation_type, use_layernorm=use_layernorm
        )

    def forward(self, obs: Obs) -> Tensor:
        """``obs["state"] (B, To, Do)`` to values ``(B,)``."""
        return self.Q1(obs["state"].flatten(1)).squeeze(-1)


class ViTCritic(Vision):
    """State value of an image policy: eyes of its own, then ``Q1.*`` on ``[visual features, state]``.

    Args:
        backbone: images to tokens, shared by all cameras.
        cond_dim: ``To * Do``.
        img_cond_steps: the last so many images are looked at.
        spatial_emb: width of each camera's spatial embedding.
        dropout: of the visual features.
        augment: must be False, as in every published file: what the critic sees is shifted by ``train.augment``.
        num_img: cameras.

    The others as in ``CriticObs``.
    """

    def __init__(
        self,
        backbone: VitEncoder,
        cond_dim: int,
        mlp_dims: Sequence[int],
        img_cond_steps: int = 1,
        spatial_emb: int = 128,
        dropout: float = 0.0,
        augment: bool = False,
        num_img: int = 1,
        activation_type: str = "Mish",
        use_layernorm: bool = False,
        residual_style: bool = False,
    ) -> None:
        super().__init__()
        if augment:
            raise ValueError("critic.augment: expected False; use train.augment to shift the images of fine-tuning")
        if spatial_emb < 1:
            raise ValueError(f"critic.spatial_emb: expected at least 1, found {spatial_emb}")
        feature_dim = self._see(backbone, cond_dim, img_cond_steps, num_img, spatial_emb, 0, dropout, augment)
        self.Q1 = (ResidualMLP if residual_style else MLP)(
            [feature_dim + cond_dim, *mlp_dims, 1], activation_type=activation_type, use_layernorm=use_layernorm
        )

    def forward(self, obs: Obs) -> Tensor:
        """``obs["state"] (B, To, Do)`` and ``obs["rgb"] (B, To, C, H, W)`` to values ``(B,)``."""
        features = self.encode(obs)["features"]
        return self.Q1(torch.cat([features, obs["state"].flatten(1)], dim=-1)).squeeze(-1)


class CriticObsAct(nn.Module):
    """Value of an observation and an action chunk: ``Q1.*`` and, with ``double_q``, an independent ``Q2.*``.

    ``cond_dim = To * Do``, ``action_dim = Da``, ``action_steps = Te``. The published code never honours
    ``residual_style`` here (all its checkpoints hold plain networks): load those with ``residual_style=False``,
    whatever their YAML says.
    """

    def __init__(
        self,
        cond_dim: int,
        mlp_dims: Sequence[int],
        action_dim: int,
        action_steps: int = 1,
        activation_type: str = "Mish",
        use_layernorm: bool = False,
        residual_style: bool = False,
        double_q: bool = True,
    ) -> None:
        super().__init__()
        network = ResidualMLP if residual_style else MLP
        dims = [cond_dim + action_dim * action_steps, *mlp_dims, 1]
        self.Q1 = network(dims, activation_type=activation_type, use_layernorm=use_layernorm)
        self.double_q = double_q
        if double_q:
            self.Q2 = network(dims, activation_type=activation_type, use_layernorm=use_layernorm)

    def forward(self, obs: Obs, actions: Tensor) -> tuple[Tensor, ...]:
        """``obs["state"] (B, To, Do)``, ``actions (B, Te, Da)`` to ``(q1,)`` or ``(q1, q2)``, each ``(B,)``."""
        x = torch.cat([obs["state"].flatten(1), actions.flatten(1)], dim=-1)
        q1 = self.Q1(x).squeeze(-1)
        return (q1, self.Q2(x).squeeze(-1)) if self.double_q else (q1,)
