"""The cells of an ablation, at work: each in a process of its own, by the functions that ``script/run.py`` calls.

A module of its own, because processes, and the jobs of a cluster, find what they are to do by its name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.ablation.grid import Cell
from agent.ablation.outcome import outcome_of
from agent.errors import UsageError
from agent.files import atomic_write
from agent.logger import CONFIG, RESULT
from agent.resume import check_same
from script import run

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
    share_base(cell, out)
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
            given["env.n_threads"] = threads
        if trained is not None:
            given["base_policy_path"] = trained
        cfg = composed(leaf, given)
        result = logdir / RESULT
        if result.is_file():
            check_same(
                OmegaConf.to_container(OmegaConf.load(logdir / CONFIG)), OmegaConf.to_container(cfg, resolve=True)
            )
        else:
            run.execute(cfg)
        trained = json.loads(result.read_text()).get("checkpoint")


def share_base(cell: Cell, out: Path) -> bool:
    """Copy the pre-training of another cell that is the same and finished, if ``cell`` has none yet; returns whether it did."""
    first = json.loads(json.dumps(cell.stages[0]))
    target = out / "cells" / cell.folder / first[0]
    if first[0] != "pretrain" or target.exists():
        return False
    for file in sorted((out / "cells").glob("*/cell.json")):
        other, source = json.loads(file.read_text()), file.parent / first[0]
        if (other["seed"], other["stages"][0]) == (cell.seed, first) and (source / RESULT).is_file():
            copy = target.with_name(f".{first[0]}.{os.getpid()}")
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".*"))
            result = json.loads((copy / RESULT).read_text())
            result["checkpoint"] = str(target / "checkpoint" / Path(result["checkpoint"]).name)
            (copy / RESULT).write_text(json.dumps(result, indent=2))
            copy.rename(target)
            logging.getLogger(__name__).info("the base of %s: the same pre-training", file.parent.name)
            return True
    return False


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


def work(cell: Cell, out: Path, data_root: str, threads: int, parent: int) -> str | None:
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
            waiting: dict[Future, Cell] = {pool.submit(work, cell, *arguments): cell for cell in todo}
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
