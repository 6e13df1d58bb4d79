"""A small vision transformer for camera images (ViT, arXiv:2010.11929), as the published image policies use it.

Two convolutions cut the image into tokens, ``depth`` pre-norm transformer layers mix them. Parameter names, layouts and
initialisation are those of the published DPPO checkpoints (``vit.pos_embed``, ``vit.patch_embed.embed.*``,
``vit.net.*``, ``vit.norm.*``). The number of tokens follows from what the convolutions give, so that any image size
works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.types import ShapeError

EMBED_STYLES = ("embed1", "embed2")
SECOND_KERNEL, SECOND_STRIDE = 3, 2  # of embed2's second convolution
_STD = 0.02  # of the truncated normal that linear weights and position embeddings start from
_CFG = {"patch_size": 8, "depth": 1, "embed_dim": 128, "num_heads": 4, "embed_style": "embed2", "embed_norm": 0}
_STRIDE = "stride"  # optional: published files hold -1 there, "as the embedding says"


class VitEncoder(nn.Module):
    """Camera images to tokens; parameters ``vit.*``.

    Args:
        obs_shape: ``(C, H, W)`` of the observation; H and W are used where ``img_h`` and ``img_w`` are not given.
        cfg: ``depth``, ``embed_dim``, ``num_heads``, ``embed_style`` (``embed1``: one convolution, ``embed2``: two),
            ``embed_norm``, ``patch_size`` (kernel of the first convolution, 8 in every published file) and
            ``stride`` (of the first convolution; None or negative: ``patch_size`` for ``embed1``, half of it for
            ``embed2``). Absent keys have the published values.
        num_channel: channels of one image: 3 x ``img_cond_steps``.
        img_h, img_w: height and width in pixels; None: those of ``obs_shape``.

    Raises:
        ValueError: naming the key that does not fit.
    """

    def __init__(
        self,
        obs_shape: Sequence[int],
        cfg: Mapping[str, Any] | None = None,
        num_channel: int = 3,
        img_h: int | None = None,
        img_w: int | None = None,
    ) -> None:
        super().__init__()
        if len(obs_shape) != 3:
            raise ValueError(f"backbone.obs_shape: expected (channels, height, width), found {list(obs_shape)}")
        unknown = sorted(set(cfg or {}) - set(_CFG) - {_STRIDE})
        if unknown:
            raise ValueError(f"backbone.cfg.{unknown[0]}: no such key; known are {', '.join((*_CFG, _STRIDE))}")
        settings = {**_CFG, **(cfg or {})}
        self.obs_shape = tuple(int(n) for n in obs_shape)
        self.num_channel = num_channel
        self.img_h = self.obs_shape[1] if img_h is None else img_h
        self.img_w = self.obs_shape[2] if img_w is None else img_w
        self.vit = MinVit(num_channel=num_channel, img_h=self.img_h, img_w=self.img_w, **settings)
        self.num_patch = self.vit.num_patches  # N
        self.patch_repr_dim = int(settings["embed_dim"])  # D
        self.repr_dim = self.num_patch * self.patch_repr_dim

    def forward(self, images: Tensor, flatten: bool = False) -> Tensor:
        """Images ``(B, C, H, W)``, uint8 or float in [0, 255], to tokens ``(B, N, D)`` or, flat, ``(B, N * D)``.

        Raises:
            ShapeError: images of another shape than the network was built for.
        """
        expected = (self.num_channel, self.img_h, self.img_w)
        if tuple(images.shape[1:]) != expected:
            raise ShapeError(
                f"rgb: the network was built for images (C, H, W) = {expected}, found {tuple(images.shape[1:])}. "
                "Check backbone.obs_shape, backbone.num_channel, num_img and img_cond_steps"
            )
        weight = self.vit.pos_embed
        tokens = self.vit(images.to(weight.dtype) / 255.0 - 0.5)
        return tokens.flatten(1) if flatten else tokens


class MinVit(nn.Module):
    """Patch embedding, learned positions, transformer layers, a last LayerNorm. Arguments as in ``VitEncoder``."""

    def __init__(
        self,
        num_channel: int,
        img_h: int,
        img_w: int,
        patch_size: int,
        depth: int,
        embed_dim: int,
        num_heads: int,
        embed_style: str,
        embed_norm: int | bool,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"backbone.cfg.num_heads: expected a divisor of embed_dim = {embed_dim}, found {num_heads}"
            )
        if embed_style not in EMBED_STYLES:
            raise ValueError(f"backbone.cfg.embed_style: expected one of {EMBED_STYLES}, found {embed_style!r}")
        embed = PatchEmbed1 if embed_style == "embed1" else PatchEmbed2
        stride = None if stride is None or stride < 1 else stride
        self.patch_embed = embed(num_channel, embed_dim, patch_size, stride, bool(embed_norm))
        rows, columns = self.patch_embed.grid(img_h, img_w)
        if min(rows, columns) < 1:
            raise ValueError(
                f"backbone.obs_shape: images of {img_h} x {img_w} pixels are too small for {embed_style} with "
                f"patch_size {patch_size}; the smallest side is {self.patch_embed.smallest_side}"
            )
        self.num_patches = rows * columns
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_patches, embed_dim))
        self.net = nn.Sequential(*(TransformerLayer(embed_dim, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim)
        nn.init.trunc_normal_(self.pos_embed, std=_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` around zero to ``(B, N, D)``."""
        return self.norm(self.net(self.patch_embed(x) + self.pos_embed))


