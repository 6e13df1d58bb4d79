"""Run directories as they were left behind: configuration, metrics, result; and which of them are seeds of one another."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agent.config import COMMON, STAGES
from agent.errors import UsageError
from agent.eval.statistics import bootstrap_interval, wilson_interval
from agent.logger import CHECKPOINTS, CONFIG, METRICS, RESULT
from agent.plots import read_metrics

# Where a run lies and what it draws, not what it does.
_PLACES = re.compile(r"(^|\.)(seed|name|logdir|log_root|data_root|resume|device|wandb|\w*_path|path)(\.|$)")


@dataclass(frozen=True)
class Outcome:
    """The episodes of one evaluation."""

    seeds: list[int]
    successes: np.ndarray  # (n,) bool
    returns: np.ndarray  # (n,)
    lengths: np.ndarray  # (n,) control steps
    n_invalid: int
    seconds: float
    solvable: bool  # False: the task knows no success, what counts is the return

    @property
    def success(self) -> tuple[float, float, float]:
        """Success rate and its Wilson interval."""
        return float(self.successes.mean()), *wilson_interval(int(self.successes.sum()), len(self.seeds))

    @property
    def mean_return(self) -> tuple[float, float, float]:
        """Mean return and its bootstrap interval."""
        return float(self.returns.mean()), *bootstrap_interval(self.returns)

    @property
    def score(self) -> tuple[float, float, float]:
        """What counts of this task, with its interval."""
        return self.success if self.solvable else self.mean_return


@dataclass(frozen=True)
class Run:
    """One run directory. ``outcomes``: of a fine-tuning run ``before`` and ``after``, of an evaluation ``evaluation``."""

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    result: dict[str, Any] | None  # None: not finished
    outcomes: dict[str, Outcome]

    @property
    def name(self) -> str:
        """Short, for tables: the folder's name, with its parent's where that is only a date and a seed."""
        return "/".join(self.path.parts[-2:]) if re.match(r"[\d_-]+$", self.path.name) else self.path.name

    @property
    def stage(self) -> str:
        """pretrain, finetune or eval."""
        return str(self.config.get("stage"))

    @property
    def task(self) -> str:
        """Of the environment."""
        return str((self.config.get("env") or {}).get("name") or self.config.get("env_name"))

    @property
    def outcome(self) -> Outcome | None:
        """The last evaluation, if there was one."""
        return self.outcomes.get("after") or self.outcomes.get("evaluation")

    @property
    def checkpoint(self) -> Path | None:
        """What the run trained, or evaluated."""
        path = (self.result or {}).get("checkpoint")
        return Path(path) if path else None

    @functools.cached_property
    def origin(self) -> dict[str, Any] | None:
        """The configuration of the run that trained the policy this one began with; None where it is not to be found."""
        return _config_of(self.config.get("base_policy_path"))

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All that makes the run what it is, flat: its configuration without places and seeds, and, as ``base.<key>``, that of the run it
        began with (and so on)."""
        return _settings(self.config)

    @property
    def policy_settings(self) -> dict[str, Any]:
        """All that made the policy: of an evaluation the settings of the run that trained it, empty where that is not to be found."""
        if self.stage != "eval":
            return self.settings
        return {key.removeprefix("base."): value for key, value in self.settings.items() if key.startswith("base.")}

    @property
    def seed(self) -> int:
        """Of the training; an evaluation's is that of the policy it evaluated."""
        config = self.origin if self.stage == "eval" and self.origin else self.config
        return int(config.get("seed", 0))


def read_run(path: str | Path) -> Run:
    """A run directory, or the folder of a quickstart (its fine-tuning run).

    Raises:
        UsageError: no run there, or its files are damaged.
    """
    path = Path(path).expanduser()
    path = path / "finetune" if (path / "finetune" / CONFIG).is_file() else path
    if not (path / CONFIG).is_file():
        raise UsageError(
            f"{path}: expected a run directory, which holds {CONFIG}, {METRICS} and {RESULT}; found no {CONFIG}"
        )
    try:
        config = OmegaConf.to_container(OmegaConf.load(path / CONFIG), resolve=True)
        rows = read_metrics(path / METRICS) if (path / METRICS).is_file() else []
        result = json.loads((path / RESULT).read_text()) if (path / RESULT).is_file() else None
        parts = {key: result[key] for key in ("before", "after") if result and result.get(key)}
        parts |= {"evaluation": result} if result and "successes" in result else {}
        solved = any(any(part["successes"]) for part in parts.values())  # older results do not say whether that can be
        outcomes = {key: _outcome(part, solved) for key, part in parts.items()}
    except (OSError, ValueError, KeyError, TypeError, OmegaConfBaseException) as error:
        raise UsageError(f"{path}: its files cannot be read: {type(error).__name__}: {error}") from error
    return Run(path, config, rows, result, outcomes)


