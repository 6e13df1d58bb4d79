"""Learning-rate schedule against the published check values; parameter averages against the formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from agent.errors import UsageError
from agent.optim import EMA, CosineAnnealingWarmupRestarts


def _optimizer(lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.AdamW([nn.Parameter(torch.zeros(3))], lr=lr)


def test_schedule_has_the_published_values():
    optimizer = _optimizer()
    schedule = CosineAnnealingWarmupRestarts(optimizer, first_cycle_steps=3000, warmup_steps=1, min_lr=1e-4)
    rates = []
    for _ in range(3002):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    assert rates[:3] == pytest.approx([1e-4, 1e-3, 9.9999975e-4], rel=1e-8)
    assert rates[2999] == pytest.approx(1.00000247e-4, rel=1e-8)
    assert (rates[3000], rates[3001]) == (1e-4, 1e-3)  # restart


def test_schedule_warms_up_linearly_and_without_warmup_starts_at_the_peak():
    schedule = CosineAnnealingWarmupRestarts(_optimizer(), first_cycle_steps=11, warmup_steps=5, min_lr=0.0)
    rates = []
    for _ in range(6):
        rates.append(schedule.lr)
        schedule.step()
    assert rates == pytest.approx([0.0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert CosineAnnealingWarmupRestarts(_optimizer(), first_cycle_steps=7).lr == 1e-3


def test_schedule_goes_on_from_its_state():
    first = CosineAnnealingWarmupRestarts(_optimizer(), 13, min_lr=1e-5, warmup_steps=2)
    for _ in range(5):
        first.step()
    second = CosineAnnealingWarmupRestarts(_optimizer(), 13, min_lr=1e-5, warmup_steps=2)
    second.load_state_dict(first.state_dict())
    assert second.lr == first.lr
    first.step(), second.step()
    assert second.lr == first.lr


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"first_cycle_steps": 5, "warmup_steps": 5}, "warmup_steps"),
        ({"first_cycle_steps": 0}, "first_cycle_steps"),
        ({"first_cycle_steps": 5, "min_lr": 2e-3}, "min_lr"),
    ],
)
def test_schedule_refuses_what_is_none(settings, named):
    with pytest.raises(UsageError, match=named):
        CosineAnnealingWarmupRestarts(_optimizer(), **settings)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros(()))


def test_ema_follows_parameters_but_not_buffers():
    net = _Net()
    start = copy.deepcopy(net.state_dict())
    ema = EMA(net, decay=0.9)
    with torch.no_grad():
        net.linear.weight.add_(1.0)
        net.count.fill_(7.0)
    ema.update()
    state = ema.state_dict()
    torch.testing.assert_close(state["linear.weight"], start["linear.weight"] + 0.1)
    assert state["count"] == 7.0
    assert list(state) == list(net.state_dict())
    torch.testing.assert_close(
        net.linear.weight.detach(), start["linear.weight"] + 1.0, rtol=0, atol=0
    )  # the model is untouched


def test_ema_copy_applied_and_state():
    net = _Net()
    ema = EMA(net, decay=0.5)
    with torch.no_grad():
        net.linear.bias.fill_(3.0)
    ema.copy()
    parameter = net.linear.bias
    with torch.no_grad():
        net.linear.bias.fill_(5.0)
    with ema.applied():
        assert net.linear.bias is parameter and bool((net.linear.bias == 3.0).all())
    assert bool((net.linear.bias == 5.0).all())
    other = EMA(net, decay=0.5)
    other.load_state_dict(ema.state_dict())
    assert bool((other.state_dict()["linear.bias"] == 3.0).all())


def test_ema_state_is_a_copy():
    net = _Net()
    ema = EMA(net, decay=0.5)
    state = ema.state_dict()
    before = state["linear.weight"].clone()
    with torch.no_grad():
        net.linear.weight.add_(1.0)
    ema.update()
    assert torch.equal(state["linear.weight"], before)


def test_ema_with_warmup_forgets_the_start_of_a_short_run():
    net = _Net()
    plain, warm = EMA(net, decay=0.995), EMA(net, decay=0.995, warmup=True)
    start = net.linear.weight.detach().clone()
    with torch.no_grad():
        net.linear.weight.add_(1.0)
    for _ in range(50):
        plain.update(), warm.update()
    assert (plain.state_dict()["linear.weight"] - start).mean() == pytest.approx(1 - 0.995**50, rel=1e-3)
    assert (warm.state_dict()["linear.weight"] - start).mean() > 0.999


def test_ema_refuses_a_decay_of_one():
    with pytest.raises(UsageError, match=r"ema\.decay"):
        EMA(_Net(), decay=1.0)
