"""Simulation speed on D3IL's avoiding: our engine against raw physics alone.

A control step is 35 physics steps of an arm without anything to collide with but a rod, which are cheap, and 105 iterations of
inverse kinematics, which raw physics does not have: here the controller is the larger half.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from script.bench.measure import Contestant, Figure, compare
from script.bench.registry import Context, benchmark
from script.bench.rows.tasks import EngineSide

N_ARMS, CONTROL_STEPS, ACT_STEPS = 24, 80, 4  # one arm per mode, from start to finish
RAW_BAR = 0.33
WANTED = 2000  # control steps/s on two cores


@benchmark(
    "avoid", "D3IL avoiding: control steps/s of our engine against raw mj_step on the same trajectory", repeats=7
)
def engine_on_avoiding(context: Context) -> Iterator[Figure]:
    """The scripted expert's way through all 24 modes."""
    from script.bench.replay import Replay, record

    courses = Courses(max(ACT_STEPS, round(CONTROL_STEPS * context.scale) // ACT_STEPS * ACT_STEPS), context.seed)
    counts = sorted({1, context.cores})
    engines = {n: courses.engine(n) for n in counts}
    engines[1].reset()
    tracks = record(engines[1].run, set_before=True)
    raws = {n: Replay(tracks, n, courses.work) for n in counts}
    sides = {f"engine {n}": Contestant(engines[n].run, engines[n].reset) for n in counts}
    sides |= {f"raw {n}": Contestant(raws[n].run, raws[n].reset) for n in counts}
    try:
        samples = context.interleave(sides)
        note = f"replayed controls end within {raws[1].deviation():.0e} of the engine's own qpos; wanted on 2 cores: {WANTED:,}/s"
    finally:
        for side in (*engines.values(), *raws.values()):
            side.close()
    for n in counts:
        ours, raw, row = samples[f"engine {n}"], samples[f"raw {n}"], f"avoiding, {n} thread{'s' * (n > 1)}"
        yield compare(row, "control steps/s", ours.rates, "raw mj_step", raw.rates, bar=RAW_BAR, note=note)
        yield compare(row, "control steps/CPU s", ours.cpu_rates, "raw mj_step", raw.cpu_rates, bar=RAW_BAR)


class Courses:
    """What everybody does: the expert's actions, recorded once."""

    def __init__(self, steps: int, seed: int) -> None:
        from env.d3il.avoiding_expert import AvoidingExpert

        self.seeds, self.work = [seed + 1000 + i for i in range(N_ARMS)], float(N_ARMS * steps)
        expert = AvoidingExpert(N_ARMS, np.random.default_rng(seed))
        venv = self._venv(1)
        start = venv.reset(self.seeds)["state"][:, -1]
        venv.close()
        actions = np.stack([expert.act(start) for _ in range(steps)], axis=1)  # it looks at the first observation only
        self.chunks = np.ascontiguousarray(
            actions.reshape(N_ARMS, steps // ACT_STEPS, ACT_STEPS, 2).swapaxes(0, 1), np.float32
        )

    def _venv(self, n_threads: int) -> Any:
        from env.d3il.avoiding import family
        from env.engine.batch import EngineVectorEnv

        return EngineVectorEnv(family("avoiding-m5"), N_ARMS, ACT_STEPS, 10**6, n_threads=n_threads)

    def engine(self, n_threads: int) -> EngineSide:
        """Our engine, about to do it."""
        return EngineSide(self, self._venv(n_threads))
