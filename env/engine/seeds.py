"""Which episode a slot runs next: an endless supply from one integer, or a given list, each once (see
``env/protocol.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from env.engine.generators import episode_seeds
from env.errors import EnvError


class SeedSupply:
    """Hands out the seeds of episodes, slot by slot."""

    def __init__(self, seed: int | Sequence[int], n_envs: int) -> None:
        self._endless = isinstance(seed, (int, np.integer))
        self._seeds = _checked([seed] if self._endless else seed)
        self._counts = np.zeros(n_envs, np.int64)  # episodes each slot has begun (endless)
        self._used = 0  # seeds handed out (list)

    def next(self, slots: np.ndarray) -> np.ndarray:
        """Seeds of the next episodes of ``slots (K,)``, different ones, in this order: (K,) int64, -1 where none is
        left.
        """
        seeds = np.full(len(slots), -1, np.int64)
        if self._endless:
            episodes = self._counts[slots]
            self._counts[slots] = episodes + 1
            episode_seeds(int(self._seeds[0]), slots, episodes, seeds)
        else:
            left = self._seeds[self._used : self._used + len(slots)]
            seeds[: len(left)] = left
            self._used += len(left)
        return seeds

    def state_dict(self) -> dict[str, Any]:
        """Numpy arrays and ints."""
        return {
            "endless": int(self._endless),
            "seeds": self._seeds.copy(),
            "counts": self._counts.copy(),
            "used": self._used,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> SeedSupply:
        """The supply ``state_dict`` was taken from."""
        seeds, counts = np.asarray(state["seeds"], np.int64), np.asarray(state["counts"], np.int64)
        supply = cls(int(seeds[0]) if int(state["endless"]) else seeds.tolist(), len(counts))
        supply._counts, supply._used = counts.copy(), int(state["used"])
        return supply


def _checked(seeds: Sequence[int]) -> np.ndarray:
    values = [int(seed) for seed in seeds]
    wrong = [seed for seed in values if not 0 <= seed < 2**63]
    if wrong:
        raise EnvError(f"a seed must be an integer from 0 to 2**63 - 1, found {wrong[0]}")
    return np.array(values, np.int64)
