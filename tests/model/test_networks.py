"""Networks: published parameter names, the formulas they compute, the hidden layers they declare, strict loading."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from model.common.critic import CriticObs, CriticObsAct
from model.common.dispersive_loss import record_outputs
from model.common.mlp import MLP, ResidualMLP, activation
from model.common.modules import strict_load
from model.diffusion.mlp_diffusion import DiffusionMLP
from model.diffusion.modules import SinusoidalPosEmb
from model.types import StateDictError


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def test_diffusion_mlp_has_the_published_keys():
    network = DiffusionMLP(3, 4, 11, time_dim=16, mlp_dims=[512] * 3, residual_style=True)
    assert shapes(network) == {
        "time_embedding.1.weight": (32, 16),
        "time_embedding.1.bias": (32,),
        "time_embedding.3.weight": (16, 32),
        "time_embedding.3.bias": (16,),
        "mlp_mean.layers.0.weight": (512, 39),
        "mlp_mean.layers.0.bias": (512,),
        "mlp_mean.layers.1.l1.weight": (512, 512),
        "mlp_mean.layers.1.l1.bias": (512,),
        "mlp_mean.layers.1.l2.weight": (512, 512),
        "mlp_mean.layers.1.l2.bias": (512,),
        "mlp_mean.layers.2.weight": (12, 512),
        "mlp_mean.layers.2.bias": (12,),
    }
    assert sum(p.numel() for p in network.parameters()) == 553_020


def test_furniture_network_has_the_published_keys():
    network = DiffusionMLP(10, 8, 58, 32, [1024] * 7, cond_mlp_dims=[512, 64], use_layernorm=True, residual_style=True)
    found = shapes(network)
    assert len(found) == 36
    assert sum(p.numel() for p in network.parameters()) == 6_640_368
    assert found["cond_mlp.moduleList.1.linear_1.weight"] == (64, 512)
    assert found["mlp_mean.layers.0.weight"] == (1024, 176)
    assert found["mlp_mean.layers.3.norm2.bias"] == (1024,)
    assert found["mlp_mean.layers.4.weight"] == (80, 1024)


def test_critics_have_the_published_keys():
    critic = CriticObs(23, [256] * 3, residual_style=True)
    assert len(shapes(critic)) == 8
    assert sum(p.numel() for p in critic.parameters()) == 137_985
    assert shapes(critic)["Q1.layers.1.l2.weight"] == (256, 256)
    double = CriticObsAct(11, [256] * 3, action_dim=3, action_steps=4)
    assert sum(p.numel() for p in double.parameters()) == 275_970
    assert shapes(double)["Q2.moduleList.3.linear_1.weight"] == (1, 256)
    normed = CriticObsAct(23, [256] * 3, action_dim=7, use_layernorm=True, double_q=False)
    assert len(shapes(normed)) == 14
    assert shapes(normed)["Q1.moduleList.2.norm_1.bias"] == (256,)


def test_critics_answer_one_number_per_row():
    obs = {"state": torch.randn(5, 2, 7)}
    assert CriticObs(14, [13, 13, 13], residual_style=True)(obs).shape == (5,)
    q1, q2 = CriticObsAct(14, [13, 11], action_dim=3, action_steps=2)(obs, torch.randn(5, 2, 3))
    assert q1.shape == q2.shape == (5,)
    assert not torch.equal(q1, q2)


def test_residual_mlp_computes_its_formula():
    network = ResidualMLP([5, 13, 13, 13, 3], "ReLU", use_layernorm=True)
    x = torch.randn(7, 5)
    w = network.state_dict()
    h = F.linear(x, w["layers.0.weight"], w["layers.0.bias"])
    inner = F.layer_norm(h, (13,), w["layers.1.norm1.weight"], w["layers.1.norm1.bias"], 1e-6).relu()
    inner = F.linear(inner, w["layers.1.l1.weight"], w["layers.1.l1.bias"])
    inner = F.layer_norm(inner, (13,), w["layers.1.norm2.weight"], w["layers.1.norm2.bias"], 1e-6).relu()
    h = h + F.linear(inner, w["layers.1.l2.weight"], w["layers.1.l2.bias"])
    expected = F.linear(h, w["layers.2.weight"], w["layers.2.bias"])
    torch.testing.assert_close(network(x), expected)


def test_mlp_options():
    network = MLP([5, 13, 11, 3], append_dim=2, append_layers=[1], use_layernorm=True, dropout=0.5)
    assert shapes(network)["moduleList.1.linear_1.weight"] == (11, 15)
    assert [name for name, _ in network.moduleList[0].named_children()] == ["linear_1", "norm_1", "dropout_1", "act_1"]
    assert [name for name, _ in network.moduleList[2].named_children()] == ["linear_1", "act_1"]
    final = MLP([5, 13, 3], use_layernorm=True, use_layernorm_final=True, dropout=0.5, use_drop_final=True)
    assert [name for name, _ in final.moduleList[1].named_children()] == ["linear_1", "norm_1", "dropout_1", "act_1"]
    network.eval()
    x, append = torch.randn(7, 5), torch.randn(7, 2)
    assert not torch.equal(network(x, append), network(x, append + 1))
    with pytest.raises(ValueError, match="append"):
        network(x)


def test_bad_network_settings_name_their_key():
    with pytest.raises(ValueError, match="mlp_dims.*odd"):
        ResidualMLP([5, 13, 13, 3])
    with pytest.raises(ValueError, match="mlp_dims.*equal"):
        ResidualMLP([5, 13, 11, 13, 3])
    with pytest.raises(ValueError, match="Mish.*'Swish'"):
        activation("Swish")


def test_activations_are_never_shared():
    assert activation("Mish") is not activation("Mish")
    network = DiffusionMLP(3, 2, 5, mlp_dims=[13] * 3, cond_mlp_dims=[11, 7], residual_style=True)
    leaves = [m for m in network.modules() if not list(m.children())]
    assert len({id(m) for m in leaves}) == len(leaves)
    registered = [m for parent in network.modules() for m in parent.children()]
    assert len({id(m) for m in registered}) == len(registered)


def test_sinusoidal_embedding_by_hand():
    out = SinusoidalPosEmb(6)(torch.tensor([0, 3]))
    frequencies = torch.tensor([1.0, 0.01, 0.0001])
    torch.testing.assert_close(out[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(out[1], torch.cat([(3 * frequencies).sin(), (3 * frequencies).cos()]))


def test_tabulated_time_changes_nothing_but_speed():
    torch.manual_seed(0)
    network = DiffusionMLP(3, 2, 10, mlp_dims=[13] * 3, residual_style=True)
    x, t, cond = torch.randn(7, 2, 3), torch.randint(11, (7,)), {"state": torch.randn(7, 2, 5)}
    table = copy.deepcopy(network)
    table.tabulate_time(11)
    assert table.state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(table(x, t, cond), network(x, t, cond))
    for n in (network, table):
        n(x, t, cond).square().sum().backward()
    for a, b in zip(network.parameters(), table.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    ("dims", "residual"), [([13] * 3, True), ([13] * 7, True), ([13, 11, 17], False), ([13], True)]
)
def test_hidden_layers_are_hidden(dims: list[int], residual: bool):
    network = DiffusionMLP(3, 2, 5, mlp_dims=dims, cond_mlp_dims=[19, 5], residual_style=residual)
    layers = network.hidden_layers
    assert len(layers) == len(dims)
    assert len({id(m) for m in layers}) == len(layers)
    x = torch.randn(7, 2, 3)
    with record_outputs(layers) as features:
        out = network(x, torch.zeros(7, dtype=torch.long), {"state": torch.randn(7, 1, 5)})
    assert [z.shape for z in features] == [(7, d) for d in dims]
    assert all(z.shape != out.flatten(1).shape for z in features)
    assert len({z.data_ptr() for z in features}) == len(features)


def test_hidden_layers_of_a_residual_network_are_before_its_nonlinearities():
    network = ResidualMLP([5, *[13] * 5, 3])
    first, one, two, _, _ = network.layers
    assert network.hidden_layers == [first, one.l1, one, two.l1, two]


def test_strict_load_copies_in_place():
    source, target = MLP([5, 7, 3]), MLP([5, 7, 3])
    identity = [id(p) for p in target.parameters()]
    strict_load(target, source.state_dict(), "x")
    assert [id(p) for p in target.parameters()] == identity
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_strict_load_names_the_first_mismatch():
    network = MLP([5, 7, 3])
    before = copy.deepcopy(network.state_dict())
    weights = copy.deepcopy(network.state_dict())
    weights["moduleList.0.linear_1.weight"] = torch.zeros(7, 6)
    with pytest.raises(StateDictError, match=r"ckpt.pt.*moduleList.0.linear_1.weight.*\(7, 5\).*\(7, 6\)"):
        strict_load(network, weights, "ckpt.pt")
    weights = {k: torch.ones_like(v) for k, v in before.items() if "1.linear_1.bias" not in k}
    with pytest.raises(StateDictError, match=r"moduleList.1.linear_1.bias.*missing.*\(3,\)"):
        strict_load(network, weights, "ckpt.pt")
    with pytest.raises(StateDictError, match=r"unexpected key 'extra'.*\(2,\)"):
        strict_load(network, {**before, "extra": torch.zeros(2)}, "ckpt.pt")
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
