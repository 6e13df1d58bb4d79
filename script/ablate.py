"""Run an ablation: every cell of a grid is pre-trained and evaluated (or fine-tuned), and one table with intervals and figures say what came out.

    python script/ablate.py --config-dir=cfg/ablation --config-name=weight
    python script/ablate.py --config-dir=cfg/ablation --config-name=layer seeds=[0,1,2,3,4] jobs=2

Killed or interrupted: the same command goes on. What is finished is not repeated, what is half finished continues from its checkpoint.

On a cluster (pip install -e .[sweep]), in 20 jobs, and then once more without -m for the table:
    python script/ablate.py -m --config-dir=... --config-name=... hydra/launcher=submitit_slurm parts=20 'part=range(0,20)'    (or ...=ray)
Search instead of a grid; a job is a setting, and its mean over the seeds is what Optuna maximises:
    python script/ablate.py -m --config-dir=... --config-name=... hydra/sweeper=optuna hydra.sweeper.direction=maximize \\
        hydra.sweeper.n_trials=20 hydra.sweeper.n_jobs=1 'grids.weight.dispersive_loss_weight=interval(0.0,1.0)'
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as in script/run.py
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agent.ablation.figure import ablation_figure, curves_figure
from agent.ablation.grid import Cell, cells_of
from agent.ablation.outcome import Outcome, outcome_of, rows_of, write_table
from agent.errors import UsageError
from script import run
from script.ablation_cells import run_cells


def report(cells: Sequence[Cell], cfg: dict[str, Any]) -> list[Outcome]:
    """What came out of the cells that are finished, with a table and a figure (unless this is one part of many)."""
    out, outcomes = Path(cfg["out"]), []
    for cell in cells:
        outcome = outcome_of(cell, out / "cells" / cell.folder, cfg["threshold"])
        if outcome is not None:
            outcomes.append(outcome)
    if outcomes and cfg["part"] is None:
        rows, title = rows_of(outcomes, cfg["reference"]), f"{cfg['name']}: {len(outcomes)} of {len(cells)} cells"
        files = [
            *write_table(rows, out),
            ablation_figure(rows, out / "figure.png", title),
            curves_figure(outcomes, out / "curves.png", title),
        ]
        sys.stdout.write((out / "table.md").read_text() + "".join(f"{file}\n" for file in files if file))
    return outcomes


@hydra.main(config_path="../cfg", config_name=None, version_base="1.3")
def _main(cfg: DictConfig) -> float:
    """The mean of all cells, which is what a search maximises."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        cells = cells_of(plain)
        failed = run_cells(cells, plain)
        outcomes = report(cells, plain)
    except (UsageError, OmegaConfBaseException) as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command goes on\n")
        sys.exit(130)
    if failed:
        sys.stderr.write(
            f"\nerror: {len(failed)} of {len(cells)} cells failed; their words are in {plain['out']}/cells/<cell>/log.txt\n"
        )
        sys.exit(1)
    return float(np.mean([np.mean(outcome.scores) for outcome in outcomes])) if outcomes else float("nan")


def main() -> None:
    """Entry point of the command line."""
    if len(sys.argv) == 1 or sys.argv[1] in {"-h", "--help"}:
        named = "".join(f"  --config-name={p.stem}\n" for p in sorted((run.CFG / "ablation").glob("*.yaml")))
        sys.stdout.write(f"{__doc__}\nAblations in --config-dir=cfg/ablation:\n{named}")
        sys.exit(0 if len(sys.argv) > 1 else 2)
    _main()


if __name__ == "__main__":
    main()
