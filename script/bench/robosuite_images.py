"""The yardstick of image rows: robosuite in ``gymnasium.vector.AsyncVectorEnv``, one environment per worker, as the published code runs
it: whole chunks inside the worker, camera images among the observations of every control step.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import gymnasium
import numpy as np


class RobosuiteImages(gymnasium.Env):
    """One robosuite environment that renders ``cameras`` after every control step; built in the worker, at the first reset."""

    def __init__(self, task: str, robots: int, cameras: list[str], action_dim: int, act_steps: int, seed: int) -> None:
        self._make = task, ["Panda"] * robots, cameras, seed
        self._env: Any = None
        self._cameras = cameras
        self.observation_space = gymnasium.spaces.Dict(
            {"rgb": gymnasium.spaces.Box(0, 255, (3 * len(cameras), 96, 96), np.uint8)}
        )
        self.action_space = gymnasium.spaces.Box(-1, 1, (act_steps, action_dim), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        """A new episode, without compiling the model again."""
        if self._env is None:
            from env.robomimic.suite import make_suite_env

            task, robots, cameras, own_seed = self._make
            self._env = make_suite_env(task, robots, seed=own_seed, cameras=cameras)
            self._env.hard_reset = False
        return self._seen(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict]:
        """Execute one chunk; the last images are the observation, the rewards are summed."""
        reward = 0.0
        for control in action:
            observation, r, _, _ = self._env.step(control)
            reward += r
        return self._seen(observation), reward, False, False, {}

    def cpu_seconds(self) -> float:
        """CPU time this worker has used."""
        return time.process_time()

    def close(self) -> None:
        """Close the simulator."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _seen(self, observation: dict[str, np.ndarray]) -> dict[str, Any]:
        images = [observation[f"{camera}_image"][::-1].transpose(2, 0, 1) for camera in self._cameras]
        return {"rgb": np.concatenate(images)}


def make_vector(workers: int, **task: Any) -> gymnasium.vector.AsyncVectorEnv:
    """``workers`` spawned processes with shared memory, seeds 0, 1, ..."""
    makers = [functools.partial(RobosuiteImages, seed=k, **task) for k in range(workers)]
    return gymnasium.vector.AsyncVectorEnv(makers, shared_memory=True, context="spawn")
