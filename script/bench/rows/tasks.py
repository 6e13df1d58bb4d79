"""Simulation speed on Can, Square and Transport: our engine against raw physics and against robosuite in worker processes.

Lift has rows of its own (``engine.py``). Raw physics is that of our model. For Can and Square it is not robosuite's, which
also simulates objects that the task never uses; the rows against robosuite show what leaving them out is worth.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

from script.bench.measure import Contestant, Figure, compare
from script.bench.registry import Context, benchmark

ACT_STEPS = {"can": 4, "square": 4, "transport": 8}
CONTROL_STEPS = {"can": 120, "square": 120, "transport": 240}  # a grasp and the way to the goal
N_SIMULATIONS, RAW_BAR = 8, 0.85
ROBOSUITE_BARS = {"can": 4.5, "square": 4.0, "transport": 2.5}


@benchmark(
    "tasks",
    "Can, Square, Transport: control steps/s of our engine against raw mj_step, and against robosuite in AsyncVectorEnv",
    repeats=5,
)
def engine_on_every_task(context: Context) -> Iterator[Figure]:
    """Scripted experts' motion, from the same configurations, in all contestants."""
    for task in CONTROL_STEPS:
        yield from _task(context, task)


def _task(context: Context, task: str) -> Iterator[Figure]:
    from script.bench.replay import Replay, record

    te = ACT_STEPS[task]
    motion = Motion(task, max(te, round(CONTROL_STEPS[task] * context.scale) // te * te), context.seed)
    counts = sorted({1, context.cores})
    engines = {n: motion.engine(n) for n in counts}
    engines[1].reset()
    tracks = record(engines[1].run)
    raws = {n: Replay(tracks, n, motion.work) for n in counts}
    theirs = RobosuiteSide(motion, context.cores)
    sides = {f"engine {n}": Contestant(engines[n].run, engines[n].reset) for n in counts}
    sides |= {f"raw {n}": Contestant(raws[n].run, raws[n].reset) for n in counts}
    sides["robosuite"] = Contestant(theirs.run, theirs.reset, theirs.cpu_seconds)
    try:
        samples = context.interleave(sides)
        note = f"replayed controls end within {raws[1].deviation():.0e} of the engine's own qpos"
    finally:
        for side in (*engines.values(), *raws.values(), theirs):
            side.close()
    for n in counts:
        ours, raw, row = samples[f"engine {n}"], samples[f"raw {n}"], f"{task}, {n} thread{'s' * (n > 1)}"
        yield compare(row, "control steps/s", ours.rates, "raw mj_step", raw.rates, bar=RAW_BAR, note=note)
        yield compare(row, "control steps/CPU s", ours.cpu_rates, "raw mj_step", raw.cpu_rates, bar=RAW_BAR)
    ours, theirs_, bar = samples[f"engine {context.cores}"], samples["robosuite"], ROBOSUITE_BARS[task]
    row, yardstick = f"{task}, {context.cores} threads", f"robosuite, {context.cores} workers"
    yield compare(row, "control steps/s", ours.rates, yardstick, theirs_.rates, bar=bar)
    yield compare(row, "control steps/CPU s", ours.cpu_rates, yardstick, theirs_.cpu_rates, bar=bar)


class Motion:
    """What everybody does: the scripted expert's actions in ``N_SIMULATIONS`` episodes of our engine, recorded once."""

    def __init__(self, task: str, steps: int, seed: int) -> None:
        from env.registry import EXPERTS, family

        self.task, self.family, self.act_steps = task, family(task), ACT_STEPS[task]
        self.seeds = [seed + 1000 + i for i in range(N_SIMULATIONS)]
        self.work = float(N_SIMULATIONS * steps)
        venv = self._venv(1, None)
        obs = venv.reset(self.seeds)
        self.starts = np.array([venv.render_state(i) for i in range(N_SIMULATIONS)])
        expert = EXPERTS[task].make(N_SIMULATIONS, np.random.default_rng(seed), noise=EXPERTS[task].noise, retry=True)
        actions = np.zeros((steps, N_SIMULATIONS, venv.action_dim), np.float32)
        for t in range(steps):
            actions[t] = expert.act(obs["state"][:, -1])
            obs = venv.step(actions[t][:, None]).obs
        venv.close()
        chunks = actions.reshape(steps // self.act_steps, self.act_steps, N_SIMULATIONS, -1)
        self.chunks = np.ascontiguousarray(chunks.swapaxes(1, 2))

    def _venv(self, act_steps: int, n_threads: int | None) -> Any:
        from env.engine.batch import EngineVectorEnv

        return EngineVectorEnv(self.family, N_SIMULATIONS, act_steps, 10**6, n_threads=n_threads)

    def engine(self, n_threads: int) -> EngineSide:
        """Our engine, about to do it."""
        return EngineSide(self, self._venv(self.act_steps, n_threads))


class EngineSide:
    """Our engine going through a ``Motion``."""

    def __init__(self, motion: Motion, venv: Any) -> None:
        self._motion, self.venv = motion, venv

    def reset(self) -> None:
        """Start the episodes again."""
        self.venv.reset(self._motion.seeds)

    def run(self) -> float:
        """All chunks -> control steps done."""
        for chunk in self._motion.chunks:
            self.venv.step(chunk)
        return self._motion.work

    def close(self) -> None:
        """Free the threads."""
        self.venv.close()


class RobosuiteTask(gymnasium.Env):
    """One robosuite environment behind Gymnasium's interface, whole chunks per step; built in the worker, at the first
    reset. Its observations are states, as in the published code.
    """

    def __init__(self, task: str, action_dim: int, act_steps: int, obs_dim: int) -> None:
        self._name, self._env, self._task = task, None, None
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1, 1, (act_steps, action_dim), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """The configuration ``options["qpos"]`` (nq,) of our model, in robosuite's."""
        from env.registry import family
        from env.robomimic import reference

        if self._env is None:
            self._task = family(self._name)
            self._env = reference.make_reference(self._task, seed=0)
            self._env.hard_reset = False
        self._env.reset()
        where, _ = reference.shared_state(self._task.model, self._env.sim.model._model)
        self._env.sim.data._data.qpos[where] = options["qpos"]
        self._env.sim.forward()
        return self._seen(self._env._get_observations(force_update=True)), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Execute one chunk; rewards are summed."""
        reward = 0.0
        for control in action:
            observation, r, _, _ = self._env.step(control)
            reward += r
        return self._seen(observation), reward, False, False, {}

    def cpu_seconds(self) -> float:
        """CPU time this worker has used."""
        return time.process_time()

    def _seen(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        parts = ("eef_pos", "eef_quat", "gripper_qpos")
        arms = [observation[f"robot{i}_{part}"] for i in range(len(self._env.robots)) for part in parts]
        return np.concatenate([*arms, observation["object-state"]])


class RobosuiteSide:
    """robosuite in ``AsyncVectorEnv``, one environment per worker, going through the first episodes of a ``Motion``."""

    def __init__(self, motion: Motion, workers: int) -> None:
        self._motion, self._workers = motion, workers
        dims = motion.family.action_dim, motion.act_steps, max(c.stop for c in motion.family.layout.values())
        make = functools.partial(RobosuiteTask, motion.task, *dims)
        self._venv = gymnasium.vector.AsyncVectorEnv([make] * workers, shared_memory=True, context="spawn")
        self._chunks = motion.chunks[:, :workers]

    def reset(self) -> None:
        """Start every worker from its recorded configuration."""
        for k, pipe in enumerate(self._venv.parent_pipes):  # each its own options, which Gymnasium's reset cannot give
            pipe.send(("reset", {"options": {"qpos": self._motion.starts[k]}}))
        for pipe in self._venv.parent_pipes:
            _, success = pipe.recv()
            if not success:
                raise RuntimeError("robosuite's worker failed in reset: run it alone to see why")

    def run(self) -> float:
        """All chunks -> control steps done."""
        for chunk in self._chunks:
            self._venv.step(chunk)
        return float(self._chunks.shape[0] * self._workers * self._motion.act_steps)

    def cpu_seconds(self) -> float:
        """CPU seconds of the workers and of this process."""
        return time.process_time() + sum(self._venv.call("cpu_seconds"))

    def close(self) -> None:
        """End the workers."""
        self._venv.close()
