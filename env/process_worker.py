"""One Gymnasium environment in a process of its own, executing action chunks for ``env/process.py``.

This file also runs under interpreters of other Python versions (3.8 and later) where nothing of this project is
installed: it imports numpy and the standard library only, and knows environments by their behaviour.
Gymnasium's interface and the older gym one (``reset()`` without seed, ``step`` with four results) both work.

Requests come as JSON lines on stdin and are answered as JSON lines on the original stdout; arrays travel
through a memory-mapped file. What the environment itself prints goes to stderr, so it cannot garble an answer.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import json
import os
import random
import sys
import traceback
from collections import deque
from typing import Any, TextIO

if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: names in it must not shadow installed packages

import numpy as np


class Worker:
    """The environment and where its numbers go; a method named in ``REQUESTS`` answers that request with a dict."""

    REQUESTS = ("build", "connect", "reset", "step", "replay", "close")

    def __init__(self) -> None:
        self.env = None
        self.closed = False

    def build(self, factory: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """Make the environment; answer with the sizes of its observations ("state", "rgb") and actions ("action")."""
        self.settings = settings
        self.env = load(factory["module"], factory["file"], factory["name"])(*factory["args"], **factory["kwargs"])
        self.reader = ObservationReader(self.env.observation_space, settings["state_keys"], settings["image_keys"])
        space = self.env.action_space
        if not getattr(space, "shape", None) or np.dtype(space.dtype).kind != "f":
            raise TypeError(f"the action space must be a Box of floats, found {space}")
        return {"sizes": {"action": [int(np.prod(space.shape))], **self.reader.sizes}}

    def connect(self, path: str, blocks: dict[str, Any], slot: int) -> dict[str, Any]:
        """Map the shared arrays ``blocks = {name: [dtype, shape, offset]}`` and keep this slot's row of each."""
        self.rows = {name: array[slot] for name, array in mapped(path, blocks).items()}
        return {}

    def reset(self, seed: int) -> dict[str, Any]:
        """Begin the episode of ``seed``; its observation is repeated to fill the history."""
        random.seed(seed)
        np.random.seed(seed % 2**32)  # for environments that draw from the global generators
        row = self.reader.read(reset_env(self.env, seed))
        if not np.isfinite(row["state"]).all():
            raise ValueError(f"the first observation of seed {seed} holds NaN or infinity: {row['state']}")
        self.history = deque([row] * self.settings["cond_steps"], self.settings["cond_steps"])
        self.count = 0
        self.publish()
        return {}

    def step(self) -> dict[str, Any]:
        """Execute the chunk in shared memory, or as much of it as the episode lasts; answer with what happened."""
        answer = self.run(np.array(self.rows["action"]))
        self.publish()
        return answer

    def replay(self, seed: int, actions: list[list[float]]) -> dict[str, Any]:
        """Begin the episode of ``seed`` again and execute ``actions (T, Da)``, to go on where it was left."""
        self.reset(seed)
        self.run(np.asarray(actions, np.float32))
        self.publish()
        return {}

    def close(self) -> dict[str, Any]:
        """Close the environment; the process ends after the answer."""
        self.closed = True
        if self.env is not None:
            self.env.close()
        return {}

    def run(self, actions: np.ndarray) -> dict[str, Any]:
        """Step until the actions or the episode end; rewards are summed over the steps executed."""
        reward, success, steps = 0.0, False, 0
        terminated = truncated = invalid = False
        for action in actions:
            observation, gained, terminated, truncated, info = step_env(self.env, action)
            row = self.reader.read(observation)
            steps += 1
            self.count += 1
            if not (np.isfinite(gained) and np.isfinite(row["state"]).all()):
                terminated, truncated, invalid = False, True, True  # the last sound observation stays the last one
                break
            self.history.append(row)
            reward += float(gained)
            success = success or self.is_success(info, gained)
            truncated = not terminated and (truncated or self.count >= self.settings["max_episode_steps"])
            if terminated or truncated:
                break
        return {
            "reward": reward,
            "success": success,
            "steps": steps,
            "terminated": bool(terminated),
            "truncated": bool(truncated),
            "invalid": invalid,
        }

    def is_success(self, info: dict[str, Any], reward: float) -> bool:
        """Whether this control step solved the task, by the environment's own word or the reward threshold."""
        threshold = self.settings["success_reward"]
        said = info.get("success", info.get("is_success", False))
        return bool(np.any(said)) or (threshold is not None and bool(reward >= threshold))

    def publish(self) -> None:
        """Copy the history of observations, oldest first, into the shared arrays."""
        for name in self.reader.sizes:
            for step, row in enumerate(self.history):
                self.rows[name][step] = row[name]


