"""The perceptron of the mixture policies: observation to ``M`` Gaussian modes of an action chunk and their weights.

Parameter names and class name are the published ones (DPPO, arXiv:2409.00588).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from model.common.deviation import Deviation
from model.common.mlp import MLP, ResidualMLP
from model.types import Obs


class GMM_MLP(Deviation):  # noqa: N801 (published name)
    """Networks of their own for means (``mlp_mean.*``), mode weights (``mlp_weights.*``) and, without ``fixed_std``, deviations
    (``mlp_logvar.*``). A learned ``logvar (M * Da)`` has one entry per mode and action dimension.

    Args:
        num_modes: ``M``.

    The others as in ``Gaussian_MLP``; the means are always squashed into (-1, 1).

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        action_dim: int,
        horizon_steps: int,
        cond_dim: int,
        mlp_dims: Sequence[int] = (256, 256, 256),
        num_modes: int = 5,
        activation_type: str = "Mish",
        residual_style: bool = False,
        use_layernorm: bool = False,
        fixed_std: float | None = None,
        learn_fixed_std: bool = False,
        std_min: float = 0.01,
        std_max: float = 1.0,
    ) -> None:
        super().__init__()
        self._bound(action_dim, horizon_steps, fixed_std, learn_fixed_std, std_min, std_max, num_modes)

        def network(out_dim: int) -> nn.Module:
            return (ResidualMLP if residual_style else MLP)(
                [cond_dim, *mlp_dims, out_dim], activation_type=activation_type, use_layernorm=use_layernorm
            )

        self.mlp_mean = network(num_modes * horizon_steps * action_dim)
        if fixed_std is None:
            self.mlp_logvar = network(num_modes * horizon_steps * action_dim)
        self.mlp_weights = network(num_modes)

    @property
    def hidden_layers(self) -> list[nn.Module]:
        """One module of ``mlp_mean`` per entry of ``mlp_dims``."""
        return self.mlp_mean.hidden_layers

    def forward(self, cond: Obs) -> tuple[Tensor, Tensor, Tensor]:
        """``cond["state"] (B, To, Do)`` to means ``(B, M, Ta, Da)``, standard deviations, broadcastable to them, and the modes'
        logits ``(B, M)``."""
        state = cond["state"].flatten(1)
        shape = (-1, self.num_modes, self.horizon_steps, self.action_dim)
        mean = self.mlp_mean(state).view(shape).tanh()
        std = self._std(self.mlp_logvar(state).view(shape) if self.fixed_std is None else None)
        return mean, self._by_mode(std), self.mlp_weights(state)
