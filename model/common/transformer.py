"""The transformers of the Gaussian and mixture policies: one query per step of the chunk, looking at the observation.

After the decoder of Diffusion Policy (arXiv:2303.04137), as DPPO uses it; parameter names and class names are the published
ones. Layers normalise first (pre-norm) and there is no causal mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.common.deviation import Deviation
from model.types import Obs

_STD = 0.02  # of the normal distribution that weights and position embeddings start from; biases start at 0


class Transformer(nn.Module):
    """Observation to one output per step of the chunk.

    The observation becomes one memory token, ``encoder(cond_obs_emb(obs) + cond_pos_emb)``; the ``Ta`` queries ``pos_emb`` go
    through decoder layers (attention among the queries, to the memory, then a perceptron). There being one token to look at, it
    gets all attention: ``norm2`` and the query and key weights of ``multihead_attn`` are in the published files, but without
    effect and without gradient.

    Args:
        out_dim: width of an output. horizon: ``Ta``. cond_dim: ``To * Do``.
        n_layer, n_head, n_emb: decoder layers, attention heads, width of a token (a multiple of ``n_head``).
        p_drop_emb, p_drop_attn: dropout of the embeddings and inside the decoder layers.
        activation: of the decoder's perceptrons, ``gelu`` or ``relu``.
    """

    def __init__(
        self,
        out_dim: int,
        horizon: int,
        cond_dim: int,
        n_layer: int,
        n_head: int,
        n_emb: int,
        p_drop_emb: float = 0.0,
        p_drop_attn: float = 0.0,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        if n_layer < 1:
            raise ValueError(f"transformer_num_layers: expected at least 1, found {n_layer}")
        if n_head < 1 or n_emb < n_head or n_emb % n_head:
            raise ValueError(
                f"transformer_embed_dim: expected a multiple of transformer_num_heads = {n_head}, found {n_emb}"
            )
        if activation not in ("gelu", "relu"):
            raise ValueError(f"transformer_activation: expected gelu or relu, found {activation!r}")
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb)
        self.cond_pos_emb = nn.Parameter(torch.empty(1, 1, n_emb))
        self.encoder = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
        self.pos_emb = nn.Parameter(torch.empty(1, horizon, n_emb))
        self.drop = nn.Dropout(p_drop_emb)
        layer = nn.TransformerDecoderLayer(
            n_emb, n_head, 4 * n_emb, p_drop_attn, activation, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, n_layer)
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, out_dim)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """``state (B, To * Do)`` to outputs ``(B, Ta, out_dim)`` and what the head saw, ``(B, Ta, n_emb)``."""
        memory = self.encoder(self.drop(self.cond_obs_emb(state)[:, None] + self.cond_pos_emb))
        queries = self.drop(self.pos_emb.expand(len(state), -1, -1))
        hidden = self.ln_f(self.decoder(queries, memory))
        return self.head(hidden), hidden


class _TransformerPolicy(Deviation):
    """What the two networks below share; parameters ``transformer.*``.

    Args:
        action_dim: ``Da``. horizon_steps: ``Ta``. cond_dim: ``To * Do``.
        transformer_embed_dim, transformer_num_heads, transformer_num_layers, transformer_activation, p_drop_emb, p_drop_attn: see
            ``Transformer``.
        fixed_std, learn_fixed_std: see ``Deviation``. std_min, std_max: bounds of a learned deviation.
        num_modes: ``M``, of a mixture; None: the class's own number.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    own_modes = 1  # more: a mixture

    def __init__(
        self,
        action_dim: int,
        horizon_steps: int,
        cond_dim: int,
        transformer_embed_dim: int = 256,
        transformer_num_heads: int = 8,
        transformer_num_layers: int = 6,
        transformer_activation: str = "gelu",
        p_drop_emb: float = 0.0,
        p_drop_attn: float = 0.0,
        fixed_std: float | None = None,
        learn_fixed_std: bool = False,
        std_min: float = 0.01,
        std_max: float = 1.0,
        num_modes: int | None = None,
    ) -> None:
        super().__init__()
        modes = self.own_modes if num_modes is None else num_modes
        if self.own_modes == 1 and modes != 1:
            raise ValueError(f"num_modes: {type(self).__name__} has one, found {modes}; take GMM_Transformer")
        self._bound(action_dim, horizon_steps, fixed_std, learn_fixed_std, std_min, std_max, modes)
        self.transformer = Transformer(
            modes * action_dim * (2 if fixed_std is None else 1),
            horizon_steps,
            cond_dim,
            transformer_num_layers,
            transformer_num_heads,
            transformer_embed_dim,
            p_drop_emb,
            p_drop_attn,
            transformer_activation,
        )
        if self.own_modes > 1:
            self.modes_head = nn.Linear(horizon_steps * transformer_embed_dim, modes)

    @property
    def hidden_layers(self) -> list[nn.Module]:
        """The decoder's layers; a normalisation and the head follow the last."""
        return list(self.transformer.decoder.layers)

    def _modes(self, cond: Obs) -> tuple[Tensor, Tensor, Tensor]:
        """Means ``(B, Ta, M, Da)``, deviations (broadcastable, or ``(M * Da,)`` of ``logvar``) and ``hidden (B, Ta, n_emb)``."""
        out, hidden = self.transformer(cond["state"].flatten(1))
        out = out.unflatten(-1, (-1, self.num_modes, self.action_dim))  # (B, Ta, 1 or 2, M, Da)
        std = self._std(out[:, :, 1] if self.fixed_std is None else None)
        return out[:, :, 0].tanh(), std, hidden


class Gaussian_Transformer(_TransformerPolicy):  # noqa: N801 (published name)
    """Mean and deviation of an action chunk from ``obs["state"] (B, To, Do)``.

    Without ``fixed_std`` the second half of every output is the step's log-variance.
    """

    def forward(self, cond: Obs) -> tuple[Tensor, Tensor]:
        """``cond["state"] (B, To, Do)`` to mean ``(B, Ta, Da)`` and standard deviation, broadcastable to it."""
        mean, std, _ = self._modes(cond)
        return mean.squeeze(2), std.squeeze(2) if std.ndim == 4 else std


class GMM_Transformer(_TransformerPolicy):  # noqa: N801 (published name)
    """``M`` Gaussian modes (five, if not said otherwise) of an action chunk and their weights from ``obs["state"] (B, To, Do)``.

    The weights come from all ``Ta`` tokens at once (``modes_head.*``). A learned ``logvar (M * Da)`` has one entry per mode and
    action dimension.
    """

    own_modes = 5

    def forward(self, cond: Obs) -> tuple[Tensor, Tensor, Tensor]:
        """``cond["state"] (B, To, Do)`` to means ``(B, M, Ta, Da)``, standard deviations, broadcastable to them, and the modes'
        logits ``(B, M)``."""
        mean, std, hidden = self._modes(cond)
        std = std.transpose(1, 2) if std.ndim == 4 else self._by_mode(std)
        return mean.transpose(1, 2), std, self.modes_head(hidden.flatten(1))
