"""Seeds and generators of episodes are NumPy's, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from env.engine.generators import Generators, episode_seeds
from env.engine.seeds import SeedSupply
from env.protocol import episode_seed

EDGES = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**62, 2**63 - 1]  # of one 32-bit word, and of two


def _seeds(n):
    """Edges and ``n`` numbers of any length."""
    rng = np.random.default_rng(1)
    return EDGES + [int(rng.integers(2 ** int(bits))) for bits in rng.integers(1, 64, n)]


def test_generators_are_those_of_default_rng():
    seeds = _seeds(300)
    theirs = map(np.random.default_rng, seeds)
    for ours, their in zip(Generators().of(np.array(seeds)), theirs, strict=True):
        assert ours.bit_generator.state == their.bit_generator.state
        assert ours.integers(7, dtype=np.uint32) == their.integers(7, dtype=np.uint32)  # leaves half a number behind
        assert ours.uniform() == their.uniform() and ours.standard_normal() == their.standard_normal()


@pytest.mark.parametrize("episode", [0, 5, 2**32 - 1, 2**40 + 3])  # the entropy has three to five words
def test_seeds_of_episodes_are_those_of_the_protocol(episode):
    slots = np.array([0, 3, 41])
    for seed in _seeds(50):
        out = np.zeros(3, np.int64)
        episode_seeds(seed, slots, np.full(3, episode), out)
        assert out.tolist() == [episode_seed(seed, int(slot), episode) for slot in slots]


def test_an_endless_supply_counts_the_episodes_of_each_slot():
    supply = SeedSupply(17, 5)
    for slots in ([0, 1, 2, 3, 4], [3, 1], [1], []):
        supply.next(np.array(slots, np.int64))
    for other in (supply, SeedSupply.from_state_dict(supply.state_dict())):
        expected = [episode_seed(17, slot, episode) for slot, episode in ((4, 1), (1, 3), (3, 2), (0, 1))]
        assert other.next(np.array([4, 1, 3, 0])).tolist() == expected


def test_a_list_of_seeds_goes_to_who_comes_first():
    supply = SeedSupply([7, 3, 3, 11], 3)
    assert supply.next(np.array([2, 0])).tolist() == [7, 3]
    assert SeedSupply.from_state_dict(supply.state_dict()).next(np.array([1])).tolist() == [3]
    assert supply.next(np.array([1, 2, 0])).tolist() == [3, 11, -1]
    assert supply.next(np.array([1])).tolist() == [-1]
