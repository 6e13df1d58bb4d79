"""Experience: the policy acts, the world answers, and everything an update needs is written once into pre-allocated tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from env.protocol import NpObs, StepResult, VectorEnv
from model.types import Obs, Sample

SMALL_BATCH = 256  # rows below which a second thread costs more in synchronisation than it saves in arithmetic


@contextmanager
def threads_for(rows: int, images: bool = False) -> Iterator[None]:
    """One intra-operation thread for small batches on the CPU; torch's own number again afterwards. With images every batch is
    large: one costs as much as hundreds of states."""
    usual = torch.get_num_threads()
    if images or rows >= SMALL_BATCH or usual == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def to_torch(obs: NpObs, device: torch.device | str) -> Obs:
    """Observations of the environment as tensors; shapes unchanged, images stay uint8."""
    return {key: torch.as_tensor(value, device=device) for key, value in obs.items()}


@dataclass
class Rollout:
    """S action chunks of N environments (letters as in ``model/types.py``)."""

    obs: Obs  # {"state": (S, N, To, Do) float32[, "rgb": (S, N, To, C, H, W) uint8]}
    chains: Tensor  # (S, N, K + 1, Ta, Da)
    log_probs: Tensor  # (S, N, K) of the behaviour policy
    rewards: Tensor  # (S, N)
    terminated: Tensor  # (S, N) bool
    truncated: Tensor  # (S, N) bool
    firsts: Tensor  # (S, N) bool: the chunk is its episode's first
    valid: Tensor  # (S, N) bool: False in episodes whose simulation went unstable; never learned from
    final_obs: list[tuple[Tensor, Obs]] = field(
        default_factory=list
    )  # (flat indices s * N + n, observations that these chunks led to)

    @classmethod
    def allocate(
        cls, n_steps: int, n_envs: int, obs: Obs, chain_shape: tuple[int, ...], device: torch.device | str
    ) -> Rollout:
        """Empty buffers for S = ``n_steps``; ``chain_shape = (K + 1, Ta, Da)``. Images are kept on the host, as uint8."""
        grid = (n_steps, n_envs)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*grid, *shape, dtype=dtype, device=device)

        store = {
            key: torch.zeros(*grid, *value.shape[1:], dtype=value.dtype, device="cpu" if key == "rgb" else device)
            for key, value in obs.items()
        }
        flags = [zeros(dtype=torch.bool) for _ in range(4)]
        return cls(store, zeros(*chain_shape), zeros(chain_shape[0] - 1), zeros(), *flags)

    def clear(self) -> None:
        """Forget the last experience; every tensor is overwritten by the next."""
        self.final_obs.clear()
        self.valid.fill_(True)

    @staticmethod
    def bytes_for(
        n_steps: int, n_envs: int, obs_shapes: Mapping[str, tuple[int, ...]], chain_shape: tuple[int, ...]
    ) -> dict[str, int]:
        """What ``allocate`` will take, by kind; ``obs_shapes`` without N."""
        grid = n_steps * n_envs
        images = grid * math.prod(obs_shapes["rgb"]) if "rgb" in obs_shapes else 0
        state = grid * math.prod(obs_shapes["state"]) * 4
        return {"images": images, "rest": state + grid * ((math.prod(chain_shape) + chain_shape[0]) * 4 + 4)}

    @property
    def n_bytes(self) -> int:
        """Memory of the buffers."""
        tensors = [
            *self.obs.values(),
            self.chains,
            self.log_probs,
            self.rewards,
            self.terminated,
            self.truncated,
            self.firsts,
            self.valid,
        ]
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass
class EpisodeTracker:
    """Episodes as they end, wherever that falls; what is unfinished is carried over, and no finished episode means NaN, not zero."""

    returns: np.ndarray  # (N,) of the running episodes
    lengths: np.ndarray  # (N,) control steps
    successes: np.ndarray  # (N,) bool
    finished: list[tuple[float, int, bool]] = field(default_factory=list)
    n_invalid: int = 0

    @classmethod
    def start(cls, n_envs: int) -> EpisodeTracker:
        """N episodes, nothing done yet."""
        return cls(np.zeros(n_envs), np.zeros(n_envs, np.int64), np.zeros(n_envs, bool))

    def step(self, result: StepResult) -> None:
        """Account for one chunk."""
        self.returns += result.reward
        self.lengths += result.info["steps"]
        self.successes |= result.success
        done = (result.terminated | result.truncated) & result.info["active"]
        for i in np.flatnonzero(done):
            if result.info["invalid"][i]:
                self.n_invalid += 1
            else:
                self.finished.append((float(self.returns[i]), int(self.lengths[i]), bool(self.successes[i])))
        self.returns[done], self.lengths[done], self.successes[done] = 0.0, 0, False

    def summary(self) -> dict[str, float]:
        """Means over the episodes that ended since the last call."""
        returns, lengths, successes = zip(*self.finished, strict=True) if self.finished else ((), (), ())
        mean = lambda x: float(np.mean(x)) if x else float("nan")  # noqa: E731
        out = {
            "train/episode_return": mean(returns),
            "train/episode_length": mean(lengths),
            "train/success_rate": mean(successes),
            "train/episodes": len(self.finished),
            "train/invalid_episodes": self.n_invalid,
        }
        self.finished.clear()
        self.n_invalid = 0
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """The running episodes."""
        return {key: torch.as_tensor(getattr(self, key).copy()) for key in ("returns", "lengths", "successes")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state_dict``."""
        for key, value in state.items():
            setattr(self, key, value.numpy().copy())


