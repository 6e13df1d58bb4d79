"""Any Gymnasium environment as a ``VectorEnv``: one worker process per slot, observations and actions in shared memory.

    venv = ProcessVectorEnv([partial(gymnasium.make, "Pendulum-v1")] * 8, act_steps=4, max_episode_steps=200)

A chunk is one message to a worker and one back. Workers run ``process_worker.py`` in a fresh interpreter (no
fork, hence no inherited OpenGL or thread state); with ``python`` that interpreter may be of another version,
for simulators that need one. Linux and macOS only.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from env.engine.seeds import SeedSupply
from env.errors import EnvError
from env.process_link import Factory, WorkerLink, end_all
from env.protocol import NpObs, StepResult

log = logging.getLogger(__name__)

CLOSE_SECONDS = 3.0
_REPLAY_TOLERANCE = 1e-5


class ProcessVectorEnv:
    """N Gymnasium environments in N processes; implements ``env.protocol.VectorEnv`` entirely.

    Args:
        make: one entry per slot: an importable function or class, a ``functools.partial`` of one with plain
        arguments, a string
            "module:name" or "path/to/file.py:name", or a ``Factory``.
        act_steps: control steps per chunk, Te.
        max_episode_steps: control steps after which an episode is truncated (the environment's own limit counts
        as well). cond_steps: observations in a history, To; the first one is repeated at the start of an
        episode. state_keys: entries of a Dict observation space that make up "state", in this order; None: all
        that are not images. image_keys: uint8 entries that make up "rgb", joined on the channel axis as (C, H,
        W). success_reward: a control step with at least this reward is a success, beside ``info["success"]`` or
        ``info["is_success"]``. python: interpreter to run workers with; None: this one. It needs numpy and the
        simulator, not this project. timeout_s: longest time a chunk, a reset or a replayed episode may take,
        seconds. start_timeout_s: longest time until all environments are built, seconds.

    Raises:
        EnvError: a count below 1, or environments whose observations or actions differ in size.
        WorkerError: (an ``EnvError``) a worker raised, died or hung, here or later. All workers are ended then.

    ``state_dict`` holds each running episode's seed and actions; ``load_state_dict`` replays them, which is
    exact for environments that are a function of seed and actions, and logs a warning for those that are not.
    """

    def __init__(
        self,
        make: Sequence[Callable[[], Any] | str | Factory],
        act_steps: int,
        max_episode_steps: int,
        cond_steps: int = 1,
        state_keys: Sequence[str] | None = None,
        image_keys: Sequence[str] = (),
        success_reward: float | None = None,
        python: str | None = None,
        timeout_s: float = 60.0,
        start_timeout_s: float = 300.0,
    ) -> None:
        factories = [Factory.of(one) for one in make]
        counts = {
            "make": len(factories),
            "act_steps": act_steps,
            "max_episode_steps": max_episode_steps,
            "cond_steps": cond_steps,
        }
        for key, value in counts.items():
            if value < 1:
                raise EnvError(f"{key} must be at least 1, found {value}.")
        self.n_envs, self.act_steps, self.max_episode_steps = len(factories), act_steps, max_episode_steps
        self.timeout_s = timeout_s
        self._links: list[WorkerLink] = []
        self._finalizer = weakref.finalize(self, end_all, self._links, CLOSE_SECONDS)
        settings = {
            "cond_steps": cond_steps,
            "max_episode_steps": max_episode_steps,
            "state_keys": None if state_keys is None else list(state_keys),
            "image_keys": list(image_keys),
            "success_reward": success_reward,
        }
        try:
            sizes = self._start(factories, settings, python, start_timeout_s)
            self._share(sizes, cond_steps)
        except BaseException:
            self.close()
            raise
        self.obs_shapes = {name: (cond_steps, *sizes[name]) for name in ("state", "rgb") if name in sizes}
        self.action_dim = sizes["action"][0]
        self._seeds = np.full(self.n_envs, -1, np.int64)
        self._elapsed = np.zeros(self.n_envs, np.int64)
        self._actions = np.zeros(
            (self.n_envs, max_episode_steps, self.action_dim), np.float32
        )  # of the running episodes
        self._supply: SeedSupply | None = None

    def reset(self, seed: int | Sequence[int]) -> NpObs:
        """See ``VectorEnv.reset``. Raises ``EnvError`` for a seed outside [0, 2**63)."""
        self._check_open()
        self._supply = SeedSupply(seed, self.n_envs)
        self._begin_next(range(self.n_envs))
        return self._obs()

    def step(self, chunk: np.ndarray) -> StepResult:
        """See ``VectorEnv.step``. Raises ``EnvError`` before the first ``reset``, for a wrong shape, and for NaN."""
        active = self._seeds >= 0
        self._shared["action"][...] = self._checked(chunk, active)
        answers = self._ask({i: {"do": "step"} for i in map(int, np.flatnonzero(active))})
        columns = {
            name: np.array([answers[i][name] if i in answers else 0 for i in range(self.n_envs)], dtype)
            for name, dtype in (
                ("reward", np.float32),
                ("success", bool),
                ("steps", np.int64),
                ("terminated", bool),
                ("truncated", bool),
                ("invalid", bool),
            )
        }
        for i in answers:
            n = int(columns["steps"][i])
            self._actions[i, self._elapsed[i] : self._elapsed[i] + n] = self._shared["action"][i, :n]
            self._elapsed[i] += n
        info = {"active": active, "steps": columns["steps"], "invalid": columns["invalid"], "seed": self._seeds.copy()}
        final_obs = self._obs()
        self._begin_next(map(int, np.flatnonzero(columns["terminated"] | columns["truncated"])))
        return StepResult(
            obs=self._obs(),
            reward=columns["reward"],
            terminated=columns["terminated"],
            truncated=columns["truncated"],
            final_obs=final_obs,
            success=columns["success"],
            info=info,
        )

    def seeds(self) -> np.ndarray:
        """See ``VectorEnv.seeds``."""
        return self._seeds.copy()

    def state_dict(self) -> dict[str, Any]:
        """See ``VectorEnv.state_dict``: seeds and the actions executed so far, to replay every running episode."""
        if self._supply is None:
            raise EnvError("There is no state to save yet: call reset first.")
        return {
            "supply": self._supply.state_dict(),
            "seeds": self._seeds.copy(),
            "elapsed": self._elapsed.copy(),
            "actions": self._actions.copy(),
            "state": self._obs()["state"],
        }

    def load_state_dict(self, state: dict[str, Any]) -> NpObs:
        """See ``VectorEnv.load_state_dict``. Raises ``EnvError`` when the state belongs to another environment."""
        self._check_open()
        expected = {
            "actions": self._actions.shape,
            "state": (self.n_envs, *self.obs_shapes["state"]),
            "seeds": (self.n_envs,),
        }
        for name, shape in expected.items():
            if np.shape(state[name]) != shape:
                raise EnvError(
                    f"Saved environment state {name!r}: expected shape {shape}, found {np.shape(state[name])}; "
                    "it was saved with another task, n_envs, cond_steps or max_episode_steps."
                )
        self._supply = SeedSupply.from_state_dict(state["supply"])
        for target, name in ((self._seeds, "seeds"), (self._elapsed, "elapsed"), (self._actions, "actions")):
            target[...] = np.asarray(state[name])
        requests = {}
        for i in map(int, np.flatnonzero(self._seeds >= 0)):
            self._links[i].seed = int(self._seeds[i])
            actions = self._actions[i, : self._elapsed[i]].tolist()
            requests[i] = {"do": "replay", "seed": int(self._seeds[i]), "actions": actions}
        for i in np.flatnonzero(self._seeds < 0):
            self._clear(int(i))
        self._ask(requests)
        obs = self._obs()
        off = float(np.abs(obs["state"] - np.asarray(state["state"])).max())
        if not off <= _REPLAY_TOLERANCE:
            log.warning(
                "%s is not a function of its seed and actions: after a replay its observation is off by %g, so this "
                "run goes on from slightly different states.",
                self._links[0].factory,
                off,
            )
        return obs

    def close(self) -> None:
        """End the worker processes; idempotent."""
        self._finalizer()
        self._links.clear()

    def _start(
        self, factories: list[Factory], settings: Mapping[str, Any], python: str | None, timeout_s: float
    ) -> dict[str, list[int]]:
        """Start all workers at once; returns the sizes their environments agree on."""
        for slot, factory in enumerate(factories):
            self._links.append(WorkerLink(factory, slot, python))
        requests = {
            i: {"do": "build", "factory": f.request(), "settings": dict(settings)} for i, f in enumerate(factories)
        }
        answers = self._ask(requests, timeout_s)
        sizes = answers[0]["sizes"]
        for i, answer in answers.items():
            if answer["sizes"] != sizes:
                raise EnvError(
                    f"All slots need one kind of environment: {factories[i]} (slot {i}) has sizes {answer['sizes']}, "
                    f"{factories[0]} (slot 0) has {sizes}."
                )
        return sizes

    def _share(self, sizes: Mapping[str, list[int]], cond_steps: int) -> None:
        """Lay out the shared arrays in one file and let every worker map it; the file has no name afterwards."""
        layout = {"action": ("float32", (self.n_envs, self.act_steps, *sizes["action"]))}
        layout["state"] = ("float32", (self.n_envs, cond_steps, *sizes["state"]))
        if "rgb" in sizes:
            layout["rgb"] = ("uint8", (self.n_envs, cond_steps, *sizes["rgb"]))
        path, blocks, self._shared = shared_arrays(layout)
        try:
            self._ask(
                {i: {"do": "connect", "path": str(path), "blocks": blocks, "slot": i} for i in range(self.n_envs)}
            )
        finally:
            path.unlink(missing_ok=True)

    def _begin_next(self, slots: Iterable[int]) -> None:
        """Start the next episode in each of ``slots``, in this order, or leave them idle."""
        requests, slots = {}, list(slots)
        for i, seed in zip(slots, self._supply.next(np.array(slots, np.int64)), strict=True):
            self._seeds[i] = self._links[i].seed = int(seed)
            self._elapsed[i] = 0
            if self._seeds[i] >= 0:
                requests[i] = {"do": "reset", "seed": int(self._seeds[i])}
            else:
                self._clear(i)
        self._ask(requests)

    def _clear(self, slot: int) -> None:
        for name in self.obs_shapes:
            self._shared[name][slot] = 0

    def _ask(self, requests: Mapping[int, dict[str, Any]], timeout_s: float | None = None) -> dict[int, dict[str, Any]]:
        """Send all requests, then collect all answers; on any failure every worker is ended."""
        self._check_open()
        since, limit = time.monotonic(), self.timeout_s if timeout_s is None else timeout_s
        try:
            for i, request in requests.items():
                self._links[i].send(request)
            return {i: self._links[i].receive(since, limit) for i in requests}
        except BaseException:  # an interrupt too: answers would be out of step with requests from here on
            for link in self._links:
                link.kill()
            self._links.clear()
            raise

    def _check_open(self) -> None:
        if not self._links:
            raise EnvError("This environment is closed (by close(), or because a worker failed): build a new one.")

    def _obs(self) -> NpObs:
        return {name: np.array(self._shared[name]) for name in self.obs_shapes}

    def _checked(self, chunk: np.ndarray, active: np.ndarray) -> np.ndarray:
        if self._supply is None:
            raise EnvError("Call reset before step.")
        chunk, expected = np.asarray(chunk, np.float32), (self.n_envs, self.act_steps, self.action_dim)
        if chunk.shape != expected:
            raise EnvError(
                f"An action chunk must be (n_envs, act_steps, action_dim) = {expected}, found {chunk.shape}."
            )
        bad = active & ~np.isfinite(chunk).all(axis=(1, 2))
        if bad.any():
            raise EnvError(f"The action chunk of slot {int(np.argmax(bad))} holds NaN or infinity.")
        return chunk


def shared_arrays(
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
) -> tuple[Path, dict[str, Any], dict[str, np.ndarray]]:
    """Zeros that other processes can map, too: ``layout`` is name -> (dtype, shape).

    Returns the file that holds them, which the caller unlinks once everyone has mapped it; ``blocks``, name -> (dtype, shape,
    offset), which ``process_worker.mapped`` understands; and the arrays.
    """
    blocks, offset = {}, 0
    for name, (dtype, shape) in layout.items():
        blocks[name] = (dtype, shape, offset)
        offset += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 4096) * 4096
    path = _shared_file(offset)
    try:
        arrays = {
            name: np.memmap(path, dtype=dtype, mode="r+", shape=shape, offset=start)
            for name, (dtype, shape, start) in blocks.items()
        }
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path, blocks, arrays


def _shared_file(size: int) -> Path:
    """A file of ``size`` bytes, in memory where the system offers that and has the room."""
    for folder in ("/dev/shm", tempfile.gettempdir()):
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            continue
        handle, name = tempfile.mkstemp(prefix="vector_env_", dir=folder)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(
                    handle, 0, size
                )  # a full disk is an error here instead of a crash at the first write
            else:
                os.ftruncate(handle, size)
            return Path(name)
        except OSError:
            Path(name).unlink()
        finally:
            os.close(handle)
    raise EnvError(
        f"No room for {size} bytes of shared memory in /dev/shm or {tempfile.gettempdir()}; free some or set TMPDIR."
    )
