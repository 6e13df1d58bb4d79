"""The trajectory that all simulation rows share: scripted grasps in our Lift, recorded once, replayed by everybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from script.bench.registry import UnavailableError
from script.bench.robosuite_env import ACTION_DIM

ACT_STEPS = 4
LOW_DIM_KEYS = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]


def engine_config(n_envs: int, act_steps: int, n_threads: int | None, max_episode_steps: int = 300) -> dict[str, Any]:
    """The ``env`` section of Lift, as ``env.registry.make_vector_env`` takes it; actions and observations stay raw."""
    steps = {
        "n_obs_steps": 1,
        "n_action_steps": act_steps,
        "max_episode_steps": max_episode_steps,
        "reset_within_step": True,
    }
    return {
        "name": "lift",
        "env_type": "robomimic",
        "n_envs": n_envs,
        "max_episode_steps": max_episode_steps,
        "act_steps": act_steps,
        "n_threads": n_threads,
        "wrappers": {
            "robomimic_lowdim": {"low_dim_keys": LOW_DIM_KEYS, "normalization_path": None},
            "multi_step": steps,
        },
    }


def make_engine(n_envs: int, act_steps: int, n_threads: int | None) -> Any:
    """Our Lift. Raises UnavailableError while the engine is absent."""
    try:
        from env.registry import make_vector_env
    except ImportError as error:
        raise UnavailableError(f"our engine is absent ({error})") from error
    return make_vector_env(engine_config(n_envs, act_steps, n_threads))


@dataclass
class Episode:
    """``n`` grasps of ``T`` control steps: the seeds they start from and the actions taken, (T, n, 7) float32."""

    seeds: list[int]
    actions: np.ndarray

    @property
    def control_steps(self) -> int:
        """Control steps of all simulations together."""
        return self.actions.shape[0] * self.actions.shape[1]

    def chunks(self) -> np.ndarray:
        """(T / 4, n, 4, 7)."""
        steps, n, _ = self.actions.shape
        return np.ascontiguousarray(self.actions.reshape(steps // ACT_STEPS, ACT_STEPS, n, ACTION_DIM).swapaxes(1, 2))


def record_episode(n: int, steps: int, seed: int) -> Episode:
    """Let the scripted expert act in ``n`` of our simulations for ``steps`` control steps (rounded to whole chunks)."""
    try:
        from env.robomimic.lift_expert import LiftExpert
    except ImportError as error:
        raise UnavailableError(f"the scripted expert is absent ({error})") from error
    steps = max(ACT_STEPS, steps // ACT_STEPS * ACT_STEPS)
    seeds = [seed + 1000 + i for i in range(n)]
    venv = make_engine(n, 1, None)
    try:
        expert, obs = LiftExpert(n, np.random.default_rng(seed)), venv.reset(seeds)
        actions = np.zeros((steps, n, ACTION_DIM), np.float32)
        for t in range(steps):
            actions[t] = expert.act(obs["state"].reshape(n, -1))
            obs = venv.step(actions[t][:, None]).obs
    finally:
        venv.close()
    return Episode(seeds, actions)


class EngineRun:
    """Our engine with ``threads`` threads, going through an ``Episode``."""

    def __init__(self, episode: Episode, threads: int) -> None:
        self.episode, self.chunks = episode, episode.chunks()
        self.venv = make_engine(len(episode.seeds), ACT_STEPS, threads)

    def reset(self) -> None:
        """Start the episodes again."""
        self.venv.reset(self.episode.seeds)

    def run(self) -> float:
        """All chunks -> control steps done."""
        for chunk in self.chunks:
            self.venv.step(chunk)
        return float(self.episode.control_steps)

    def close(self) -> None:
        """Free the threads."""
        self.venv.close()
