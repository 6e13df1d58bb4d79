"""Flow policies against closed forms: of a Gaussian target everything is known, its marginal velocity, its flow and its mean velocities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from model.common.critic import CriticObs
from model.common.dispersive_loss import dispersive_loss, record_outputs
from model.common.vit import VitEncoder
from model.diffusion.mlp_diffusion import DiffusionMLP, VisionDiffusionMLP
from model.diffusion.modules import SinusoidalPosEmb
from model.diffusion.unet import Unet1D, VisionUnet1D
from model.flow.flow_matching import FlowModel, MeanFlowModel, ShortcutModel
from model.flow.flow_ppo import NoiseNet, PPOFlow
from model.flow.process import TIME_SCALE
from model.types import Batch, Obs, ShapeError

B, TO, TA, DA, DO = 11, 2, 4, 5, 7
MEAN, STD = 0.1, 0.2  # of the Gaussian target, in every element
MODELS = (FlowModel, ShortcutModel, MeanFlowModel)


def sigma(t: Tensor) -> Tensor:
    """Deviation of ``x_t = (1 - t) x_0 + t x_1``."""
    return ((1 - t).square() + (STD * t).square()).sqrt()


class GaussianFlow(nn.Module):
    """The exact answers where ``x_1 ~ N(MEAN, STD^2)``: the marginal velocity, or the mean velocity over a step."""

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.off = nn.Parameter(torch.tensor(off, dtype=torch.float64))

    def forward(self, x: Tensor, times: Tensor, cond: Obs) -> Tensor:
        t, d = (
            (times / TIME_SCALE).reshape(len(x), -1, 1, 1).unbind(1) if times.ndim == 2 else (times / TIME_SCALE, None)
        )
        t = t.view(-1, 1, 1)
        now = MEAN + (STD**2 * t - (1 - t)) / sigma(t).square() * (x - t * MEAN)
        if d is None:
            return now + self.off
        there = (t + d) * MEAN + sigma(t + d) / sigma(t) * (x - t * MEAN)
        return torch.where(d > 0, (there - x) / d.clamp(min=1e-12), now) + self.off


class Remembers(nn.Module):
    """Answers with a fixed fraction of ``x``, and remembers the times it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(-0.3))
        self.times: list[list[float]] = []

    def forward(self, x: Tensor, times: Tensor, cond: Obs) -> Tensor:
        self.times.append((times / TIME_SCALE).round(decimals=5).tolist())
        return self.gain * x


def net(width: int = 13, **settings: object) -> DiffusionMLP:
    return DiffusionMLP(DA, TA, TO * DO, **{"mlp_dims": [width] * 3, "residual_style": True, **settings})


def batch(n: int = B, dtype: torch.dtype = torch.float32) -> Batch:
    g = torch.Generator().manual_seed(1)
    chunks = MEAN + STD * torch.randn(n, TA, DA, generator=g, dtype=dtype)
    return Batch(chunks, {"state": torch.rand(n, TO, DO, generator=g, dtype=dtype) * 2 - 1})


def model(kind: type[FlowModel], network: nn.Module | None = None, **settings: object) -> FlowModel:
    torch.manual_seed(0)
    return kind(net() if network is None else network, TA, DO, DA, **settings)


def steps(n: int = B) -> tuple[Tensor, Tensor, Tensor]:
    """Points, starts and lengths in float64, well inside [0, 1]."""
    g = torch.Generator().manual_seed(2)
    t, d = 0.05 + 0.4 * torch.rand(2, n, generator=g, dtype=torch.float64)
    return torch.randn(n, TA, DA, generator=g, dtype=torch.float64), t, d


def policy(k: int = 3, average: bool = False, network: nn.Module | None = None, **settings: object) -> PPOFlow:
    torch.manual_seed(0)
    noise = NoiseNet(TO * DO, TA, DA, (17, 19), 0.05, 0.3)
    for p in noise.parameters():
        nn.init.normal_(p, std=0.3)
    critic = CriticObs(TO * DO, [17] * 3, residual_style=True)
    return PPOFlow(net() if network is None else network, critic, noise, TA, DO, DA, k, average, **settings)


