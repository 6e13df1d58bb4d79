"""GenPO's doubled flow: it can be inverted, and its likelihood is that of the change of variables, by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from model.common.critic import CriticObs
from model.diffusion.mlp_diffusion import DiffusionMLP
from model.flow.genpo import GenPO
from model.flow.process import TIME_SCALE

B, TA, DA, DO = 7, 2, 3, 5


def policy(**settings: object) -> GenPO:
    torch.manual_seed(0)
    network = DiffusionMLP(DA, TA, DO, mlp_dims=[13] * 3, residual_style=True)
    made = GenPO(
        network,
        CriticObs(DO, [11] * 3, residual_style=True),
        TA,
        DO,
        DA,
        **{"sampling_steps": 3, "mixing": 0.8, **settings},
    )
    for p in made.actor_ft.parameters():
        nn.init.normal_(p, std=0.4)
    return made.double()


def obs(n: int = B) -> dict[str, torch.Tensor]:
    return {"state": torch.randn(n, 1, DO, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}


def noise(n: int = B) -> torch.Tensor:
    return torch.randn(n, 2, TA, DA, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_a_step_by_hand():
    p, (x0, y0) = policy(sampling_steps=1), noise().unbind(1)
    v = lambda x: p.actor_ft(x, TIME_SCALE * torch.zeros(B, dtype=torch.float64), obs())  # noqa: E731
    x = x0 + v(y0)
    y = y0 + v(x)
    x = 0.8 * x + 0.2 * y
    y = 0.8 * y + 0.2 * x
    assert (x - x0).abs().max() > 0.5
    torch.testing.assert_close(p(x0, y0, obs()), (x, y))


@pytest.mark.parametrize("mixing", [0.8, 1.0])
def test_the_inverse_undoes_it(mixing: float):
    p, (x0, y0) = policy(mixing=mixing), noise().unbind(1)
    torch.testing.assert_close(p.inverse(*p(x0, y0, obs()), obs()), (x0, y0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mixing", [0.8, 1.0])
def test_log_prob_is_the_change_of_variables(mixing: float):
    p, start = policy(mixing=mixing), noise(1)
    flow = lambda z: torch.stack(p(*z.view(1, 2, TA, DA).unbind(1), obs(1)), dim=1).flatten()  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(flow, start.flatten())
    joint = Normal(0.0, 1.0).log_prob(start).sum() - torch.linalg.slogdet(jacobian)[1]
    x, y = p(*start.unbind(1), obs(1))
    found = p.log_prob(obs(1), x, y, torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(found, (joint / (2 * TA * DA))[None], rtol=1e-9, atol=1e-9)


def test_sampling():
    p = policy()
    sample = p.sample(obs(), noise=noise())
    assert p.noise_shape == (2, TA, DA) and p.n_chain_steps == 1
    assert torch.equal(sample.chains[:, 0], p(*noise().unbind(1), obs())[0])
    torch.testing.assert_close(sample.trajectories, sample.chains.mean(dim=1).clamp(-1, 1))
    assert sample.chains.mean(dim=1).abs().max() > 1
    torch.testing.assert_close(p.chain_log_probs(obs(), sample.chains), sample.log_probs)
    best = p.sample(obs(), True, noise=noise())
    assert best.log_probs is None
    assert torch.equal(best.chains[:, 1], p(*(0 * noise()).unbind(1), obs())[1])
    assert torch.equal(p.sample(obs(), noise=noise(), return_chain=False).trajectories, sample.trajectories)


def test_what_learns_and_what_does_not_fit():
    p = policy()
    p.log_prob(obs(), *noise().unbind(1), torch.zeros(B)).sum().backward()
    assert all(q.grad is not None for q in p.actor_parameters())
    assert p.clip_range(torch.zeros(2, dtype=torch.long)).tolist() == pytest.approx([0.05] * 2)
    expected = 0.5 + 0.5 * math.log(2 * math.pi) + 3 * math.log(0.8)
    many = {"state": obs(1)["state"].expand(4001, -1, -1).float()}
    assert p.float().entropy_proxy(many).item() == pytest.approx(expected, abs=0.02)
    with pytest.raises(ValueError, match=r"mixing: expected a number in \(0, 1\], found 1.5"):
        policy(mixing=1.5)
