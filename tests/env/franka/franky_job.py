"""The FR3's driver against franky-sim, which speaks libfranka's protocol: an optional job, in an environment of its own.

    python -m tests.env.franka.franky_job --venv <folder>     made there if need be; figures as JSON, exit status 1 where a bar is missed

franky-sim wants numpy 2, which the simulators of this project do not take; hence the environment. robosuite's path is computed here, the
driver runs there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.env.franka import paths

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("franky-control==2.0.0", "franky-sim==1.0.4")
STEPS, BAR = 80, 15.0  # actions; mm in the mean


def main() -> int:
    """Make the environment, compute the path, run the driver, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="folder of the environment (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.venv or Path(temporary) / "venv"
        python = folder / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        actions = paths.moves(0, STEPS)
        start, positions, quaternions = paths.suite_path(actions)
        file = Path(temporary) / "path.npz"
        np.savez(file, actions=actions, start=start, positions=positions, quaternions=quaternions)
        # only ours are on the path there: env.franka needs nothing but numpy
        child = [str(python), "-m", "tests.env.franka.franky_job_child", str(file)]
        done = subprocess.run(child, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300, env=dict(os.environ))
    if done.returncode:
        return 1
    figures = json.loads(done.stdout.splitlines()[-1])
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 0 if figures["mean_mm"] <= BAR and all(figures["held"].values()) else 1


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    sys.stdout.write(f"{time.monotonic() - started:.0f} s\n")
    sys.exit(code)
