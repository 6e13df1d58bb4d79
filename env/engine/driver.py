"""The generic loop every simulation runs in: chunks of control steps, one simulation after the other, without Python.

Each thread makes one call to ``run_chunks`` and takes simulations from a shared queue until it is empty: no thread
waits for a slower one, and however many control steps a chunk has, the GIL is needed twice. What a control step *is*
comes from the family, as the address of its kernel (``library.py``).
"""

from __future__ import annotations

import math

import numba
import numpy as np

from env.engine.library import (
    CTRL,
    DATA,
    MODEL,
    N_WARNINGS,
    QPOS,
    QVEL,
    TERMINATED,
    UNSTABLE,
    WARNING,
    call_begin,
    call_control,
    call_observe,
    compiled,
    floats,
    int32s,
    mj_reset_data,
    mj_step,
    take_next,
)


@numba.njit
def _within(address: int, n: int, limit: float) -> bool:
    values = floats(address, n)
    for i in range(n):  # noqa: SIM110  (all() over a generator does not compile)
        if not math.fabs(values[i]) < limit:  # also false for NaN
            return False
    return True


@numba.njit
def _stable(handles: np.ndarray, nq: int, nv: int, limit: float) -> bool:
    """No coordinate or velocity beyond ``limit`` or NaN, and no MuJoCo warning (it resets a simulation that goes bad,
    silently).
    """
    warnings = int32s(handles[WARNING], 2 * N_WARNINGS)
    for kind in range(N_WARNINGS):
        if warnings[2 * kind] != 0:
            return False
    return _within(handles[QPOS], nq, limit) and _within(handles[QVEL], nv, limit)


@numba.njit
def _shift(history: np.ndarray) -> None:
    """Make room for a new last row: history (To, Do)."""
    for row in range(history.shape[0] - 1):
        for c in range(history.shape[1]):
            history[row, c] = history[row + 1, c]


@compiled(
    "void(int64[::1], int64[::1], int64[::1], int64[:,::1], float64[:,::1], int64[::1], float64[::1], "
    "float64[:,:,::1], int64[::1], float64[::1], int64[::1], int64[::1], float64[:,:,::1], float64[:,:,::1], "
    "int64[::1])",
    __file__,
)
def run_chunks(
    queue,
    slots,
    kernels,
    handles,
    memory,
    ids,
    facts,
    actions,
    limits,
    reward,
    outcome,
    steps,
    history,
    trace,
    trace_row,
):
    """Run a chunk of control steps in each of ``slots``, sharing ``queue`` with the other threads.

    queue (1,): how many of ``slots`` were taken, 0 at first.
    kernels (5,): addresses of the control and observe kernels, nq, nv, and the bits of an outcome that end an episode.
    handles (N, N_HANDLES), memory (N, M), ids, facts: see ``library.py``.
    actions (N, T, Da); limits (N,): control steps to run at most.

    Written, per slot: reward (summed), outcome (bits), steps, history (N, To, Do) shifted by one per control step, and
    trace[trace_row] (T, nq) where trace_row >= 0.
    """
    nq, nv, n_steps = kernels[2], kernels[3], history.shape[1]
    one = np.zeros(1)
    while True:
        k = take_next(queue.ctypes.data)
        if k >= len(slots):
            return
        i = slots[k]
        h = handles[i]
        common = handles[i].ctypes.data, memory[i].ctypes.data, ids.ctypes.data, facts.ctypes.data
        reward[i], outcome[i], steps[i] = 0.0, 0, 0
        for t in range(limits[i]):
            if not _stable(h, nq, nv, facts[0]):
                outcome[i] |= UNSTABLE
                break
            result = call_control(
                kernels[0], common[0], common[1], common[2], common[3], actions[i, t].ctypes.data, one.ctypes.data
            )
            steps[i] = t + 1
            if not _stable(h, nq, nv, facts[0]):
                outcome[i] |= UNSTABLE  # unseen: the history keeps the last sound observation
                break
            reward[i] += one[0]
            outcome[i] |= result
            done = (result & kernels[4]) != 0
            if done:
                outcome[i] |= TERMINATED
            if trace_row[i] >= 0:
                trace[trace_row[i], t, :] = floats(h[QPOS], nq)
            ended = done or t == limits[i] - 1
            if n_steps > 1 or ended:  # one frame of history: only the last step's observation will be seen
                _shift(history[i])
                newest = history[i, n_steps - 1].ctypes.data
                call_observe(kernels[1], common[0], common[1], common[2], common[3], newest)
            if ended:
                break


@compiled("void(int64[::1], float64[:,::1])", __file__)
def replay_controls(handles, controls):
    """Raw ``mj_step``, one per row of ``controls (n, nu)``: the yardstick of engine speed.

    ``handles``: ``library.handles_of``.
    """
    view = floats(handles[CTRL], controls.shape[1])
    for i in range(len(controls)):
        view[:] = controls[i]
        mj_step(handles[MODEL], handles[DATA])


@compiled(
    "void(int64[::1], int64, int64[::1], int64[:,::1], float64[:,::1], int64[::1], float64[::1], float64[:,::1], "
    "float64[:,:,::1])",
    __file__,
)
def begin_episodes(slots, kernel, kernels, handles, memory, ids, facts, starts, history):
    """Start an episode in each of ``slots``, by the begin kernel at address ``kernel``: from ``starts (K, S)`` to its
    first observation. The rest as in ``run_chunks``.
    """
    last = history.shape[1] - 1
    for k in range(len(slots)):
        i = slots[k]
        common = handles[i].ctypes.data, memory[i].ctypes.data, ids.ctypes.data, facts.ctypes.data
        mj_reset_data(handles[i, MODEL], handles[i, DATA])
        call_begin(kernel, common[0], common[1], common[2], common[3], starts[k].ctypes.data)
        call_observe(kernels[1], common[0], common[1], common[2], common[3], history[i, last].ctypes.data)
        history[i, :last] = history[i, last]


@compiled("void(int64, int64, int64, int64, int64, int64)", __file__)
def observe_one(kernel, handles, memory, ids, facts, obs):
    """The observation of one simulation; all arguments are addresses."""
    call_observe(kernel, handles, memory, ids, facts, obs)
