"""The physical limit of simulation speed: raw ``mj_step`` replaying exactly what a simulation went through.

``record`` listens to an environment from inside MuJoCo (its control callback), so that it needs to know nothing of
the environment: of every simulation it takes the model, the state before the first substep, and the controls of
each substep. ``Replay`` then steps the same models from the same states with the same controls, and nothing else.
That is all the physics and none of the work around it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np

STATE = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass
class Track:
    """What one simulation did: its model, the state it started from, the controls of each substep (n, nu), where it
    ended.
    """

    model: mujoco.MjModel
    data: mujoco.MjData
    start: np.ndarray
    controls: list[np.ndarray] = field(default_factory=list)
    time: float = 0.0


def record(run: Callable[[], Any], set_before: bool = False) -> list[Track]:
    """Run something that steps MuJoCo and return a track per simulation, in the order in which they first stepped.

    ``set_before``: their controls are set before ``mj_step``, not between ``mj_step1`` and ``mj_step2``, so that those seen at a
    call are of the step that begins, not of the last one.

    The simulations must not be reset on the way, and their integrator must evaluate the controls once per step.
    Raises RuntimeError if one of them is reset, ValueError for the Runge-Kutta integrator, RuntimeError if nothing
    stepped.
    """
    tracks: dict[int, Track] = {}
    problems: list[str] = []

    def listen(model: mujoco.MjModel, data: mujoco.MjData) -> None:
        track = tracks.get(data._address)
        if track is None:
            start = np.empty(mujoco.mj_stateSize(model, STATE))
            mujoco.mj_getState(model, data, start, STATE)
            track = tracks[data._address] = Track(model, data, start, time=data.time)
        elif data.time < track.time:
            problems.append("a simulation was reset while it was recorded: record fewer steps than an episode has")
        elif data.time > track.time and not set_before:  # a substep has passed; the controls it used are still there
            track.controls.append(data.ctrl.copy())
        if set_before:
            track.controls.append(data.ctrl.copy())
        track.time = data.time

    before = mujoco.get_mjcb_control()
    mujoco.set_mjcb_control(listen)
    try:
        run()
    finally:
        mujoco.set_mjcb_control(before)
    for track in tracks.values():
        if track.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            raise ValueError("recording: the Runge-Kutta integrator evaluates the controls several times per step")
        if track.data.time > track.time and not set_before:  # the last substep, which no callback followed
            track.controls.append(track.data.ctrl.copy())
    if problems or not tracks:
        raise RuntimeError(problems[0] if problems else "recording: nothing called mj_step")
    return list(tracks.values())


class Replay:
    """Steps recorded tracks again, on ``threads`` threads, and does nothing else; ``work`` is what a run of them is
    worth.
    """

    def __init__(self, tracks: list[Track], threads: int, work: float) -> None:
        from env.engine.driver import replay_controls
        from env.engine.library import handles_of

        self._step, self.tracks, self.work = replay_controls, tracks, work
        self.data = [mujoco.MjData(track.model) for track in tracks]
        self._work = [
            (handles_of(t.model, d), np.ascontiguousarray(t.controls)) for t, d in zip(tracks, self.data, strict=True)
        ]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def reset(self) -> None:
        """Back to the states the tracks started from."""
        for track, data in zip(self.tracks, self.data, strict=True):
            mujoco.mj_resetData(track.model, data)
            mujoco.mj_setState(track.model, data, track.start, STATE)

    def run(self) -> float:
        """Step every track to its end -> ``work``."""
        if self._pool is None:
            for handles, controls in self._work:
                self._step(handles, controls)
        else:
            list(self._pool.map(lambda work: self._step(*work), self._work))
        return self.work

    def deviation(self) -> float:
        """Largest difference between where the replay and the recorded simulations ended, over all of qpos."""
        return max(float(np.abs(d.qpos - t.data.qpos).max()) for t, d in zip(self.tracks, self.data, strict=True))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
