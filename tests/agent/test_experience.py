"""Good episodes out of another run's replay buffer: which chunks, by hand; what was executed; what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent import checkpoint
from agent.errors import CheckpointError, UsageError
from agent.finetune import experience
from agent.finetune.experience import gather_experience, read_experience
from env.normalizer import Normalizer
from tests.agent.test_diffusion_rl import DA, DO, TA, observed, rollout_of
from tests.agent.test_self_imitation import FINAL, GOOD, algorithm_of, demos, policy_of, successes

__all__ = ["demos"]
NORMALIZER = Normalizer(-np.ones(DO), np.ones(DO), -np.ones(DA), np.ones(DA))


@pytest.fixture
def payload(demos, monkeypatch) -> dict:
    """A run's checkpoint with the episodes of ``tests.agent.test_self_imitation``; its policy keeps half of what it does."""
    algorithm = algorithm_of(demos)
    observed(algorithm, successes(), FINAL)
    payload = {
        "kind": "finetune", "algorithm": algorithm.state_dict(), "config": {"train": {}}, "normalizer": NORMALIZER.to_dict(),
    }  # fmt: skip
    policy = policy_of()
    policy.executed = lambda obs, kept: 2 * kept + obs["state"][:, :1]
    monkeypatch.setattr(checkpoint, "load", lambda path: payload)
    monkeypatch.setattr(checkpoint, "load_policy", lambda path, device: policy)
    monkeypatch.setattr(experience, "ROWS", 3)  # several parts
    return payload


def read(min_return: float = 1.0, normalizer: Normalizer = NORMALIZER, chunk=(TA, DA)):
    return read_experience("latest.pt", min_return, normalizer, chunk)


def test_chunks_of_good_episodes_as_they_were_executed(payload):
    found = read()
    states = found.obs["state"][:, 0, 0]
    assert set(states.tolist()) == GOOD and len(states) == len(GOOD)
    assert torch.allclose(found.actions, (2 * states / 100 + states)[:, None, None].expand(-1, TA, DA))
    assert (found.episodes, found.seen) == (3, 4)  # of the unstable one nothing is left
    obs, actions = found.at(torch.tensor([2, 0]))
    assert torch.equal(obs["state"], found.obs["state"][[2, 0]]) and torch.equal(actions, found.actions[[2, 0]])


def test_of_several_runs(payload):
    both, one = (
        gather_experience(["a", "b"], 1.0, NORMALIZER, (TA, DA)),
        gather_experience("a", 1.0, NORMALIZER, (TA, DA)),
    )
    assert torch.equal(both.actions, one.actions.repeat(2, 1, 1)) and both.episodes == 2 * one.episodes
    assert torch.equal(both.obs["state"], one.obs["state"].repeat(2, 1, 1)) and both.seen == 2 * one.seen


def test_the_return_is_of_unscaled_rewards(payload):
    payload["config"]["train"]["scale_reward_factor"] = 0.5
    assert set(read(1.75).obs["state"].flatten().tolist()) == GOOD | {1.0, 2.0}


def test_an_episode_whose_beginning_was_overwritten_does_not_count(demos, payload):
    """Rings of seven rows: a first episode of two chunks and one of six, whose end overwrites the first and then its own beginning."""
    algorithm = algorithm_of(demos, n_envs=1, buffer_size=6)
    rewards = np.array([[0.0], [1], [0], [0], [0], [0], [0], [1], [0], [1]])
    ended = np.zeros((10, 1), bool)
    ended[[1, 7, 9]] = True
    states = np.arange(10.0)[:, None]
    observed(algorithm, rollout_of(states, rewards, ended, np.zeros((10, 1), bool)), states + 0.5)
    payload["algorithm"] = algorithm.state_dict()
    assert set(read().obs["state"].flatten().tolist()) == {8.0, 9.0}


def test_what_does_not_fit_is_refused(payload):
    with pytest.raises(
        UsageError, match=r"train.min_return: expected .* at least 7, found 4 episodes, the best returned 1.0"
    ):
        read(7)
    with pytest.raises(
        UsageError, match=r"expected chunks of \(horizon_steps, action_dim\) = \(3, 1\) in latest.pt, found \(2, 1\)"
    ):
        read(chunk=(3, 1))
    with pytest.raises(UsageError, match="another normaliser"):
        read(normalizer=Normalizer(-np.ones(DO), np.ones(DO), -np.ones(DA), np.full(DA, 0.5)))
    payload["algorithm"].pop("replay")
    with pytest.raises(CheckpointError, match="latest.pt has no replay buffer"):
        read()
    payload["kind"] = "pretrain"
    with pytest.raises(CheckpointError, match="has no replay buffer"):
        read()
