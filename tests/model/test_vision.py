"""Image policies: published layouts, the formulas against plain arithmetic, one encoding per observation."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from model.common.critic import CriticObs, ViTCritic
from model.common.dispersive_loss import record_outputs
from model.common.modules import RandomShiftsAug, SpatialEmb, shift_images
from model.common.vit import PatchEmbed2, VitEncoder
from model.diffusion.diffusion import DiffusionModel
from model.diffusion.diffusion_ppo import PPODiffusion
from model.diffusion.mlp_diffusion import DiffusionMLP, VisionDiffusionMLP
from model.types import Batch, ShapeError

H, W, B, TO, TA, DA, DO = 19, 23, 3, 1, 2, 5, 7
CFG = {"patch_size": 8, "depth": 1, "embed_dim": 12, "num_heads": 3, "embed_style": "embed2", "embed_norm": 0}
PUBLISHED_CFG = {
    "patch_size": 8,
    "depth": 1,
    "embed_dim": 128,
    "num_heads": 4,
    "embed_style": "embed2",
    "embed_norm": 0,
}
# Published layouts: (image) actor of lift and can, transport; their critics. Counts from the published checkpoints.
ACTOR_1 = {
    "compress.weight": (1, 128, 128),
    "compress.input_proj.0.weight": (128, 130),
    "mlp_mean.layers.0.weight": (512, 197),
}
ACTOR_2 = {
    "compress2.weight": (1, 128, 128),
    "compress2.input_proj.0.weight": (128, 139),
    "mlp_mean.layers.0.weight": (768, 418),
}
VIT = {
    "backbone.vit.pos_embed": (1, 121, 128),
    "backbone.vit.patch_embed.embed.0.weight": (128, 3, 8, 8),
    "backbone.vit.patch_embed.embed.0.bias": (128,),
    "backbone.vit.patch_embed.embed.3.weight": (128, 128, 3, 3),
    "backbone.vit.patch_embed.embed.3.bias": (128,),
    "backbone.vit.net.0.layer_norm1.weight": (128,),
    "backbone.vit.net.0.layer_norm1.bias": (128,),
    "backbone.vit.net.0.mha.qkv_proj.weight": (384, 128),
    "backbone.vit.net.0.mha.qkv_proj.bias": (384,),
    "backbone.vit.net.0.mha.out_proj.weight": (128, 128),
    "backbone.vit.net.0.mha.out_proj.bias": (128,),
    "backbone.vit.net.0.layer_norm2.weight": (128,),
    "backbone.vit.net.0.layer_norm2.bias": (128,),
    "backbone.vit.net.0.linear1.weight": (512, 128),
    "backbone.vit.net.0.linear1.bias": (512,),
    "backbone.vit.net.0.linear2.weight": (128, 512),
    "backbone.vit.net.0.linear2.bias": (128,),
    "backbone.vit.norm.weight": (128,),
    "backbone.vit.norm.bias": (128,),
}  # fmt: skip


def published_backbone(cameras: int) -> VitEncoder:
    return VitEncoder([3 * cameras, 96, 96], PUBLISHED_CFG, num_channel=3)


def backbone(steps: int = 1, h: int = H, w: int = W) -> VitEncoder:
    return VitEncoder([3, h, w], CFG, num_channel=3 * steps)


def network(cameras: int = 1, steps: int = 1, spatial_emb: int = 11, **more) -> VisionDiffusionMLP:
    torch.manual_seed(0)
    return VisionDiffusionMLP(
        backbone(steps), DA, TA, DO * TO, steps, time_dim=8, mlp_dims=[31, 31, 31], residual_style=True,
        spatial_emb=spatial_emb, num_img=cameras, **more,
    )  # fmt: skip


def critic(cameras: int = 1) -> ViTCritic:
    torch.manual_seed(1)
    return ViTCritic(backbone(), DO, [29, 29, 29], spatial_emb=13, num_img=cameras, residual_style=True)


def observation(b: int = B, cameras: int = 1, steps: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    rgb = torch.randint(0, 256, (b, steps, 3 * cameras, H, W), generator=g, dtype=torch.uint8)
    return {"state": torch.randn(b, TO, DO, generator=g), "rgb": rgb}


def ppo(k: int, ddim: int | None = None, cameras: int = 1) -> PPODiffusion:
    return PPODiffusion(
        network(cameras), critic(cameras), TA, DO, DA, denoising_steps=5, ft_denoising_steps=k,
        use_ddim=ddim is not None, ddim_steps=ddim,
    )  # fmt: skip


@pytest.fixture
def encodings(monkeypatch):
    """(encoder, images) of every call of a ViT, in order."""
    calls = []
    forward = VitEncoder.forward

    def counted(self, images, flatten=False):
        calls.append((self, len(images)))
        return forward(self, images, flatten)

    monkeypatch.setattr(VitEncoder, "forward", counted)
    return calls


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


# Layouts


@pytest.mark.parametrize(
    ("cameras", "width", "horizon", "actions", "state", "some", "keys", "parameters"),
    [(1, 512, 4, 7, 9, ACTOR_1, 36, 1_064_956), (1, 768, 4, 7, 9, {}, 36, 1_778_684), (2, 768, 8, 14, 18, ACTOR_2, 41, 2_048_720)],
)  # fmt: skip
def test_actors_have_the_published_layout(cameras, width, horizon, actions, state, some, keys, parameters):
    actor = VisionDiffusionMLP(
        published_backbone(cameras), actions, horizon, state, 1, 32, [width] * 3, residual_style=True,
        spatial_emb=128, num_img=cameras, augment=True,
    )  # fmt: skip
    found = shapes(actor)
    assert len(found) == keys
    assert sum(p.numel() for p in actor.parameters()) == parameters
    assert {**found, **VIT, **some} == found


@pytest.mark.parametrize(("cameras", "state", "keys", "parameters"), [(1, 9, 32, 586_881), (2, 18, 37, 657_665)])
def test_critics_have_the_published_layout(cameras, state, keys, parameters):
    value = ViTCritic(published_backbone(cameras), state, [256] * 3, num_img=cameras, residual_style=True)
    found = shapes(value)
    assert len(found) == keys
    assert sum(p.numel() for p in value.parameters()) == parameters
    assert {**found, **VIT} == found
    assert found["Q1.layers.0.weight"] == (256, 128 * cameras + state)


def test_every_key_and_shape_is_that_of_the_published_checkpoints():
    table = Path(__file__).resolve().parents[3] / "shared" / "spec" / "state_dict_keys.csv"
    if not table.is_file():
        pytest.skip("the table of all published layouts is not part of this checkout")
    layouts: dict[str, dict[str, tuple[int, ...]]] = {}
    for row in csv.DictReader(table.open()):
        if row["class"] in {"VisionDiffusionMLP", "ViTCritic"}:
            size = tuple(int(n) for n in row["shape"].split("x"))
            layouts.setdefault(row["structure_id"], {})[row["key"]] = size
    assert len(layouts) == 5
    for name, expected in layouts.items():
        cameras = 2 if "compress2.weight" in expected else 1
        state = expected["compress1.input_proj.0.weight" if cameras == 2 else "compress.input_proj.0.weight"][1] - 121
        common = {"spatial_emb": 128, "num_img": cameras, "residual_style": True}
        if name.startswith("ViTCritic"):
            made = ViTCritic(published_backbone(cameras), state, [256] * 3, **common)
        else:
            width, flat = expected["mlp_mean.layers.0.bias"][0], expected["mlp_mean.layers.2.bias"][0]
            actions = 7 * cameras
            made = VisionDiffusionMLP(
                published_backbone(cameras), actions, flat // actions, state, 1, 32, [width] * 3, **common
            )
        assert shapes(made) == expected, name


def test_initial_weights_are_the_published_ones():
    torch.manual_seed(0)
    vit = published_backbone(1).vit
    for weight in (vit.pos_embed, vit.net[0].linear1.weight, vit.net[0].mha.qkv_proj.weight):
        assert 0.0195 < float(weight.detach().std()) < 0.0205
    assert not vit.net[0].mha.out_proj.bias.any()
    conv = vit.patch_embed.embed[0]
    assert float(conv.weight.detach().abs().max()) <= 1 / math.sqrt(3 * 64)  # torch's own initialisation
    assert conv.bias.any()
    two = network(cameras=2)
    assert torch.equal(two.compress1.weight, two.compress2.weight)
    assert two.compress1.weight is not two.compress2.weight


# The encoder


@pytest.mark.parametrize("style", ["embed1", "embed2"])
@pytest.mark.parametrize(("h", "w"), [(16, 16), (19, 23), (76, 84), (84, 84), (97, 16), (96, 128)])
def test_any_image_size_gets_the_right_number_of_tokens(style, h, w):
    encoder = VitEncoder([3, h, w], {**CFG, "embed_style": style})
    tokens = encoder(torch.zeros(2, 3, h, w, dtype=torch.uint8))
    assert tokens.shape == (2, encoder.num_patch, 12)
    assert encoder.repr_dim == encoder.num_patch * 12
    assert encoder(torch.zeros(2, 3, h, w), flatten=True).shape == (2, encoder.repr_dim)


def test_an_image_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"obs_shape.*15 x 20.*smallest side is 16"):
        VitEncoder([3, 15, 20], CFG)
    with pytest.raises(ValueError, match=r"backbone.cfg.dept: no such key"):
        VitEncoder([3, 20, 20], {"dept": 1})
    with pytest.raises(ShapeError, match=r"\(3, 19, 23\).*\(3, 19, 22\)"):
        backbone()(torch.zeros(1, 3, 19, 22))


@pytest.mark.parametrize("norm", [0, 1])
def test_the_encoder_computes_its_formula(norm):
    torch.manual_seed(2)
    encoder = VitEncoder([3, H, W], {**CFG, "embed_norm": norm, "depth": 2})
    images = torch.randint(0, 256, (B, 3, H, W), dtype=torch.uint8)
    w = {key.removeprefix("vit."): value.double() for key, value in encoder.state_dict().items()}
    x = F.conv2d(images.double() / 255 - 0.5, w["patch_embed.embed.0.weight"], w["patch_embed.embed.0.bias"], 4)
    if norm:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
        x = (x - mean) / (var + 1e-5).sqrt()
    x = F.conv2d(x.relu(), w["patch_embed.embed.3.weight"], w["patch_embed.embed.3.bias"], 2)
    tokens = torch.stack([x[:, :, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])], 1) + w["pos_embed"]
    for layer in ("net.0.", "net.1."):
        normed = F.layer_norm(tokens, (12,), w[layer + "layer_norm1.weight"], w[layer + "layer_norm1.bias"])
        q, k, v = (normed @ w[layer + "mha.qkv_proj.weight"].T + w[layer + "mha.qkv_proj.bias"]).split(12, -1)
        heads = []
        for h in range(3):
            s = slice(4 * h, 4 * h + 4)
            heads.append((q[..., s] @ k[..., s].transpose(1, 2) / 2).softmax(-1) @ v[..., s])
        mixed = torch.cat(heads, -1) @ w[layer + "mha.out_proj.weight"].T + w[layer + "mha.out_proj.bias"]
        tokens = tokens + mixed
        normed = F.layer_norm(tokens, (12,), w[layer + "layer_norm2.weight"], w[layer + "layer_norm2.bias"])
        inner = F.gelu(normed @ w[layer + "linear1.weight"].T + w[layer + "linear1.bias"])
        tokens = tokens + inner @ w[layer + "linear2.weight"].T + w[layer + "linear2.bias"]
    expected = F.layer_norm(tokens, (12,), w["norm.weight"], w["norm.bias"])
    torch.testing.assert_close(encoder(images).double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(encoder(images), encoder(images.float()))  # uint8 or float in [0, 255]


def test_a_stride_of_its_own_makes_fewer_tokens():
    assert VitEncoder([3, 96, 96], {**CFG, "stride": 8}).num_patch == 25
    assert VitEncoder([3, 96, 96], {**CFG, "stride": -1}).num_patch == 121
    assert PatchEmbed2(3, 12, 8, None, False).grid(96, 96) == (11, 11)


def test_the_spatial_embedding_computes_its_formula():
    torch.manual_seed(3)
    module = SpatialEmb(num_patch=6, patch_dim=5, prop_dim=2, proj_dim=7)
    tokens, state = torch.randn(B, 6, 5), torch.randn(B, 2)
    z = torch.cat([tokens.transpose(1, 2), state[:, None].expand(B, 5, 2)], dim=-1)
    expected = (module.weight * module.input_proj(z)).sum(1)
    torch.testing.assert_close(module(tokens, state), expected, rtol=1e-5, atol=1e-6)


# Augmentation


def test_shifts_are_a_padded_crop():
    images = torch.randint(0, 256, (4, 2, 3, H, W), dtype=torch.uint8)
    shifts = torch.tensor([[0, 0], [4, -4], [-3, 2], [1, 4]])
    moved = shift_images(images, shifts)
    assert moved.dtype == torch.uint8
    for b, (down, right) in enumerate(shifts.tolist()):
        padded = np.pad(images[b].numpy(), [(0, 0), (0, 0), (4, 4), (4, 4)], mode="edge")
        expected = padded[..., 4 - down : 4 - down + H, 4 - right : 4 - right + W]
        np.testing.assert_array_equal(moved[b].numpy(), expected)
    assert torch.equal(shift_images(images.float(), shifts), moved.float())


def test_random_shifts_draw_once_per_row_and_reach_every_offset():
    aug, g = RandomShiftsAug(4), torch.Generator().manual_seed(0)
    shifts = aug.draw(4000, g)
    counts = torch.bincount(shifts.flatten() + 4)
    assert len(counts) == 9
    assert counts.min() > 700
    same_camera_twice = torch.randint(0, 256, (5, 1, 3, H, W), dtype=torch.uint8).repeat(1, 2, 2, 1, 1)
    moved = aug(same_camera_twice, torch.Generator().manual_seed(1))
    assert torch.equal(moved[:, 0, :3], moved[:, 1, 3:])
    assert not torch.equal(moved, same_camera_twice)
    assert torch.equal(moved, aug(same_camera_twice, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("dispersive", [False, True])
def test_only_the_loss_in_training_augments_and_it_encodes_once(dispersive, encodings):
    torch.manual_seed(0)
    model = DiffusionModel(network(augment=True), TA, DO, DA, 5, use_dispersive_loss=dispersive)
    plain = DiffusionModel(network(augment=False), TA, DO, DA, 5, use_dispersive_loss=dispersive)
    plain.load_state_dict(model.state_dict())
    batch = Batch(torch.rand(8, TA, DA), observation(8))

    def loss(policy):
        return float(policy.loss(batch, torch.Generator().manual_seed(3)).total.detach())

    assert loss(model) != loss(plain)
    assert [n for _, n in encodings] == [8, 8]
    model.eval()
    assert loss(model) == loss(plain)
    model.train()
    noise = torch.randn(8, *model.noise_shape)
    assert torch.equal(
        model.sample(batch.conditions, noise=noise).trajectories,
        plain.sample(batch.conditions, noise=noise).trajectories,
    )
    assert torch.equal(batch.conditions["rgb"], observation(8)["rgb"])  # nobody's batch was changed


# The networks


@pytest.mark.parametrize(("cameras", "steps", "spatial"), [(1, 1, 11), (2, 1, 11), (1, 2, 0), (2, 2, 11), (2, 1, 0)])
def test_features_come_from_each_camera_and_step_in_order(cameras, steps, spatial):
    actor = network(cameras, steps, spatial).eval()
    obs = observation(cameras=cameras, steps=steps + 1)  # one more than is looked at
    state = obs["state"].flatten(1)
    tokens = []
    for camera in range(cameras):
        images = obs["rgb"][:, 1:, 3 * camera : 3 * camera + 3].flatten(1, 2)
        tokens.append(actor.backbone(images))
    if spatial == 0:
        expected = actor.compress(torch.cat([t.flatten(1) for t in tokens], -1))
    else:
        heads = [actor.compress] if cameras == 1 else [actor.compress1, actor.compress2]
        if cameras == 2:
            torch.nn.init.normal_(actor.compress2.weight)  # tell them apart
        expected = torch.cat([head(t, state) for head, t in zip(heads, tokens, strict=True)], -1)
    features = actor.encode(obs)["features"]
    torch.testing.assert_close(features, expected)
    x, t = torch.randn(B, TA, DA), torch.tensor([0, 3, 4])
    whole = torch.cat([x.flatten(1), actor.time_embedding(t), features, state], -1)
    torch.testing.assert_close(actor(x, t, obs), actor.mlp_mean(whole).view(B, TA, DA))


def test_hidden_layers_are_those_of_the_perceptron():
    actor = network(cameras=2, cond_mlp_dims=[17, 6])
    x, t = torch.randn(B, TA, DA), torch.zeros(B, dtype=torch.long)
    with record_outputs(actor.hidden_layers) as features:
        out = actor(x, t, observation(cameras=2))
    assert [z.shape for z in features] == [(B, 31)] * 3
    assert out.shape == (B, TA, DA)
    assert actor.mlp_mean.layers[0].in_features == TA * DA + 8 + 2 * 11 + 6


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"num_img: expected one or two cameras, found 3"):
        network(cameras=3)
    with pytest.raises(ValueError, match=r"num_channel: expected 3 x img_cond_steps = 6, found 3"):
        VisionDiffusionMLP(backbone(1), DA, TA, DO, img_cond_steps=2)
    with pytest.raises(ValueError, match=r"critic.augment"):
        ViTCritic(backbone(), DO, [29, 29, 29], augment=True)
    actor = network()
    with pytest.raises(ShapeError, match=r"no 'rgb' \(it has state\).*name ends in _img"):
        actor.encode({"state": torch.zeros(B, TO, DO)})
    with pytest.raises(ShapeError, match=r"3 x num_img = 3.*\(3, 1, 6, 19, 23\)"):
        actor.encode(observation(cameras=2))


def test_the_critic_sees():
    value, obs = critic(2), observation(cameras=2)
    features = value.encode(obs)["features"]
    expected = value.Q1(torch.cat([features, obs["state"].flatten(1)], -1))[:, 0]
    assert torch.equal(value(obs), expected)
    black = {**obs, "rgb": torch.zeros_like(obs["rgb"])}
    assert not torch.allclose(value(obs), value(black))


# One encoding per observation


def test_the_policy_encodes_once_however_many_steps_it_denoises(encodings):
    model = DiffusionModel(network(), TA, DO, DA, 5)
    obs, noise = observation(), torch.randn(B, *model.noise_shape)
    sample = model.sample(obs, noise=noise)
    assert encodings == [(model.network.backbone, B)]
    x = noise[:, 0]
    for i in range(5):  # the same, with an encoder per step
        mean, std = model.step_mean_std(model.network, x, i, obs)
        x = mean + model.eval_std(std, i) * noise[:, 1 + i]
    torch.testing.assert_close(sample.trajectories, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("k", "ddim", "copies"), [(3, None, 2), (5, None, 1), (2, 2, 1), (1, 3, 2)])
def test_base_and_tuned_copy_encode_once_each(k, ddim, copies, encodings):
    policy, obs = ppo(k, ddim), observation()
    sample = policy.sample(obs, generator=torch.Generator().manual_seed(0))
    expected = [policy.network.backbone] * (copies - 1) + [policy.actor_ft.backbone]
    assert [encoder for encoder, _ in encodings] == expected
    assert [n for _, n in encodings] == [B] * copies
    encodings.clear()
    log_probs = policy.chain_log_probs(obs, sample.chains)
    assert encodings == [(policy.actor_ft.backbone, B)]  # B observations, not B * K
    torch.testing.assert_close(log_probs, sample.log_probs, rtol=1e-4, atol=1e-5)


def test_log_prob_of_encoded_observations_is_the_same_and_differentiable(encodings):
    policy, obs = ppo(3), observation()
    chains = policy.sample(obs, generator=torch.Generator().manual_seed(0)).chains
    rows, steps = torch.tensor([0, 2, 2, 1, 2]), torch.tensor([0, 0, 1, 2, 2])
    gradients = []
    encodings.clear()
    for encoded in (False, True):
        taken = {key: value[rows] for key, value in obs.items()}
        if encoded:
            taken = {key: value[rows] for key, value in policy.encode(obs).items()}
        policy.zero_grad()
        policy.log_prob(taken, chains[rows, steps], chains[rows, steps + 1], steps).sum().backward()
        gradients.append([p.grad.clone() for p in policy.actor_ft.parameters()])
    assert [n for _, n in encodings] == [5, 3]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert policy.actor_ft.backbone.vit.pos_embed.grad.abs().sum() > 0


def test_state_policies_are_untouched():
    torch.manual_seed(0)
    actor = DiffusionMLP(DA, TA, DO, mlp_dims=[31, 31, 31], residual_style=True)
    policy = PPODiffusion(
        actor, CriticObs(DO, [29, 29, 29], residual_style=True), TA, DO, DA, denoising_steps=5, ft_denoising_steps=3
    )
    obs = {"state": torch.randn(B, TO, DO)}
    assert policy.encode(obs) is obs


def test_images_are_told_apart_by_the_policy():
    policy, obs = ppo(3), observation()
    noise = torch.randn(B, *policy.noise_shape)
    other = {**obs, "rgb": observation(seed=1)["rgb"]}
    assert not torch.allclose(
        policy.sample(obs, noise=noise).trajectories, policy.sample(other, noise=noise).trajectories
    )
