"""Locomotion: simulation speed against raw physics and EnvPool, and one published fine-tuning iteration of Hopper.

Actions are random, as in everybody's benchmark of these robots: hopper and walker2d fall after some 25 control steps, so
falls and resets are part of the work. Raw physics gets its states for nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mujoco
import numpy as np

from script.bench.isolated import Isolated
from script.bench.measure import Contestant, Figure, compare
from script.bench.reference_loop import LoopSettings, ReferenceLoop, scaled
from script.bench.registry import Context, UnavailableError, benchmark
from script.bench.rows.finetune import OurIteration, PublishedIteration, Side, random_base
from script.bench.rows.tasks import EngineSide

BODIES = ("hopper", "walker2d", "halfcheetah")
N_ROBOTS, ACT_STEPS, CHUNKS = 40, 4, 100  # as published; a turn is 16,000 control steps
RAW_BAR, ENVPOOL_BAR, ITERATION_BAR = 0.85, 1.0, 1.4
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
HOPPER = LoopSettings(
    n_envs=40, n_steps=500, obs_dim=11, action_dim=3, batch_size=5000, update_epochs=5, gamma=0.99, actor_lr=1e-4,
    clip_coef=0.01, clip_base=0.01, activation="ReLU",
)  # fmt: skip
CONFIG = "gym/finetune/hopper-v2/ft_ppo_diffusion_mlp"
NO_ENVPOOL = "no rows against EnvPool: it is not installed. Run: pip install -e .[bench] (or pip install envpool)"


@benchmark(
    "gym",
    "Hopper, Walker2d, HalfCheetah: control steps/s of our engine against raw mj_step, and against EnvPool if installed",
    repeats=5,
)
def locomotion(context: Context) -> Iterator[Figure]:
    """The same random actions for everybody, 40 robots, chunks of 4 control steps, 1 thread and all cores."""
    with_envpool = importlib.util.find_spec("envpool") is not None
    for body in BODIES:
        yield from _body(context, body, with_envpool)
    if not with_envpool:
        raise UnavailableError(NO_ENVPOOL)


def _body(context: Context, body: str, with_envpool: bool) -> Iterator[Figure]:
    motion = RandomMotion(body, max(4, round(CHUNKS * context.scale)), context.seed)
    counts = sorted({1, context.cores})
    engines = {n: EngineSide(motion, motion.engine(n)) for n in counts}
    raws = {n: RawEpisodes(motion, n) for n in counts}
    pools = {n: EnvPoolSide(motion, n) for n in counts} if with_envpool else {}
    sides = {f"engine {n}": Contestant(engines[n].run, engines[n].reset) for n in counts}
    sides |= {f"raw {n}": Contestant(raws[n].run) for n in counts}
    sides |= {f"envpool {n}": Contestant(pool.run, pool.reset, pool.cpu_seconds) for n, pool in pools.items()}
    try:
        samples = context.interleave(sides)
        note = (
            f"{motion.work / motion.episodes:.0f} control steps per episode; replayed controls end within "
            f"{raws[1].deviation():.0e} of the engine's own qpos"
        )
    finally:
        for side in (*engines.values(), *raws.values(), *pools.values()):
            side.close()
    for n in counts:
        ours, row = samples[f"engine {n}"], f"{body}, {n} thread{'s' * (n > 1)}"
        yardsticks = {"raw mj_step": ("raw", RAW_BAR, note), "EnvPool": ("envpool", ENVPOOL_BAR, "")}
        for name, (key, bar, note_) in yardsticks.items():
            if f"{key} {n}" in samples:
                theirs = samples[f"{key} {n}"]
                yield compare(row, "control steps/s", ours.rates, name, theirs.rates, bar=bar, note=note_)
                yield compare(row, "control steps/CPU s", ours.cpu_rates, name, theirs.cpu_rates, bar=bar)


class RandomMotion:
    """What everybody does: random action chunks; and, of our engine doing it, every episode for ``RawEpisodes``."""

    def __init__(self, body: str, n_chunks: int, seed: int) -> None:
        from env.registry import locomotion as family_of

        self.body, self.family, self.seeds = body, family_of(body), seed
        rng = np.random.default_rng(seed)
        shape = n_chunks, N_ROBOTS, ACT_STEPS, self.family.action_dim
        self.chunks = rng.uniform(-1, 1, shape).astype(np.float32)
        self.segments: list[list[tuple[np.ndarray, np.ndarray]]] = []  # per robot: state, controls of each substep
        self.work, self.episodes, self.last = 0.0, 0, np.zeros((N_ROBOTS, self.family.model.nq))
        self._record()

    def engine(self, n_threads: int) -> Any:
        """Our engine."""
        from env.engine.batch import EngineVectorEnv

        return EngineVectorEnv(self.family, N_ROBOTS, ACT_STEPS, 1000, n_threads=n_threads)

    def _record(self) -> None:
        from env.gym.locomotion import FRAME_SKIP

        venv, done = self.engine(1), [[] for _ in range(N_ROBOTS)]
        venv.reset(self.seeds)
        self.segments = [[(venv.simulations.physics(i), np.zeros(0))] for i in range(N_ROBOTS)]
        for chunk in self.chunks:
            result = venv.step(chunk)
            self.work += float(result.info["steps"].sum())
            for i, steps in enumerate(result.info["steps"]):
                done[i].extend(chunk[i, :steps].repeat(self.family.ids[FRAME_SKIP], axis=0))
                if result.terminated[i] or result.truncated[i]:
                    self._close(i, done)
                    self.segments[i].append((venv.simulations.physics(i), np.zeros(0)))
        for i in range(N_ROBOTS):
            self._close(i, done)
            self.last[i] = venv.render_state(i)
        self.episodes = sum(map(len, self.segments))
        venv.close()

    def _close(self, i: int, done: list[list[np.ndarray]]) -> None:
        """The last segment of robot ``i`` gets the controls seen since the one before."""
        controls = np.array(done[i], np.float64).reshape(-1, self.family.action_dim)
        self.segments[i][-1] = (self.segments[i][-1][0], np.ascontiguousarray(controls))
        done[i] = []


class RawEpisodes:
    """Raw ``mj_step`` through the same episodes: a recorded state, its controls, the next recorded state, ..."""

    def __init__(self, motion: RandomMotion, threads: int) -> None:
        from env.engine.driver import replay_controls
        from env.engine.library import handles_of

        self._replay, self._motion, self._model = replay_controls, motion, motion.family.model
        self.data = [mujoco.MjData(self._model) for _ in range(N_ROBOTS)]
        self._handles = [handles_of(self._model, data) for data in self.data]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def run(self) -> float:
        """Every episode of every robot -> control steps done."""
        list((self._pool.map if self._pool else map)(self._robot, range(N_ROBOTS)))
        return self._motion.work

    def _robot(self, i: int) -> None:
        for state, controls in self._motion.segments[i]:
            mujoco.mj_setState(self._model, self.data[i], state, STATE)
            self._replay(self._handles[i], controls)

    def deviation(self) -> float:
        """Largest difference between where this and the engine's episodes ended, over all of qpos."""
        return max(float(np.abs(d.qpos - q).max()) for d, q in zip(self.data, self._motion.last, strict=True))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