class PatchEmbed1(nn.Module):
    """One convolution; tokens ``(B, N, D)``, row by row."""

    def __init__(self, num_channel: int, embed_dim: int, patch_size: int, stride: int | None, norm: bool) -> None:
        super().__init__()
        self.kernel, self.stride = patch_size, stride or patch_size
        self.smallest_side = self.kernel
        self.embed = nn.Conv2d(num_channel, embed_dim, self.kernel, self.stride)
        if norm:
            raise ValueError("backbone.cfg.embed_norm: embed1 has no normalisation; use embed2 or embed_norm: 0")

    def grid(self, img_h: int, img_w: int) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return _conv_out(img_h, self.kernel, self.stride), _conv_out(img_w, self.kernel, self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, N, D)``."""
        return self.embed(x).flatten(2).transpose(1, 2)


class PatchEmbed2(nn.Module):
    """Convolution, [per-channel GroupNorm], ReLU, convolution; tokens ``(B, N, D)``, row by row."""

    def __init__(self, num_channel: int, embed_dim: int, patch_size: int, stride: int | None, norm: bool) -> None:
        super().__init__()
        self.kernel, self.stride = patch_size, stride or max(1, patch_size // 2)
        self.smallest_side = self.kernel + (SECOND_KERNEL - 1) * self.stride
        self.embed = nn.Sequential(
            nn.Conv2d(num_channel, embed_dim, self.kernel, self.stride),
            nn.GroupNorm(embed_dim, embed_dim) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(embed_dim, embed_dim, SECOND_KERNEL, SECOND_STRIDE),
        )

    def grid(self, img_h: int, img_w: int) -> tuple[int, int]:
        """Rows and columns of tokens."""
        first = (_conv_out(side, self.kernel, self.stride) for side in (img_h, img_w))
        rows, columns = (_conv_out(side, SECOND_KERNEL, SECOND_STRIDE) for side in first)
        return rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, N, D)``."""
        return self.embed(x).flatten(2).transpose(1, 2)


class TransformerLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; GELU, four times the width inside, no dropout."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(embed_dim)
        self.mha = MultiHeadAttention(embed_dim, num_heads)
        self.layer_norm2 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, 4 * embed_dim)
        self.linear2 = nn.Linear(4 * embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, D)`` to ``(B, N, D)``."""
        x = x + self.mha(self.layer_norm1(x))
        return x + self.linear2(F.gelu(self.linear1(self.layer_norm2(x))))


class MultiHeadAttention(nn.Module):
    """Self-attention with one projection for queries, keys and values (in this order, each head by head)."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, D)`` to ``(B, N, D)``."""
        b, n, d = x.shape
        q, k, v = self.qkv_proj(x).view(b, n, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


def _conv_out(side: int, kernel: int, stride: int) -> int:
    """Outputs of a convolution without padding along one side; 0 or less where the kernel does not fit."""
    return (side - kernel) // stride + 1
