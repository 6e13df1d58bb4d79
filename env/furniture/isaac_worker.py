"""The original Furniture-Bench, on IsaacGym, in a process of its own: all environments at once, for ``env/furniture/isaac.py``.

This file runs under Python 3.8, where nothing of this project is installed: it imports NumPy, the standard library and the simulator.
PyTorch it takes from the simulator, because that has to import it after IsaacGym. What the simulator leaves to its user is seen to here:
NaN (an environment that has one is set up anew at once), the gripper's memory of the last episode, and the lamp's bulbs of environments
that are in the middle of an episode when others begin one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import sys
from types import ModuleType
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: names in it must not shadow installed packages

MODULES = (
    "furniture_bench.envs.furniture_rl_sim_env",
    "furniture_bench.envs.observation",
    "furniture_bench.controllers.control_utils",
)
NEEDED = ("isaacgym", "furniture_bench")
TRIES = 3  # at a start without NaN


def process_worker() -> ModuleType:
    """``env/process_worker.py``, by its file: it is in no package here."""
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "process_worker.py")
    spec = importlib.util.spec_from_file_location("process_worker", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class IsaacWorker:
    """N environments in one simulation, and where their numbers go; a method named in ``REQUESTS`` answers that request with a dict.

    Shared arrays: ``action (N, Te, 10)`` and ``left (N,)``, the control steps that are left of an episode (0: nobody plays there), are
    read; ``state (N, To, Do)``, ``reward (N,)``, ``success (N,)``, ``steps (N,)`` and ``invalid (N,)`` are written.
    """

    REQUESTS = ("build", "connect", "reset", "step", "close")

    def __init__(self) -> None:
        self.env = None
        self.closed = False

    def build(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Make the simulation; the answer says which package is ``missing``, if one is."""
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            return {"missing": missing}
        try:
            simulator, observation, tools = map(importlib.import_module, MODULES)
        except ModuleNotFoundError as error:
            return {"missing": [error.name]}
        self.torch, self.settings = simulator.torch, settings
        self.with_rows = tools.proprioceptive_quat_to_6d_rotation
        gpu = settings["gpu_id"]
        self.env = simulator.FurnitureRLSimEnv(
            furniture=settings["furniture"],
            randomness=settings["randomness"],
            num_envs=settings["n_envs"],
            max_env_steps=settings["max_episode_steps"],
            headless=settings["headless"],
            compute_device_id=gpu,
            graphics_device_id=gpu,
            obs_keys=list(observation.DEFAULT_STATE_OBS),
            concat_robot_state=True,
            act_rot_repr="rot_6d",
            action_type="pos",
            ctrl_mode="diffik",
            april_tags=False,
            pos_scalar=1,
            rot_scalar=1,
            stiffness=1000,
            damping=200,
        )
        self.count = np.zeros(settings["n_envs"])  # pairs assembled so far
        return {}

    def connect(self, path: str, blocks: dict[str, Any]) -> dict[str, Any]:
        """Map the shared arrays."""
        self.arrays = PROCESS.mapped(path, blocks)
        self.history = np.zeros(self.arrays["state"].shape, np.float32)
        return {}

    def reset(self, slots: list[int], seeds: list[int]) -> dict[str, Any]:
        """Begin an episode in each of ``slots``. Where they begin is a function of all their seeds together: the simulator draws for
        all of them at once."""
        seed = int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> np.uint64(1))
        self.torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        begin = np.array(slots)
        for _ in range(TRIES):
            row = self._set_up(begin)
            bad = ~np.isfinite(row[slots]).all(axis=1)
            self.history[begin] = row[begin][:, None]
            if not bad.any():
                break
            begin = np.array(slots)[bad]
        else:
            raise ValueError(f"environment {begin[0]} begins with NaN or infinity: {row[begin[0]]}")
        self.arrays["state"][...] = self.history
        return {}

    def step(self) -> dict[str, Any]:
        """Execute the chunk in shared memory, in every environment as much of it as its episode lasts."""
        left, arrays = np.array(self.arrays["left"]), self.arrays
        chunk = np.array(arrays["action"])
        chunk[left == 0] = chunk[np.argmax(left)]  # an action of all zeros is no pose
        chunk = self.torch.as_tensor(chunk, device=self.env.device)
        steps, reward = np.zeros(len(left), np.int64), np.zeros(len(left))
        success, invalid = np.zeros(len(left), bool), np.zeros(len(left), bool)
        for t in range(min(chunk.shape[1], int(left.max()))):
            observation, gained, done, _ = self.env.step(chunk[:, t])
            row, gained, done = self._row(observation), flat(gained), flat(done).astype(bool)
            running = (t < left) & ~invalid
            sound = np.isfinite(row).all(axis=1) & np.isfinite(gained)
            steps += running
            invalid |= running & ~sound  # the last sound observation stays the last one
            valid = running & sound
            self.count[valid] += gained[valid]
            reward[valid] += (gained if self.settings["sparse_reward"] else self.count)[valid]
            success |= valid & done
            self.history[valid] = np.concatenate([self.history[valid, 1:], row[valid][:, None]], axis=1)
            if not sound.all():
                self._set_up(np.flatnonzero(~sound))
        for name, value in (("steps", steps), ("reward", reward), ("success", success), ("invalid", invalid)):
            arrays[name][...] = value
        arrays["state"][...] = self.history
        return {}

    def close(self) -> dict[str, Any]:
        """Give the simulation up; the process ends after the answer."""
        self.closed = True
        self.env = None
        return {}

    def _set_up(self, slots: np.ndarray) -> np.ndarray:
        """Reset the environments ``slots``, and nothing of the others but the sixtieth of a second that the simulator takes for it (a
        lamp's: eleven of them); returns all observations (N, Do)."""
        env, torch = self.env, self.torch
        others = np.setdiff1d(np.arange(self.settings["n_envs"]), slots)
        kept = {}
        if len(others):  # of the lamp: whose bulb was touched, and where the untouched ones lie
            kept = {
                name: getattr(env, name).clone() for name in ("_moving_bulbs", "lb_rest_poses") if hasattr(env, name)
            }
        observation = env.reset(torch.as_tensor(slots, device=env.device))
        for name, value in kept.items():
            getattr(env, name)[others] = value[others]
        env.last_grasp[torch.as_tensor(slots, device=env.device)] = -1.0  # the gripper is open
        self.count[slots] = 0
        return self._row(observation)

    def _row(self, observation: dict[str, Any]) -> np.ndarray:
        """An observation as DPPO's policies know it: the hand's rotation as two rows of its matrix (N, Do)."""
        parts = [self.with_rows(observation["robot_state"]), observation["parts_poses"]]
        row = self.torch.cat(parts, dim=-1).cpu().numpy()
        if row.shape[1] != self.settings["obs_dim"]:
            raise ValueError(f"expected observations of {self.settings['obs_dim']} numbers, found {row.shape[1]}")
        return row


def flat(tensor: Any) -> np.ndarray:
    """(N, 1) or (N,), on whatever device -> (N,) here."""
    return np.ravel(tensor.cpu().numpy())


PROCESS = process_worker()
if __name__ == "__main__":
    PROCESS.main(IsaacWorker)