class EnvPoolTask:
    """EnvPool in its own process: the first turn resets, the next one steps, and so on."""

    def __init__(self, body: str, n_threads: int, seed: int, chunks: np.ndarray) -> None:
        from script.bench.gym_env import NAMES

        envpool = importlib.import_module("envpool")
        self._venv = envpool.make(
            NAMES[body], env_type="gymnasium", num_envs=N_ROBOTS, num_threads=n_threads, seed=seed
        )
        actions = chunks.swapaxes(1, 2).reshape(-1, N_ROBOTS, chunks.shape[-1]).astype(np.float64)
        self._actions, self._fresh = list(actions), False

    def run(self) -> dict[str, Any]:
        """Reset or step -> control steps done and CPU seconds."""
        cpu, work, self._fresh = time.process_time(), 0, not self._fresh
        if self._fresh:
            self._venv.reset()
        else:
            for action in self._actions:
                *_, info = self._venv.step(action)
                work += np.count_nonzero(info["elapsed_step"])  # the step after an end only resets
        return {"work": float(work), "cpu": time.process_time() - cpu}

    def close(self) -> None:
        """Free the threads."""
        self._venv.close()


class EnvPoolSide:
    """``EnvPoolTask`` as a contestant."""

    def __init__(self, motion: RandomMotion, n_threads: int) -> None:
        self._process, self._cpu = Isolated(EnvPoolTask, motion.body, n_threads, motion.seeds, motion.chunks), 0.0

    def reset(self) -> None:
        """Start every robot again."""
        self._process.run()

    def run(self) -> float:
        """All actions -> control steps done."""
        report = self._process.run()
        self._cpu += report["cpu"]
        return report["work"]

    def cpu_seconds(self) -> float:
        """CPU seconds of its process while it stepped."""
        return self._cpu

    def close(self) -> None:
        """End the process."""
        self._process.close()


