"""A point on a plane that must reach a goal: the smallest world with everything that the protocol has. For tests only.

State (4): position and goal, in [-1, 1]. Actions (2): velocity. Success within 0.15 of the goal; the episode terminates there if ``terminates``.
Reward 1 per control step at the goal, or 1 - distance if ``dense``. An episode is a function of its seed.

With ``image_size`` the state is the position alone (2), and the goal must be seen: each camera draws the point in red and the goal in green
(the second camera, if there is one, mirrored left to right).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from env.protocol import NpObs, StepResult, episode_seed


class PointMass:
    """``VectorEnv``; ``broken`` names seeds whose simulation goes unstable at its first chunk."""

    def __init__(
        self,
        n_envs: int = 3,
        act_steps: int = 2,
        max_episode_steps: int = 11,
        terminates: bool = False,
        broken: Sequence[int] = (),
        cond_steps: int = 1,
        dense: bool = False,
        image_size: tuple[int, int] | None = None,
        cameras: int = 1,
        image_steps: int = 1,
    ) -> None:
        self.n_envs, self.act_steps, self.action_dim, self.max_episode_steps = n_envs, act_steps, 2, max_episode_steps
        self.image_size, self.cameras = image_size, cameras
        self.obs_shapes = {"state": (cond_steps, 4 if image_size is None else 2)}
        if image_size is not None:
            self.obs_shapes["rgb"] = (image_steps, 3 * cameras, *image_size)
        self.dense = dense
        self.terminates, self.broken = terminates, set(broken)
        self.state, self.t = np.zeros((n_envs, 4)), np.zeros(n_envs, np.int64)
        self.current = np.full(n_envs, -1, np.int64)

    def reset(self, seed: int | Sequence[int]) -> NpObs:
        self.endless = seed if isinstance(seed, int | np.integer) else None
        self.queue = [] if self.endless is not None else [int(s) for s in seed]
        self.count = np.zeros(self.n_envs, np.int64)
        for i in range(self.n_envs):
            self._next(i)
        return self._obs()

    def _next(self, i: int) -> None:
        if self.endless is not None:
            self.current[i] = episode_seed(int(self.endless), i, int(self.count[i]))
        else:
            self.current[i] = self.queue.pop(0) if self.queue else -1
        self.count[i] += 1
        self.t[i] = 0
        self.state[i] = np.random.default_rng(int(self.current[i])).uniform(-1, 1, 4) if self.current[i] >= 0 else 0.0

    def _obs(self) -> NpObs:
        steps, columns = self.obs_shapes["state"]
        obs = {"state": np.repeat(self.state.astype(np.float32)[:, None, :columns], steps, axis=1)}
        if self.image_size is not None:
            pictures = draw(self.state, *self.image_size)
            cameras = [pictures, pictures[..., ::-1]][: self.cameras]
            obs["rgb"] = np.repeat(np.concatenate(cameras, axis=1)[:, None], self.obs_shapes["rgb"][0], axis=1)
        return obs

    def step(self, chunk: np.ndarray) -> StepResult:
        n = self.n_envs
        active, seeds = self.current >= 0, self.current.copy()
        reward, steps = np.zeros(n, np.float32), np.zeros(n, np.int64)
        terminated, truncated, success = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, bool)
        invalid = active & np.isin(self.current, list(self.broken))
        for i in np.flatnonzero(active):
            for action in chunk[i]:
                self.state[i, :2] = np.clip(self.state[i, :2] + 0.2 * np.clip(action, -1, 1), -1, 1)
                self.t[i] += 1
                steps[i] += 1
                distance = np.linalg.norm(self.state[i, :2] - self.state[i, 2:])
                there = distance < 0.15
                reward[i] += 1 - distance if self.dense else there
                success[i] |= there
                terminated[i] = there and self.terminates
                truncated[i] = (self.t[i] >= self.max_episode_steps and not terminated[i]) or invalid[i]
                if terminated[i] or truncated[i]:
                    break
        final = self._obs()
        for i in np.flatnonzero(terminated | truncated):
            self._next(i)
        info: dict[str, Any] = {"active": active, "steps": steps, "invalid": invalid, "seed": seeds}
        return StepResult(self._obs(), reward, terminated, truncated, final, success, info)

    def seeds(self) -> np.ndarray:
        return self.current.copy()

    def state_dict(self) -> dict[str, Any]:
        return {
            "state": self.state.copy(),
            "t": self.t.copy(),
            "current": self.current.copy(),
            "count": self.count.copy(),
            "endless": int(self.endless),
        }

    def load_state_dict(self, state: dict[str, Any]) -> NpObs:
        for key in ("state", "t", "current", "count"):
            setattr(self, key, np.asarray(state[key]).copy())
        self.endless, self.queue = state["endless"], []
        return self._obs()

    def close(self) -> None:
        pass


def draw(state: np.ndarray, height: int, width: int) -> np.ndarray:
    """Point (red) and goal (green) of ``state (N, 4)`` as soft blobs on grey, (N, 3, H, W) uint8; y points down."""
    rows, columns = np.arange(height)[:, None], np.arange(width)
    picture = np.full((len(state), 3, height, width), 40.0)
    for channel, (x, y) in enumerate(((state[:, 0], state[:, 1]), (state[:, 2], state[:, 3]))):
        row, column = ((v + 1) / 2 * (n - 1) for v, n in ((y, height), (x, width)))
        square = (rows - row[:, None, None]) ** 2 + (columns - column[:, None, None]) ** 2
        picture[:, channel] += 200 * np.exp(-square / 4)
    return picture.round().astype(np.uint8)
