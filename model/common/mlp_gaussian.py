"""The networks of the Gaussian policies: observation to mean and standard deviation of an action chunk.

Parameter names and class names are the published ones (DPPO, arXiv:2409.00588).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.common.deviation import Deviation
from model.common.mlp import MLP, ResidualMLP
from model.common.vision import Vision
from model.common.vit import VitEncoder
from model.types import Obs


class Gaussian_MLP(Deviation):  # noqa: N801 (published name)
    """Mean and deviation from ``obs["state"] (B, To, Do)``.

    With ``fixed_std`` the layers are ``mlp_mean.*`` alone. Without, the deviation is a second head: ``mlp_base.*``, and on top
    of it ``mlp_mean.*`` and ``mlp_logvar.*``, whose output is squashed into the bounds. See ``Deviation``.

    Args:
        action_dim: ``Da``. horizon_steps: ``Ta``. cond_dim: ``To * Do``.
        mlp_dims: hidden widths. activation_type: of the hidden layers.
        tanh_output: squash the mean into (-1, 1).
        residual_style: ``ResidualMLP`` instead of ``MLP``. use_layernorm, dropout: in its hidden layers (``dropout``: plain only).
        fixed_std, learn_fixed_std: see ``Deviation``. std_min, std_max: bounds of a learned deviation.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        action_dim: int,
        horizon_steps: int,
        cond_dim: int,
        mlp_dims: Sequence[int] = (256, 256, 256),
        activation_type: str = "Mish",
        tanh_output: bool = True,
        residual_style: bool = False,
        use_layernorm: bool = False,
        dropout: float = 0.0,
        fixed_std: float | None = None,
        learn_fixed_std: bool = False,
        std_min: float = 0.01,
        std_max: float = 1.0,
    ) -> None:
        super().__init__()
        if residual_style and dropout:
            raise ValueError(f"dropout: a residual network has none; set it to 0 (found {dropout})")
        self._bound(action_dim, horizon_steps, fixed_std, learn_fixed_std, std_min, std_max)
        self.tanh_output = tanh_output
        plain = {} if residual_style else {"dropout": dropout}
        network, flat = ResidualMLP if residual_style else MLP, action_dim * horizon_steps
        if fixed_std is not None:
            self.mlp_mean = network(
                [cond_dim, *mlp_dims, flat], activation_type=activation_type, use_layernorm=use_layernorm, **plain
            )
            return
        self.mlp_base = network(
            [cond_dim, *mlp_dims],
            activation_type=activation_type,
            out_activation_type=activation_type,
            use_layernorm=use_layernorm,
            **plain,
        )
        self.mlp_mean = MLP([mlp_dims[-1], flat])
        self.mlp_logvar = MLP([mlp_dims[-1], flat])

    @property
    def hidden_layers(self) -> list[nn.Module]:
        """One module per entry of ``mlp_dims``; in front of two heads, the output of ``mlp_base`` is the last."""
        if self.fixed_std is not None:
            return self.mlp_mean.hidden_layers
        return [*self.mlp_base.hidden_layers, self.mlp_base]

    def forward(self, cond: Obs) -> tuple[Tensor, Tensor]:
        """``cond["state"] (B, To, Do)`` to mean ``(B, Ta, Da)`` and standard deviation, broadcastable to it."""
        state = cond["state"].flatten(1)
        if self.fixed_std is not None:
            hidden, std = state, self._std()
        else:
            hidden = self.mlp_base(state)
            low, high = self.logvar_min, self.logvar_max
            raw = self.mlp_logvar(hidden).view(-1, self.horizon_steps, self.action_dim)
            std = (0.5 * (low + 0.5 * (high - low) * (raw.tanh() + 1))).exp()
        mean = self.mlp_mean(hidden).view(-1, self.horizon_steps, self.action_dim)
        return mean.tanh() if self.tanh_output else mean, std


class Gaussian_VisionMLP(Vision, Deviation):  # noqa: N801 (published name)
    """Mean and deviation from ``[visual features, observation]``; parameters ``backbone.*``, ``compress*.*``, ``mlp_mean.*``.

    ``encode`` turns images into features, once per observation; ``forward`` takes either. Without ``fixed_std`` the deviation
    has a network of its own, ``mlp_logvar.*``, of one hidden layer.

    Arguments: of ``Vision``, and as in ``Gaussian_MLP``; the mean is always squashed.
    """

    def __init__(
        self,
        backbone: VitEncoder,
        action_dim: int,
        horizon_steps: int,
        cond_dim: int,
        img_cond_steps: int = 1,
        mlp_dims: Sequence[int] = (256, 256, 256),
        activation_type: str = "Mish",
        residual_style: bool = False,
        use_layernorm: bool = False,
        fixed_std: float | None = None,
        learn_fixed_std: bool = False,
        std_min: float = 0.01,
        std_max: float = 1.0,
        spatial_emb: int = 0,
        visual_feature_dim: int = 128,
        dropout: float = 0.0,
        num_img: int = 1,
        augment: bool = False,
    ) -> None:
        super().__init__()
        self._bound(action_dim, horizon_steps, fixed_std, learn_fixed_std, std_min, std_max)
        feature_dim = self._see(
            backbone, cond_dim, img_cond_steps, num_img, spatial_emb, visual_feature_dim, dropout, augment
        )
        width, flat = feature_dim + cond_dim, action_dim * horizon_steps
        settings = {"activation_type": activation_type, "use_layernorm": use_layernorm}
        self.mlp_mean = (ResidualMLP if residual_style else MLP)([width, *mlp_dims, flat], **settings)
        if fixed_std is None:
            self.mlp_logvar = MLP([width, mlp_dims[-1], flat], **settings)

    @property
    def hidden_layers(self) -> list[nn.Module]:
        """One module of ``mlp_mean`` per entry of ``mlp_dims``."""
        return self.mlp_mean.hidden_layers

    def forward(self, cond: Obs) -> tuple[Tensor, Tensor]:
        """``cond["state"] (B, To, Do)`` and ``cond["rgb"] (B, To, C, H, W)`` or ``encode``'s ``cond["features"] (B, F)``, to
        mean ``(B, Ta, Da)`` and standard deviation, broadcastable to it."""
        cond = self.encode(cond)
        seen = torch.cat([cond["features"], cond["state"].flatten(1)], dim=-1)
        shape = (-1, self.horizon_steps, self.action_dim)
        std = self._std(self.mlp_logvar(seen).view(shape) if self.fixed_std is None else None)
        return self.mlp_mean(seen).view(shape).tanh(), std
