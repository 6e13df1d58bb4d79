"""How long one waits before the first control step, in a fresh process each time."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from script.bench.measure import Contestant, Figure, compare
from script.bench.registry import Context, UnavailableError, benchmark

ROOT = Path(__file__).resolve().parents[3]
ENGINE = """
from script.bench.lift import make_engine
import numpy as np
venv = make_engine(1, 4, 1)
venv.reset(0)
venv.step(np.zeros((1, 4, 7), np.float32))
venv.close()
"""
ROBOSUITE = """
from script.bench.robosuite_env import make_lift
import numpy as np
env = make_lift(0)
env.reset()
env.step(np.zeros(7))
env.close()
"""


@benchmark(
    "startup",
    "seconds from starting Python to the first control step: kernels compiled, kernels cached, robosuite",
    repeats=3,
)
def startup(context: Context) -> Iterator[Figure]:
    """Our engine with an empty and with a filled kernel cache, against robosuite with a filled one."""
    with tempfile.TemporaryDirectory(prefix="d2ppo-kernels-") as folder:
        warm, cold = Path(folder) / "warm", (Path(folder) / f"cold{i}" for i in itertools.count())
        for code in (ENGINE, ROBOSUITE):  # fills the caches; also the moment to learn that the engine is absent
            fresh(code, warm)
        sides = {
            "first time": lambda: fresh(ENGINE, next(cold)),
            "cached kernels": lambda: fresh(ENGINE, warm),
            "robosuite": lambda: fresh(ROBOSUITE, warm),
        }
        samples = context.interleave(
            {name: Contestant(run, cpu_clock=cpu_of_children) for name, run in sides.items()}, warm_up=False
        )
    compiling = {
        "s": samples["first time"].seconds_each - samples["cached kernels"].seconds_each,
        "CPU s": samples["first time"].cpu_seconds_each - samples["cached kernels"].cpu_seconds_each,
    }
    for unit, clock in (("s", "seconds_each"), ("CPU s", "cpu_seconds_each")):
        note = f"compiling takes {np.median(compiling[unit]):.1f} {unit} of the first time"
        yardstick = getattr(samples["robosuite"], clock)
        for name, remark in (("cached kernels", ""), ("first time", note)):
            ours = getattr(samples[name], clock)
            yield compare(f"start, {name}", unit, ours, "robosuite", yardstick, better="lower", note=remark)


def cpu_of_children() -> float:
    """CPU seconds of all child processes that have ended."""
    usage = os.times()
    return usage.children_user + usage.children_system


def fresh(code: str, cache: Path) -> float:
    """Run ``code`` in a new Python with its kernel cache at ``cache``; returns 1, the amount of work.

    Raises UnavailableError with the last line of the error if it fails there.
    """
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return 1.0
