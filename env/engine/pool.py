"""N simulations of one family on a pool of threads."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mujoco
import numpy as np

from env.engine.driver import begin_episodes, observe_one, run_chunks
from env.engine.family import Family, observation_dim
from env.engine.library import N_HANDLES, SOLVED, TERMINATED, check_versions, handles_of
from env.errors import EnvError

_logger = logging.getLogger(__name__)
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
SMALL = 16  # degrees of freedom


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pose_of(data: mujoco.MjData) -> np.ndarray:
    """Where the bodies are, position and quaternion: (nbody, 7)."""
    return np.concatenate([data.xpos, data.xquat], axis=1)


@dataclass(slots=True)
class ChunkOutcome:
    """What one chunk did, per simulation; rows that were not run are zero."""

    reward: np.ndarray  # (N,) float64, summed over control steps
    bits: np.ndarray  # (N,) int64: SOLVED | TERMINATED | UNSTABLE
    steps: np.ndarray  # (N,) int64, control steps executed
    trace: np.ndarray  # (R, T, nq) float64: coordinates after each control step of the slots asked for


class Simulations:
    """``n`` simulations of ``family``, stepped in parallel by ``n_threads`` threads (all usable cores by default).

    ``history (n, n_obs_steps, D)`` float64 holds the last full observations, ``memory (n, M)`` the controllers' state,
    ``models[i]`` and ``data[i]`` MuJoCo's. Results do not depend on the number of threads. ``end_on_success``: a solved task ends its episode.
    """

    def __init__(
        self,
        family: Family,
        n: int,
        n_obs_steps: int = 1,
        n_threads: int | None = None,
        end_on_success: bool = False,
    ) -> None:
        check_versions()
        if n_threads is not None and n_threads < 1:
            raise EnvError(f"n_threads must be at least 1 (or null for all cores), found {n_threads}")
        self.family, self.n = family, n
        self.n_threads = min(n_threads or usable_cores(), n)
        self._executor = ThreadPoolExecutor(self.n_threads - 1, "simulation") if self.n_threads > 1 else None
        mujoco.set_mju_user_warning(_log_warning)  # else MuJoCo writes MUJOCO_LOG.TXT into the working directory
        self.models = [copy.copy(family.model) if family.own_models else family.model for _ in range(n)]
        self.data = [mujoco.MjData(model) for model in self.models]
        self.memory = np.zeros((n, max(1, family.memory_size)))
        self.history = np.zeros((n, n_obs_steps, observation_dim(family)))
        self._handles = np.zeros((n, N_HANDLES), np.int64)
        for i in range(n):
            self._handles[i] = handles_of(self.models[i], self.data[i])
        self._ids = np.ascontiguousarray(family.ids, np.int64)
        self._facts = np.ascontiguousarray(family.facts, np.float64)
        ends = TERMINATED | (SOLVED if end_on_success else 0)
        self._kernels = np.array(
            [family.control_kernel, family.observe_kernel, family.model.nq, family.model.nv, ends], np.int64
        )
        self._begin_kernel = getattr(family, "begin_kernel", 0)
        self._observe_arguments = [self._addresses(i) for i in range(n)]

    def begin(self, slots: Sequence[int], starts: np.ndarray) -> None:
        """Start an episode in each of ``slots``: ``starts[k]`` is the k-th one's draw."""
        if self._begin_kernel:
            begin_episodes(
                _own(slots, np.int64), self._begin_kernel, self._kernels, self._handles, self.memory, self._ids,
                self._facts, _own(starts, np.float64), self.history,
            )  # fmt: skip
            return

        def one(i: int, start: np.ndarray) -> None:
            self._reset(i, start)
            self.family.begin(self.models[i], self.data[i], start, self.memory[i])
            self.observe(i)

        self._each(one, slots, starts)

    def observe(self, i: int) -> None:
        """Fill simulation ``i``'s history with its present observation."""
        observe_one(*self._observe_arguments[i])
        if self.history.shape[1] > 1:
            self.history[i, :-1] = self.history[i, -1]

    def run(
        self, slots: np.ndarray, actions: np.ndarray, limits: np.ndarray, traced: np.ndarray | None = None
    ) -> ChunkOutcome:
        """Run ``actions (n, T, Da)`` in ``slots``: at most ``limits[i]`` control steps. ``traced``: slots whose
        coordinates to keep.
        """
        n, n_steps = actions.shape[:2]
        trace_row = np.full(n, -1, np.int64)
        n_traced = 0 if traced is None else len(traced)
        if n_traced:
            trace_row[traced] = np.arange(n_traced)
        out = ChunkOutcome(
            np.zeros(n),
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.zeros((n_traced, n_steps, self.family.model.nq)),
        )
        queue = np.zeros(1, np.int64)
        arguments = (
            queue, _own(slots, np.int64), self._kernels, self._handles, self.memory, self._ids, self._facts,
            _own(actions, np.float64), _own(limits, np.int64),
            out.reward, out.bits, out.steps, self.history, out.trace, trace_row,
        )  # fmt: skip
        others = (
            [self._executor.submit(run_chunks, *arguments) for _ in range(min(self.n_threads, len(slots)) - 1)]
            if self._executor
            else []
        )
        run_chunks(*arguments)
        for other in others:
            other.result()
        return out

    def physics(self, i: int) -> np.ndarray:
        """MuJoCo's integration state of simulation ``i``: everything the next step depends on."""
        state = np.zeros(mujoco.mj_stateSize(self.models[i], _STATE))
        mujoco.mj_getState(self.models[i], self.data[i], state, _STATE)
        return state

    def restore(self, slots: Iterable[int], starts: np.ndarray, physics: np.ndarray) -> None:
        """Put ``slots`` into states ``physics[k]`` of episodes that began with ``starts[k]``. The caller restores
        memory and history.
        """

        def one(i: int, start: np.ndarray, state: np.ndarray) -> None:
            self._reset(i, start)
            mujoco.mj_setState(self.models[i], self.data[i], state, _STATE)

        self._each(one, list(slots), starts, physics)

    def close(self) -> None:
        """End the threads; idempotent."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _reset(self, i: int, start: np.ndarray) -> None:
        model, data = self.models[i], self.data[i]
        mujoco.mj_resetData(model, data)
        if self.family.own_models:
            self.family.patch(model, data, start)
            mujoco.mj_resetData(model, data)

    def _addresses(self, i: int) -> tuple[int, ...]:
        """The arguments of ``observe_one`` for simulation ``i``: none of these arrays ever moves."""
        arrays = self._handles[i], self.memory[i], self._ids, self._facts, self.history[i, -1]
        return self.family.observe_kernel, *(a.ctypes.data for a in arrays)

    def _each(self, function: Callable[..., None], *columns: Iterable[object]) -> None:
        """In parallel, unless the model is so small that handing its work to a thread takes longer than doing it."""
        parallel = self._executor is not None and self.family.model.nv >= SMALL
        list((self._executor.map if parallel else map)(function, *columns))


def _own(array: np.ndarray, dtype: type) -> np.ndarray:
    """``array`` as the kernels take it: contiguous and writable."""
    array = np.ascontiguousarray(array, dtype)
    return array if array.flags.writeable else array.copy()


def _log_warning(message: str) -> None:
    _logger.debug("MuJoCo: %s", message)
