"""The one evaluation: of a checkpoint, of a policy in training, of a baseline in a test.

Every episode is a function of its recorded seed: the environment's initial state *and* the policy's sampling noise are drawn from it. The
result does not depend on how many environments ran side by side, and two policies evaluated on the same seeds are a paired comparison.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from agent.errors import UsageError
from agent.eval.statistics import bootstrap_interval, wilson_interval
from agent.finetune.rollout import threads_for, to_torch
from env.protocol import VectorEnv

NOISE_KEY = 0x5A  # keeps an episode's sampling noise apart from whatever the environment draws from the same seed


@dataclass(frozen=True)
class EvalResult:
    """What was measured, episode by episode. An episode is a success if the task was solved at any of its control steps."""

    success_rate: float
    success_interval: tuple[float, float]  # Wilson, 95 %
    mean_return: float
    return_interval: tuple[float, float]  # bootstrap, 95 %
    seeds: list[int]
    successes: list[bool]
    returns: list[float]
    lengths: list[int]  # control steps
    n_invalid: int  # episodes cut because the simulation went unstable; counted as failures
    seconds: float
    env_steps: int
    solvable: bool = True  # False: the task knows no success (locomotion), what counts is the return

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """For the log."""
        return {
            f"{prefix}/success_rate": self.success_rate,
            f"{prefix}/success_ci_low": self.success_interval[0],
            f"{prefix}/success_ci_high": self.success_interval[1],
            f"{prefix}/episode_return": self.mean_return,
            f"{prefix}/return_ci_low": self.return_interval[0],
            f"{prefix}/return_ci_high": self.return_interval[1],
            f"{prefix}/episode_length": float(np.mean(self.lengths)),
            f"{prefix}/episodes": float(len(self.seeds)),
            f"{prefix}/invalid_episodes": float(self.n_invalid),
            f"time/{prefix}": self.seconds,
        }

    def __str__(self) -> str:
        low, high = self.success_interval
        success = f"success {self.success_rate:.3f} [{low:.3f}, {high:.3f}], " if self.solvable else ""
        low, high = self.return_interval
        return f"{success}return {self.mean_return:.4g} [{low:.4g}, {high:.4g}] over {len(self.seeds)} episodes"


def evaluate(
    policy: nn.Module,
    venv: VectorEnv,
    episodes: int | None = None,
    first_seed: int = 1_000_000,
    seeds: Sequence[int] | None = None,
    deterministic: bool = True,
    progress: str | None = None,
) -> EvalResult:
    """Run each seed's episode once.

    Args:
        policy: ``sample(obs, deterministic, noise) -> Sample``; its parameters' device is used.
        venv: an environment that training does not use; it is reset.
        episodes, first_seed: the seeds ``first_seed .. first_seed + episodes - 1``; or
        seeds: exactly these.
        deterministic: as in deployment (no exploration noise); the chain's start is random all the same.
        progress: label of a progress bar, if one is wanted.

    Raises:
        UsageError: without episodes.
    """
    seeds = [int(s) for s in seeds] if seeds is not None else list(range(first_seed, first_seed + (episodes or 0)))
    if not seeds:
        raise UsageError("evaluate: expected at least one episode, found none (n_episodes, train.eval_episodes)")
    started = time.perf_counter()
    device = next(policy.parameters()).device
    table = _Episodes(seeds)
    obs = venv.reset(seeds)
    slot_seeds = venv.seeds()
    noise = {int(s): noise_stream(int(s)) for s in slot_seeds if s >= 0}
    bar = tqdm(
        total=len(seeds),
        desc=progress,
        unit="ep",
        disable=True if progress is None else None,
        leave=False,
        mininterval=0.5,
    )
    was_training = policy.training
    policy.eval()
    while noise:
        rows = np.flatnonzero(slot_seeds >= 0)
        draws = np.stack([noise[int(slot_seeds[i])].standard_normal(policy.noise_shape, np.float32) for i in rows])
        tensors = to_torch({key: value[rows] for key, value in obs.items()}, device)
        with torch.no_grad(), threads_for(len(rows), "rgb" in tensors):
            sample = policy.sample(tensors, deterministic=deterministic, noise=torch.from_numpy(draws).to(device))
        chunk = np.zeros((venv.n_envs, venv.act_steps, venv.action_dim), np.float32)
        chunk[rows] = sample.trajectories[:, : venv.act_steps].cpu().numpy()
        result = venv.step(chunk)
        table.add(rows, slot_seeds, result)
        for i in rows[(result.terminated | result.truncated)[rows]]:
            del noise[int(slot_seeds[i])]
            bar.update()
        obs, slot_seeds = result.obs, venv.seeds()
        for s in slot_seeds[slot_seeds >= 0]:
            noise.setdefault(int(s), noise_stream(int(s)))
    bar.close()
    policy.train(was_training)
    return table.result(time.perf_counter() - started, is_solvable(venv))


def is_solvable(venv: VectorEnv) -> bool:
    """Whether an episode can be a success at all; environments that do not say so are taken to."""
    return getattr(getattr(venv, "family", None), "solvable", True)


def noise_stream(seed: int) -> np.random.Generator:
    """The sampling noise of the episode of ``seed``."""
    return np.random.default_rng((seed, NOISE_KEY))


class _Episodes:
    """Returns, lengths and successes by seed. A seed may be listed twice only if it runs twice in sequence; it is one episode then."""

    def __init__(self, seeds: list[int]) -> None:
        if len(set(seeds)) != len(seeds):
            raise UsageError("evaluate: the same seed was given twice; that is one episode, not two")
        self.seeds = seeds
        self.index = {seed: k for k, seed in enumerate(seeds)}
        n = len(seeds)
        self.returns, self.lengths = np.zeros(n), np.zeros(n, np.int64)
        self.successes, self.invalid = np.zeros(n, bool), np.zeros(n, bool)

    def add(self, rows: np.ndarray, slot_seeds: np.ndarray, result: Any) -> None:
        k = np.array([self.index[int(slot_seeds[i])] for i in rows])
        self.returns[k] += result.reward[rows]
        self.lengths[k] += result.info["steps"][rows]
        self.successes[k] |= result.success[rows]
        self.invalid[k] |= result.info["invalid"][rows]

    def result(self, seconds: float, solvable: bool) -> EvalResult:
        successes = self.successes & ~self.invalid
        n = len(self.seeds)
        return EvalResult(
            success_rate=float(successes.mean()),
            success_interval=wilson_interval(int(successes.sum()), n),
            mean_return=float(self.returns.mean()),
            return_interval=bootstrap_interval(self.returns),
            seeds=self.seeds,
            successes=[bool(x) for x in successes],
            returns=[float(x) for x in self.returns],
            lengths=[int(x) for x in self.lengths],
            n_invalid=int(self.invalid.sum()),
            seconds=seconds,
            env_steps=int(self.lengths.sum()),
            solvable=solvable,
        )
