"""The yardstick simulator of locomotion: Gymnasium's own robots in worker processes of ``AsyncVectorEnv``.

As the published code steps them: whole action chunks are executed inside the worker, an end cuts the chunk and resets
within the step, states and actions are normalised inside the worker. One worker may hold a block of several robots, which
it steps one after the other (see ``robosuite_env.py``).
"""

from __future__ import annotations

import functools
import time
import warnings
from typing import Any

import gymnasium
import numpy as np

NAMES = {"hopper": "Hopper-v4", "walker2d": "Walker2d-v4", "halfcheetah": "HalfCheetah-v4"}


def make_robot(body: str) -> gymnasium.Env:
    """Gymnasium's robot, with its time limit of 1000 control steps and without its checks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium would rather have -v5
        return gymnasium.make(NAMES[body], disable_env_checker=True)


class GymBlock(gymnasium.Env):
    """``k`` robots, numbers ``first`` and up, behind one Gymnasium interface.

    ``step(chunk (k, Te, Da))`` gives ``{"state": (k, Do), "reward": (k,) summed over the chunk, "terminated": (k,),
    "truncated": (k,)}``; Gymnasium's own reward and flags stay empty, since they hold one number per process. Ranges of
    observations and actions are -1 to 1.
    """

    def __init__(self, body: str, k: int, first: int, seed: int, act_steps: int) -> None:
        self.envs = [make_robot(body) for _ in range(k)]
        self.k, self._seed = k, seed + first
        n_obs, n_act = self.envs[0].observation_space.shape[0], self.envs[0].action_space.shape[0]
        flags = gymnasium.spaces.MultiBinary(k)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "state": gymnasium.spaces.Box(-np.inf, np.inf, (k, n_obs), np.float64),
                "reward": gymnasium.spaces.Box(-np.inf, np.inf, (k,), np.float64),
                "terminated": flags,
                "truncated": flags,
            }
        )
        self.action_space = gymnasium.spaces.Box(-1, 1, (k, act_steps, n_act), np.float32)
        self._obs_min, self._obs_range = -np.ones(n_obs), np.full(n_obs, 2.0)
        self._action_min, self._action_range = -np.ones(n_act), np.full(n_act, 2.0)
        self._answer = {key: np.zeros(space.shape, space.dtype) for key, space in self.observation_space.items()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Reset all ``k``; robot ``i`` of all begins with seed ``seed + i`` the first time."""
        for i, env in enumerate(self.envs):
            obs, _ = env.reset(seed=None if self._seed is None else self._seed + i)
            self._answer["state"][i] = self._normalise(obs)
        self._seed = None
        for key in ("reward", "terminated", "truncated"):
            self._answer[key][:] = 0
        return self._answer, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Execute one chunk in every robot; an end cuts the chunk and resets at once."""
        controls = (np.asarray(action, np.float64) + 1) / 2 * self._action_range + self._action_min
        for i, env in enumerate(self.envs):
            total = 0.0
            for control in controls[i]:
                obs, reward, terminated, truncated, _ = env.step(control)
                total += reward
                if terminated or truncated:
                    obs, _ = env.reset()
                    break
            self._answer["state"][i] = self._normalise(obs)
            self._answer["reward"][i] = total
            self._answer["terminated"][i], self._answer["truncated"][i] = terminated, truncated
        return self._answer, 0.0, False, False, {}

    def cpu_seconds(self) -> float:
        """CPU time this worker has used."""
        return time.process_time()

    def close(self) -> None:
        """Close the simulators."""
        for env in self.envs:
            env.close()

    def _normalise(self, obs: np.ndarray) -> np.ndarray:
        return 2 * (obs - self._obs_min) / (self._obs_range + 1e-6) - 1


class GymSimulators:
    """``GymBlock`` workers seen as N environments: ``reference_loop.Simulators``.

    Raises ValueError if the robots do not divide evenly over the workers.
    """

    def __init__(self, body: str, n_envs: int, workers: int, seed: int, act_steps: int) -> None:
        if n_envs % workers:
            raise ValueError(f"{n_envs} environments do not divide over {workers} workers: choose a divisor")
        self.n_envs, self.workers, k = n_envs, workers, n_envs // workers
        makers = [functools.partial(GymBlock, body, k, k * w, seed, act_steps) for w in range(workers)]
        self.venv = gymnasium.vector.AsyncVectorEnv(makers, shared_memory=True, context="spawn")

    def reset(self) -> np.ndarray:
        """Reset everything -> (N, Do)."""
        return self.venv.reset()[0]["state"].reshape(self.n_envs, -1)

    def step(self, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """See ``Simulators``."""
        answer = self.venv.step(chunk.reshape(self.workers, -1, *chunk.shape[1:]))[0]
        ends = (answer[key].reshape(-1).astype(bool) for key in ("terminated", "truncated"))
        return answer["state"].reshape(self.n_envs, -1), answer["reward"].reshape(-1), *ends

    def cpu_seconds(self) -> float:
        """CPU seconds of this process and its workers."""
        return time.process_time() + sum(self.venv.call("cpu_seconds"))

    def close(self) -> None:
        """End the workers."""
        self.venv.close()
