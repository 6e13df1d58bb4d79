"""The published image network, the straightforward way: what a careful reader of the papers would write.

The images are float32, and the network takes an image and a noisy action chunk and answers with the noise: so whoever
denoises in five steps runs the whole encoder five times. The state is appended to every token channel before the spatial
embedding; random shifts are a ``grid_sample``. Keys are the published ones, so that weights can be exchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from script.bench.reference_networks import ResidualNet, Sinusoid


class Attention(nn.Module):
    """Multi-head self-attention with a fused projection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj, self.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        b, n, d = x.shape
        q, k, v = (y.view(b, n, self.heads, -1).transpose(1, 2) for y in self.qkv_proj(x).chunk(3, dim=-1))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mha = Attention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.mha(self.layer_norm1(x))
        return x + self.linear2(F.gelu(self.linear1(self.layer_norm2(x))))


class Embed(nn.Module):
    """Two convolutions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(3, dim, 8, stride=4), nn.Identity(), nn.ReLU(), nn.Conv2d(dim, dim, 3, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D)."""
        return self.embed(x).flatten(2).transpose(1, 2)


class Vit(nn.Module):
    """Tokens of an image of 96 x 96 pixels."""

    def __init__(self, dim: int = 128, heads: int = 4, tokens: int = 121) -> None:
        super().__init__()
        self.patch_embed, self.net, self.norm = Embed(dim), nn.Sequential(Layer(dim, heads)), nn.LayerNorm(dim)
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D)."""
        return self.norm(self.net(self.patch_embed(x) + self.pos_embed))


class Backbone(nn.Module):
    """Pixels in [0, 255] to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = Vit()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D)."""
        return self.vit(x / 255.0 - 0.5)


class SpatialEmbedding(nn.Module):
    """Every token channel with the state appended, through one linear layer; a weighted sum over channels."""

    def __init__(self, tokens: int, dim: int, state: int, width: int) -> None:
        super().__init__()
        self.input_proj = nn.Sequential(nn.Linear(tokens + state, width), nn.LayerNorm(width), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(1, dim, width))

    def forward(self, tokens: Tensor, state: Tensor) -> Tensor:
        """(B, N, D), (B, P) -> (B, E)."""
        channels = tokens.transpose(1, 2)
        repeated = state[:, None].repeat(1, channels.shape[1], 1)
        return (self.input_proj(torch.cat([channels, repeated], dim=-1)) * self.weight).sum(dim=1)


class VisionDenoiser(nn.Module):
    """Noise prediction from (noisy chunk, step, state, image); everything is computed at every call."""

    def __init__(
        self, obs_dim: int = 9, action_dim: int = 7, horizon: int = 4, width: int = 512, time_dim: int = 32
    ) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.compress = SpatialEmbedding(121, 128, obs_dim, 128)
        self.time_embedding = nn.Sequential(
            Sinusoid(time_dim), nn.Linear(time_dim, 2 * time_dim), nn.Mish(), nn.Linear(2 * time_dim, time_dim)
        )
        flat = horizon * action_dim
        self.mlp_mean = ResidualNet(flat + time_dim + 128 + obs_dim, width, flat)

    @property
    def hidden_layers(self) -> list[nn.Module]:
        """What a dispersive loss may look at."""
        return [self.mlp_mean.layers[0], self.mlp_mean.layers[1].l1, self.mlp_mean.layers[1]]

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """(B, Ta, Da), (B,), {"state": (B, 1, Do), "rgb": (B, 1, 3, H, W) float32} -> (B, Ta, Da)."""
        state = cond["state"][:, 0]
        seen = self.compress(self.backbone(cond["rgb"][:, 0]), state)
        return self.mlp_mean(torch.cat([x.flatten(1), self.time_embedding(t), seen, state], dim=-1)).view(x.shape)


def random_shift(images: Tensor, pad: int = 4) -> Tensor:
    """Square images (B, 3, H, H) float32, each shifted by a random whole number of pixels: padded, then sampled on a
    grid."""
    b, _, h, _ = images.shape
    padded = F.pad(images, (pad, pad, pad, pad), mode="replicate")
    size = h + 2 * pad
    line = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)[:h]
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)[None]
    shift = torch.randint(0, 2 * pad + 1, (b, 1, 1, 2)) * (2.0 / size)
    return F.grid_sample(padded, grid + shift, padding_mode="zeros", align_corners=False)
