"""The yardstick simulator: robosuite's own Lift, in worker processes of ``gymnasium.vector.AsyncVectorEnv``.

As the published code steps it: whole action chunks are executed inside the worker, a time limit of 300 control
steps resets within the step, ``hard_reset`` is off after construction (no recompilation per episode), states and
actions are normalised inside the worker. One worker may hold a *block* of several robosuite environments, which it
steps one after the other: with 50 environments on 2 cores that is kinder to the yardstick than 50 processes that
fight for the cores and the memory (a block of 1 is the published arrangement).
"""

from __future__ import annotations

import functools
import logging
import time
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

OBS_DIM, ACTION_DIM, CONTROL_HZ = 19, 7, 20


def make_lift(seed: int) -> Any:
    """robosuite's Lift with a Panda under OSC_POSE in the world frame, state observations, sparse reward."""
    logging.disable(logging.WARNING)  # optional parts that are absent, on every import
    import robosuite
    from robosuite.controllers import load_composite_controller_config

    controller = load_composite_controller_config(controller="BASIC", robot="Panda")
    controller["body_parts"] = {"right": {**controller["body_parts"]["right"], "input_ref_frame": "world"}}
    env = robosuite.make(
        "Lift",
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        control_freq=CONTROL_HZ,
        horizon=10**9,
        ignore_done=True,
        reward_shaping=False,
        controller_configs=controller,
        seed=seed,
    )
    env.hard_reset = False
    logging.disable(logging.NOTSET)
    return env


def low_dim(observation: dict[str, np.ndarray]) -> np.ndarray:
    """robosuite's observation as the published 19 numbers, gripper_to_cube with robosuite 1.4's sign."""
    return np.concatenate(
        [
            observation["robot0_eef_pos"],
            observation["robot0_eef_quat"],
            observation["robot0_gripper_qpos"],
            observation["cube_pos"],
            observation["cube_quat"],
            -observation["gripper_to_cube_pos"],
        ]
    )


@dataclass(frozen=True)
class Limits:
    """Chunk length and time limit in control steps, and the ranges that normalisation maps to [-1, 1]."""

    act_steps: int = 4
    max_episode_steps: int = 300
    obs_min: tuple[float, ...] = (-1.0,) * OBS_DIM
    obs_max: tuple[float, ...] = (1.0,) * OBS_DIM
    action_min: tuple[float, ...] = (-1.0,) * ACTION_DIM
    action_max: tuple[float, ...] = (1.0,) * ACTION_DIM


class RobosuiteBlock(gymnasium.Env):
    """``k`` robosuite Lifts, numbers ``first`` and up, behind one Gymnasium interface; the simulators are built in
    the worker, at the first reset.

    ``step(chunk (k, Te, 7))`` gives ``{"state": (k, 19) float32, "reward": (k,) summed over the chunk, "truncated":
    (k,)}``; Gymnasium's own reward and flags stay empty, since they hold one number per process.
    """

    def __init__(self, k: int, first: int, seed: int, limits: Limits) -> None:
        self.k, self.first, self.seed, self.limits = k, first, seed, limits
        self.envs: list[Any] = []
        self.steps = np.zeros(k, np.int64)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "state": gymnasium.spaces.Box(-np.inf, np.inf, (k, OBS_DIM), np.float32),
                "reward": gymnasium.spaces.Box(-np.inf, np.inf, (k,), np.float32),
                "truncated": gymnasium.spaces.MultiBinary(k),
            }
        )
        self.action_space = gymnasium.spaces.Box(-1, 1, (k, limits.act_steps, ACTION_DIM), np.float32)
        self._obs_min, self._action_min = np.array(limits.obs_min), np.array(limits.action_min)
        self._obs_range = np.array(limits.obs_max) - self._obs_min
        self._action_range = np.array(limits.action_max) - self._action_min
        self._answer = {
            "state": np.zeros((k, OBS_DIM), np.float32),
            "reward": np.zeros(k, np.float32),
            "truncated": np.zeros(k, np.int8),
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Reset all ``k`` simulators; ``options["qpos"]``, (N, nq) of all workers, starts them from given
        configurations.
        """
        if not self.envs:
            self.envs = [make_lift(self.seed + self.first + i) for i in range(self.k)]
        for i, env in enumerate(self.envs):
            observation = env.reset()
            if options and "qpos" in options:
                env.sim.data.qpos[:] = options["qpos"][self.first + i]
                env.sim.forward()
                observation = env._get_observations(force_update=True)
            self._answer["state"][i] = self._normalise(observation)
        self.steps[:] = 0
        self._answer["reward"][:], self._answer["truncated"][:] = 0, 0
        return self._answer, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Execute one chunk in every simulator; a time limit cuts the chunk and resets at once."""
        controls = (np.clip(action, -1, 1) + 1) / 2 * self._action_range + self._action_min
        for i, env in enumerate(self.envs):
            reward, done = 0.0, False
            for control in controls[i]:
                observation, r, _, _ = env.step(control)
                reward += r
                self.steps[i] += 1
                done = self.steps[i] >= self.limits.max_episode_steps
                if done:
                    observation, self.steps[i] = env.reset(), 0
                    break
            self._answer["state"][i] = self._normalise(observation)
            self._answer["reward"][i], self._answer["truncated"][i] = reward, done
        return self._answer, 0.0, False, False, {}

    def cpu_seconds(self) -> float:
        """CPU time this worker has used."""
        return time.process_time()

    def close(self) -> None:
        """Close the simulators."""
        for env in self.envs:
            env.close()
        self.envs = []

    def _normalise(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        return 2 * (low_dim(observation) - self._obs_min) / (self._obs_range + 1e-6) - 1


def workers_for(n_envs: int, cores: int) -> int:
    """The smallest number of equal blocks that keeps every core busy: the least divisor of ``n_envs`` that is >=
    ``cores``.
    """
    return next(n for n in range(min(cores, n_envs), n_envs + 1) if n_envs % n == 0)


def make_vector(n_envs: int, workers: int, seed: int, limits: Limits) -> gymnasium.vector.AsyncVectorEnv:
    """``n_envs`` Lifts in ``workers`` spawned processes with shared memory. Raises ValueError if they do not divide
    evenly.
    """
    if n_envs % workers:
        raise ValueError(f"{n_envs} environments do not divide over {workers} workers: choose a divisor")
    k = n_envs // workers
    makers = [functools.partial(RobosuiteBlock, k, k * w, seed, limits) for w in range(workers)]
    return gymnasium.vector.AsyncVectorEnv(makers, shared_memory=True, context="spawn")
