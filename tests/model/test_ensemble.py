"""Critics in an ensemble: independent, as many separate networks compute, under the published names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.common.critic import CriticObsAct
from model.common.ensemble import Ensemble
from model.common.modules import strict_load
from model.types import StateDictError

SIZES = {"cond_dim": 5, "mlp_dims": [7, 11], "action_dim": 3, "action_steps": 2, "use_layernorm": True}


def make(n: int = 3, double_q: bool = False) -> Ensemble:
    torch.manual_seed(0)
    return Ensemble(CriticObsAct(**SIZES, double_q=double_q), n)


def inputs(b: int = 13):
    return {"state": torch.randn(b, 1, 5)}, torch.randn(b, 2, 3)


def test_members_differ_from_the_start_and_are_trained_apart():
    ensemble = make(5)
    obs, actions = inputs()
    values = ensemble(obs, actions)
    assert values.shape == (5, 13)
    assert torch.pdist(values).min() > 0.01  # the published ones were copies: 0
    optimizer = torch.optim.SGD(ensemble.parameters(), 0.1)
    before = {key: value.clone() for key, value in ensemble.state_dict().items()}
    ensemble(obs, actions)[2].sum().backward()
    optimizer.step()
    moved = {
        key.partition(".")[0] for key, value in ensemble.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved == {"2"}


@pytest.mark.parametrize("double_q", [False, True])
def test_it_computes_what_its_members_compute(double_q):
    ensemble, (obs, actions) = make(3, double_q), inputs()
    state, expected = ensemble.state_dict(), []
    for i in range(3):
        member = CriticObsAct(**SIZES, double_q=double_q)
        strict_load(member, {key[2:]: value for key, value in state.items() if key.startswith(f"{i}.")}, "member")
        expected.append(member(obs, actions))
    expected = torch.stack([value for q in zip(*expected, strict=True) for value in q])
    assert torch.allclose(ensemble(obs, actions), expected, atol=1e-6)
    some = torch.tensor([2, 0])
    rows = [2, 0, 5, 3] if double_q else [2, 0]
    assert torch.allclose(ensemble(obs, actions, some), expected[rows], atol=1e-6)


def test_saved_under_the_members_names_and_loaded_strictly():
    ensemble, other = make(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    holder, second = nn.Module(), nn.Module()
    holder.critic_networks, second.critic_networks = ensemble, other
    state = holder.state_dict()
    assert state["critic_networks.1.Q1.moduleList.0.linear_1.weight"].shape == (7, 11)
    strict_load(second, state, "file")
    assert all(torch.equal(a, b) for a, b in zip(ensemble.parameters(), other.parameters(), strict=True))
    del state["critic_networks.2.Q1.moduleList.0.linear_1.weight"]
    with pytest.raises(StateDictError, match="critic_networks.2.Q1.moduleList.0.linear_1.weight"):
        strict_load(second, state, "file")
    with pytest.raises(RuntimeError, match="critic_networks.3.Q1"):
        second.load_state_dict({**holder.state_dict(), "critic_networks.3.Q1.x": torch.zeros(1)})


def test_what_is_refused():
    with pytest.raises(ValueError, match="n_critics: expected at least 1"):
        make(0)

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(ValueError, match="Odd cannot be initialised anew"):
        Ensemble(Odd(), 2)
