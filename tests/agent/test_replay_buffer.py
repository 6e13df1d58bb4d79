"""The replay buffer, against hand-worked episodes and against a list of transitions that is kept beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent.errors import CheckpointError, UsageError
from agent.finetune.replay import ReplayBuffer, mixed

N, SHAPE = 2, (2, 3)  # environments; Ta, Da


def buffer(capacity: int = 40, images: bool = False, **more) -> ReplayBuffer:
    obs = {"state": torch.zeros(N, 1, 1)} | ({"rgb": torch.zeros(N, 1, 3, 2, 2, dtype=torch.uint8)} if images else {})
    return ReplayBuffer(capacity, N, obs, SHAPE, **more)


def add(replay, obs, final, rewards=(1.0, 1.0), terminated=(0, 0), truncated=(0, 0), firsts=(0, 0), valid=(1, 1)):
    """One chunk of both environments; ``obs`` and ``final`` are one number each."""
    state = lambda x: {"state": torch.tensor(x, dtype=torch.float32).view(N, 1, 1)}  # noqa: E731
    flags = [torch.tensor(x, dtype=torch.bool) for x in (terminated, truncated, firsts, valid)]
    actions = torch.tensor(obs, dtype=torch.float32).view(N, 1, 1).expand(N, *SHAPE)
    return replay.add(state(obs), actions, torch.tensor(rewards), *flags, state(final))


def one(replay, at, gamma=0.5, n=1):
    """Reward, discount and successor of the chunk at ``at``, as numbers."""
    found = replay.gather(np.array([at]), gamma, n)
    return float(found.rewards), float(found.discounts), float(found.next_obs["state"])


def test_terminated_truncated_and_going_on_by_hand():
    replay = buffer()
    first = add(replay, [10, 20], [11, 21], rewards=(1.0, 2.0), firsts=(1, 1))
    second = add(replay, [11, 21], [12, 22], rewards=(4.0, 8.0), terminated=(1, 0), truncated=(0, 1))
    third = add(replay, [50, 60], [51, 61], rewards=(16.0, 32.0), firsts=(1, 1))  # of the next episodes
    assert len(replay) == 6
    assert one(replay, first[0]) == (1.0, 0.5, 11.0) and one(replay, first[1]) == (2.0, 0.5, 21.0)
    assert one(replay, second[0])[:2] == (4.0, 0.0)  # no future
    assert one(replay, second[1]) == (8.0, 0.5, 22.0)  # its own last observation, not 60
    assert one(replay, third[0]) == (16.0, 0.5, 51.0)  # the newest: what follows is known already
    # returns of up to three chunks: cut by the termination, cut by the time limit with a bootstrap, cut because there is no more
    assert one(replay, first[0], n=3)[:2] == (1.0 + 0.5 * 4, 0.0)
    assert one(replay, first[1], n=3) == (2.0 + 0.5 * 8, 0.25, 22.0)
    assert one(replay, third[1], n=3) == (32.0, 0.5, 61.0)


def test_a_reset_in_mid_episode_bootstraps_and_does_not_connect():
    replay = buffer()
    before = add(replay, [1, 2], [3, 4], firsts=(1, 1))
    add(replay, [100, 4], [101, 5], firsts=(1, 0))  # only the first environment was reset
    assert one(replay, before[0], n=2) == (1.0, 0.5, 3.0)
    assert one(replay, before[1], n=2) == (1.5, 0.25, 5.0)


def test_an_unstable_episode_is_forgotten_as_a_whole():
    replay = buffer()
    kept = add(replay, [1, 2], [3, 4], firsts=(1, 1), terminated=(1, 0))
    add(replay, [5, 4], [6, 7], firsts=(1, 0))
    add(replay, [6, 7], [8, 9], truncated=(0, 1), valid=(1, 0))
    add(replay, [8, 30], [9, 31], firsts=(0, 1))
    usable = set(np.flatnonzero(replay.arrays["usable"]))
    assert len(replay) == len(usable) == 5 and kept[0] in usable and kept[1] not in usable
    drawn = replay.sample(200, torch.Generator().manual_seed(0), 0.9)
    assert set(drawn.obs["state"].flatten().tolist()) == {1.0, 5.0, 6.0, 8.0, 30.0}


@pytest.mark.parametrize("n", [1, 3])
def test_random_episodes_against_a_list(n):
    """600 chunks through a ring of 23 per environment: whatever is sampled is what a plain list says."""
    rng, replay, gamma = np.random.default_rng(0), buffer(46), 0.9
    streams = [[], []]  # of (obs, reward, terminated, truncated, final)
    now, firsts, name = np.array([0.0, 1000.0]), np.ones(N, bool), 2000.0
    for _ in range(600):
        rewards, after = rng.standard_normal(N).astype(np.float32), now + 1
        terminated, truncated = rng.random(N) < 0.15, rng.random(N) < 0.15
        add(replay, now, after, rewards, terminated, truncated, firsts)
        for i in range(N):
            streams[i].append((now[i], rewards[i], terminated[i], truncated[i], after[i]))
        firsts = terminated | truncated
        now = np.where(firsts, name + np.array([0, 500.0]), after)
        name += 1000
    expected = {}
    for stream in streams:
        for k, (obs, *_) in enumerate(stream[:-1]):
            total, m = 0.0, 0
            for _, reward, ended, cut, final in stream[k : k + n]:  # noqa: B007 (the last one is used)
                total, m = total + gamma**m * reward, m + 1
                if ended or cut:
                    break
            expected[obs] = (total, 0.0 if ended else gamma**m, final)
    g = torch.Generator().manual_seed(1)
    batch = replay.sample(5000, g, gamma, n)
    seen = set()
    for k, obs in enumerate(batch.obs["state"].flatten().tolist()):
        if obs not in expected:
            continue  # the newest
        reward, discount, final = expected[obs]
        assert batch.rewards[k] == pytest.approx(reward, abs=1e-5) and batch.discounts[k] == pytest.approx(discount)
        assert float(batch.actions[k, 0, 0]) == obs and (discount == 0 or float(batch.next_obs["state"][k]) == final)
        seen.add(obs)
    assert 30 <= len(seen) <= 46 and len(replay) == replay.arrays["usable"].sum()
    counts = np.unique(batch.index, return_counts=True)[1]
    assert counts.max() < 2 * counts.mean()  # uniformly


def test_saved_and_restored_it_goes_on_alike():
    one, two = buffer(14, images=False), buffer(14)
    for k in range(11):
        add(one, [k, -k], [k + 1, -k - 1], truncated=(k % 3 == 2, k % 5 == 4), firsts=(k % 3 == 0, k % 5 == 0))
    two.load_state_dict(one.state_dict())
    for replay in (one, two):
        for k in range(11, 15):
            add(replay, [k, -k], [k + 1, -k - 1], truncated=(k % 3 == 2, k % 5 == 4), firsts=(k % 3 == 0, k % 5 == 0))
    a, b = (x.sample(50, torch.Generator().manual_seed(0), 0.9, 2) for x in (one, two))
    assert torch.equal(a.obs["state"], b.obs["state"]) and torch.equal(a.rewards, b.rewards)
    assert torch.equal(a.next_obs["state"], b.next_obs["state"]) and len(one) == len(two)
    with pytest.raises(CheckpointError, match="replay buffer"):
        buffer(20).load_state_dict(one.state_dict())


def test_images_stay_bytes_and_mixing_keeps_order():
    replay = buffer(images=True)
    assert replay.arrays["obs.rgb"].dtype == np.uint8 and replay.arrays["obs.state"].dtype == np.float32
    plain = buffer()
    add(plain, [1, 2], [3, 4], firsts=(1, 1))
    batch = plain.gather(np.array([0, 0]), 0.9)
    both = mixed(batch, batch)
    assert both.obs["state"].shape == (4, 1, 1) and both.rewards.tolist() == [1.0] * 4


def test_what_is_refused():
    with pytest.raises(UsageError, match="train.buffer_size: expected at least two chunks"):
        buffer(3)
    with pytest.raises(UsageError, match="the replay buffer is empty"):
        buffer().draw(1, torch.Generator())


def test_the_running_episode_is_found_across_the_seam():
    replay = buffer(12)
    for k in range(9):
        add(replay, [k, 100 + k], [k + 1, 101 + k], truncated=(k == 4, 0), firsts=(k in (0, 5), k == 0))
    states = lambda i: replay.arrays["obs.state"][replay.episode_at(i)].ravel().tolist()  # noqa: E731
    assert states(0) == [5.0, 6.0, 7.0, 8.0]
    assert states(1) == [104.0, 105.0, 106.0, 107.0, 108.0]  # as much of it as the ring holds
