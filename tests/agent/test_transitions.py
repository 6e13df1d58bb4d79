"""Demonstrations as transitions, against hand-worked ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent.dataset.transitions import StitchedSequenceQLearningDataset, returns_to_end
from agent.errors import DatasetError
from env.normalizer import Normalizer

LENGTHS = [5, 3, 4]  # the first ends with a terminal, the second's time is up, the third ends with a terminal
TERMINALS = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1], bool)
REWARDS = 2.0 ** np.arange(12)


@pytest.fixture(params=["compressed", "mapped"])
def path(request, tmp_path):
    states = np.arange(24, dtype=np.float32).reshape(12, 2) / 100
    arrays = {
        "states": states, "actions": -states[:, :1], "traj_lengths": np.array(LENGTHS), "rewards": REWARDS.astype(np.float32),
        "terminals": TERMINALS,
    }  # fmt: skip
    (np.savez if request.param == "mapped" else np.savez_compressed)(tmp_path / "train.npz", **arrays)
    return tmp_path / "train.npz"


def row(batch) -> list[int]:
    """Which row of the file each observation is (its last one)."""
    return (batch[:, -1, 0] * 50).round().int().tolist()


def test_single_steps(path):
    data = StitchedSequenceQLearningDataset(path)
    assert isinstance(data.states, np.memmap) == (np.load(path).zip.infolist()[0].compress_type == 0)
    assert data.starts.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]  # 7 has no next observation
    batch = data.gather(np.arange(len(data)), 0.5, scale=10.0)
    assert row(batch.obs["state"]) == data.starts.tolist()
    assert batch.rewards.tolist() == [10 * REWARDS[i] for i in data.starts]
    assert batch.discounts.tolist() == [0.0 if TERMINALS[i] else 0.5 for i in data.starts]
    following = [
        after for after, start in zip(row(batch.next_obs["state"]), data.starts, strict=True) if not TERMINALS[start]
    ]
    assert following == [start + 1 for start in data.starts if not TERMINALS[start]]


def test_chunks_sum_rewards_end_with_their_last_step_and_do_not_cross(path):
    """In the published code a chunk had the reward and the end of its first step, and was followed by another trajectory."""
    data = StitchedSequenceQLearningDataset(
        path, horizon_steps=2, cond_steps=3, get_mc_return=True, discount_factor=0.5
    )
    assert data.starts.tolist() == [0, 1, 2, 3, 5, 8, 9, 10]
    batch = data.gather(np.arange(len(data)), 0.5)
    assert batch.rewards.tolist() == [REWARDS[i] + REWARDS[i + 1] for i in data.starts]
    assert batch.discounts.tolist() == [0.5, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.0]
    assert batch.actions.shape == (8, 2, 1) and torch.allclose(batch.actions[5, :, 0], torch.tensor([-0.16, -0.18]))
    assert (batch.obs["state"][4, :, 0] * 50).round().int().tolist() == [5, 5, 5]  # its trajectory's first, repeated
    assert (batch.next_obs["state"][0, :, 0] * 50).round().int().tolist() == [0, 1, 2]
    g = lambda *rewards: sum(r * 0.5**k for k, r in enumerate(rewards))  # noqa: E731
    expected = {0: g(1 + 2, 4 + 8, 16), 1: g(2 + 4, 8 + 16), 3: 8 + 16, 5: g(32 + 64, 128), 10: 1024 + 2048}
    found = dict(zip(data.starts.tolist(), batch.returns.tolist(), strict=True))
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_returns_against_a_loop():
    rng = np.random.default_rng(0)
    lengths = np.array([1, 7, 3, 20])
    rewards = rng.standard_normal(31)
    for h in (1, 3):
        found, start = returns_to_end(rewards, lengths, h, 0.9), 0
        for n in lengths:
            for k in range(n):
                chunks = [rewards[start + j : min(start + j + h, start + n)].sum() for j in range(k, n, h)]
                assert found[start + k] == pytest.approx(sum(0.9**i * c for i, c in enumerate(chunks)))
            start += n


def test_demonstrations_of_another_normaliser_are_refused(path):
    """Their numbers would mean something else to the policy; without the file beside them nobody knows."""
    data = StitchedSequenceQLearningDataset(path)
    mine = Normalizer(np.array([-1.0, -2]), np.ones(2), -np.ones(1), np.ones(1))
    data.check_normalizer(mine)
    other = Normalizer(np.array([-1.0, -3]), np.ones(2), -np.ones(1), np.ones(1))
    other.save(path.with_name("normalization.npz"))
    with pytest.raises(DatasetError, match=r"obs_min is not the policy's \(column 1: expected -2, found -3\)"):
        data.check_normalizer(mine)
    data.check_normalizer(other)


def test_draws_are_uniform_and_what_is_refused(path, tmp_path):
    data = StitchedSequenceQLearningDataset(path, max_n_episodes=2)
    batch = data.sample(3000, torch.Generator().manual_seed(0), 0.9)
    counts = np.unique(row(batch.obs["state"]), return_counts=True)
    assert counts[0].tolist() == [0, 1, 2, 3, 4, 5, 6] and counts[1].min() > 350
    with pytest.raises(DatasetError, match="expected obs_dim=3 as configured, found 2 columns"):
        data.check(3, 1)
    with pytest.raises(DatasetError, match="no trajectory has a chunk of horizon_steps=6"):
        StitchedSequenceQLearningDataset(path, horizon_steps=6)
    with np.load(path) as file:
        np.savez(tmp_path / "plain.npz", **{key: file[key] for key in ("states", "actions", "traj_lengths")})
    with pytest.raises(DatasetError, match="no rewards in it"):
        StitchedSequenceQLearningDataset(tmp_path / "plain.npz")
