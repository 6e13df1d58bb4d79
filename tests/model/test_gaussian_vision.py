"""The Gaussian policy that sees: forward against plain arithmetic, one encoding per observation, augmentation, PPO's view of it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from model.common.critic import ViTCritic
from model.common.dispersive_loss import DispersiveLoss, record_outputs
from model.common.gaussian import GaussianModel
from model.common.mlp_gaussian import Gaussian_MLP, Gaussian_VisionMLP
from model.common.vit import VitEncoder
from model.rl.gaussian_ppo import PPO_Gaussian
from model.types import Batch, ShapeError

B, TA, DA, DO, H, W = 5, 2, 3, 7, 19, 23
LEARNED = {"fixed_std": 0.3, "learn_fixed_std": True}


def backbone() -> VitEncoder:
    return VitEncoder([3, H, W], {"depth": 1, "embed_dim": 12, "num_heads": 3})


def network(cameras: int = 1, **settings) -> Gaussian_VisionMLP:
    torch.manual_seed(0)
    settings = {"mlp_dims": (31, 31, 31), "residual_style": True, "spatial_emb": 11, "num_img": cameras, **settings}
    return Gaussian_VisionMLP(backbone(), DA, TA, DO, **settings)


def observation(cameras: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    rgb = torch.randint(0, 256, (B, 1, 3 * cameras, H, W), generator=g, dtype=torch.uint8)
    return {"state": torch.randn(B, 1, DO, generator=g), "rgb": rgb}


@pytest.mark.parametrize("cameras", [1, 2])
@pytest.mark.parametrize("settings", [{"fixed_std": 0.3}, LEARNED, {"std_max": 1.1}], ids=["fixed", "learned", "own"])
def test_the_forward_pass_is_its_formula(cameras, settings):
    net, obs = network(cameras, **settings), observation(cameras)
    features, w = net.encode(obs)["features"], net.state_dict()
    x = torch.cat([features, obs["state"].flatten(1)], -1)
    h = F.linear(x, w["mlp_mean.layers.0.weight"], w["mlp_mean.layers.0.bias"])
    inner = F.linear(F.mish(h), w["mlp_mean.layers.1.l1.weight"], w["mlp_mean.layers.1.l1.bias"])
    h = h + F.linear(F.mish(inner), w["mlp_mean.layers.1.l2.weight"], w["mlp_mean.layers.1.l2.bias"])
    expected = F.linear(h, w["mlp_mean.layers.2.weight"], w["mlp_mean.layers.2.bias"]).tanh()
    mean, std = net(obs)
    torch.testing.assert_close(mean, expected.view(B, TA, DA), rtol=1e-5, atol=1e-5)
    if "fixed_std" in settings:
        torch.testing.assert_close(std, torch.full((DA,) if settings is LEARNED else (), 0.3))
        return
    h = F.mish(F.linear(x, w["mlp_logvar.moduleList.0.linear_1.weight"], w["mlp_logvar.moduleList.0.linear_1.bias"]))
    raw = F.linear(h, w["mlp_logvar.moduleList.1.linear_1.weight"], w["mlp_logvar.moduleList.1.linear_1.bias"])
    torch.testing.assert_close(std, (0.5 * raw).exp().clamp(0.01, 1.1).view(B, TA, DA), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cameras", "settings"), [(1, LEARNED), (2, {"std_max": 1.5}), (2, {"spatial_emb": 0})])
def test_gradients_reach_every_parameter(cameras, settings):
    net = network(cameras, **settings)
    GaussianModel(net, TA).loss(Batch(torch.rand(B, TA, DA), observation(cameras))).total.backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize(
    ("make", "n", "last"),
    [
        (lambda: network(), 3, "mlp_mean.layers.1"),
        (lambda: Gaussian_MLP(DA, TA, DO, (13, 11, 17), fixed_std=0.1), 3, "mlp_mean.moduleList.2"),
        (lambda: Gaussian_MLP(DA, TA, DO, (13, 11, 17)), 3, "mlp_base"),
        (lambda: Gaussian_MLP(DA, TA, DO, (13,) * 4, residual_style=True), 4, "mlp_base"),
    ],
    ids=["vision", "fixed", "heads", "residual heads"],
)
@pytest.mark.parametrize("layer", ["early", "mid", "late"])
def test_the_dispersive_loss_acts_on_hidden_features(make, n, last, layer):
    net, loss, obs = make(), DispersiveLoss(layer=layer), observation()
    layers = net.hidden_layers
    assert len(layers) == len({id(module) for module in layers}) == n
    assert layers[-1] is net.get_submodule(last)
    with record_outputs(loss.modules(net)) as features:
        mean, _ = net(obs)
    assert len(features) == 1
    assert features[0].shape != mean.flatten(1).shape
    loss(features).backward()
    assert sum(float(p.grad.norm()) for p in net.parameters() if p.grad is not None) > 1e-3


def test_only_the_loss_in_training_augments():
    torch.manual_seed(0)
    model, plain = (GaussianModel(network(fixed_std=0.1, augment=augment), TA) for augment in (True, False))
    plain.load_state_dict(model.state_dict())
    batch = Batch(torch.rand(B, TA, DA), observation())

    def loss(policy):
        return float(policy.loss(batch, torch.Generator().manual_seed(3)).total.detach())

    assert loss(model) != loss(plain)
    assert loss(model) == loss(model)
    model.eval()
    assert loss(model) == loss(plain)


def test_ppo_scores_encoded_observations_as_it_scores_images():
    torch.manual_seed(0)
    critic = ViTCritic(backbone(), DO, [29, 29, 29], spatial_emb=13, residual_style=True)
    policy, obs = PPO_Gaussian(network(**LEARNED), critic, TA), observation()
    sample = policy.sample(obs, generator=torch.Generator().manual_seed(0))
    encoded = policy.encode(obs)
    assert set(encoded) == {"state", "features"}
    torch.testing.assert_close(policy.chain_log_probs(encoded, sample.chains), sample.log_probs)
    policy.chain_log_probs(encoded, sample.chains).sum().backward()
    assert policy.network.backbone.vit.pos_embed.grad.any()
    assert set(policy.encode({"state": obs["state"], "features": encoded["features"]})) == set(encoded)
    with pytest.raises(ShapeError, match="no 'rgb'"):
        policy.encode({"state": obs["state"]})
