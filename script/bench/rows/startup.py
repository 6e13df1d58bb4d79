"""How long one waits before the first control step, in a fresh process each time."""

from __future__ import annotations

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
    """Our engine with an empty and with a filled kernel cache, against robosuite."""
    with tempfile.TemporaryDirectory(prefix="d2ppo-kernels-") as folder:
        warm = Path(folder) / "warm"
        fresh(ENGINE, warm)  # fills the cache; also the moment to learn that the engine is absent
        cold = iter(range(1000))
        samples = context.interleave(
            {
                "compile": Contestant(lambda: fresh(ENGINE, Path(folder) / f"cold{next(cold)}")),
                "cached": Contestant(lambda: fresh(ENGINE, warm)),
                "robosuite": Contestant(lambda: fresh(ROBOSUITE, warm)),
            },
            warm_up=False,
        )
    robosuite = samples["robosuite"].seconds_each
    compiling = samples["compile"].seconds_each - samples["cached"].seconds_each
    name = "start to first step"
    yield compare(
        f"{name}, cached kernels", "s", samples["cached"].seconds_each, "robosuite", robosuite, better="lower"
    )
    note = f"of which compiling: {np.median(compiling):.1f} s"
    yield compare(
        f"{name}, first time", "s", samples["compile"].seconds_each, "robosuite", robosuite, better="lower", note=note
    )


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
