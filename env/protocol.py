"""What the learning code knows of a world: ``reset(seed)`` and ``step(action_chunk)``, for N environments at once.

The unit of work is the *action chunk*: the policy looks once, then ``act_steps`` control steps run without waking Python.
Shapes use the letters of ``model/types.py``; here everything is numpy.

Episodes and seeds
------------------
Every episode is a function of one integer seed (and of the actions): same seed, same episode, in whatever slot, beside
whatever other environments, and whatever ran in the slot before. ``reset`` takes

* one ``int``: an endless supply; slot ``i``'s ``j``-th episode has seed ``episode_seed(seed, i, j)``;
* a sequence of ints: exactly these episodes, in order, each once. A slot whose episode ends takes the next unused seed; when none
  is left the slot goes idle: it is not simulated, its rows of ``StepResult`` are zero and ``info["active"]`` is False.

A slot whose episode ends inside a chunk stops there, reports the last observation in ``final_obs`` and, in the same call, starts its
next episode: ``obs`` is that episode's first observation (Gymnasium's ``AutoresetMode.SAME_STEP``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

NpObs = dict[str, np.ndarray]


@dataclass(slots=True)
class StepResult:
    """What N environments answer to one action chunk.

    ``info`` always has ``active (N,) bool`` (the slot was simulated), ``steps (N,) int`` (control steps executed),
    ``invalid (N,) bool`` (the simulation went unstable in this chunk: the episode was cut and must not be learned from; such a
    row also has ``truncated = True``) and ``seed (N,) int64`` (of the episode the *step* belonged to).
    """

    obs: NpObs  # {"state": (N, To, Do) float32[, "rgb": (N, To, C, H, W) uint8]}: where the next chunk starts
    reward: np.ndarray  # (N,) float32, summed over the executed control steps
    terminated: np.ndarray  # (N,) bool: the task ended; there is no future
    truncated: (
        np.ndarray
    )  # (N,) bool: time ran out (or the simulation was cut); the future exists: bootstrap from final_obs
    final_obs: NpObs  # same shapes as obs; row i is the last observation of the ended episode where terminated | truncated, else obs
    success: np.ndarray  # (N,) bool: the task was solved at any control step of this chunk
    info: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class VectorEnv(Protocol):
    """N environments that execute action chunks; see the module docstring for seeds, ends and idle slots."""

    n_envs: int
    act_steps: int
    action_dim: int
    obs_shapes: dict[str, tuple[int, ...]]  # without N: {"state": (To, Do)}
    max_episode_steps: int  # control steps

    def reset(self, seed: int | Sequence[int]) -> NpObs:
        """Start an episode in every slot (or in the first ``len(seed)`` ones) and return the first observations."""

    def step(self, chunk: np.ndarray) -> StepResult:
        """Execute ``chunk (N, Te, Da)``, in the environment's action units ([-1, 1] once normalised)."""

    def seeds(self) -> np.ndarray:
        """Seed of the episode each slot is in: (N,) int64, -1 where idle."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on mid-episode, as tensors' raw material: numpy arrays, ints, strings."""

    def load_state_dict(self, state: dict[str, Any]) -> NpObs:
        """Go on where ``state_dict`` was taken; returns the current observations."""

    def close(self) -> None:
        """Free threads and processes; idempotent."""


def episode_seed(seed: int, slot: int, episode: int) -> int:
    """Seed of the ``episode``-th episode of ``slot`` in the endless supply ``seed``: a 63-bit hash, so that no two coincide in practice."""
    return int(np.random.SeedSequence((seed, slot, episode)).generate_state(1, np.uint64)[0] >> np.uint64(1))
