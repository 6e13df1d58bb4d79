"""The scripted expert of avoiding: every mode, untouched, and as a person would."""

from __future__ import annotations

import numpy as np
import pytest

from env.d3il import field
from env.d3il.avoiding import TOUCHED, family
from env.d3il.avoiding_expert import STICK, AvoidingExpert
from env.engine.batch import EngineVectorEnv
from env.registry import EXPERTS

START = np.array([[0.52492847, -0.27973673, 0.52492847, -0.27973673]])


def test_there_are_24_modes_and_three_published_subsets():
    assert len(set(field.MODES)) == 24
    assert [s.modes for s in field.SUBSETS.values()] == [((1, 2, 5), (1, 2, k)) for k in (6, 7, 8)]


def test_all_24_modes_are_reached_without_touching_anything():
    venv = EngineVectorEnv(family("avoiding"), 24, 1, 120, n_threads=1)
    obs, seen, crossed = venv.reset(0)["state"][:, 0], [], np.zeros(24, bool)
    expert = AvoidingExpert(24, np.random.default_rng(1), noise=0.0)
    for _ in range(96):
        result = venv.step(expert.act(obs)[:, None])
        obs, crossed = result.obs["state"][:, 0], crossed | result.success
        seen.append(obs)
    modes = [field.mode_of(xy) for xy in np.array(seen)[:, :, 2:].swapaxes(0, 1)]
    assert modes == list(field.MODES)
    assert crossed.all() and not venv.simulations.memory[:, TOUCHED].any()
    venv.close()


def runs(n: int, seed: int, noise: float = 1.0) -> list[np.ndarray]:
    """Actions of ``n`` episodes, without a simulation, each until its desired position is 5 steps beyond the reward's line."""
    expert = AvoidingExpert(n, np.random.default_rng(seed), noise)
    actions = np.stack([expert.act(np.repeat(START, n, axis=0)) for _ in range(150)], axis=1)
    y = START[0, 1] + np.cumsum(actions[:, :, 1], axis=1)
    assert (y.max(axis=1) > field.GOAL).all()
    return [a[: int(np.argmax(rise > field.GOAL)) + 7] for a, rise in zip(actions, y, strict=True)]


def test_it_moves_like_the_people_in_d3il():
    found = runs(96, 2)
    every, lengths = np.concatenate(found), np.array([len(a) for a in found])
    assert np.abs(every).max() <= STICK and every[:, 1].min() >= 0.0
    assert 70 < lengths.mean() < 84 and 6 < lengths.std() < 15  # 76.1 +- 12.0
    still = (every == 0.0).all(axis=1).mean()
    assert 0.05 < still < 0.15  # 0.101
    speed = np.linalg.norm(every, axis=1)
    assert 0.010 < speed.mean() < 0.013  # 0.0117
    assert len({tuple(np.round(a[:40].ravel(), 6)) for a in found}) == 96  # nobody does the same twice


def test_without_noise_it_repeats_itself():
    first, second = (runs(24, seed, noise=0.0) for seed in (3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_episodes_take_turns_in_the_modes_asked_for():
    expert = EXPERTS["avoid_m2"].make(2, np.random.default_rng(0), noise=0.0, retry=True)
    ends = []
    for episode in range(3):
        told = np.repeat(START[:, :2], 2, axis=0)
        course = [told := told + expert.act(np.repeat(START, 2, axis=0)) for _ in range(100)]
        ends += [field.mode_of(np.array(course)[:, i])[2] for i in range(2)]
        expert.reset_rows(np.array([True, episode < 1]))
    assert ends[:5] == [5, 7, 5, 7, 5]


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="no such mode"):
        AvoidingExpert(1, np.random.default_rng(0), modes=[(1, 2, 9)])
    with pytest.raises(ValueError, match=r"shape \(2, 4\), found \(1, 4\)"):
        AvoidingExpert(2, np.random.default_rng(0)).act(START)
