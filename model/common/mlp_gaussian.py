"""The network of the Gaussian policies: observation to mean and standard deviation of an action chunk.

Parameter names and class name are the published ones (DPPO, arXiv:2409.00588).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.common.mlp import MLP, ResidualMLP
from model.types import Obs


class Gaussian_MLP(nn.Module):  # noqa: N801 (published name)
    """Mean and deviation from ``obs["state"] (B, To, Do)``. Where the deviation comes from:

    * ``fixed_std``: a number. The layers are ``mlp_mean.*`` alone.
    * ``fixed_std`` and ``learn_fixed_std``: it starts there and is learned, one per action dimension, whatever the
      observation: the parameter ``logvar (Da)``.
    * neither: a second head. The layers are ``mlp_base.*``, and on top of it ``mlp_mean.*`` and ``mlp_logvar.*``.

    ``logvar_min`` and ``logvar_max`` (0-d, never trained) are in the ``state_dict`` too.

    Args:
        action_dim: ``Da``. horizon_steps: ``Ta``. cond_dim: ``To * Do``.
        mlp_dims: hidden widths. activation_type: of the hidden layers.
        tanh_output: squash the mean into (-1, 1).
        residual_style: ``ResidualMLP`` instead of ``MLP``. use_layernorm, dropout: in its hidden layers (``dropout``: plain only).
        fixed_std, learn_fixed_std: see above. std_min, std_max: bounds of a learned deviation.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    logvar_min: Tensor
    logvar_max: Tensor

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
        _check(fixed_std, learn_fixed_std, std_min, std_max, residual_style, dropout)
        self.action_dim, self.horizon_steps = action_dim, horizon_steps
        self.tanh_output, self.fixed_std = tanh_output, fixed_std
        self.register_buffer("logvar_min", torch.tensor(2 * math.log(std_min)))
        self.register_buffer("logvar_max", torch.tensor(2 * math.log(std_max)))
        plain = {} if residual_style else {"dropout": dropout}
        network, flat = ResidualMLP if residual_style else MLP, action_dim * horizon_steps
        if fixed_std is not None:
            self.mlp_mean = network(
                [cond_dim, *mlp_dims, flat], activation_type=activation_type, use_layernorm=use_layernorm, **plain
            )
            if learn_fixed_std:
                self.logvar = nn.Parameter(torch.full((action_dim,), 2 * math.log(fixed_std)))
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

    def forward(self, cond: Obs) -> tuple[Tensor, Tensor]:
        """``cond["state"] (B, To, Do)`` to mean ``(B, Ta, Da)`` and standard deviation, broadcastable to it."""
        state = cond["state"].flatten(1)
        hidden = state if self.fixed_std is not None else self.mlp_base(state)
        mean = self.mlp_mean(hidden).view(-1, self.horizon_steps, self.action_dim)
        return mean.tanh() if self.tanh_output else mean, self._std(hidden)

    def _std(self, hidden: Tensor) -> Tensor:
        low, high = self.logvar_min, self.logvar_max
        if self.fixed_std is None:
            raw = self.mlp_logvar(hidden).view(-1, self.horizon_steps, self.action_dim)
            return (0.5 * (low + 0.5 * (high - low) * (raw.tanh() + 1))).exp()
        if hasattr(self, "logvar"):
            return (0.5 * self.logvar.clamp(low, high)).exp()
        return hidden.new_tensor(self.fixed_std)


def _check(
    fixed_std: float | None, learn: bool, std_min: float, std_max: float, residual_style: bool, dropout: float
) -> None:
    if not 0 < std_min < std_max:
        raise ValueError(f"std_min, std_max: expected 0 < std_min < std_max, found {std_min} and {std_max}")
    if fixed_std is None and learn:
        raise ValueError("learn_fixed_std: there is no fixed_std to start from; set it, or learn_fixed_std: False")
    if fixed_std is not None and not fixed_std > 0:
        raise ValueError(f"fixed_std: expected a number above 0, found {fixed_std}")
    if residual_style and dropout:
        raise ValueError(f"dropout: a residual network has none; set it to 0 (found {dropout})")
