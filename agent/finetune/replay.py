"""Experience that is learned from more than once: a ring of action chunks per environment, sampled in constant time.

Every environment has a ring of its own, and an observation is stored once: what a chunk led to is the next row of its ring. Where an
episode is cut by its time limit (or by ``env.reset_at_iteration``), a row of its own keeps the last observation; it is nobody's beginning
and never sampled. So one rule holds for all rows, single steps and n-step returns alike::

    r_0 + gamma r_1 + ... + gamma^(m-1) r_(m-1) + discount * V(next_obs),    discount = gamma^m, or 0 where the task ended

with ``m = n`` unless the episode ended before: at a termination nothing follows, at a truncation the last observation bootstraps.
Rewards are those of whole chunks, and gamma is per chunk. Images stay uint8, all other numbers are float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agent.errors import CheckpointError, UsageError
from agent.memory import preflight
from model.types import Obs


class Transitions(NamedTuple):
    """B action chunks and what they led to."""

    obs: Obs
    actions: Tensor  # (B, Ta, Da)
    rewards: Tensor  # (B,) discounted sum of m chunks
    discounts: Tensor  # (B,) of the value of next_obs; 0 where the task ended
    next_obs: Obs
    index: np.ndarray | None = None  # (B,) where they are in the buffer
    returns: Tensor | None = None  # (B,) discounted sum to the episode's end, where somebody keeps it


def mixed(first: Transitions, second: Transitions) -> Transitions:
    """One batch of two; ``index`` is lost, and so are returns that only one of them has."""
    join = lambda a, b: {key: torch.cat([a[key], b[key]]) for key in a}  # noqa: E731
    both = [torch.cat([getattr(first, k), getattr(second, k)]) for k in ("actions", "rewards", "discounts")]
    known = first.returns is not None and second.returns is not None
    returns = torch.cat([first.returns, second.returns]) if known else None
    return Transitions(join(first.obs, second.obs), *both, join(first.next_obs, second.next_obs), None, returns)


class ReplayBuffer:
    """The last ``capacity`` chunks of N environments, on the host.

    Args:
        capacity: chunks, of all environments together; divided among them.
        n_envs: N.
        obs: observations of N environments, for their shapes and types.
        chunk_shape: ``(Ta, Da)``.
        extra: further float32 arrays of every chunk, name -> shape.
        device: where batches go.

    Raises:
        UsageError: fewer than two chunks per environment, or more than the memory holds.
    """

    def __init__(
        self,
        capacity: int,
        n_envs: int,
        obs: Mapping[str, Tensor],
        chunk_shape: tuple[int, ...],
        extra: Mapping[str, tuple[int, ...]] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 2 * n_envs:
            raise UsageError(
                f"train.buffer_size: expected at least two chunks per environment ({2 * n_envs}), found {capacity}"
            )
        self.n_envs, self.rows, self.device = n_envs, capacity // n_envs + 1, torch.device(device)
        shapes = {f"obs.{key}": (tuple(value.shape[1:]), _kind(value)) for key, value in obs.items()}
        shapes |= {"actions": (chunk_shape, np.float32), "rewards": ((), np.float32)}
        shapes |= {"terminated": ((), np.bool_), "usable": ((), np.bool_)}
        self.extra = dict(extra or {})
        shapes |= {name: (shape, np.float32) for name, shape in self.extra.items()}
        n = n_envs * self.rows
        size = sum(n * math.prod(shape) * np.dtype(kind).itemsize for shape, kind in shapes.values())
        preflight({"replay buffer": size}, ("train.buffer_size", "env.n_envs"))
        self.arrays = {name: np.zeros((n, *shape), kind) for name, (shape, kind) in shapes.items()}
        self.head = np.zeros(n_envs, np.int64)  # the row of every ring that is written next
        self.written = np.zeros(n_envs, np.int64)  # rows so far
        self.open = np.zeros(n_envs, bool)  # the episode goes on at head
        self.episode = np.zeros(n_envs, np.int64)  # chunks of the running episode, or of the one that just ended
        self.size = 0
        self._base = np.arange(n_envs) * self.rows

    def __len__(self) -> int:
        """Chunks that can be sampled."""
        return self.size

    def add(
        self,
        obs: Obs,
        actions: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        firsts: Tensor,
        valid: Tensor,
        final_obs: Mapping[str, Any],
    ) -> np.ndarray:
        """One chunk of every environment; returns where they are, (N,).

        Args:
            firsts: (N,) bool, the chunk is its episode's first.
            valid: (N,) bool, False where the simulation went unstable: the episode's chunks are forgotten.
            final_obs: where each chunk led; of an ended episode its own last observation.
        """
        firsts, ended, stopped = _numpy(firsts), _numpy(terminated), _numpy(truncated)
        self._advance(firsts & self.open)  # reset in mid-episode: what it led to is kept
        self.episode = np.where(firsts, 1, self.episode + 1)
        at = self._base + self.head
        self._claim(at)
        for key, value in obs.items():
            self.arrays[f"obs.{key}"][at] = _numpy(value)
        for name, value in (("actions", actions), ("rewards", rewards), ("terminated", ended)):
            self.arrays[name][at] = _numpy(value)
        self.arrays["usable"][at] = True
        self.size += self.n_envs
        self._advance(np.ones(self.n_envs, bool))
        led = self._base + self.head
        self._claim(led)
        for key, value in final_obs.items():
            self.arrays[f"obs.{key}"][led] = _numpy(value)
        for i in np.flatnonzero(~_numpy(valid)):
            self._forget(int(i))
        self._advance(stopped & ~ended)
        self.open = ~(stopped | ended)
        return at

    def draw(self, n: int, generator: torch.Generator) -> np.ndarray:
        """``n`` of the chunks, with replacement, uniformly: where they are.

        Raises:
            UsageError: the buffer is empty.
        """
        if not self.size:
            raise UsageError(
                "the replay buffer is empty: every simulation so far went unstable (actions out of range?)"
            )
        filled = int(min(self.written.max() + 1, self.rows))
        index, open_ = np.empty(n, np.int64), np.ones(n, bool)
        while open_.any():  # rows that are no chunk are few: the second time there is hardly one left
            count = int(open_.sum())
            drawn = torch.randint(filled * self.n_envs, (count,), generator=generator, device=generator.device)
            env, row = np.divmod(drawn.cpu().numpy(), filled)
            index[open_] = env * self.rows + row
            open_ = ~self.arrays["usable"][index]
        return index

    def gather(self, index: np.ndarray, gamma: float, n_steps: int = 1) -> Transitions:
        """The chunks at ``index (B,)``, with returns of up to ``n_steps`` chunks."""
        a = self.arrays
        rewards, discounts = a["rewards"][index].copy(), np.where(a["terminated"][index], 0, gamma)
        after, on = self.successor(index), ~a["terminated"][index]
        for k in range(1, n_steps):
            on = on & a["usable"][after]  # False at the end of an episode that time cut
            rewards = np.where(on, rewards + gamma**k * a["rewards"][after], rewards)
            discounts = np.where(on, np.where(a["terminated"][after], 0, gamma ** (k + 1)), discounts)
            after, on = np.where(on, self.successor(after), after), on & ~a["terminated"][after]
        returns = self._tensor(a["returns"][index]) if "returns" in a else None
        numbers = [self._tensor(x.astype(np.float32)) for x in (rewards, discounts)]
        return Transitions(
            self.obs_at(index), self._tensor(a["actions"][index]), *numbers, self.obs_at(after), index, returns
        )

    def sample(self, n: int, generator: torch.Generator, gamma: float, n_steps: int = 1) -> Transitions:
        """``gather`` of ``draw``."""
        return self.gather(self.draw(n, generator), gamma, n_steps)

    def obs_at(self, index: np.ndarray) -> Obs:
        """Observations at ``index``."""
        names = [name for name in self.arrays if name.startswith("obs.")]
        return {name[4:]: self._tensor(self.arrays[name][index]) for name in names}

    def successor(self, index: np.ndarray) -> np.ndarray:
        """Where what the chunks at ``index`` led to is."""
        row = index % self.rows
        return index - row + (row + 1) % self.rows

    def streams(self) -> np.ndarray:
        """Of every environment, where its rows are, oldest first: (T, N). Not all of them are usable."""
        count = int(min(self.written.max(), self.rows - 1))
        return self._base + (self.head - np.arange(count, 0, -1)[:, None]) % self.rows

    def episode_at(self, env: int) -> np.ndarray:
        """Where the chunks of the episode that ``env`` is in, or just ended, are, oldest first; of a very long one, the last."""
        last = self.head[env] - (0 if self.open[env] or self.arrays["usable"][self._last(env)] else 1)
        count = min(self.episode[env], self.rows - 2)
        return self._base[env] + (last - np.arange(count, 0, -1)) % self.rows

    def _last(self, env: int) -> int:
        return int(self._base[env] + (self.head[env] - 1) % self.rows)

    def _advance(self, which: np.ndarray) -> None:
        self.head = np.where(which, (self.head + 1) % self.rows, self.head)
        self.written = self.written + which

    def _claim(self, at: np.ndarray) -> None:
        usable = self.arrays["usable"]
        self.size -= int(usable[at].sum())
        usable[at] = False

    def _forget(self, env: int) -> None:
        """All chunks of the episode that ``env`` is in."""
        back = np.arange(1, min(self.episode[env], self.rows - 1) + 1)
        self._claim(self._base[env] + (self.head[env] - back) % self.rows)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors; rows that were never written are left out."""
        filled = int(min(self.written.max() + 1, self.rows))
        by_env = {name: x.reshape(self.n_envs, self.rows, *x.shape[1:])[:, :filled] for name, x in self.arrays.items()}
        arrays = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in by_env.items()}
        place = {name: torch.from_numpy(getattr(self, name).copy()) for name in ("head", "written", "open", "episode")}
        return {"arrays": arrays, "place": place, "size": self.size, "rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``.

        Raises:
            CheckpointError: it is that of another buffer.
        """
        if state["rows"] != self.rows or state["arrays"].keys() != self.arrays.keys():
            raise CheckpointError(
                "replay buffer: the checkpoint's has another size or other contents than the configured one"
            )
        for name, saved in state["arrays"].items():
            x = self.arrays[name]
            x[:] = 0
            x.reshape(self.n_envs, self.rows, *x.shape[1:])[:, : saved.shape[1]] = saved.numpy()
        for name, value in state["place"].items():
            setattr(self, name, value.numpy().copy())
        self.size = int(state["size"])


def _kind(value: Tensor) -> type:
    return np.uint8 if value.dtype == torch.uint8 else np.float32


def _numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
