"""The dispersive losses: hand values, gradients, memory, recording without a trace, layers, diagnostics."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from model.common.dispersive_loss import (
    KINDS,
    VARIANTS,
    DispersiveLoss,
    dispersive_loss,
    pick,
    pick_released,
    record_outputs,
)
from model.common.mlp import MLP
from model.diffusion.mlp_diffusion import DiffusionMLP


def by_definition(z: Tensor, kind: str, tau: float, self_pairs: bool, variant: str) -> Tensor:
    """The formulas, term by term."""
    n, dim = z.shape
    released = variant == "released"
    if kind == "covariance":
        c = torch.cov(z.T)
        return c.square().sum() - (0 if released else c.diagonal().square().sum())
    terms = []
    for i in range(n):
        for j in range(n):
            if i == j and not (self_pairs or released):
                continue
            d2 = (z[i] - z[j]).square().sum() / (1 if released else dim)
            if kind == "infonce_l2":
                terms.append(torch.exp(-d2 / tau))
            elif kind == "infonce_cosine":
                terms.append(torch.exp(torch.cosine_similarity(z[i], z[j], dim=0) / tau))
            else:
                terms.append(torch.clamp(1 - d2, min=0) ** 2)
    mean = torch.stack(terms).mean()
    return mean if kind == "hinge" else mean.log()


@pytest.mark.parametrize("shape", [(7, 5), (5, 11), (2, 3)])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("self_pairs", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_match_the_definition(kind: str, self_pairs: bool, variant: str, shape: tuple[int, int]):
    torch.manual_seed(0)
    z = (torch.randn(shape, dtype=torch.float64) * 0.5 + 1).requires_grad_()
    found = dispersive_loss(z, kind, 0.7, self_pairs, variant)
    expected = by_definition(z, kind, 0.7, self_pairs, variant)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    (a,), (b,) = torch.autograd.grad(found * 3, z), torch.autograd.grad(expected * 3, z)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_values_by_hand():
    z = torch.tensor([[0.0, 0.0], [1.0, 1.0]])  # d^2 / D = 1, orthogonal to nothing: the first row is zero
    assert dispersive_loss(z, "infonce_l2", 0.5, False).item() == pytest.approx(-2)
    assert dispersive_loss(z, "infonce_l2", 0.5, True).item() == pytest.approx(math.log((1 + math.exp(-2)) / 2))
    assert dispersive_loss(z, "infonce_l2", 0.5, variant="released").item() == pytest.approx(
        math.log((1 + math.exp(-4)) / 2)
    )
    assert dispersive_loss(z, "hinge", self_pairs=False).item() == 0
    assert dispersive_loss(z * 0.5, "hinge", self_pairs=False).item() == pytest.approx(0.75**2)
    assert dispersive_loss(z * 0.5, "hinge").item() == pytest.approx((1 + 0.75**2) / 2)
    opposite = torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
    assert dispersive_loss(opposite, "infonce_cosine", 0.5, False).item() == pytest.approx(-2)
    assert dispersive_loss(z, "covariance").item() == pytest.approx(2 * 0.5**2)
    assert dispersive_loss(z, "covariance", variant="released").item() == pytest.approx(4 * 0.5**2)


def test_features_are_flattened():
    z = torch.randn(5, 3, 2)
    strided = torch.randn(5, 7).T
    assert dispersive_loss(strided, "infonce_l2") == dispersive_loss(strided.contiguous(), "infonce_l2")
    torch.testing.assert_close(dispersive_loss(z, "infonce_l2"), dispersive_loss(z.flatten(1), "infonce_l2"))


def test_far_features_with_a_common_offset_keep_their_precision():
    torch.manual_seed(0)
    z = torch.randn(11, 7)
    torch.testing.assert_close(
        dispersive_loss(z + 1000, "infonce_l2"), dispersive_loss(z, "infonce_l2"), rtol=1e-3, atol=1e-3
    )
    far = (z * 1e3).requires_grad_()  # exp underflows, logsumexp does not
    loss = dispersive_loss(far, "infonce_l2", self_pairs=False)
    loss.backward()
    assert torch.isfinite(loss)
    assert far.grad.abs().max() > 0


def test_coinciding_features_are_no_trouble():
    for kind in KINDS:
        z = torch.ones(5, 3, requires_grad=True)
        loss = dispersive_loss(z, kind)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()
        zero = torch.zeros(5, 3, requires_grad=True)
        dispersive_loss(zero, kind).backward()
        assert torch.isfinite(zero.grad).all()


def test_memory_is_quadratic_in_the_batch():
    """No intermediate may have B * B * D elements."""
    n, dim = 64, 257
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN202
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    for kind in KINDS:
        z = torch.randn(n, dim, requires_grad=True)
        with Watch():
            dispersive_loss(z, kind).backward()
    assert 0 < largest <= max(n * n, n * dim)


def test_groups_compare_all_rows_within_strides():
    torch.manual_seed(0)
    z = torch.randn(13, 5)
    groups = [z[:12][i::4] for i in range(4)]  # 13 // 3 = 4 groups of 3; the last row stays out
    for kind in ("infonce_l2", "infonce_cosine", "hinge"):
        each = torch.stack([dispersive_loss(g, kind, self_pairs=False) for g in groups])
        expected = each.mean() if kind == "hinge" else each.exp().mean().log()
        torch.testing.assert_close(dispersive_loss(z, kind, self_pairs=False, group_size=3), expected)
        torch.testing.assert_close(dispersive_loss(z, kind, group_size=13), dispersive_loss(z, kind))
        own = {"infonce_l2": 0.0, "infonce_cosine": 2.0, "hinge": None}[kind]  # a sample with itself, at tau = 1/2
        whole = 1 / 13 + 12 / 13 * expected if own is None else (math.exp(own) / 13 + 12 / 13 * expected.exp()).log()
        torch.testing.assert_close(dispersive_loss(z, kind, self_pairs=True, group_size=3), whole)
    centred = z - z.mean(dim=0)
    pairs = [(i, j) for g in range(4) for i in range(g, 12, 4) for j in range(g, 12, 4) if i != j]
    terms = [(centred[i] @ centred[j]) ** 2 - (centred[i] * centred[j]).square().sum() for i, j in pairs]
    torch.testing.assert_close(dispersive_loss(z, "covariance", group_size=3), torch.stack(terms).mean())


def test_groups_estimate_the_same_number():
    torch.manual_seed(0)
    z = torch.randn(1024, 37) @ torch.randn(37, 37)
    for kind in KINDS:
        whole, grouped = dispersive_loss(z, kind), dispersive_loss(z, kind, group_size=32)
        assert abs(whole - grouped) < 0.1 * abs(whole), kind


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_is_an_error(kind: str):
    with pytest.raises(ValueError, match="two samples.*found 1"):
        dispersive_loss(torch.randn(1, 5), kind)
    assert dispersive_loss(torch.randn(1, 5), kind, variant="released") == 0


def test_bad_arguments_name_their_key():
    z = torch.randn(3, 5)
    with pytest.raises(ValueError, match="dispersive_loss_type.*infonce_l2.*'l2'"):
        dispersive_loss(z, "l2")
    with pytest.raises(ValueError, match="dispersive_loss_variant"):
        dispersive_loss(z, "hinge", variant="x")
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="dispersive_loss_temperature"):
            dispersive_loss(z, "hinge", temperature)
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        dispersive_loss(torch.randn(5), "hinge")


def hooks(network: nn.Module) -> int:
    own = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())
    return own + len(nn_module._global_forward_hooks)


def test_recording_leaves_no_trace():
    network = MLP([5, 7, 11, 3])
    before = hooks(network)
    with record_outputs(network.hidden_layers) as features:
        out = network(torch.randn(2, 5))
    assert [tuple(z.shape) for z in features] == [(2, 7), (2, 11)]
    assert features[0].requires_grad
    assert out.shape == (2, 3)
    assert hooks(network) == before
    network(torch.randn(2, 5))
    assert len(features) == 2


def test_recording_ends_on_an_exception():
    network = MLP([5, 7, 3])
    before = hooks(network)
    with pytest.raises(RuntimeError), record_outputs(network.hidden_layers):
        network(torch.randn(2, 6))
    assert hooks(network) == before


def test_recording_and_copies():
    network = MLP([5, 7, 3])
    with record_outputs(network.hidden_layers) as features:
        twin = copy.deepcopy(network)
        twin(torch.randn(2, 5))
        assert not features
        network(torch.randn(2, 5))
    assert len(features) == 1
    assert sum(len(m._forward_hooks) for m in twin.modules()) == 0
    with record_outputs(twin.hidden_layers) as copied:
        twin(torch.randn(2, 5))
    assert len(copied) == 1


def test_pick_by_count():
    layers = [nn.Identity() for _ in range(7)]
    chosen = {n: [layers.index(pick(layers[:n], w)[0]) for w in ("early", "mid", "late")] for n in range(3, 8)}
    assert chosen == {3: [0, 1, 2], 4: [1, 2, 3], 5: [1, 2, 3], 6: [1, 3, 4], 7: [1, 3, 5]}
    assert pick(layers, "all") == layers
    with pytest.raises(ValueError, match="my network has 2 hidden"):
        pick(layers[:2], "early", "my network")
    with pytest.raises(ValueError, match="dispersive_loss_layer.*'middle'"):
        pick(layers, "middle")


def test_early_mid_late_are_three_hidden_tensors():
    torch.manual_seed(0)
    for dims, residual in (([13] * 3, True), ([13] * 3, False), ([13] * 7, True)):
        network = DiffusionMLP(3, 2, 5, mlp_dims=dims, residual_style=residual)
        modules = [pick(network.hidden_layers, w)[0] for w in ("early", "mid", "late")]
        with record_outputs(modules) as features:
            out = network(torch.randn(7, 2, 3), torch.arange(7), {"state": torch.randn(7, 1, 5)}).flatten(1)
        assert len(features) == 3
        early, mid, late = features
        assert not any(torch.equal(a, b) for a, b in ((early, mid), (mid, late), (early, late)))
        assert all(z.shape != out.shape for z in features)


def test_released_layers_are_those_of_the_public_code():
    plain = DiffusionMLP(3, 2, 5, mlp_dims=[13] * 3, residual_style=True)
    first, block, last, identity = plain.mlp_mean.layers
    assert [pick_released(plain, w) for w in ("early", "mid", "late")] == [[block], [last], [identity]]
    assert pick_released(plain, "all") == [first, block, last, identity]
    encoded = DiffusionMLP(3, 2, 5, mlp_dims=[13] * 3, cond_mlp_dims=[11, 7], residual_style=True)
    assert pick_released(encoded, "late") == [encoded.cond_mlp]
    assert len(pick_released(encoded, "all")) == 5
    with pytest.raises(ValueError, match="released.*Linear"):
        pick_released(nn.Linear(2, 2), "early")
    settings = DispersiveLoss(variant="released", layer="mid")
    assert settings.modules(plain) == [last]


def test_settings_average_over_layers():
    z, w = torch.randn(5, 3), torch.randn(5, 7)
    settings = DispersiveLoss(kind="hinge")
    torch.testing.assert_close(settings([z, w]), (settings([z]) + settings([w])) / 2)
    with pytest.raises(ValueError, match="no features"):
        settings([])


def test_it_is_never_computed_in_bfloat16():
    """Distances are differences of large squares: mixed precision around the loss changes nothing in it."""
    z = (100 + torch.randn(11, 7)).bfloat16()
    expected = DispersiveLoss()([z.float()])
    with torch.autocast("cpu", torch.bfloat16):
        found = DispersiveLoss()([z])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("self_pairs", [False, True])
def test_floors_are_reached(self_pairs: bool):
    n = 5
    far = torch.eye(n) * 1e4
    simplex = torch.eye(n) - 1 / n
    for kind, z in (("infonce_cosine", simplex), ("hinge", far), ("covariance", torch.ones(n, 3)), ("infonce_l2", far)):
        settings = DispersiveLoss(kind=kind, self_pairs=self_pairs)
        if kind == "infonce_l2" and not self_pairs:
            assert settings.floor(n) == -math.inf
        else:
            assert settings([z]).item() == pytest.approx(settings.floor(n), abs=1e-6), kind


def by_definition_with_queue(z: Tensor, queue: Tensor, kind: str, tau: float, self_pairs: bool) -> Tensor:
    """Term by term over the pairs of a row of the batch and any row, and their self-pairs as a share of all rows."""
    everything = torch.cat([z, queue])
    if kind == "covariance":
        c = torch.cov(everything.T)
        return c.square().sum() - c.diagonal().square().sum()
    values = []
    for i in range(len(z)):
        for j in range(len(everything)):
            if i != j:
                d2 = (z[i] - everything[j]).square().mean()
                cos = torch.cosine_similarity(z[i], everything[j], dim=0)
                values.append(
                    {"infonce_l2": (-d2 / tau).exp(), "infonce_cosine": (cos / tau).exp()}.get(
                        kind, (1 - d2).clamp(min=0) ** 2
                    )
                )
    mean, own = torch.stack(values).mean(), 1 / len(everything) if self_pairs else 0
    mean = (1 - own) * mean + own * {"infonce_cosine": math.exp(1 / tau)}.get(kind, 1.0)
    return mean if kind == "hinge" else mean.log()


@pytest.mark.parametrize("self_pairs", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_queue_rows_are_compared_with_it_and_only_they_move(kind: str, self_pairs: bool):
    torch.manual_seed(0)
    z = (torch.randn(3, 7, dtype=torch.float64) * 0.5 + 1).requires_grad_()
    queue = (torch.randn(5, 7, dtype=torch.float64) * 0.5 + 1).requires_grad_()
    found = dispersive_loss(z, kind, 0.7, self_pairs, group_size=2, queue=queue)
    expected = by_definition_with_queue(z, queue.detach(), kind, 0.7, self_pairs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    (a,), (b,) = torch.autograd.grad(found, z, retain_graph=True), torch.autograd.grad(expected, z)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert torch.autograd.grad(found, queue, allow_unused=True) == (None,)
    empty = dispersive_loss(z, kind, 0.7, self_pairs, queue=queue[:0])
    torch.testing.assert_close(empty, dispersive_loss(z, kind, 0.7, self_pairs))
    assert torch.isfinite(dispersive_loss(z[:1], kind, queue=queue))  # a single row has pairs, then
    for bad, variant in ((queue[:, :5], "corrected"), (queue, "released")):
        with pytest.raises(ValueError, match="dispersive_queue: expected"):
            dispersive_loss(z, kind, queue=bad, variant=variant)


def test_normalised_features_are_the_cosine_loss_at_half_the_temperature():
    """Rows of norm sqrt(D): ``d^2 / D = 2 - 2 cos``, so there is no need of a setting for them."""
    z = torch.randn(7, 5, dtype=torch.float64)
    unit = z / z.square().mean(dim=1, keepdim=True).sqrt()
    found, cosine = dispersive_loss(unit, "infonce_l2", 0.6), dispersive_loss(z, "infonce_cosine", 0.3)
    torch.testing.assert_close(found, cosine - 2 / 0.6)


def test_saturation_is_the_way_from_all_alike_to_the_floor():
    alike, far = torch.ones(5, 11), torch.eye(5, 11) * 1e3
    for kind in ("infonce_l2", "hinge"):
        settings = DispersiveLoss(kind=kind)
        assert settings.saturation(settings([alike]), 5).item() == pytest.approx(0, abs=1e-6)
        assert settings.saturation(settings([far]), 5).item() == pytest.approx(1, abs=1e-6)
    cosine = DispersiveLoss(kind="infonce_cosine")
    assert cosine.saturation(cosine([torch.eye(5) - 0.2]), 5).item() == pytest.approx(1, abs=1e-6)
    assert DispersiveLoss().saturation(torch.tensor(-0.5), 7).item() == pytest.approx(0.5 / math.log(7))
    assert math.isnan(DispersiveLoss(kind="covariance").saturation(torch.tensor(1.0), 5))
