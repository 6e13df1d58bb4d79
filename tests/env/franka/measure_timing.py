"""How well the loop keeps its time, beside whatever else this machine does: ``python tests/env/franka/measure_timing.py [seconds] [busy processes]``.

Prints the figures; writes the histograms to timing.png in the folder of temporary files.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[3])]

from stand_ins import Stage

from env.franka.clock import WallClock
from env.franka.latency import write_picture
from env.franka.operator import AlwaysHeld
from env.franka.runner import RunnerSettings


def circle(k: int) -> np.ndarray:
    """(4, 7): round and round, so that an episode may last."""
    phase = 2 * np.pi * (4 * k + np.arange(4)) / 40
    return np.stack([0.4 * np.sin(phase), 0.4 * np.cos(phase), *np.zeros((4, 4)), -np.ones(4)], 1)


def measure(seconds: float, inference_s: float = 0.008) -> dict:
    """The timing of an episode on the wall's clock: threads for servo, policy and gripper, an inference of 8 ms of work."""

    def say(k: int) -> np.ndarray:
        until = time.perf_counter() + inference_s
        while time.perf_counter() < until:
            np.linalg.svd(np.random.default_rng(k).normal(size=(40, 40)))
        return circle(k)

    settings = RunnerSettings(speed_scale=1.0, max_steps=10**6)
    stage = Stage(say, lambda c: AlwaysHeld(), WallClock(), settings=settings)
    end = stage.clock.now() + seconds
    stage.runner._finished = lambda: stage.clock.now() > end
    result = stage.run()
    stage.runner.close()
    return {
        "state": result.state, "reason": result.reason, "steps": result.steps, "ticks": len(stage.memory.ticks),
        "timing": result.timing, "events": stage.monitor.counts,
    }  # fmt: skip


def burn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        np.linalg.svd(np.random.default_rng(0).normal(size=(60, 60)))


if __name__ == "__main__":
    length = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    load = [
        multiprocessing.Process(target=burn, args=(length + 5,))
        for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    ]
    for process in load:
        process.start()
    summary = measure(length)
    for process in load:
        process.terminate()
    picture = Path(tempfile.gettempdir()) / "timing.png"
    write_picture(summary["timing"], picture)
    short = {k: {m: round(v[m], 2) for m in ("n", "p50", "p95", "p99", "max")} for k, v in summary["timing"].items()}
    print(json.dumps({**summary, "timing": short, "picture": str(picture)}, indent=1))
