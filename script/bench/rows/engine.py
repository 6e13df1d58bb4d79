"""Simulation speed on Lift: our engine against raw physics and against robosuite in worker processes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from script.bench.measure import Contestant, Figure, compare
from script.bench.registry import Context, benchmark

N_SIMULATIONS, CONTROL_STEPS = 16, 72  # a grasp and lift takes about 70 control steps
RAW_BAR, ROBOSUITE_BAR = 0.90, 5.0


@benchmark(
    "engine",
    "Lift control steps/s of our engine against raw mj_step on the same trajectory, 1 thread and all cores",
    repeats=11,
)
def engine_against_raw(context: Context) -> Iterator[Figure]:
    """Same models, same start states, same controls; the bar is 85 % of the physical limit."""
    from script.bench.lift import EngineRun, record_episode
    from script.bench.replay import Replay, record

    episode = record_episode(N_SIMULATIONS, round(CONTROL_STEPS * max(context.scale, 0.1)), context.seed)
    counts = sorted({1, context.cores})
    engines = {n: EngineRun(episode, n) for n in counts}
    engines[1].reset()
    tracks = record(engines[1].run)
    raws = {n: Replay(tracks, n, float(episode.control_steps)) for n in counts}
    raws[1].reset()
    raws[1].run()
    same = f"replayed controls end within {raws[1].deviation():.0e} of the engine's own qpos"
    contestants: dict[str, Contestant] = {}
    for n in counts:
        contestants[f"engine {n}"] = Contestant(engines[n].run, engines[n].reset)
        contestants[f"raw {n}"] = Contestant(raws[n].run, raws[n].reset)
    try:
        samples = context.interleave(contestants)
    finally:
        for side in (*engines.values(), *raws.values()):
            side.close()
    for n in counts:
        ours, raw = samples[f"engine {n}"], samples[f"raw {n}"]
        threads = f"{n} thread{'s' if n > 1 else ''}"
        yield compare(
            f"Lift, {threads}", "control steps/s", ours.rates, "raw mj_step", raw.rates, bar=RAW_BAR, note=same
        )
        yield compare(
            f"Lift, {threads}", "control steps/CPU s", ours.cpu_rates, "raw mj_step", raw.cpu_rates, bar=RAW_BAR
        )


@benchmark(
    "robosuite",
    "Lift control steps/s of our engine on all cores against robosuite in AsyncVectorEnv, one worker per core",
    repeats=5,
)
def engine_against_robosuite(context: Context) -> Iterator[Figure]:
    """Both go through the same scripted grasps from the same configurations; robosuite executes whole chunks inside
    its workers.
    """
    from script.bench.lift import EngineRun, record_episode

    episode = record_episode(
        max(N_SIMULATIONS, context.cores), round(CONTROL_STEPS * max(context.scale, 0.1)), context.seed
    )
    engine = EngineRun(episode, context.cores)
    engine.reset()
    starts = np.array([engine.venv.render_state(i) for i in range(context.cores)])
    robosuite = RobosuiteRun(episode.chunks(), starts, context.cores, context.seed)
    try:
        samples = context.interleave(
            {
                "engine": Contestant(engine.run, engine.reset),
                "robosuite": Contestant(robosuite.run, robosuite.reset, robosuite.cpu_seconds),
            }
        )
    finally:
        engine.close()
        robosuite.close()
    ours, theirs = samples["engine"], samples["robosuite"]
    yardstick = f"robosuite, {context.cores} workers"
    name = f"Lift, {context.cores} threads"
    yield compare(name, "control steps/s", ours.rates, yardstick, theirs.rates, bar=ROBOSUITE_BAR)
    yield compare(name, "control steps/CPU s", ours.cpu_rates, yardstick, theirs.cpu_rates, bar=ROBOSUITE_BAR)


class RobosuiteRun:
    """robosuite in ``AsyncVectorEnv``: one worker per core, each with one Lift, going through the first ``workers``
    grasps.
    """

    def __init__(self, chunks: np.ndarray, starts: np.ndarray, workers: int, seed: int) -> None:
        from script.bench.robosuite_env import Limits, make_vector

        self.chunks, self.starts = chunks[:, :workers, None], starts
        self.venv = make_vector(workers, workers, seed, Limits(act_steps=chunks.shape[2]))

    def reset(self) -> None:
        """Start every worker from its recorded configuration."""
        self.venv.reset(options={"qpos": self.starts})

    def run(self) -> float:
        """All chunks -> control steps done."""
        for chunk in self.chunks:
            self.venv.step(chunk)
        return float(self.chunks.shape[0] * self.chunks.shape[1] * self.chunks.shape[3])

    def cpu_seconds(self) -> float:
        """CPU seconds of the workers and of this process."""
        return time.process_time() + sum(self.venv.call("cpu_seconds"))

    def close(self) -> None:
        """End the workers."""
        self.venv.close()