@benchmark(
    "gym-finetune",
    "one PPO iteration of the published Hopper setting (40 envs x 500 chunks x 4 steps, K = 20, 10 tuned, 5 epochs)",
    repeats=3,
)
def hopper_iteration(context: Context) -> Iterator[Figure]:
    """Rollout, values and log-probs, 5 epochs of updates; each side in a process of its own, from the same weights."""
    from script.bench.robosuite_env import workers_for

    settings = scaled(context.scale, HOPPER)
    workers = context.reference_workers or workers_for(settings.n_envs, context.cores)
    if settings.n_envs % workers:
        raise UnavailableError(
            f"--reference-workers: {settings.n_envs} environments do not divide over {workers} processes"
        )
    with (
        Isolated(OurIteration, settings, context.cores, context.seed, None, CONFIG) as ours,
        Isolated(GymIteration, settings, workers, context.cores, context.seed) as published,
    ):
        sides = {"ours": Side(ours, context.repeats), "straightforward loop": Side(published, context.repeats)}
        contestants = {name: side.contestant() for name, side in sides.items()}
        samples = context.interleave(contestants, warm_up=context.scale < 1)
    steps, theirs = settings.control_steps, samples["straightforward loop"]
    note = (
        f"{settings.n_envs} environments x {settings.n_steps} chunks x {settings.act_steps} = {steps:,} control steps; "
        f"straightforward loop: {workers} simulator processes of Gymnasium"
    )
    rates = samples["ours"].rates, theirs.rates
    figure = compare(
        "Hopper iteration", "env steps/s", steps * rates[0], "straightforward loop", steps * rates[1],
        bar=ITERATION_BAR, note=note,
    )  # fmt: skip
    figure.tables["seconds per phase (medians)"] = {name: side.medians() for name, side in sides.items()}
    yield figure
    cpu = samples["ours"].cpu_rates, theirs.cpu_rates
    yield compare("Hopper iteration", "env steps/CPU s", steps * cpu[0], "straightforward loop", steps * cpu[1])


class GymIteration(PublishedIteration):
    """``reference_loop.ReferenceLoop`` with Gymnasium's Hopper underneath."""

    def __init__(self, settings: Any, workers: int, cores: int, seed: int) -> None:
        import torch

        from script.bench.gym_env import GymSimulators

        torch.set_num_threads(cores)
        s = settings
        base = random_base(seed, s.act_steps, s.obs_dim, s.action_dim)
        self.simulators = GymSimulators("hopper", s.n_envs, workers, seed, s.act_steps)
        self.loop = ReferenceLoop(s, self.simulators, seed, base)
        self.sampling_threads = self.loop.choose_sampling_threads(cores)
        self.simulators.reset()