def test_times_share_the_columns_of_an_embedding():
    embed, t = SinusoidalPosEmb(8), torch.tensor([[0.3, 0.7], [1.1, 0.0]])
    f = [1.0, 10000 ** (-2 / 3)]  # every second of four frequencies
    angles = torch.tensor([[a * k for a in row for k in f] for row in t.tolist()])
    torch.testing.assert_close(embed(t), torch.cat([angles.sin(), angles.cos()], dim=1))
    with pytest.raises(ShapeError, match="time_dim: 2 times need a multiple of 4, found 10"):
        SinusoidalPosEmb(10)(t)


@pytest.mark.parametrize("off", [0.0, 0.17])
def test_the_loss_is_least_at_the_marginal_velocity(off: float):
    """There it is what ``x_t`` leaves unknown of the velocity; a velocity off by a constant costs its square."""
    m, n = model(FlowModel, GaussianFlow(off)), 30011
    loss = m.loss(batch(n, torch.float64), torch.Generator().manual_seed(3)).total
    g = torch.Generator().manual_seed(3)
    torch.randn(n, TA, DA, generator=g, dtype=torch.float64)
    t = torch.rand(n, generator=g, dtype=torch.float64)
    least = (1 + STD**2 - (STD**2 * t - (1 - t)).square() / sigma(t).square()).mean()
    assert loss.item() == pytest.approx(float(least) + off**2, abs=2e-3)


def test_flow_loss_by_hand():
    m, b = model(FlowModel), batch()
    losses = m.loss(b, torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    x0, t = torch.randn(B, TA, DA, generator=g), torch.rand(B, generator=g)
    x = (1 - t.view(-1, 1, 1)) * x0 + t.view(-1, 1, 1) * b.actions
    prediction = m.network(x, TIME_SCALE * t, b.conditions)
    torch.testing.assert_close(losses.total, (prediction - (b.actions - x0)).square().mean())
    assert set(losses.parts) == {"flow loss"}


@pytest.mark.parametrize(
    ("kind", "k", "tolerance"), [(FlowModel, 1009, 2e-3), (MeanFlowModel, 1, 1e-9), (MeanFlowModel, 5, 1e-9)]
)
def test_sampling_follows_the_gaussians_flow(kind: type[FlowModel], k: int, tolerance: float):
    """``x_0`` flows to ``MEAN + STD x_0``: with velocities up to Euler's error, with mean velocities exactly, in any number of steps."""
    m, obs = model(kind, GaussianFlow(), sampling_steps=k), batch(dtype=torch.float64).conditions
    noise = torch.randn(B, 1, TA, DA, dtype=torch.float64).clamp(-3, 3)
    chunk = m.sample(obs, noise=noise).trajectories
    torch.testing.assert_close(chunk, MEAN + STD * noise[:, 0], rtol=0, atol=tolerance)


def test_eulers_steps_of_a_linear_field():
    """``dx = -0.3 x dt``, ``K`` steps: ``(1 - 0.3 / K)^K``, asked at ``k / K``, and bounded only at the end."""
    for kind, times in ((FlowModel, [0, 0.25, 0.5, 0.75]), (ShortcutModel, [[k / 4, 0.25] for k in range(4)])):
        m = model(kind, Remembers(), sampling_steps=4)
        noise = torch.tensor([0.6, 1.1, -5.0]).view(-1, 1, 1, 1).expand(-1, 1, TA, DA)
        chunk = m.sample(batch(3).conditions, noise=noise).trajectories
        expected = torch.tensor([0.6, 1.1, -5.0]) * (1 - 0.3 / 4) ** 4
        torch.testing.assert_close(chunk[:, 0, 0], expected.clamp(-1, 1))
        assert [asked[0] for asked in m.network.times] == times


def test_meanflow_identity_holds_for_the_exact_mean_velocity():
    (x, t, d), m = steps(), model(MeanFlowModel, GaussianFlow())
    now = m.network(x, m.times(t, torch.zeros_like(d)), {})
    exact = m.network(x, m.times(t, d), {})
    assert (exact - now).abs().max() > 0.1
    torch.testing.assert_close(m._mean_velocity(x, now, t, d, {}), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["Mish", "ReLU"])
def test_meanflow_target_against_finite_differences(activation: str):
    (x, t, d), b, h = steps(), batch(dtype=torch.float64), 1e-6
    m = model(MeanFlowModel, net(activation_type=activation)).double()
    v = torch.randn(B, TA, DA, dtype=torch.float64)
    after, before = (m.network(x + s * v, m.times(t + s, d - s), b.conditions) for s in (h, -h))
    slope = (after - before) / (2 * h)
    assert slope.abs().max() > 0.1
    target = m._mean_velocity(x, v, t, d, b.conditions)
    torch.testing.assert_close(target, v + d.view(-1, 1, 1) * slope, rtol=1e-6, atol=1e-6)


def test_shortcut_targets():
    """Two half steps of the exact mean velocity are the whole step; the shortest step is made of velocities."""
    (x, t, _), m = steps(), model(ShortcutModel, GaussianFlow())
    half = torch.full_like(t, 0.5)
    torch.testing.assert_close(
        m._mean_velocity(x, x, t, half, {}), m.network(x, m.times(t, half), {}), rtol=1e-9, atol=1e-9
    )
    d, none = torch.full_like(t, 1 / 128), torch.zeros_like(t)
    first = m.network(x, m.times(t, none), {})
    second = m.network(x + first / 256, m.times(t + 1 / 256, none), {})
    torch.testing.assert_close(m._mean_velocity(x, x, t, d, {}), (first + second) / 2)


@pytest.mark.parametrize(("kind", "n"), [(ShortcutModel, 257), (MeanFlowModel, 514)])
def test_which_steps_are_trained(kind: type[FlowModel], n: int):
    m, seen = model(kind), []
    m.network.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[1] / TIME_SCALE))
    m.loss(batch(1028), torch.Generator().manual_seed(0))
    t, d = seen[-1].unbind(1)
    assert (d[:n] > 0).all() and (d[n:] == 0).all()
    assert t.min() >= 0 and (t + d).max() <= 1 + 1e-6
    if kind is ShortcutModel:
        assert set(torch.log2(d[:n]).tolist()) == set(range(-7, 1))
        assert torch.equal(t[:n] / d[:n], (t[:n] / d[:n]).round())
    assert d[:n].max() > 0.9 and t[n:].mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("kind", MODELS)