class ObservationReader:
    """Turns what an environment returns into ``{"state": (Do,) float32[, "rgb": (C, H, W) uint8]}``."""

    def __init__(self, space: Any, state_keys: list[str] | None, image_keys: list[str]) -> None:
        parts = getattr(space, "spaces", None)
        if not isinstance(parts, dict) and not hasattr(parts, "keys"):
            if state_keys is not None or image_keys:
                raise TypeError(f"state_keys and image_keys need a Dict observation space, found {space}")
            parts, self.plain = {"": space}, True
        else:
            self.plain = False
        self.image_keys = list(image_keys)
        self.state_keys = [k for k in parts if k not in self.image_keys] if state_keys is None else list(state_keys)
        if not self.plain:
            for key in self.state_keys + self.image_keys:
                if key not in parts:
                    raise KeyError(f"no observation {key!r}; there are {list(parts)}")
        for key in self.state_keys:
            if getattr(parts[key], "shape", None) is None or np.dtype(parts[key].dtype).kind not in "fiub":
                raise TypeError(f"observation {key!r} is not an array of numbers: {parts[key]}")
        self.sizes = {"state": [int(sum(np.prod(parts[key].shape) for key in self.state_keys))]}
        if self.image_keys:
            shapes = [channels_first(np.empty(parts[key].shape, parts[key].dtype)).shape for key in self.image_keys]
            if len({shape[1:] for shape in shapes}) > 1:
                raise ValueError(f"images must share one height and width, found {shapes}")
            self.sizes["rgb"] = [int(sum(shape[0] for shape in shapes)), *(int(n) for n in shapes[0][1:])]

    def read(self, observation: Any) -> dict[str, np.ndarray]:
        """One observation, flattened and concatenated in the order of the keys."""
        pick = {"": observation} if self.plain else observation
        row = {"state": np.concatenate([np.ravel(pick[key]).astype(np.float32) for key in self.state_keys])}
        if self.image_keys:
            row["rgb"] = np.concatenate([channels_first(np.asarray(pick[key])) for key in self.image_keys])
        return row


def mapped(path: str, blocks: dict[str, Any]) -> dict[str, np.ndarray]:
    """The shared arrays ``blocks = {name: [dtype, shape, offset]}`` of the file at ``path``."""
    return {
        name: np.memmap(path, mode="r+", dtype=dtype, shape=tuple(shape), offset=offset)
        for name, (dtype, shape, offset) in blocks.items()
    }


def channels_first(image: np.ndarray) -> np.ndarray:
    """(H, W, C) or (C, H, W) uint8 -> (C, H, W)."""
    if image.ndim != 3 or image.dtype != np.uint8:
        raise TypeError(f"an image must be (H, W, C) or (C, H, W) uint8, found {image.shape} {image.dtype}")
    return image.transpose(2, 0, 1) if image.shape[2] in (1, 3, 4) else image


def reset_env(env: Any, seed: int) -> Any:
    """First observation of the episode of ``seed``, through whichever interface the environment has."""
    gymnasium = sys.modules.get("gymnasium")
    modern = gymnasium is not None and isinstance(env, gymnasium.Env)
    if not modern and callable(getattr(env, "seed", None)):  # the older gym: seeds are 32-bit
        env.seed(seed % 2**31)
        result = env.reset()
    else:
        result = env.reset(seed=seed)
    return result[0] if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict) else result


def step_env(env: Any, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    """Gymnasium's five results; a ``done`` of the older gym counts as truncated where its TimeLimit says so."""
    action = action.reshape(env.action_space.shape).astype(env.action_space.dtype)
    result = env.step(action)
    if len(result) == 5:
        return result
    observation, reward, done, info = result
    truncated = bool(info.get("TimeLimit.truncated", False))
    return observation, reward, bool(done) and not truncated, truncated, info


def load(module: str | None, file: str | None, name: str) -> Any:
    """The object ``name`` of ``module``, or of the source ``file`` where no such module can be imported here."""
    if module is not None:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if file is None or error.name is None or not (module + ".").startswith(error.name + "."):
                raise
            module = None
    if module is None:
        label = "environment_factory"
        spec = importlib.util.spec_from_file_location(label, file)
        found = importlib.util.module_from_spec(spec)
        sys.modules[label] = found
        spec.loader.exec_module(found)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def serve(worker: Any, requests: TextIO, answers: TextIO) -> None:
    """Let ``worker`` answer requests until "close" or the end of the stream (the parent is gone)."""
    for line in requests:
        request = json.loads(line)
        name = request.pop("do")
        try:
            if name not in worker.REQUESTS:
                raise ValueError(f"unknown request {name!r}")
            answer = getattr(worker, name)(**request)
        except Exception:  # every failure of somebody else's environment is reported, with its traceback, to the user
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if worker.closed:
            return


def main(kind: type = Worker) -> None:
    """Take over stdin and stdout, then let a worker of that kind serve."""
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    paths = json.loads(requests.readline())["paths"]
    if paths is not None:
        sys.path[:] = paths
    serve(kind(), requests, answers)


if __name__ == "__main__":
    main()
