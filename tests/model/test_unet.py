"""The U-Net denoisers: forward against plain numpy, gradients, hidden features, and their place in the diffusion policies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from model.common.critic import CriticObs
from model.common.vit import VitEncoder
from model.diffusion.diffusion import DiffusionModel
from model.diffusion.diffusion_ppo import PPODiffusion
from model.diffusion.unet import Unet1D, VisionUnet1D
from model.types import Batch, ShapeError

B, DA, DO, TIME = 5, 3, 7, 8
LARGE = {"dim": 6, "dim_mults": [1, 2, 3], "kernel_size": 3, "n_groups": 3, "cond_predict_scale": True}
SMALL = {"dim": 10, "dim_mults": [1, 3], "kernel_size": 5, "smaller_encoder": True, "activation_type": "ReLU"}
ENCODED = {"dim": 4, "dim_mults": [1], "n_groups": 2, "cond_mlp_dims": [13, 13, 13, 11], "groupnorm_eps": 1e-2}
ViT = {"depth": 1, "embed_dim": 12, "num_heads": 3}


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """With random weights everywhere, norms and biases included."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
    return network


def make(settings: dict) -> Unet1D:
    torch.manual_seed(0)
    return shaken(Unet1D(DA, DO, TIME, **settings))


def make_vision(cameras: int = 1, **more) -> VisionUnet1D:
    torch.manual_seed(0)
    backbone = VitEncoder([3, 19, 23], ViT)
    more = {**LARGE, "spatial_emb": 11, "num_img": cameras, **more}
    return shaken(VisionUnet1D(backbone, DA, DO, diffusion_step_embed_dim=TIME, **more))


def inputs(horizon: int, cameras: int = 0) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(2)
    obs = {"state": torch.randn(B, 1, DO, generator=g)}
    if cameras:
        obs["rgb"] = torch.randint(0, 256, (B, 1, 3 * cameras, 19, 23), generator=g, dtype=torch.uint8)
    return torch.randn(B, horizon, DA, generator=g), torch.tensor([0, 2, 2, 19, 7]), obs


# An implementation of its own, in float64


