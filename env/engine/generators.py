"""Seeds and generators of many episodes at once, in a microsecond each: to the bit what ``np.random.SeedSequence`` and
``np.random.default_rng`` make of the same integers, which take ten times as long (``tests/env/test_generators.py``).

An episode of Hopper that falls at once is 20 control steps, a quarter of a millisecond: beginning one must cost nothing.

Facts: NumPy's seeding is the hash of M. O'Neill's ``seed_seq_fe`` with a pool of four 32-bit words; PCG64 is a 128-bit
linear congruential generator.
"""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np

from env.engine.library import compiled

_POOL = 4  # 32-bit words
_LOW, _HALF, _ONE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(1)  # 32-bit arithmetic is done in 64 bits
_SHIFT = np.uint64(16)
_KEY_IN, _FACTOR_IN = np.uint64(0x43B0D7E5), np.uint64(0x931E8875)  # of the hash that fills the pool
_KEY_OUT, _FACTOR_OUT = np.uint64(0x8B51F9DD), np.uint64(0x58F38DED)  # of the one that reads it
_MIX_LEFT, _MIX_RIGHT = np.uint64(0xCA01F9DD), np.uint64(0x4973F715)
_PCG_FACTOR, _PCG_MASK = 0x2360ED051FC65DA44385DF649FCCF645, 2**128 - 1


@numba.njit
def _append(words: np.ndarray, n: int, value: int) -> int:
    """Write ``value`` behind the first ``n`` words, 32 bits at a time, lowest first -> number of words now."""
    rest = np.uint64(value)
    words[n] = rest & _LOW
    if rest >> _HALF:
        words[n + 1] = rest >> _HALF
        return n + 2
    return n + 1


@numba.njit
def _hashed(value: np.uint64, key: np.uint64, factor: np.uint64) -> tuple[np.uint64, np.uint64]:
    """-> hashed value, next key."""
    following = key * factor & _LOW
    value = (value ^ key) * following & _LOW
    return value ^ value >> _SHIFT, following


@numba.njit
def _mix(pool: np.ndarray, i: int, value: np.uint64, key: np.uint64) -> np.uint64:
    """Mix ``value`` into word ``i`` -> next key."""
    value, key = _hashed(value, key, _FACTOR_IN)
    mixed = _MIX_LEFT * pool[i] - _MIX_RIGHT * value & _LOW
    pool[i] = mixed ^ mixed >> _SHIFT
    return key


@numba.njit
def _fill(pool: np.ndarray, words: np.ndarray, n: int) -> None:
    """The pool of a ``SeedSequence`` whose entropy is the first ``n`` of ``words``."""
    key = _KEY_IN
    for i in range(_POOL):
        pool[i], key = _hashed(words[i] if i < n else np.uint64(0), key, _FACTOR_IN)
    for source in range(_POOL):
        for i in range(_POOL):
            if i != source:
                key = _mix(pool, i, pool[source], key)
    for source in range(_POOL, n):
        for i in range(_POOL):
            key = _mix(pool, i, words[source], key)


@numba.njit
def _read(pool: np.ndarray, out: np.ndarray) -> None:
    """``generate_state(len(out), np.uint64)``."""
    key = _KEY_OUT
    for i in range(len(out)):
        low, key = _hashed(pool[2 * i % _POOL], key, _FACTOR_OUT)
        high, key = _hashed(pool[(2 * i + 1) % _POOL], key, _FACTOR_OUT)
        out[i] = low | high << _HALF


@compiled("void(int64, int64[::1], int64[::1], int64[::1])", __file__)
def episode_seeds(seed, slots, episodes, out):
    """``out[k]``: ``episode_seed(seed, slots[k], episodes[k])``."""
    words, pool, first = np.zeros(6, np.uint64), np.zeros(_POOL, np.uint64), np.zeros(1, np.uint64)
    for k in range(len(slots)):
        n = _append(words, _append(words, _append(words, 0, seed), slots[k]), episodes[k])
        _fill(pool, words, n)
        _read(pool, first)
        out[k] = np.int64(first[0] >> _ONE)


@compiled("void(int64[::1], uint64[:,::1])", __file__)
def _seedings(seeds, out):
    """``out[k]``: ``SeedSequence(seeds[k]).generate_state(4, np.uint64)``, what PCG64 is seeded with."""
    words, pool = np.zeros(2, np.uint64), np.zeros(_POOL, np.uint64)
    for k in range(len(seeds)):
        _fill(pool, words, _append(words, 0, seeds[k]))
        _read(pool, out[k])


class Generators:
    """Generators of episodes, one after the other; not for several threads at once."""

    def __init__(self) -> None:
        self._bits = np.random.PCG64(0)
        self._generator = np.random.Generator(self._bits)

    def of(self, seeds: np.ndarray) -> Iterator[np.random.Generator]:
        """``np.random.default_rng(seed)`` for each of ``seeds (K,)`` int64, not negative: it is the same object anew
        each time, good until the next one is asked for.
        """
        words = np.empty((len(seeds), 4), np.uint64)
        _seedings(seeds, words)
        number = {"state": 0, "inc": 0}
        state = {"bit_generator": "PCG64", "state": number, "has_uint32": 0, "uinteger": 0}
        for a, b, c, d in words.tolist():
            increment = (c << 65 | d << 1 | 1) & _PCG_MASK
            number["inc"] = increment
            number["state"] = (((a << 64 | b) + increment) * _PCG_FACTOR + increment) & _PCG_MASK
            self._bits.state = state
            yield self._generator