def test_the_target_is_not_differentiated(kind: type[FlowModel]):
    """The gradient is that of a regression on a constant."""
    m, b, inputs = model(kind), batch(), []
    m.network.register_forward_pre_hook(lambda _m, given: inputs.append(given))
    prediction, target, _ = m._predict(b, torch.Generator().manual_seed(3))
    assert not target.requires_grad
    assert m.average_velocity is (kind is not FlowModel)
    m.loss(b, torch.Generator().manual_seed(3)).total.backward()
    found = [p.grad.clone() for p in m.network.parameters()]
    m.zero_grad()
    (prediction - target).square().mean().backward()
    for p, grad in zip(m.network.parameters(), found, strict=True):
        torch.testing.assert_close(p.grad, grad)


@pytest.mark.parametrize("kind", MODELS)
def test_dispersive_part(kind: type[FlowModel]):
    b = batch(64)
    m = model(
        kind,
        net(32),
        use_dispersive_loss=True,
        dispersive_loss_weight=0.3,
        dispersive_loss_layer="late",
        dispersive_loss_group_size=None,
    )
    assert set(m.state_dict()) == {f"network.{key}" for key in net().state_dict()}
    losses = m.loss(b, torch.Generator().manual_seed(3))
    with record_outputs([m.network.hidden_layers[2]]) as features:
        plain = model(kind, m.network).loss(b, torch.Generator().manual_seed(3))
    expected = dispersive_loss(features[-1], "infonce_l2")  # of the forward pass with all rows: the last
    torch.testing.assert_close(losses.parts["dispersive loss"], expected.detach())
    torch.testing.assert_close(losses.total, plain.total + 0.3 * expected)
    report = m.diagnostics(b, torch.Generator().manual_seed(5))
    assert report["gradient_norm_dispersive"] > 1e-4 and report["gradient_norm_ratio"] > 0


