"""Multi-layer perceptrons: plain and residual (pre-activation blocks; He et al., arXiv:1603.05027).

Parameter names follow the published DPPO and D2PPO checkpoints, so that their weights load strictly:
``moduleList.{i}.linear_1.*`` for the plain network, ``layers.{i}.*`` for the residual one.

Each network declares ``hidden_layers``: the modules whose *outputs* are its hidden features, one per hidden width. The
output layer is never among them, nor is an activation (every activation here is an instance of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ELU": nn.ELU,
    "GELU": nn.GELU,
    "Tanh": nn.Tanh,
    "Mish": nn.Mish,
    "Identity": nn.Identity,
    "Softplus": nn.Softplus,
}


def activation(name: str) -> nn.Module:
    """A new activation module; ``ValueError`` lists the known names."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)}; found {name!r}")
    return _ACTIVATIONS[name]()


class MLP(nn.Module):
    """A plain perceptron; layer ``i`` is linear, [LayerNorm], [dropout], activation.

    Args:
        dim_list: widths of input, hidden layers and output; at least two.
        append_dim: width of a second input that is concatenated to the inputs of ``append_layers``.
        append_layers: indices of the layers that see the second input (all between 0 and ``len(dim_list) - 2``).
        activation_type: after each layer but the last.
        out_activation_type: after the last layer.
        use_layernorm: normalise after each linear layer but the last; ``use_layernorm_final``: after the last, too.
        dropout: probability, after each linear layer but the last; ``use_drop_final``: after the last, too.
    """

    def __init__(
        self,
        dim_list: Sequence[int],
        append_dim: int = 0,
        append_layers: Sequence[int] | None = None,
        activation_type: str = "Tanh",
        out_activation_type: str = "Identity",
        use_layernorm: bool = False,
        use_layernorm_final: bool = False,
        dropout: float = 0.0,
        use_drop_final: bool = False,
    ) -> None:
        super().__init__()
        n_layers = len(dim_list) - 1
        if n_layers < 1:
            raise ValueError(f"dim_list: expected an input and an output width at least, found {list(dim_list)}")
        self.append_layers = frozenset(append_layers or ())
        if not self.append_layers <= set(range(n_layers)):
            raise ValueError(
                f"append_layers: expected indices in 0..{n_layers - 1}, found {sorted(self.append_layers)}"
            )
        self.moduleList = nn.ModuleList()
        for i in range(n_layers):
            last = i == n_layers - 1
            in_dim = dim_list[i] + (append_dim if i in self.append_layers else 0)
            layer = nn.Sequential()
            layer.add_module("linear_1", nn.Linear(in_dim, dim_list[i + 1]))
            if use_layernorm and (not last or use_layernorm_final):
                layer.add_module("norm_1", nn.LayerNorm(dim_list[i + 1]))
            if dropout > 0 and (not last or use_drop_final):
                layer.add_module("dropout_1", nn.Dropout(dropout))
            layer.add_module("act_1", activation(out_activation_type if last else activation_type))
            self.moduleList.append(layer)

    @property
    def hidden_layers(self) -> list[nn.Module]:
        """All layers but the last; each one's output is after its activation."""
        return list(self.moduleList)[:-1]

    def forward(self, x: Tensor, append: Tensor | None = None) -> Tensor:
        """``x (..., dim_list[0])`` to ``(..., dim_list[-1])``; ``append (..., append_dim)`` is the second input."""
        if self.append_layers and append is None:
            raise ValueError(f"MLP: layers {sorted(self.append_layers)} need the second input `append`, found None")
        for i, layer in enumerate(self.moduleList):
            x = layer(torch.cat([x, append], dim=-1) if i in self.append_layers else x)
        return x


class ResidualBlock(nn.Module):
    """``x + l2(act(norm2(l1(act(norm1(x))))))``; the norms exist only with ``use_layernorm``."""

    def __init__(self, dim: int, activation_type: str = "Mish", use_layernorm: bool = False) -> None:
        super().__init__()
        self.l1 = nn.Linear(dim, dim)
        self.l2 = nn.Linear(dim, dim)
        self.act1 = activation(activation_type)
        self.act2 = activation(activation_type)
        self.norm1: nn.Module | None = nn.LayerNorm(dim, eps=1e-6) if use_layernorm else None
        self.norm2: nn.Module | None = nn.LayerNorm(dim, eps=1e-6) if use_layernorm else None

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., dim)``."""
        h = x if self.norm1 is None else self.norm1(x)
        h = self.l1(self.act1(h))
        if self.norm2 is not None:
            h = self.norm2(h)
        return x + self.l2(self.act2(h))


class ResidualMLP(nn.Module):
    """Input projection, ``(n - 1) / 2`` residual blocks for ``n`` hidden widths, output projection.

    Args:
        dim_list: input, an odd number of equal hidden widths (``[512] * 3``: one block, ``[512] * 7``: three), output.
        activation_type: inside the blocks (there is none before the output projection).
        out_activation_type: after the output.
        use_layernorm: inside the blocks; ``use_layernorm_final``: after the output projection.

    Raises:
        ValueError: an even number of hidden widths, or unequal ones.
    """

    def __init__(
        self,
        dim_list: Sequence[int],
        activation_type: str = "Mish",
        out_activation_type: str = "Identity",
        use_layernorm: bool = False,
        use_layernorm_final: bool = False,
    ) -> None:
        super().__init__()
        hidden = list(dim_list[1:-1])
        if len(hidden) % 2 != 1:
            raise ValueError(
                f"mlp_dims: a residual MLP needs an odd number of hidden widths (1 + 2 per block), found {hidden}; "
                "use three or seven equal widths, or residual_style: False"
            )
        if len(set(hidden)) != 1:
            raise ValueError(f"mlp_dims: a residual MLP needs equal hidden widths, found {hidden}")
        width = hidden[0]
        self.layers = nn.ModuleList([nn.Linear(dim_list[0], width)])
        self.n_blocks = len(hidden) // 2
        self.layers.extend(ResidualBlock(width, activation_type, use_layernorm) for _ in range(self.n_blocks))
        self.layers.append(nn.Linear(width, dim_list[-1]))
        if use_layernorm_final:
            self.layers.append(nn.LayerNorm(dim_list[-1]))
        self.layers.append(activation(out_activation_type))

    @property
    def hidden_layers(self) -> list[nn.Module]:
        """The input projection, then for each block its inside (before the nonlinearity) and its output."""
        modules: list[nn.Module] = [self.layers[0]]
        for block in self.layers[1 : 1 + self.n_blocks]:
            modules += [block.l1, block]
        return modules

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim_list[0])`` to ``(..., dim_list[-1])``."""
        for layer in self.layers:
            x = layer(x)
        return x