def collect(
    policy: torch.nn.Module,
    venv: VectorEnv,
    obs: NpObs,
    firsts: np.ndarray,
    rollout: Rollout,
    tracker: EpisodeTracker,
    generator: torch.Generator,
    on_step: Callable[[], None] | None = None,
    act: Callable[[Obs, Tensor], Sample] | None = None,
    observe: Callable[[Rollout, int, NpObs], None] | None = None,
) -> tuple[NpObs, np.ndarray, dict[str, float]]:
    """Fill ``rollout`` with S chunks from ``obs`` on.

    Args:
        policy: ``sample(obs, deterministic=False, noise=(N, *noise_shape)) -> Sample``, with chains and log-probs if it has a chain.
        firsts: (N,) bool, which slots are at the start of an episode.
        generator: of the sampling noise, on the policy's device.
        on_step: called without arguments after every chunk (a progress bar).
        act, observe: of ``Algorithm``; by default the policy samples, and nobody looks on.

    Returns:
        the observations and ``firsts`` to go on from, and seconds spent sampling and simulating.
    """
    rollout.clear()
    n_steps, n_envs = rollout.rewards.shape
    device = rollout.chains.device
    episode_start = np.zeros(n_envs, np.int64)
    spent = {"time/sample": 0.0, "time/simulate": 0.0}
    for s in range(n_steps):
        t0 = time.perf_counter()
        tensors = to_torch(obs, device)
        noise = torch.randn(n_envs, *policy.noise_shape, generator=generator, device=device)
        with torch.no_grad(), threads_for(n_envs, "rgb" in tensors):
            sample = act(tensors, noise) if act else policy.sample(tensors, deterministic=False, noise=noise)
        actions = sample.trajectories[:, : venv.act_steps].cpu().numpy()
        for key, store in rollout.obs.items():  # before the step, which may draw its images over these
            store[s] = torch.as_tensor(obs[key]) if store.device.type == "cpu" else tensors[key]
        t1 = time.perf_counter()
        result = venv.step(actions)
        t2 = time.perf_counter()
        rollout.chains[s] = sample.trajectories[:, None] if sample.chains is None else sample.chains
        if sample.log_probs is not None:
            rollout.log_probs[s] = sample.log_probs
        done = result.terminated | result.truncated
        for name, value in (
            ("rewards", result.reward),
            ("terminated", result.terminated),
            ("truncated", result.truncated),
            ("firsts", firsts),
        ):
            getattr(rollout, name)[s] = torch.as_tensor(value, device=device)
        _keep_final_obs(rollout, result, s, last=s == n_steps - 1)
        for i in np.flatnonzero(result.info["invalid"]):
            rollout.valid[episode_start[i] : s + 1, i] = False
        episode_start[done] = s + 1
        if observe is not None:
            observe(rollout, s, result.final_obs)
        tracker.step(result)
        obs, firsts = result.obs, done
        spent["time/sample"] += t1 - t0
        spent["time/simulate"] += t2 - t1
        if on_step is not None:
            on_step()
    return obs, firsts, spent


def _keep_final_obs(rollout: Rollout, result: StepResult, s: int, last: bool) -> None:
    """Remember the observations whose values bootstrap: of truncated episodes, and of every environment after the last chunk.

    ``final_obs`` is the next observation where an episode goes on, so the last row needs no second case.
    """
    rows = np.arange(len(result.reward)) if last else np.flatnonzero(result.truncated & ~result.terminated)
    if len(rows):
        index = torch.as_tensor(s * len(result.reward) + rows)
        rollout.final_obs.append(
            (index, to_torch({key: value[rows] for key, value in result.final_obs.items()}, "cpu"))  # [rows] copies
        )
