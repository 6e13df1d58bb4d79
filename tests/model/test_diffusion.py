"""The pre-trained policy: its loss, its sampler, each clip knob, its settings."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from model.common.dispersive_loss import KINDS, LAYERS, dispersive_loss, record_outputs
from model.diffusion.diffusion import DiffusionModel
from model.diffusion.mlp_diffusion import DiffusionMLP
from model.types import Batch, Obs, ShapeError

B, TO, TA, DA, DO = 3, 2, 4, 5, 7


class Constant(nn.Module):
    """Predicts a constant, and remembers its calls."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.times: list[list[int]] = []
        self.output = torch.empty(0)

    def forward(self, x: Tensor, t: Tensor, cond: Obs) -> Tensor:
        self.times.append(t.tolist())
        self.output = torch.zeros_like(x) + self.value
        return self.output


def network(width: int = 13) -> DiffusionMLP:
    torch.manual_seed(0)
    return DiffusionMLP(DA, TA, TO * DO, mlp_dims=[width] * 3, residual_style=True)


def model(net: nn.Module, **settings: object) -> DiffusionModel:
    return DiffusionModel(
        net, **{"horizon_steps": TA, "obs_dim": DO, "action_dim": DA, "denoising_steps": 11, **settings}
    )


def batch(n: int = B) -> Batch:
    g = torch.Generator().manual_seed(1)
    return Batch(torch.rand(n, TA, DA, generator=g) * 2 - 1, {"state": torch.rand(n, TO, DO, generator=g) * 2 - 1})


def test_state_dict_is_the_network_alone():
    m = model(network(), use_ddim=True, ddim_steps=5, use_dispersive_loss=True)
    assert set(m.state_dict()) == {f"network.{key}" for key in network().state_dict()}