def vision(kind: type) -> nn.Module:
    eye = VitEncoder([3, 19, 23], cfg={"patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2}, num_channel=3)
    if kind is VisionUnet1D:
        return kind(eye, DA, TO * DO, dim=8, dim_mults=(1, 2), spatial_emb=16, augment=True)
    return kind(eye, DA, TA, TO * DO, mlp_dims=[13] * 3, residual_style=True, spatial_emb=16, augment=True)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "made",
    [
        lambda: Unet1D(DA, TO * DO, dim=8, dim_mults=(1, 2)),
        lambda: vision(VisionDiffusionMLP),
        lambda: vision(VisionUnet1D),
    ],
)
def test_every_denoiser_can_flow(kind: type[FlowModel], made: object):
    b = batch()
    b.conditions["rgb"] = torch.randint(0, 256, (B, TO, 3, 19, 23), dtype=torch.uint8)
    m = model(kind, made(), use_dispersive_loss=True)
    m.loss(b).total.backward()
    embedding = m.network.time_mlp if isinstance(m.network, Unet1D) else m.network.time_embedding
    assert all(p.grad.abs().sum() > 0 for p in embedding.parameters())
    tuned = policy(2, m.average_velocity, made())
    tuned.load_base(m.state_dict())
    sample = tuned.eval().sample(b.conditions)
    torch.testing.assert_close(
        tuned.chain_log_probs(b.conditions, sample.chains), sample.log_probs, rtol=1e-4, atol=1e-4
    )
    m.eval().sampling_steps = 2
    noise = torch.randn(B, 3, TA, DA)
    alike = m.sample(b.conditions, noise=noise[:, :1]).trajectories
    torch.testing.assert_close(tuned.sample(b.conditions, True, noise=noise).trajectories, alike, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("k", "average"), [(1, True), (4, False), (3, True)])
def test_chain_log_probs_are_those_of_torch_distributions(k: int, average: bool):
    p, obs = policy(k, average), batch().conditions
    for q in p.actor_ft.parameters():  # no longer the base
        nn.init.normal_(q, std=0.1)
    noise = torch.randn(B, k + 1, TA, DA)
    sample = p.sample(obs, noise=noise)
    assert p.n_chain_steps == k and sample.chains.shape == (B, k + 1, TA, DA) and sample.log_probs.shape == (B, k)
    assert torch.equal(sample.chains[:, 0], noise[:, 0])
    assert torch.equal(sample.trajectories, sample.chains[:, -1].clamp(-1, 1))
    assert sample.chains[:, -1].abs().max() > 1  # what enters the density is not bounded
    for j in range(k):
        t = torch.full((B,), j / k)
        times = TIME_SCALE * (torch.stack([t, torch.full((B,), 1 / k)], 1) if average else t)
        x, x_next = sample.chains[:, j], sample.chains[:, j + 1]
        mean, std = x + p.actor_ft(x, times, obs) / k, p.noise(obs, t)
        torch.testing.assert_close(x_next, mean + std * noise[:, j + 1])
        expected = Normal(mean, std).log_prob(x_next).mean(dim=(1, 2))  # of one step: no chain length in it
        torch.testing.assert_close(sample.log_probs[:, j], expected)
        torch.testing.assert_close(p.log_prob(obs, x, x_next, torch.full((B,), j)), expected)
        first = Normal(mean, std).log_prob(x_next)[:, :2].mean(dim=(1, 2))
        torch.testing.assert_close(p.log_prob(obs, x, x_next, torch.full((B,), j), reward_horizon=2), first)
    torch.testing.assert_close(p.chain_log_probs(obs, sample.chains), sample.log_probs)
    p.reward_horizon = 2
    torch.testing.assert_close(p.sample(obs, noise=noise).log_probs[:, -1], first)


def test_sampling_and_scoring_ask_at_the_same_times():
    p, obs = policy(4, network=Remembers()), batch(1).conditions
    sample = p.sample(obs)
    p.chain_log_probs(obs, sample.chains)
    assert p.actor_ft.times == [[0.0], [0.25], [0.5], [0.75], [0.0, 0.25, 0.5, 0.75]]


@pytest.mark.parametrize("kind", MODELS)
def test_untrained_copy_evaluates_like_the_base(kind: type[FlowModel]):
    base = model(kind, sampling_steps=3)
    p = policy(3, base.average_velocity)
    p.load_base(base.state_dict())
    noise, obs = torch.randn(B, 4, TA, DA), batch().conditions
    best = p.sample(obs, True, noise=noise)
    assert torch.equal(best.trajectories, base.sample(obs, noise=noise[:, :1]).trajectories)
    assert best.log_probs is None
    assert torch.equal(
        p.sample(obs, noise=noise, return_chain=False).trajectories, p.sample(obs, noise=noise).trajectories
    )


def test_state_dict_and_gradients():
    p, obs = policy(), batch().conditions
    names = {f"{part}.{key}" for part in ("network", "actor", "actor_ft") for key in net().state_dict()}
    names |= {f"noise.{key}" for key in p.noise.state_dict()} | {f"critic.{key}" for key in p.critic.state_dict()}
    assert set(p.state_dict()) == names
    p.chain_log_probs(obs, p.sample(obs).chains).sum().backward()
    assert all(q.grad is not None and q.grad.abs().sum() > 0 for q in p.actor_parameters())
    assert {id(q) for q in p.actor_parameters()} == {id(q) for part in (p.actor_ft, p.noise) for q in part.parameters()}
    assert all(q.grad is None for q in [*p.network.parameters(), *p.critic_parameters()])
    assert not list(p.eta_parameters())


@pytest.mark.parametrize("average", [False, True])
def test_the_base_to_stay_near_to(average: bool):
    """Its chains have their likelihood under an untrained copy, and the divergence from it is that of torch.distributions."""
    p, obs, step = policy(2, average, reward_horizon=3), batch().conditions, torch.arange(B) % 2
    chains = p.base_chains(obs, torch.Generator().manual_seed(3))
    expected = p.sample(obs, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(chains, expected.chains)
    x = chains[torch.arange(B), step]
    assert p.base_divergence(obs, x, step).abs().max() < 1e-9
    for q in p.actor_ft.parameters():
        nn.init.normal_(q, std=0.3)
    assert torch.equal(p.base_chains(obs, torch.Generator().manual_seed(3)), chains)
    std = p.noise(obs, step / 2)
    tuned, base = (Normal(p.euler(network, x, step, obs), std) for network in (p.actor_ft, p.network))
    divergence = torch.distributions.kl_divergence(tuned, base)[:, :3].mean(dim=(1, 2))
    torch.testing.assert_close(p.base_divergence(obs, x, step), divergence)
    assert divergence.max() > 0.1


def test_steps_count_alike_unless_told():
    step = torch.arange(3)
    p = policy()
    assert p.denoising_discount(step).tolist() == [1, 1, 1]
    assert p.clip_range(step).tolist() == pytest.approx([0.01] * 3)
    p = policy(gamma_denoising=0.5, clip_ploss_coef=0.1, clip_ploss_coef_base=0.02, clip_ploss_coef_rate=0)
    assert p.denoising_discount(step).tolist() == [0.25, 0.5, 1]
    assert p.clip_range(step).tolist() == pytest.approx([0.02, 0.06, 0.1])


def test_noise_keeps_its_bounds():
    obs, t = batch().conditions, torch.rand(B)
    noise = NoiseNet(TO * DO, TA, DA, (17,), 0.05, 0.2)
    torch.testing.assert_close(noise(obs, t), torch.full((B, TA, DA), 0.1))  # the geometric mean
    for p in noise.parameters():
        nn.init.normal_(p, std=30)
    std = noise(obs, t)
    assert std.min() >= 0.05 - 1e-6 and std.max() <= 0.2 + 1e-6 and std.max() - std.min() > 0.14
    assert not torch.equal(noise(obs, t), noise(obs, t / 2))
    torch.testing.assert_close(NoiseNet(TO * DO, TA, DA, (17,), 0.1, 0.1)(obs, t), torch.full((B, TA, DA), 0.1))
    with pytest.raises(ValueError, match="noise: expected 0 < min_std <= max_std, found 0.3 and 0.2"):
        NoiseNet(TO * DO, TA, DA, min_std=0.3, max_std=0.2)


def test_entropy():
    p, obs = policy(3), batch().conditions
    stds = torch.stack([p.noise(obs, torch.full((B,), k / 3)) for k in range(3)])
    torch.testing.assert_close(p.entropy_proxy(obs), Normal(0.0, stds).entropy().mean())
    assert p.entropy_proxy(obs).requires_grad


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="sampling_steps: expected at least 1, found 0"):
        model(FlowModel, sampling_steps=0)
    with pytest.raises(ShapeError, match=r"actions.*4, 5.*4, 6"):
        model(FlowModel).loss(Batch(torch.zeros(B, TA, DA + 1), batch().conditions))
    with pytest.raises(ShapeError, match=r"noise: expected \(B, 4, Ta, Da\) = \(11, 4, 4, 5\)"):
        policy(3).sample(batch().conditions, noise=torch.zeros(B, 3, TA, DA))
    with pytest.raises(ValueError, match="DiffusionMLP has 2 hidden"):
        model(MeanFlowModel, DiffusionMLP(DA, TA, TO * DO), use_dispersive_loss=True)
