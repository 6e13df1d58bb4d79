"""The transformers of the Gaussian and mixture policies: forward against plain numpy, gradients, hidden features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.common.dispersive_loss import DispersiveLoss, record_outputs
from model.common.transformer import Gaussian_Transformer, GMM_Transformer

B, TA, DA, DO, M, E, HEADS, LAYERS = 5, 3, 2, 7, 4, 12, 3, 3
SIZES = {"transformer_embed_dim": E, "transformer_num_heads": HEADS, "transformer_num_layers": LAYERS}
FIXED, LEARNED = {"fixed_std": 0.13}, {"fixed_std": 0.13, "learn_fixed_std": True, "std_max": 0.2}
OWN = {"std_min": 0.05, "std_max": 1.5}


def make(modes: int | None, **settings):
    torch.manual_seed(0)
    made = Gaussian_Transformer if modes is None else GMM_Transformer
    extra = {} if modes is None else {"num_modes": modes}
    network = made(DA, TA, DO, **extra, **{**SIZES, **settings})
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():  # 0.02 at initialisation: too little to tell formulas apart
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return network


def obs() -> dict[str, torch.Tensor]:
    return {"state": torch.randn(B, 1, DO, generator=torch.Generator().manual_seed(2))}


class Oracle:
    """In float64, from the parameters alone."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.w = {key: value.double().numpy() for key, value in network.state_dict().items()}

    def linear(self, key, x):
        return x @ self.w[key + ".weight"].T + self.w[key + ".bias"]

    def norm(self, key, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.w[key + ".weight"] + self.w[key + ".bias"]

    def attend(self, key, x, memory):
        w, b = self.w[key + ".in_proj_weight"], self.w[key + ".in_proj_bias"]
        q, k, v = (
            (source @ w[i * E : i * E + E].T + b[i * E : i * E + E]).reshape(B, -1, HEADS, E // HEADS)
            for i, source in enumerate((x, memory, memory))
        )
        scores = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(E // HEADS))
        mixed = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), v)
        return self.linear(key + ".out_proj", mixed.reshape(B, -1, E))

    def __call__(self, state: torch.Tensor):
        w, x = self.w, state.double().numpy().reshape(B, 1, -1)
        h = self.linear(
            "transformer.encoder.0", self.linear("transformer.cond_obs_emb", x) + w["transformer.cond_pos_emb"]
        )
        memory = self.linear("transformer.encoder.2", h * np.tanh(np.log1p(np.exp(h))))
        x = np.repeat(w["transformer.pos_emb"], B, 0)
        for i in range(LAYERS):
            key = f"transformer.decoder.layers.{i}"
            normed = self.norm(key + ".norm1", x)
            x = x + self.attend(key + ".self_attn", normed, normed)
            x = x + self.attend(key + ".multihead_attn", self.norm(key + ".norm2", x), memory)
            h = self.linear(key + ".linear1", self.norm(key + ".norm3", x))
            gelu = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
            x = x + self.linear(key + ".linear2", gelu)
        hidden = self.norm("transformer.ln_f", x)
        return self.linear("transformer.head", hidden), hidden


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [FIXED, LEARNED, OWN], ids=["fixed", "learned", "own"])
def test_the_gaussian_forward_pass_is_that_of_plain_numpy(settings):
    network = make(None, **settings)
    out, _ = Oracle(network)(obs()["state"])
    mean, std = network(obs())
    close(mean, np.tanh(out[..., :DA]))
    if settings is FIXED:
        assert float(std) == pytest.approx(0.13)
    elif settings is LEARNED:
        close(std, np.minimum(np.exp(0.5 * network.logvar.detach().numpy()), 0.2))
        assert std.shape == (DA,)
    else:
        close(std, np.exp(0.5 * out[..., DA:]).clip(0.05, 1.5))


@pytest.mark.parametrize("settings", [FIXED, LEARNED, OWN], ids=["fixed", "learned", "own"])
def test_the_mixture_forward_pass_is_that_of_plain_numpy(settings):
    network = make(M, **settings)
    out, hidden = Oracle(network)(obs()["state"])
    mean, std, logits = network(obs())
    assert mean.shape == (B, M, TA, DA)
    modes = out.reshape(B, TA, -1, M, DA).transpose(2, 0, 3, 1, 4)  # (1 or 2, B, M, Ta, Da)
    close(mean, np.tanh(modes[0]))
    close(logits, Oracle(network).linear("modes_head", hidden.reshape(B, -1)))
    if settings is FIXED:
        assert float(std) == pytest.approx(0.13)
    elif settings is LEARNED:
        close(std, np.minimum(np.exp(0.5 * network.logvar.detach().numpy()), 0.2).reshape(M, 1, DA))
    else:
        close(std, np.exp(0.5 * modes[1]).clip(0.05, 1.5))


@pytest.mark.parametrize("modes", [None, M], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("settings", [LEARNED | {"std_max": 1.0}, OWN], ids=["learned", "own"])
def test_gradients_reach_every_parameter_that_means_something(modes, settings):
    """A single memory token gets all attention, whatever asks for it: how the question is normalised is without effect."""
    network = make(modes, **settings)
    sum((part * (1 + torch.arange(part.shape[-1]))).square().sum() for part in network(obs())).backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == [
        f"transformer.decoder.layers.{i}.norm2.{part}" for i in range(LAYERS) for part in ("weight", "bias")
    ]


@pytest.mark.parametrize("modes", [None, M], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("layer", ["early", "mid", "late", "all"])
def test_the_dispersive_loss_acts_on_the_decoders_layers(modes, layer):
    network, loss = make(modes), DispersiveLoss(layer=layer)
    assert network.hidden_layers == list(network.transformer.decoder.layers)
    with record_outputs(loss.modules(network)) as features:
        network(obs())
    assert [z.shape for z in features] == [(B, TA, E)] * (LAYERS if layer == "all" else 1)
    loss(features).backward()
    assert network.transformer.cond_obs_emb.weight.grad.norm() > 1e-3
    assert network.transformer.head.weight.grad is None


def test_initial_weights_are_the_published_ones():
    torch.manual_seed(0)
    network = GMM_Transformer(7, 4, 23, fixed_std=0.1)
    inner = network.transformer
    assert len(inner.decoder.layers) == 6
    for weight in (
        inner.pos_emb,
        inner.cond_obs_emb.weight,
        inner.decoder.layers[3].self_attn.in_proj_weight,
        inner.head.weight,
    ):
        assert 0.018 < float(weight.detach().std()) < 0.022
    assert not inner.decoder.layers[1].multihead_attn.in_proj_bias.any()
    assert bool((inner.ln_f.weight == 1).all())
    assert float(network.modes_head.weight.detach().abs().max()) <= 1 / math.sqrt(4 * 256)  # torch's own


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"transformer_embed_dim.*transformer_num_heads = 5, found 12"):
        make(None, transformer_num_heads=5)
    with pytest.raises(ValueError, match=r"transformer_num_layers.*found 0"):
        make(None, transformer_num_layers=0)
    with pytest.raises(ValueError, match=r"transformer_activation.*'tanh'"):
        make(None, transformer_activation="tanh")
    with pytest.raises(ValueError, match=r"num_modes.*found 0"):
        make(0)
    with pytest.raises(ValueError, match=r"num_modes: Gaussian_Transformer has one, found 3"):
        make(None, num_modes=3)
    with pytest.raises(ValueError, match=r"horizon_steps.*found 0"):
        Gaussian_Transformer(DA, 0, DO)
    with pytest.raises(ValueError, match=r"learn_fixed_std"):
        make(M, learn_fixed_std=True)