@pytest.mark.parametrize("predict_epsilon", [True, False])
def test_loss_by_hand(predict_epsilon: bool):
    m, b = model(network(), predict_epsilon=predict_epsilon), batch()
    losses = m.loss(b, torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    t = torch.randint(11, (B,), generator=g)
    eps = torch.randn(B, TA, DA, generator=g)
    abar = m.schedule.alphas_cumprod[t].view(-1, 1, 1)
    prediction = m.network(abar.sqrt() * b.actions + (1 - abar).sqrt() * eps, t, b.conditions)
    expected = (prediction - (eps if predict_epsilon else b.actions)).square().mean()
    torch.testing.assert_close(losses.total, expected)
    assert set(losses.parts) == {"diffusion loss"}
    assert not losses.parts["diffusion loss"].requires_grad


def test_dispersive_part_is_weighted_and_needs_one_forward():
    b = batch(7)
    m = model(network(), use_dispersive_loss=True, dispersive_loss_weight=0.3, dispersive_loss_layer="late")
    calls = []
    m.network.register_forward_hook(lambda *_: calls.append(1))
    losses = m.loss(b, torch.Generator().manual_seed(3))
    assert len(calls) == 1
    plain = model(m.network).loss(b, torch.Generator().manual_seed(3))
    torch.testing.assert_close(losses.parts["diffusion loss"], plain.total.detach())
    torch.testing.assert_close(losses.total, plain.total + 0.3 * losses.parts["dispersive loss"])
    with record_outputs([m.network.hidden_layers[2]]) as features:
        m.loss(b, torch.Generator().manual_seed(3))
    torch.testing.assert_close(losses.parts["dispersive loss"], dispersive_loss(features[0], "infonce_l2").detach())


@pytest.mark.parametrize("width", [256, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_dispersive_gradient_is_alive_at_initialisation(kind: str, width: int):
    for layer in LAYERS:
        m = model(network(width), use_dispersive_loss=True, dispersive_loss_type=kind, dispersive_loss_layer=layer)
        report = m.diagnostics(batch(256), torch.Generator().manual_seed(5))
        assert report["gradient_norm_dispersive"] > 1e-4, layer
        assert report["gradient_norm_ratio"] > 0
        assert all(p.grad is None for p in m.parameters())


def test_diagnostics_without_dispersion_are_empty():
    assert model(network()).diagnostics(batch()) == {}


def test_settings_are_checked_at_construction():
    with pytest.raises(ValueError, match="DiffusionMLP has 2 hidden"):
        model(DiffusionMLP(DA, TA, TO * DO), use_dispersive_loss=True)
    with pytest.raises(ValueError, match="Constant has 0 hidden"):
        model(Constant(0.0), use_dispersive_loss=True)
    for key, value in {
        "dispersive_loss_type": "infonce",
        "dispersive_loss_layer": "last",
        "dispersive_loss_variant": "old",
        "dispersive_loss_temperature": 0.0,
        "dispersive_loss_group_size": 1,
    }.items():
        with pytest.raises(ValueError, match=key):
            model(network(), use_dispersive_loss=True, **{key: value})
    with pytest.raises(ValueError, match="ddim_steps"):
        model(network(), use_ddim=True)
    with pytest.raises(ValueError, match="predict_epsilon"):
        model(network(), use_ddim=True, ddim_steps=5, predict_epsilon=False)
    with pytest.raises(ValueError, match="two samples"):
        model(network(), use_dispersive_loss=True).loss(batch(1))
    with pytest.raises(ShapeError, match="actions.*4, 5.*4, 6"):
        model(network()).loss(Batch(torch.zeros(B, TA, DA + 1), batch().conditions))
    with pytest.raises(ShapeError, match="noise.*3, 12, 4, 5"):
        model(network()).sample(batch().conditions, noise=torch.zeros(B, 11, TA, DA))


@pytest.mark.parametrize("deterministic", [True, False])
def test_ddpm_sample_by_hand(deterministic: bool):
    m, obs = model(network(), randn_clip_value=0.7), batch().conditions
    noise = torch.randn(B, *m.noise_shape, generator=torch.Generator().manual_seed(2))
    kept = noise.clone()
    s, x = m.schedule, noise[:, 0]
    for i, t in enumerate(range(10, -1, -1)):
        with torch.no_grad():
            eps = m.network(x, torch.full((B,), t), obs)
        abar = s.alphas_cumprod[t]
        x0 = ((x - (1 - abar).sqrt() * eps) / abar.sqrt()).clamp(-1, 1)
        std = s.posterior_std[t]
        if deterministic:
            std = std.clamp(min=1e-3) if t else torch.zeros(())
        x = s.posterior_coef_x0[t] * x0 + s.posterior_coef_xt[t] * x + std * noise[:, 1 + i].clamp(-0.7, 0.7)
    sample = m.sample(obs, deterministic, noise=noise)
    torch.testing.assert_close(sample.trajectories, x, rtol=1e-5, atol=1e-5)
    assert sample.chains is None
    assert torch.equal(noise, kept)


def test_evaluation_deviation():
    tiny, large = torch.tensor(1e-5), torch.tensor(0.3)
    m = model(Constant(0.0))
    assert [m.eval_std(tiny, 9).item(), m.eval_std(large, 9).item()] == pytest.approx([1e-3, 0.3])
    assert m.eval_std(large, 10) == 0
    assert model(Constant(0.0), use_ddim=True, ddim_steps=3).eval_std(large, 0) == 0


def test_ddim_sample_is_deterministic_and_visits_its_steps():
    net = Constant(0.2)
    m = model(net, use_ddim=True, ddim_steps=3)
    noise = torch.randn(B, *m.noise_shape)
    assert m.noise_shape == (4, TA, DA)
    first = m.sample(batch().conditions, noise=noise).trajectories
    assert net.times == [[6] * B, [3] * B, [0] * B]
    other = torch.cat([noise[:, :1], torch.randn(B, 3, TA, DA)], dim=1)
    torch.testing.assert_close(m.sample(batch().conditions, noise=other).trajectories, first, rtol=0, atol=0)


def test_drawn_noise_is_reproducible():
    m, obs = model(network()), batch().conditions
    a, b, c = (m.sample(obs, generator=torch.Generator().manual_seed(s)).trajectories for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_start_is_never_clipped_but_step_noise_is():
    m = model(Constant(0.0), randn_clip_value=0.5)
    noise = torch.full((B, *m.noise_shape), 2.0)
    start, steps = m.prepare_noise(batch().conditions, noise, None)
    assert (start == 2).all()
    assert (steps == 0.5).all()
    unbounded = model(Constant(0.0), randn_clip_value=None)
    assert (unbounded.prepare_noise(batch().conditions, noise, None)[1] == 2).all()


def test_denoised_clip():
    """In x0-mode the network's output is the clean chunk: the mean sees it clipped, the tensor stays as it is."""
    x = torch.randn(B, TA, DA)
    for bound, seen in ((0.5, 0.5), (None, 3.0)):
        m = model(Constant(3.0), predict_epsilon=False, denoised_clip_value=bound)
        mean, _ = m.step_mean_std(m.network, x, 4, batch().conditions)
        t = 11 - 1 - 4
        expected = m.schedule.posterior_coef_x0[t] * seen + m.schedule.posterior_coef_xt[t] * x
        torch.testing.assert_close(mean, expected)
        assert (m.network.output == 3).all()
        mean.sum().backward()  # would raise if a clip had written into the output


def test_ddim_recomputes_noise_from_the_clipped_chunk_then_clips_it():
    m = model(Constant(0.0), use_ddim=True, ddim_steps=4, denoised_clip_value=0.3)
    x, obs, i = torch.full((B, TA, DA), 2.0), batch().conditions, 1
    t = m.ddim.times[i]
    abar, prev = m.schedule.alphas_cumprod[t], m.ddim.alphas_prev[i]
    eps = (x - abar.sqrt() * 0.3) / (1 - abar).sqrt()
    mean, std = m.step_mean_std(m.network, x, i, obs)
    torch.testing.assert_close(mean, prev.sqrt() * 0.3 + (1 - prev).sqrt() * eps)
    assert (std == 0).all()
    m.eps_clip_value = 0.1
    assert (eps > 0.1).all()
    mean, _ = m.step_mean_std(m.network, x, i, obs)
    torch.testing.assert_close(mean, (prev.sqrt() * 0.3 + (1 - prev).sqrt() * 0.1).expand_as(mean))


def test_final_action_clip_bounds_only_the_finished_chunk():
    noise = torch.randn(B, 12, TA, DA, generator=torch.Generator().manual_seed(0)) * 3
    free = model(Constant(0.0), denoised_clip_value=2.0).sample(batch().conditions, noise=noise).trajectories
    bound = model(Constant(0.0), denoised_clip_value=2.0, final_action_clip_value=0.4)
    assert free.abs().max() > 0.4
    torch.testing.assert_close(bound.sample(batch().conditions, noise=noise).trajectories, free.clamp(-0.4, 0.4))


def test_rows_may_stand_at_different_steps():
    for settings in ({}, {"use_ddim": True, "ddim_steps": 5}):
        m, obs, x = model(network(), **settings), batch().conditions, torch.randn(B, TA, DA)
        rows = torch.tensor([0, 3, 4])
        eta = torch.rand(B, 1)
        mean, std = m.step_mean_std(m.network, x, rows, obs, eta)
        for r, i in enumerate(rows.tolist()):
            row_obs = {"state": obs["state"][r : r + 1]}
            one, one_std = m.step_mean_std(m.network, x[r : r + 1], i, row_obs, eta[r : r + 1])
            torch.testing.assert_close(mean[r : r + 1], one, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(std[r].flatten(), one_std.flatten())


def test_a_copy_trains_alone():
    m = model(network(), use_dispersive_loss=True)
    twin = copy.deepcopy(m)
    twin.loss(batch()).total.backward()
    assert all(p.grad is None for p in m.parameters())
    assert all(p.grad is not None for p in twin.parameters())