def _outcome(part: Mapping[str, Any], solved: bool) -> Outcome:
    flags, returns, lengths = (np.asarray(part[key]) for key in ("successes", "returns", "lengths"))
    if not len(part["seeds"]) == len(flags) == len(returns) == len(lengths) > 0:
        raise ValueError("expected one success, return and length for each seed, and at least one")
    return Outcome(
        part["seeds"],
        flags.astype(bool),
        returns.astype(float),
        lengths,
        part.get("n_invalid", 0),
        part.get("seconds", np.nan),
        part.get("solvable", solved),
    )


def _config_of(checkpoint: str | None) -> dict[str, Any] | None:
    """The configuration beside the checkpoint's folder."""
    file = Path(checkpoint or "").expanduser().parent.parent / CONFIG
    if not checkpoint or not file.is_file():
        return None
    try:
        config = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (OSError, ValueError, OmegaConfBaseException):
        return None
    return config if isinstance(config, dict) else None


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in flatten(config) if not _PLACES.search(key)}
    checkpoint = config.get("base_policy_path")
    found |= {"base_policy": Path(checkpoint).name} if checkpoint else {}  # which of a run's checkpoints does matter
    origin = _config_of(checkpoint)
    return found | {f"base.{key}": value for key, value in (_settings(origin) if origin else {}).items()}


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, by dotted key; lists are leaves."""
    if not isinstance(node, Mapping) or not node:
        yield prefix, node
        return
    for key, value in node.items():
        yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))


def differences(all_settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys whose values are not the same everywhere, with those values (None: has no such key). Of copies of one setting (interpolations leave
    ``weight`` and ``model.weight``) only the shortest key stays."""
    keys = dict.fromkeys(key for settings in all_settings for key in settings)
    rows = {key: [settings.get(key) for settings in all_settings] for key in keys}
    found: dict[str, list[Any]] = {}
    for key in sorted((k for k, row in rows.items() if any(x != row[0] for x in row)), key=lambda k: (k.count("."), k)):
        last = key.rpartition(".")[2]
        if not any(other.rpartition(".")[2] == last and row == rows[key] for other, row in found.items()):
            found[key] = rows[key]
    return found


@dataclass(frozen=True)
class Group:
    """Runs of the same settings, which differ in their seeds at most. Groups of the same ``number`` are of the same policies."""

    label: str
    runs: list[Run]
    number: int

    @property
    def task(self) -> str:
        return self.runs[0].task

    @property
    def stage(self) -> str:
        return self.runs[0].stage


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Runs by settings, in the order they first came, each named by what sets it apart from the others of its stage and task."""
    same: dict[str, list[Run]] = {}
    for run in runs:
        same.setdefault(_key(run.settings), []).append(run)
    numbers: dict[str, int] = {}
    found: list[Group] = []
    for group in same.values():
        first = group[0]
        rivals = [other[0] for other in same.values() if (other[0].stage, other[0].task) == (first.stage, first.task)]
        apart = differences([rival.settings for rival in rivals])
        words = [f"{key.rpartition('.')[2]}={row[rivals.index(first)]}" for key, row in apart.items()]
        label = ", ".join([first.task, *words]) if 0 < len(words) <= 2 else first.name
        label += f" ×{len(group)}" if len(group) > 1 else ""
        label += (
            f" ({first.name})" if any(label == other.label and first.stage == other.stage for other in found) else ""
        )
        number = numbers.setdefault(_key(first.policy_settings or {"of": str(first.path)}), len(numbers))
        found.append(Group(label, group, number))
    return found


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def replay_command(run: Run, seed: int) -> str:
    """The command that runs the episode of ``seed`` once more and films it, into ``<run>/replay_<seed>``."""
    words = [f"--config-dir={run.path.resolve()}", f"--config-name={Path(CONFIG).stem}"]
    if run.stage != "eval":  # of its configuration only what an evaluation knows
        keep = {*COMMON, *STAGES["eval"]} - {"model"}
        words += ["_target_=agent.eval.eval_agent.EvalAgent", "stage=eval", f"base_policy_path={run.checkpoint}"]
        words += [f"~{key}" for key in run.config if key not in keep] + ["+model={}", "+deterministic=true"]
    words += [] if "policy_weights" in run.config else ["+policy_weights=null"]  # older runs do not have it
    words += ["++n_episodes=1", f"++eval_seed={seed}", "++render_num=1", "env.n_envs=1"]
    return shlex.join(["python", "script/run.py", *words, f"logdir={run.path.resolve()}/replay_{seed}"])


def videos(run: Run) -> list[Path]:
    """The films of the run, the last one made first."""
    return sorted((run.path / "render").glob("*.mp4"), key=lambda path: (path.stat().st_mtime, path.name), reverse=True)


def has_checkpoint(run: Run) -> bool:
    """Whether its checkpoint is still there."""
    return run.checkpoint is not None and run.checkpoint.exists() and run.checkpoint.parent.name == CHECKPOINTS
