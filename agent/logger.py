"""What a run leaves behind: ``metrics.jsonl``, ``result.json``, ``config.yaml``, console lines, and WandB where wanted.

A run directory belongs to one running process at a time. Rows of ``metrics.jsonl`` are whole lines; wall-clock
figures have keys that start with ``time/``, so that two runs can be compared without them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from agent.agent import read
from agent.errors import RunDirError, UsageError
from agent.files import atomic_write, remove_leftovers

log = logging.getLogger(__name__)

METRICS, RESULT, CONFIG, CHECKPOINTS = "metrics.jsonl", "result.json", "config.yaml", "checkpoint"
_MEND = "Choose another logdir (environment variable DPPO_LOG_DIR sets where runs go)"


def locate_run(cfg: Mapping[str, Any] | DictConfig) -> tuple[Path, bool]:
    """Where the run lives and whether it goes on: from ``logdir`` and ``resume`` (null | true | the run directory or
    a file in it).

    Raises:
        RunDirError: ``resume`` is a path that does not exist.
    """
    resume = read(cfg, "resume", None)
    if not isinstance(resume, str):
        return Path(read(cfg, "logdir")).expanduser(), bool(resume)
    path = Path(resume).expanduser()
    if path.is_file():
        path = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    if not path.is_dir():
        raise RunDirError(
            f"resume: {resume!r} does not exist; give the run directory that holds {METRICS} and {CHECKPOINTS}/"
        )
    return path, True


def claim_run_dir(logdir: str | os.PathLike[str], resume: bool = False) -> int | None:
    """Make ``logdir`` and lock it for this process. Leftovers of a killed process are cleared.

    Returns:
        The descriptor that holds the lock until it is closed or the process ends; None where the file system knows no
        locks.

    Raises:
        RunDirError: it already holds a run (and ``resume`` is off), another process is using it, or it is not writable.
    """
    logdir = Path(logdir)
    try:
        (logdir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(logdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunDirError(f"logdir: {logdir} cannot be used ({error.strerror}). {_MEND}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunDirError(f"logdir: another process is running in {logdir}. Wait for it or stop it. {_MEND}") from None
    except OSError:  # a network file system without locks: go on unguarded
        os.close(descriptor)
        descriptor = None
    if not resume and _holds_run(logdir):
        if descriptor is not None:
            os.close(descriptor)
        raise RunDirError(f"logdir: {logdir} already holds a run. Go on with it (resume=true) or choose another logdir")
    for folder in (logdir, logdir / CHECKPOINTS):
        remove_leftovers(folder)
    return descriptor


class RunLogger:
    """Claims the run directory and records the run.

    Args:
        logdir: the run directory, made if absent (``locate_run`` finds it).
        cfg: the configuration; stored as ``config.yaml`` unless the run already has one. With ``cfg.wandb`` null
            WandB is never imported.
        resume: go on in a directory that holds a run; call ``truncate_after`` with the step resumed from.

    Raises:
        RunDirError: as ``claim_run_dir``.
        UsageError: WandB is wanted but not installed.
    """

    def __init__(
        self, logdir: str | os.PathLike[str], cfg: Mapping[str, Any] | DictConfig, resume: bool = False
    ) -> None:
        self.logdir = Path(logdir)
        self._lock = claim_run_dir(self.logdir, resume)
        self._file: int | None = None
        self._wandb: Any = None
        try:
            if not (resume and (self.logdir / CONFIG).exists()):
                node = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
                self._write(CONFIG, OmegaConf.to_yaml(node, resolve=True))
            self._repair()
            self._open()
            if read(cfg, "wandb", None) is not None:
                self._wandb = _start_wandb(self.logdir, cfg, resume)
        except BaseException:
            self.close()
            raise

    @property
    def metrics_path(self) -> Path:
        """The run's ``metrics.jsonl``."""
        return self.logdir / METRICS

    def log(self, step_key: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one row ``{step_key: step, **metrics}``. Values are numbers or 0-d tensors; NaN and infinity become
        null.

        Raises:
            RunDirError: the row cannot be written (disk full).
        """
        row = {step_key: int(step), **{key: _number(key, value) for key, value in metrics.items()}}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        try:
            written = os.write(
                self._file, line
            )  # one call: a line is there whole or, cut by a full disk, repaired on resume
        except OSError as error:
            raise self._unwritable(METRICS, error) from error
        if written < len(line):
            raise RunDirError(
                f"logdir: {self.metrics_path} cannot be written, the disk is full. Free space and go on with "
                "resume=true"
            )
        if self._wandb is not None:
            self._wandb.log({key: value for key, value in row.items() if value is not None})

    def info(self, message: str) -> None:
        """A line on the console (above a progress bar where one is drawn with ``logging_redirect_tqdm``)."""
        log.info(message)

    def rows(self) -> list[dict[str, Any]]:
        """Every row so far."""
        return [json.loads(line) for line in self.metrics_path.read_text().splitlines()]

    def truncate_after(self, key: str, value: int) -> int:
        """Drop rows whose ``key`` is beyond ``value`` (a killed run logged them after its last checkpoint); returns
        how many."""
        rows = self.rows()
        kept = [row for row in rows if key not in row or row[key] <= value]
        if len(kept) < len(rows):
            self._write(METRICS, "".join(json.dumps(row) + "\n" for row in kept))
            self._open()
        return len(rows) - len(kept)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json`` (plain numbers, strings, lists, dicts; NaN becomes null) and close."""
        plain = _plain(result)
        self._write(RESULT, json.dumps(plain, indent=2, allow_nan=False) + "\n")
        if self._wandb is not None:
            self._wandb.summary.update(plain)
            self._show()
        self.close()

    def _show(self) -> None:
        """The run's report in WandB, with all its figures. Trouble with it is never the run's trouble."""
        try:
            import wandb

            from agent.report.page import make_report  # imports this module

            self._wandb.log({"report": wandb.Html(make_report([self.logdir]))})
        except Exception as error:  # noqa: BLE001
            log.warning("wandb: no report (%s: %s)", type(error).__name__, error)

    def close(self) -> None:
        """Free the directory; idempotent."""
        if self._wandb is not None:
            self._wandb.finish()
        for descriptor in (self._file, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._wandb = self._file = self._lock = None

    def _open(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        try:
            self._file = os.open(self.metrics_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._unwritable(METRICS, error) from error

    def _repair(self) -> None:
        """Cut a last line that a full disk or a power cut left incomplete."""
        if not self.metrics_path.exists():
            return
        data = self.metrics_path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._write(METRICS, whole.decode())

    def _write(self, name: str, text: str) -> None:
        try:
            with atomic_write(self.logdir / name) as file:
                file.write(text.encode())
        except OSError as error:
            raise self._unwritable(name, error) from error

    def _unwritable(self, name: str, error: OSError) -> RunDirError:
        return RunDirError(f"logdir: {self.logdir / name} cannot be written ({error.strerror or error}). {_MEND}")


def _holds_run(logdir: Path) -> bool:
    """Anything worth keeping? A run that failed before its first row left an empty file of metrics."""
    metrics = logdir / METRICS
    if (metrics.exists() and metrics.stat().st_size > 0) or (logdir / RESULT).exists():
        return True
    return any((logdir / CHECKPOINTS).glob("*.pt"))


def _number(key: str, value: Any) -> float | int | None:
    """A JSON number; tensors and numpy scalars are read out, NaN and infinity have no place in JSON."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return int(value)
    if value is None or isinstance(value, int):
        return value
    if not isinstance(value, float):
        raise TypeError(f"metric {key!r} is a {type(value).__name__}; expected a number or a 0-d tensor")
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, os.PathLike) else value


def _start_wandb(logdir: Path, cfg: Mapping[str, Any] | DictConfig, resume: bool) -> Any:
    """Start WandB: online with an account, else offline. A resumed run keeps its id. Trouble with the service is
    never the run's trouble."""
    try:
        import wandb  # only where wanted: wandb=null must work without the package
    except ImportError as error:
        raise UsageError(
            "wandb: the package is not installed. Install it with `pip install wandb`, or switch it off with wandb=null"
        ) from error
    id_file = logdir / "wandb_id.txt"
    run_id = id_file.read_text().strip() if resume and id_file.exists() else secrets.token_hex(4)
    settings = {
        "id": run_id,
        "resume": "allow",
        "dir": str(logdir),
        "entity": read(cfg, "wandb.entity", None),
        "project": read(cfg, "wandb.project", None),
        "name": read(cfg, "wandb.run", None),
        "config": OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else dict(cfg),
    }
    mode = _wandb_mode(wandb, read(cfg, "wandb.mode", "auto"))
    try:
        run = wandb.init(mode=mode, **settings)
    except wandb.errors.Error as error:
        log.warning(
            "wandb: cannot go online (%s); recording offline. Send it later with `wandb sync`",
            str(error).splitlines()[0],
        )
        run = wandb.init(mode="offline", **settings)
    id_file.write_text(run_id + "\n")
    return run


def _wandb_mode(wandb: Any, wanted: str) -> str:
    if wanted not in ("auto", "online", "offline"):
        raise UsageError(f"wandb.mode: expected auto, online or offline, found {wanted!r}. wandb=null switches it off")
    chosen = os.environ.get("WANDB_MODE") or (wanted if wanted != "auto" else None)
    if chosen:
        return chosen
    with contextlib.suppress(wandb.errors.Error, TypeError):  # TypeError: an older wandb, which can only ask a person
        if wandb.login(prompt=False):
            return "online"
    log.warning(
        "wandb: no account is configured here; recording offline under the run directory (`wandb login` for online, "
        "wandb=null for none)"
    )
    return "offline"
