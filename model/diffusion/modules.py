"""What every denoising network has: an embedding of the diffusion step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.common.mlp import activation
from model.types import ShapeError


class SinusoidalPosEmb(nn.Module):
    """``t (B,)`` to ``(B, dim)``: sines, then cosines, at frequencies ``exp(-k ln(10000) / (dim / 2 - 1))``."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"time_dim: expected an even number of at least 4, found {dim}")
        half = dim // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Integer or float steps ``(B,)``; or several times, ``(B, n)``, which then share the columns: each has every
        ``n``-th frequency.

        Raises:
            ShapeError: ``n`` does not divide the ``dim / 2`` frequencies.
        """
        if t.ndim == 1:
            angles = t[:, None] * self.frequencies
        else:
            n = t.shape[1]
            if len(self.frequencies) % n:
                raise ShapeError(f"time_dim: {n} times need a multiple of {2 * n}, found {2 * len(self.frequencies)}")
            angles = (t[:, :, None] * self.frequencies[::n]).flatten(1)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeEmbedding(nn.Sequential):
    """Diffusion steps ``(B,)`` (or times of a flow, see ``SinusoidalPosEmb``) to ``(B, dim)``: sines, a hidden layer, an output
    layer; parameters ``1.*`` and ``3.*``.

    Args:
        dim: width of the sines and of the result.
        hidden_dim: width of the hidden layer.
    """

    _steps: Tensor | None

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(
            SinusoidalPosEmb(dim), nn.Linear(dim, hidden_dim), activation("Mish"), nn.Linear(hidden_dim, dim)
        )
        self.register_buffer("_steps", None, persistent=False)

    def tabulate(self, denoising_steps: int) -> None:
        """Promise that ``t < denoising_steps``: from now on each step is embedded once, not each row."""
        self._steps = torch.arange(denoising_steps, device=self[1].weight.device)

    def forward(self, t: Tensor) -> Tensor:
        """Integer steps ``(B,)``; floats, too, unless tabulated."""
        return super().forward(t) if self._steps is None else F.embedding(t, super().forward(self._steps))
