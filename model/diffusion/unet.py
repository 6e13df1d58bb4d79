"""The convolutional denoisers: a U-Net along the action chunk, conditioned on diffusion step and observation.

Diffusion Policy (arXiv:2303.04137) after Diffuser (arXiv:2205.09991), as DPPO uses it; parameter names are the published
ones. Time runs along the last axis, ``(B, C, T)``. Level ``l`` has ``dim * dim_mults[l]`` channels and works on ``Ta / 2^l``
steps; what is conditioned on enters every block as a scale and a shift of its channels (FiLM, arXiv:1709.07871).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.common.mlp import ResidualMLP, activation
from model.common.vision import Vision
from model.common.vit import VitEncoder
from model.diffusion.modules import TimeEmbedding
from model.types import Obs, ShapeError


class Block(NamedTuple):
    """How every block of a UNet is made; explained in ``Unet1D``."""

    kernel_size: int
    n_groups: int | None
    activation_type: str
    cond_predict_scale: bool
    groupnorm_eps: float


class Conv1dBlock(nn.Module):
    """Convolution, [GroupNorm], activation: ``(B, C_in, T)`` to ``(B, C_out, T)``; parameters ``block.0.*``, ``block.2.*``."""

    def __init__(self, in_dim: int, out_dim: int, made: Block) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["0"] = nn.Conv1d(in_dim, out_dim, made.kernel_size, padding=made.kernel_size // 2)
        if made.n_groups is not None:
            layers["2"] = nn.GroupNorm(made.n_groups, out_dim, eps=made.groupnorm_eps)
        layers["4"] = activation(made.activation_type)
        self.block = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualBlock1D(nn.Module):
    """``skip(x) + block1(scale(c) * block0(x) + shift(c))``; without ``cond_predict_scale`` the scale is 1.

    Args:
        in_dim, out_dim: channels; ``skip`` is a 1 x 1 convolution where they differ.
        cond_dim: width of ``c``.
        large_encoder: ``c`` goes through three linear layers, not an activation and one.
    """

    def __init__(self, in_dim: int, out_dim: int, cond_dim: int, large_encoder: bool, made: Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Conv1dBlock(in_dim, out_dim, made), Conv1dBlock(out_dim, out_dim, made)])
        self.cond_predict_scale = made.cond_predict_scale
        width = 2 * out_dim if made.cond_predict_scale else out_dim
        if large_encoder:
            self.cond_encoder = nn.Sequential(
                nn.Linear(cond_dim, width),
                activation(made.activation_type),
                nn.Linear(width, width),
                activation(made.activation_type),
                nn.Linear(width, width),
            )
        else:
            self.cond_encoder = nn.Sequential(activation(made.activation_type), nn.Linear(cond_dim, width))
        self.residual_conv = nn.Identity() if in_dim == out_dim else nn.Conv1d(in_dim, out_dim, 1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """``x (B, C_in, T)``, ``cond (B, cond_dim)`` to ``(B, C_out, T)``."""
        h, film = self.blocks[0](x), self.cond_encoder(cond)[..., None]
        if self.cond_predict_scale:
            scale, film = film.chunk(2, dim=1)
            h = scale * h
        return self.blocks[1](h + film) + self.residual_conv(x)


class _Resample(nn.Module):
    """Half or twice as many steps; parameters ``conv.*``."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Unet1D(nn.Module):
    """Predicts the noise (or the clean chunk) of a chunk whose length is a multiple of ``2 ** (levels - 1)``.

    Args:
        action_dim: ``Da``.
        cond_dim: ``To * Do``.
        diffusion_step_embed_dim: width of the time embedding.
        dim: channels of the first level; dim_mults: of each level, in multiples of it (the first is 1).
        smaller_encoder: one linear layer per block encodes what is conditioned on, not three.
        cond_mlp_dims: widths of a residual observation encoder in front of all blocks, which then have the small encoder;
            None feeds the observation directly.
        kernel_size: of the convolutions along the chunk; odd.
        n_groups: of the group normalisation, a divisor of all channel numbers; None: no normalisation.
        activation_type: of every hidden nonlinearity but the time embedding's.
        cond_predict_scale: condition by scale and shift, not by shift alone.
        groupnorm_eps: of the group normalisation.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        diffusion_step_embed_dim: int = 32,
        dim: int = 32,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        smaller_encoder: bool = False,
        cond_mlp_dims: Sequence[int] | None = None,
        kernel_size: int = 5,
        n_groups: int | None = None,
        activation_type: str = "Mish",
        cond_predict_scale: bool = False,
        groupnorm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        made = Block(kernel_size, n_groups, activation_type, cond_predict_scale, groupnorm_eps)
        self._assemble(
            action_dim, cond_dim, 0, diffusion_step_embed_dim, dim, dim_mults, smaller_encoder, cond_mlp_dims, made
        )

    def _assemble(
        self,
        action_dim: int,
        cond_dim: int,
        feature_dim: int,
        time_dim: int,
        dim: int,
        dim_mults: Sequence[int],
        smaller_encoder: bool,
        cond_mlp_dims: Sequence[int] | None,
        made: Block,
    ) -> None:
        """Make the layers; ``feature_dim`` columns of something else stand before the observation."""
        _check(dim, dim_mults, made)
        self.action_dim, self.stride = action_dim, 2 ** (len(dim_mults) - 1)
        self.time_mlp = TimeEmbedding(time_dim, time_dim * 4)
        self.cond_mlp: ResidualMLP | None = None
        if cond_mlp_dims is not None:
            self.cond_mlp = ResidualMLP([cond_dim, *cond_mlp_dims], activation_type=made.activation_type)
            cond_dim = cond_mlp_dims[-1]
        context_dim, large = time_dim + feature_dim + cond_dim, cond_mlp_dims is None and not smaller_encoder

        def pair(in_dim: int, out_dim: int) -> list[nn.Module]:
            """The two blocks of a level."""
            return [ResidualBlock1D(n, out_dim, context_dim, large, made) for n in (in_dim, out_dim)]

        widths = [dim * m for m in dim_mults]
        self.mid_modules = nn.ModuleList(pair(widths[-1], widths[-1]))
        self.down_modules, self.up_modules = nn.ModuleList(), nn.ModuleList()
        for in_dim, width in zip([action_dim, *widths], widths):
            last = len(self.down_modules) == len(widths) - 1
            shrink = nn.Identity() if last else _Resample(nn.Conv1d(width, width, 3, stride=2, padding=1))
            self.down_modules.append(nn.ModuleList([*pair(in_dim, width), shrink]))
        for width, skipped in reversed(list(itertools.pairwise(widths))):
            grow = _Resample(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1))
            self.up_modules.append(nn.ModuleList([*pair(2 * skipped, width), grow]))
        self.final_conv = nn.Sequential(Conv1dBlock(dim, dim, made), nn.Conv1d(dim, action_dim, 1))

    @property
    def hidden_layers(self) -> list[nn.Module]:
        """The residual blocks, in the order in which they run: two per level down, in the middle and up."""
        down, up = ([block for level in half for block in level[:2]] for half in (self.down_modules, self.up_modules))
        return [*down, *self.mid_modules, *up]

    def tabulate_time(self, denoising_steps: int) -> None:
        """Promise that ``t < denoising_steps``: the time embedding is then computed once per step, not once per row."""
        self.time_mlp.tabulate(denoising_steps)

    def forward(self, x: Tensor, t: Tensor, cond: Obs) -> Tensor:
        """``x (B, Ta, Da)``, diffusion steps ``t (B,)`` int64 and ``cond["state"] (B, To, Do)`` to ``(B, Ta, Da)``.

        Raises:
            ShapeError: ``Ta`` is no multiple of ``2 ** (levels - 1)``.
        """
        return self._denoise(x, [self.time_mlp(t), self._state(cond)])

    def _state(self, cond: Obs) -> Tensor:
        state = cond["state"].flatten(1)
        return state if self.cond_mlp is None else self.cond_mlp(state)

    def _denoise(self, x: Tensor, context: list[Tensor]) -> Tensor:
        if x.shape[1] % self.stride:
            raise ShapeError(
                f"horizon_steps: this UNet halves the chunk {self.stride.bit_length() - 1} times, expected a multiple of "
                f"{self.stride}, found {x.shape[1]}; take another horizon_steps or fewer dim_mults"
            )
        c, x, skips = torch.cat(context, dim=-1), x.transpose(1, 2), []
        for first, second, shrink in self.down_modules:
            x = second(first(x, c), c)
            skips.append(x)
            x = shrink(x)
        for block in self.mid_modules:
            x = block(x, c)
        for first, second, grow in self.up_modules:
            x = grow(second(first(torch.cat([x, skips.pop()], dim=1), c), c))
        return self.final_conv(x).transpose(1, 2)


class VisionUnet1D(Vision, Unet1D):
    """``Unet1D`` conditioned on ``[time embedding, visual features, observation]``.

    ``encode`` turns images into features, once per observation; ``forward`` takes either.

    Arguments: of ``Vision``, and as in ``Unet1D``. DPPO v0.6 (absent from the releases that the specification describes).
    """

    def __init__(
        self,
        backbone: VitEncoder,
        action_dim: int,
        cond_dim: int,
        img_cond_steps: int = 1,
        diffusion_step_embed_dim: int = 32,
        dim: int = 32,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        smaller_encoder: bool = False,
        cond_mlp_dims: Sequence[int] | None = None,
        kernel_size: int = 5,
        n_groups: int | None = None,
        activation_type: str = "Mish",
        cond_predict_scale: bool = False,
        groupnorm_eps: float = 1e-5,
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
        made = Block(kernel_size, n_groups, activation_type, cond_predict_scale, groupnorm_eps)
        sizes = (action_dim, cond_dim, feature_dim, diffusion_step_embed_dim, dim, dim_mults)
        self._assemble(*sizes, smaller_encoder, cond_mlp_dims, made)

    def forward(self, x: Tensor, t: Tensor, cond: Obs) -> Tensor:
        """``x (B, Ta, Da)``, diffusion steps ``t (B,)`` int64, ``cond["state"] (B, To, Do)`` and ``cond["rgb"]
        (B, To, C, H, W)`` or ``encode``'s ``cond["features"] (B, F)``, to ``(B, Ta, Da)``."""
        cond = self.encode(cond)
        return self._denoise(x, [self.time_mlp(t), cond["features"], self._state(cond)])


def _check(dim: int, dim_mults: Sequence[int], made: Block) -> None:
    if not dim_mults or dim_mults[0] != 1 or min(dim_mults) < 1:
        raise ValueError(f"dim_mults: expected 1 and then one number per further level, found {list(dim_mults)}")
    if made.kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd number (the chunk keeps its length), found {made.kernel_size}")
    if made.n_groups is not None and (made.n_groups < 1 or dim % made.n_groups):
        raise ValueError(f"n_groups: expected a divisor of dim = {dim}, found {made.n_groups}")
