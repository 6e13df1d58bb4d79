"""The original Furniture-Bench, on IsaacGym, as a ``VectorEnv``: all environments in one worker process, whose interpreter may be another.

The worker (``isaac_worker.py``) simulates; observations, actions and results pass through shared memory. A process that dies, hangs or
raises is replaced: the episodes it was in are dropped (``info["invalid"]``), and the run goes on with the next ones.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from env.engine.seeds import SeedSupply
from env.errors import EnvError, MissingSimulatorError
from env.furniture.facts import ACTION_DIM, Furniture
from env.process import CLOSE_SECONDS, ProcessVectorEnv, shared_arrays
from env.process_link import Factory, WorkerError, WorkerLink, end_all
from env.protocol import NpObs, StepResult

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("isaac_worker.py")
RESULTS = {"reward": "float32", "success": "bool", "steps": "int64", "invalid": "bool"}  # of a chunk, (N,) each


class IsaacVectorEnv(ProcessVectorEnv):
    """N simulations of a piece of furniture on a GPU; implements ``env.protocol.VectorEnv`` with two limits.

    Where an episode begins is a function of the seeds of all that begin together, not of its own alone; and the simulation cannot be
    saved: ``load_state_dict`` begins the running episodes anew.

    Args:
        furniture, randomness: the task. n_envs, act_steps, max_episode_steps, cond_steps: N, Te, control steps of an episode, To.
        sparse_reward: 1 when a pair is assembled; else in every control step as many as have been so far.
        headless: without a window. gpu_id: which GPU simulates (and draws).
        python: the interpreter that has the simulator; None: this one.
        timeout_s, start_timeout_s: longest time a chunk or a reset, and the start, may take, seconds.

    Raises:
        MissingSimulatorError: that interpreter has no IsaacGym or no Furniture-Bench.
        WorkerError: it cannot be started, or the process ended twice with no chunk in between.
    """

    def __init__(
        self,
        furniture: Furniture,
        randomness: str,
        n_envs: int,
        act_steps: int,
        max_episode_steps: int,
        cond_steps: int = 1,
        sparse_reward: bool = True,
        headless: bool = True,
        gpu_id: int = 0,
        python: str | None = None,
        timeout_s: float = 300.0,
        start_timeout_s: float = 1800.0,
    ) -> None:
        self.n_envs, self.act_steps, self.max_episode_steps = n_envs, act_steps, max_episode_steps
        self.action_dim, self.obs_shapes = ACTION_DIM, {"state": (cond_steps, furniture.obs_dim)}
        self.timeout_s, self._start_timeout_s, self._python = timeout_s, start_timeout_s, python
        self._settings = {
            "furniture": furniture.name,
            "randomness": randomness,
            "n_envs": n_envs,
            "max_episode_steps": max_episode_steps,
            "sparse_reward": sparse_reward,
            "headless": headless,
            "gpu_id": gpu_id,
            "obs_dim": furniture.obs_dim,
        }
        self._seeds, self._elapsed = np.full(n_envs, -1, np.int64), np.zeros(n_envs, np.int64)
        self._supply: SeedSupply | None = None
        self._links: list[WorkerLink] = []
        self._finalizer = weakref.finalize(self, end_all, self._links, CLOSE_SECONDS)
        self._start_worker()

    def step(self, chunk: np.ndarray) -> StepResult:
        """See ``VectorEnv.step``. Raises ``EnvError`` before the first ``reset``, for a wrong shape, and for NaN."""
        self._check_open()
        active, seeds = self._seeds >= 0, self._seeds.copy()
        self._shared["action"][...] = self._checked(chunk, active)
        self._shared["left"][...] = np.where(active, self.max_episode_steps - self._elapsed, 0)
        try:
            self._ask({0: {"do": "step"}})
            self._proven = True
            found = {name: np.array(self._shared[name]) for name in RESULTS}
        except WorkerError as error:
            found = {name: np.zeros(self.n_envs, dtype) for name, dtype in RESULTS.items()} | {"invalid": active.copy()}
            self._replace_worker(error)
        self._elapsed += found["steps"]
        final_obs, invalid = self._obs(), found["invalid"]
        truncated = active & (invalid | (self._elapsed >= self.max_episode_steps))
        lost = self._begin_next(map(int, np.flatnonzero(truncated)))
        truncated[lost] = invalid[lost] = True
        return StepResult(
            obs=self._obs(),
            reward=np.where(invalid, 0, found["reward"]).astype(np.float32),
            terminated=np.zeros(self.n_envs, bool),
            truncated=truncated,
            final_obs=final_obs,
            success=found["success"] & ~invalid,
            info={"active": active, "steps": found["steps"], "invalid": invalid, "seed": seeds},
        )

    def state_dict(self) -> dict[str, Any]:
        """See ``VectorEnv.state_dict``: which episodes run, and which come next."""
        if self._supply is None:
            raise EnvError("There is no state to save yet: call reset first.")
        return {"supply": self._supply.state_dict(), "seeds": self._seeds.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> NpObs:
        """See ``VectorEnv.load_state_dict``; the running episodes begin anew. Raises ``EnvError`` for another ``n_envs``."""
        if np.shape(state["seeds"]) != (self.n_envs,):
            raise EnvError(f"Saved environment state: expected env.n_envs={len(state['seeds'])}, found {self.n_envs}")
        self._supply = SeedSupply.from_state_dict(state["supply"])
        self._seeds[...] = np.asarray(state["seeds"])
        self._elapsed[...] = 0
        log.warning("IsaacGym cannot be put back into the middle of an episode: the running episodes begin anew")
        self._begin()
        return self._obs()

    def _start_worker(self) -> None:
        """Start the process and let it build the simulation; raises as the constructor does."""
        settings = {**self._settings, "python": self._python or sys.executable}
        named = Factory(f"IsaacGym:{settings['furniture']}_{settings['randomness']}", (), settings)
        self._links.append(WorkerLink(named, 0, self._python, PROGRAM))
        self._proven = False  # whether this process has finished a chunk
        answer = self._ask({0: {"do": "build", "settings": self._settings}}, self._start_timeout_s)[0]
        if "missing" in answer:
            self.close()
            raise MissingSimulatorError(
                f"env.simulator=isaacgym: {settings['python']} has no {' and no '.join(answer['missing'])}. "
                "installation/install_furniture.md says how to make an interpreter that has IsaacGym and Furniture-Bench; name it with "
                "env.simulator_python=<its bin/python>, or leave env.simulator at engine (ours, on MuJoCo)"
            )
        layout = {
            "action": ("float32", (self.n_envs, self.act_steps, self.action_dim)),
            "state": ("float32", (self.n_envs, *self.obs_shapes["state"])),
            "left": ("int64", (self.n_envs,)),
            **{name: (dtype, (self.n_envs,)) for name, dtype in RESULTS.items()},
        }
        path, blocks, shared = shared_arrays(layout)
        try:
            self._ask({0: {"do": "connect", "path": str(path), "blocks": blocks}})
        finally:
            path.unlink(missing_ok=True)
        if hasattr(self, "_shared"):
            shared["state"][...] = self._shared["state"]  # of a process before: the last that is known
        self._shared = shared

    def _replace_worker(self, error: WorkerError) -> None:
        """A new process in place of one that failed; raises ``error`` if that one never got anywhere."""
        if not self._proven:
            raise error
        running = int((self._seeds >= 0).sum())
        log.warning("%s\nThe simulator is started again; %d running episodes are dropped.", error, running)
        self._start_worker()

    def _begin_next(self, slots: Iterable[int]) -> list[int]:
        """Start the next episode in each of ``slots``, or leave them idle; returns the others that had to begin a new one, too."""
        slots = list(slots)
        self._assign(slots)
        try:
            self._begin(slots)
            return []
        except WorkerError as error:
            self._replace_worker(error)
        others = [int(i) for i in np.flatnonzero(self._seeds >= 0) if i not in set(slots)]
        self._assign(others)
        self._begin()
        return others

    def _assign(self, slots: list[int]) -> None:
        """Give each of ``slots`` the next seed of the supply, or none."""
        self._seeds[slots] = self._supply.next(np.array(slots, np.int64))
        self._elapsed[slots] = 0

    def _begin(self, slots: list[int] | None = None) -> None:
        """Begin the episodes of the seeds of ``slots``, or of all."""
        chosen = np.arange(self.n_envs) if slots is None else np.array(slots, np.int64)
        playing = chosen[self._seeds[chosen] >= 0]
        if len(playing):
            self._ask({0: {"do": "reset", "slots": playing.tolist(), "seeds": self._seeds[playing].tolist()}})

    def _obs(self) -> NpObs:
        state = np.array(self._shared["state"])
        state[self._seeds < 0] = 0
        return {"state": state}
