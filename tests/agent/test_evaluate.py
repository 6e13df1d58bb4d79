"""The one evaluation: recorded seeds, independence of how many environments run, honest counting."""

import numpy as np
import pytest
import torch
from scipy import stats

from agent.errors import UsageError
from agent.eval import evaluate
from env.registry import make_vector_env
from model.types import Sample
from tests.point_mass import PointMass


class TowardsGoal(torch.nn.Module):
    """Walks to the goal, with sampling noise of its own."""

    noise_shape = (3, 2, 2)

    def __init__(self, noise: float = 1.5) -> None:
        super().__init__()
        self.noise = torch.nn.Parameter(torch.tensor(noise))
        self.rows: list[int] = []

    def sample(self, obs, deterministic=True, noise=None):
        state = obs["state"][:, -1]
        self.rows.append(len(state))
        towards = (state[:, 2:] - state[:, :2]) * 5
        return Sample(towards[:, None] + self.noise * noise[:, 0])


def test_every_seed_runs_once_whatever_the_number_of_environments():
    policy = TowardsGoal()
    few, many = (evaluate(policy, PointMass(n, terminates=True), seeds=range(100, 123)) for n in (3, 37))
    assert few.seeds == many.seeds == list(range(100, 123))
    assert few.successes == many.successes
    assert few.lengths == many.lengths
    np.testing.assert_array_equal(few.returns, many.returns)
    assert 0 < few.success_rate < 1  # else the test would show nothing
    assert max(policy.rows) == 23  # idle slots are not sampled for


def test_same_seeds_same_result_other_seeds_another():
    results = [evaluate(TowardsGoal(), PointMass(5), 17, first_seed=s) for s in (1, 1, 2)]
    assert results[0].returns == results[1].returns
    assert results[0].returns != results[2].returns


def test_rate_and_interval_against_scipy():
    result = evaluate(TowardsGoal(), PointMass(5, terminates=True), 41)
    k, n = sum(result.successes), 41
    low, high = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert result.success_rate == k / n
    np.testing.assert_allclose(result.success_interval, (low, high), atol=1e-9)
    assert result.env_steps == sum(result.lengths)


def test_an_unstable_episode_counts_as_failure_and_is_reported():
    result = evaluate(TowardsGoal(0.0), PointMass(2, broken=[7, 9]), seeds=[7, 8, 9, 10])
    assert result.n_invalid == 2
    assert result.successes == [False, True, False, True]


def test_success_inside_a_chunk_counts_and_training_mode_comes_back():
    policy = TowardsGoal(0.0).train()
    assert evaluate(policy, PointMass(3, act_steps=2), 5).success_rate == 1.0
    assert policy.training


def test_a_task_that_knows_no_success_does_not_speak_of_it():
    class Still(TowardsGoal):
        noise_shape = (3, 2, 3)

        def sample(self, obs, deterministic=True, noise=None):
            return Sample(0.0 * noise[:, 0])

    venv = make_vector_env({"name": "hopper-v2", "n_envs": 2, "act_steps": 2, "max_episode_steps": 14})
    assert str(evaluate(Still(), venv, 3)).startswith("return ")
    assert str(evaluate(TowardsGoal(), PointMass(2), 3)).startswith("success ")


def test_bad_requests():
    with pytest.raises(UsageError, match="at least one episode"):
        evaluate(TowardsGoal(), PointMass(3), 0)
    with pytest.raises(UsageError, match="twice"):
        evaluate(TowardsGoal(), PointMass(3), seeds=[1, 1])
