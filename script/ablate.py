"""Run an ablation: every cell of a grid is pre-trained and evaluated (or fine-tuned), and one table with intervals and one figure say what came out.

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

import contextlib
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as in script/run.py
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hydra
import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from agent.ablation.figure import ablation_figure
from agent.ablation.grid import Cell, cells_of
from agent.ablation.outcome import Outcome, outcome_of, rows_of, write_table
from agent.errors import UsageError
from agent.files import atomic_write
from agent.logger import CONFIG, RESULT
from agent.resume import check_same
from script import run

log = logging.getLogger(__name__)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def run_cell(cell: Cell, out: Path, data_root: str, threads: int) -> None:
    """Every stage of ``cell`` that is not finished, by the functions that ``script/run.py`` calls.

    Raises:
        UsageError: as those; or a finished stage was run with other settings than it would have now.
    """
    folder = out / "cells" / cell.folder
    with atomic_write(folder / "cell.json") as file:
        file.write(
            json.dumps(
                {"task": cell.task, "seed": cell.seed, "stages": cell.stages, "grids": cell.labels}, indent=1
            ).encode()
        )
    trained: str | None = None
    for stage, leaf, settings in cell.stages:
        logdir = folder / stage
        given = {
            **settings,
            "seed": cell.seed,
            "logdir": str(logdir),
            "data_root": data_root,
            "wandb": None,
            "resume": True,
        }
        if stage != "pretrain":
            given |= {"base_policy_path": trained, "env.n_threads": threads}
        cfg = composed(leaf, given)
        result = logdir / RESULT
        if result.is_file():
            check_same(
                OmegaConf.to_container(OmegaConf.load(logdir / CONFIG)), OmegaConf.to_container(cfg, resolve=True)
            )
        else:
            run.execute(cfg)
        trained = json.loads(result.read_text()).get("checkpoint")


def composed(leaf: str, settings: dict[str, Any]) -> DictConfig:
    """The configuration ``leaf`` under ``cfg/`` with ``settings`` by dotted key."""
    GlobalHydra.instance().clear()
    overrides = [f"{key}={_literal(value)}" for key, value in settings.items()]
    try:
        with initialize_config_dir(str(run.CFG), version_base="1.3"):
            return compose(leaf, overrides=overrides)
    except Exception as error:  # Hydra raises many kinds; the message names the key or the file
        raise UsageError(f"{leaf}: {' '.join(str(error).split())}") from error


def _literal(value: Any) -> str:
    """``value`` in Hydra's grammar of overrides."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_literal, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    return json.dumps(value)


def _work(cell: Cell, out: Path, data_root: str, threads: int, parent: int) -> str | None:
    """``run_cell`` in a process of its own, its words in the cell's ``log.txt``; returns what went wrong."""
    _end_with(parent)
    import torch

    torch.set_num_threads(threads)
    folder = out / "cells" / cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    with _words_to(folder / "log.txt"):
        try:
            run_cell(cell, out, data_root, threads)
        except KeyboardInterrupt:
            return "interrupted"
        except BaseException as error:  # noqa: BLE001  one cell must not take the others with it
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
    return None


@contextlib.contextmanager
def _words_to(path: Path) -> Iterator[None]:
    """Everything this process prints or logs goes to the end of a file."""
    with open(path, "a", encoding="utf-8") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%H:%M:%S"))
        logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield
        logging.basicConfig(handlers=[logging.NullHandler()], force=True)


def _end_with(parent: int) -> None:
    """End this process soon after its parent was killed: who starts the ablation again must not meet it at work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    if not any(thread.name == "ablate-watch" for thread in threading.enumerate()):
        threading.Thread(target=watch, name="ablate-watch", daemon=True).start()


def run_cells(cells: Sequence[Cell], cfg: dict[str, Any]) -> dict[str, str]:
    """Those not finished, ``jobs`` at a time; returns what went wrong, by cell."""
    out, todo = Path(cfg["out"]), _to_do(cells, cfg)
    jobs = cfg["jobs"] or max(1, len(os.sched_getaffinity(0)) // cfg["threads"])
    os.environ.update(dict.fromkeys(THREADS, str(cfg["threads"])))  # of the processes to be started
    failed: dict[str, str] = {}
    arguments = (out, str(Path(cfg["data_root"]).expanduser()), cfg["threads"], os.getpid())
    pool = ProcessPoolExecutor(max(1, min(jobs, len(todo))), multiprocessing.get_context("spawn"))
    bar = tqdm(
        total=len(cells),
        initial=len(cells) - len(todo),
        desc="ablation",
        unit="cell",
        smoothing=0,
        dynamic_ncols=True,
        mininterval=1,
    )
    try:
        with bar:
            waiting: dict[Future, Cell] = {pool.submit(_work, cell, *arguments): cell for cell in todo}
            for future in as_completed(waiting):
                cell = waiting[future]
                try:
                    wrong = future.result()
                except BrokenProcessPool:
                    wrong = "its process was killed (out of memory?)"
                if wrong:
                    failed[cell.folder] = wrong
                    tqdm.write(f"{cell.folder}: {wrong}", sys.stderr)
                bar.set_postfix_str(f"last: {cell.folder}", refresh=False)
                bar.update()
    except KeyboardInterrupt:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()
    return failed


def _to_do(cells: Sequence[Cell], cfg: dict[str, Any]) -> list[Cell]:
    """Cells that are not finished, of this part; and of each setting one that is, to see that it still means the same."""
    todo, checked = [], set()
    for k, cell in enumerate(cells):
        if cfg["part"] is not None and k % cfg["parts"] != cfg["part"]:
            continue
        if outcome_of(cell, Path(cfg["out"]) / "cells" / cell.folder, None) is None or cell.setting not in checked:
            todo.append(cell)
        checked.add(cell.setting)
    return todo


def report(cells: Sequence[Cell], cfg: dict[str, Any]) -> list[Outcome]:
    """Table and figure of the cells that are finished."""
    out, outcomes = Path(cfg["out"]), []
    for cell in cells:
        outcome = outcome_of(cell, out / "cells" / cell.folder, cfg["threshold"])
        if outcome is not None:
            outcomes.append(outcome)
    if outcomes:
        rows = rows_of(outcomes, cfg["reference"])
        files = [
            *write_table(rows, out),
            ablation_figure(rows, out / "figure.png", f"{cfg['name']}: {len(outcomes)} of {len(cells)} cells"),
        ]
        sys.stdout.write((out / "table.md").read_text() + "".join(f"{file}\n" for file in files))
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