class Oracle:
    def __init__(self, network: torch.nn.Module, settings: dict) -> None:
        self.w = {key: value.double().numpy() for key, value in network.state_dict().items()}
        self.s = settings

    def act(self, x):
        return x * np.tanh(np.log1p(np.exp(x))) if self.s.get("activation_type", "Mish") == "Mish" else np.maximum(x, 0)

    def linear(self, key, x):
        return x @ self.w[key + ".weight"].T + self.w[key + ".bias"]

    def conv(self, key, x, stride=1):
        kernel = self.w[key + ".weight"]
        side = kernel.shape[-1] // 2
        windows = sliding_window_view(np.pad(x, [(0, 0), (0, 0), (side, side)]), kernel.shape[-1], axis=-1)
        return np.einsum("bctk,ock->bot", windows[:, :, ::stride], kernel) + self.w[key + ".bias"][:, None]

    def grow(self, key, x):
        kernel = self.w[key + ".weight"]  # (in, out, 4)
        out = np.zeros((len(x), kernel.shape[1], 2 * x.shape[-1] + 2))
        for t in range(x.shape[-1]):
            out[:, :, 2 * t : 2 * t + 4] += np.einsum("bc,cok->bok", x[:, :, t], kernel)
        return out[:, :, 1:-1] + self.w[key + ".bias"][:, None]

    def conv_block(self, key, x):
        x, groups = self.conv(key + ".block.0", x), self.s.get("n_groups")
        if groups:
            parts = x.reshape(len(x), groups, -1)
            mean, var = parts.mean(-1, keepdims=True), parts.var(-1, keepdims=True)
            x = ((parts - mean) / np.sqrt(var + self.s.get("groupnorm_eps", 1e-5))).reshape(x.shape)
            x = x * self.w[key + ".block.2.weight"][:, None] + self.w[key + ".block.2.bias"][:, None]
        return self.act(x)

    def block(self, key, x, c):
        h = self.conv_block(key + ".blocks.0", x)
        if self.s.get("cond_mlp_dims") or self.s.get("smaller_encoder"):
            film = self.linear(key + ".cond_encoder.1", self.act(c))
        else:
            film = c
            for i in (0, 2, 4):
                film = self.linear(f"{key}.cond_encoder.{i}", film)
                film = self.act(film) if i < 4 else film
        n = h.shape[1]
        h = film[:, :n, None] * h + film[:, n:, None] if self.s.get("cond_predict_scale") else h + film[:, :, None]
        skip = self.conv(key + ".residual_conv", x) if key + ".residual_conv.weight" in self.w else x
        return self.conv_block(key + ".blocks.1", h) + skip

    def time(self, t):
        frequencies = np.exp(-np.log(10000) * np.arange(TIME // 2) / (TIME // 2 - 1))
        angles = t[:, None] * frequencies
        h = self.linear("time_mlp.1", np.concatenate([np.sin(angles), np.cos(angles)], 1))
        return self.linear("time_mlp.3", h * np.tanh(np.log1p(np.exp(h))))

    def state(self, obs):
        x = obs["state"].double().numpy().reshape(B, -1)
        if "cond_mlp_dims" not in self.s:
            return x
        h = self.linear("cond_mlp.layers.0", x)
        inner = self.linear("cond_mlp.layers.1.l1", self.act(h))
        return self.linear("cond_mlp.layers.2", h + self.linear("cond_mlp.layers.1.l2", self.act(inner)))

    def __call__(self, x, t, obs, features=None):
        x, levels = x.double().numpy().transpose(0, 2, 1), len(self.s["dim_mults"])
        seen = [] if features is None else [features.detach().double().numpy()]
        c = np.concatenate([self.time(t.double().numpy()), *seen, self.state(obs)], 1)
        skips = []
        for level in range(levels):
            for i in (0, 1):
                x = self.block(f"down_modules.{level}.{i}", x, c)
            skips.append(x)
            if level < levels - 1:
                x = self.conv(f"down_modules.{level}.2.conv", x, stride=2)
        for i in (0, 1):
            x = self.block(f"mid_modules.{i}", x, c)
        for level in range(levels - 1):
            x = np.concatenate([x, skips[levels - 1 - level]], 1)
            for i in (0, 1):
                x = self.block(f"up_modules.{level}.{i}", x, c)
            x = self.grow(f"up_modules.{level}.2.conv", x)
        return self.conv("final_conv.1", self.conv_block("final_conv.0", x)).transpose(0, 2, 1)


@pytest.mark.parametrize(
    ("settings", "horizon"), [(LARGE, 12), (SMALL, 6), (ENCODED, 5)], ids=["large", "small", "encoded"]
)
def test_the_forward_pass_is_that_of_plain_numpy(settings, horizon):
    network, (x, t, obs) = make(settings), inputs(horizon)
    expected = Oracle(network, settings)(x, t, obs)
    out = network(x, t, obs)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
    network.tabulate_time(20)
    torch.testing.assert_close(network(x, t, obs), out)


@pytest.mark.parametrize("cameras", [1, 2])
def test_the_image_network_is_conditioned_on_time_features_and_state(cameras):
    network, (x, t, obs) = make_vision(cameras), inputs(4, cameras)
    encoded = network.encode(obs)
    assert encoded["features"].shape == (B, 11 * cameras)
    expected = Oracle(network, LARGE)(x, t, obs, encoded["features"])
    np.testing.assert_allclose(network(x, t, obs).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network(x, t, encoded), network(x, t, obs))


@pytest.mark.parametrize("settings", [LARGE, SMALL, ENCODED, None], ids=["large", "small", "encoded", "vision"])
def test_gradients_reach_every_parameter(settings):
    network = make_vision(2) if settings is None else make(settings)
    x, t, obs = inputs(8, 0 if settings else 2)
    network(x, t, obs).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("layer", ["early", "mid", "late", "all"])
def test_the_dispersive_loss_acts_on_hidden_features(layer):
    network, (x, _, obs) = make(LARGE), inputs(8)
    blocks = network.hidden_layers
    assert blocks == [
        *network.down_modules[0][:2], *network.down_modules[1][:2], *network.down_modules[2][:2], *network.mid_modules,
        *network.up_modules[0][:2], *network.up_modules[1][:2],
    ]  # fmt: skip
    model = DiffusionModel(network, 8, DO, DA, 20, use_dispersive_loss=True, dispersive_loss_layer=layer)
    report = model.diagnostics(Batch(x, obs), torch.Generator().manual_seed(0))
    assert report["gradient_norm_dispersive"] > 1e-3
    losses = model.loss(Batch(x, obs), torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        losses.total.detach(), losses.parts["diffusion loss"] + 0.5 * losses.parts["dispersive loss"]
    )


@pytest.mark.parametrize("ddim", [None, 5])
def test_ppo_tunes_a_copy_of_it(ddim):
    """Sampling and scoring agree, the base stays, and a step of policy gradient moves the copy."""
    critic = CriticObs(DO, [13, 13, 13], residual_style=True)
    policy = PPODiffusion(make(LARGE), critic, 4, DO, DA, 20, 3, use_ddim=ddim is not None, ddim_steps=ddim)
    base = DiffusionModel(make(LARGE), 4, DO, DA, 20)
    policy.load_base(shaken(base).state_dict())
    _, _, obs = inputs(4)
    sample = policy.sample(obs, generator=torch.Generator().manual_seed(0))
    assert sample.chains.shape == (B, 4, 4, DA)
    torch.testing.assert_close(policy.chain_log_probs(obs, sample.chains), sample.log_probs, rtol=1e-4, atol=1e-5)
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    optimizer = torch.optim.SGD(policy.actor_parameters(), 0.1)
    (-policy.chain_log_probs(obs, sample.chains) * torch.arange(B)[:, None]).mean().backward()
    optimizer.step()
    after = policy.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert moved == {key for key in after if key.startswith("actor_ft.")}


def test_what_does_not_fit_is_named():
    with pytest.raises(ShapeError, match=r"horizon_steps.*2 times.*multiple of 4, found 6"):
        network, (x, t, obs) = make(LARGE), inputs(6)
        network(x, t, obs)
    with pytest.raises(ValueError, match=r"dim_mults.*\[2, 4\]"):
        make({"dim_mults": [2, 4]})
    with pytest.raises(ValueError, match=r"dim_mults.*\[\]"):
        make({"dim_mults": []})
    with pytest.raises(ValueError, match=r"kernel_size.*odd.*found 4"):
        make({"kernel_size": 4})
    with pytest.raises(ValueError, match=r"n_groups.*dim = 32, found 5"):
        make({"n_groups": 5})
    with pytest.raises(ValueError, match=r"time_dim.*found 7"):
        Unet1D(DA, DO, 7)
    with pytest.raises(ValueError, match=r"num_img"):
        make_vision(3)
