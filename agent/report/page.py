"""The page: what is in it, gathered from runs, and its HTML. One file, which fetches nothing."""

from __future__ import annotations

import base64
import datetime
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import UsageError
from agent.logger import CONFIG
from agent.report import figures
from agent.report.features import Features, features_of
from agent.report.results import differences_of, evaluations, failures_by_seed, number
from agent.report.runs import Group, Run, differences, grouped, has_checkpoint, read_run, replay_command, videos

log = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("page.html")
WORST = 10  # episodes shown of a task without success
_STAGES = {"pretrain": "pre-training", "finetune": "fine-tuning", "eval": "evaluation"}
_TIMES = {
    "time/iteration": "s per iteration",
    "time/sample": "policy, s",
    "time/simulate": "simulation, s",
    "time/update": "update, s",
    "time/env_steps_per_s": "environment steps per s",
    "time/epoch": "s per epoch",
    "time/samples_per_s": "samples per s",
    "time/eval": "s per evaluation",
}


@dataclass(frozen=True)
class Map:
    """What one checkpoint's features look like, or why that is not shown."""

    group: Group
    features: Features | None = None
    svgs: list[tuple[str, str, str]] = field(default_factory=list)
    problem: str = ""


def make_report(paths: Sequence[str | Path], title: str | None = None, umap: bool = False) -> str:
    """The HTML page of these run directories.

    Raises:
        UsageError: a folder that is no run, or the same one twice.
    """
    import jinja2

    runs = [read_run(path) for path in paths]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UsageError(f"the same run was given twice: {', '.join(map(str, paths))}")
    groups = grouped(runs)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title or ", ".join(dict.fromkeys(run.task for run in runs)),
        date=datetime.date.today().isoformat(),
        n_series=figures.N_SERIES,
        n_shades=figures.N_SHADES,
        runs=runs,
        groups=groups,
        number_of={str(run.path): group.number for group in groups for run in group.runs},
        about=[(group, dict(_about(group))) for group in groups],
        results=list(evaluations(groups)),
        contrasts=list(differences_of(groups)),
        curves=figures.curves(groups),
        losses=figures.losses(groups),
        maps=_maps(groups, umap),
        strips=list(failures_by_seed(runs)),
        films=[(run, *_film(run)) for run in runs if videos(run)],
        failures=[(run, *_failures(run)) for run in runs if run.outcome],
        timing=[(run, dict(_timing(run))) for run in runs if run.rows],
        apart=list(_apart(groups)),
        configs=[(run, (run.path / CONFIG).read_text(encoding="utf-8")) for run in runs],
        number=number,
    )


def _about(group: Group) -> Iterator[tuple[str, str]]:
    """What was run, in a few words."""
    run = group.runs[0]
    config, origin, result = run.config, run.origin or {}, run.result or {}
    model = (config.get("model") or {}) if "_target_" in (config.get("model") or {}) else origin.get("model") or {}
    yield "stage", _STAGES.get(run.stage, run.stage)
    yield "policy", " ".join(x for x in (model.get("_target_", "").rpartition(".")[2], config.get("network_name")) if x)
    if _disperses(config):
        yield "dispersive loss", _dispersion(config)
    elif _disperses(origin):
        yield "dispersive loss", f"{_dispersion(origin)} (in pre-training)"
    else:
        yield "dispersive loss", "none"
    yield "training seeds" if len(group.runs) > 1 else "training seed", ", ".join(str(run.seed) for run in group.runs)
    steps = [f"{result[key]:,} {key}" for key in ("epochs", "iterations") if key in result]
    steps += [f"{result['env_steps'] / 1e6:.2f} million steps"] if "before" in result else []
    yield "length", ", ".join(steps) or (f"{len(run.outcome.seeds)} episodes" if run.outcome else "not finished")
    yield "folders" if len(group.runs) > 1 else "folder", "\n".join(run.name for run in group.runs)


def _disperses(config: dict[str, Any]) -> bool:
    model = config.get("model") or {}
    return bool(model.get("use_dispersive_loss")) and model.get("dispersive_loss_weight") != 0


def _dispersion(config: dict[str, Any]) -> str:
    keys = ("weight", "type", "layer", "temperature")
    return ", ".join(f"{key} {config['model'].get(f'dispersive_loss_{key}')}" for key in keys)


def _maps(groups: Sequence[Group], umap: bool) -> list[Map]:
    """Features of one policy without and one with a dispersive loss: of the first pre-training runs of the first task."""
    usable = [group for group in groups if group.stage == "pretrain" and has_checkpoint(group.runs[0])]
    chosen: dict[bool, Group] = {}
    for group in usable:
        if group.task == usable[0].task:
            chosen.setdefault(_disperses(group.runs[0].config), group)
    found = []
    for _, group in sorted(chosen.items()):
        try:
            features = features_of(group.runs[0], umap)
            found.append(Map(group, features, figures.maps(features)))
        except (UsageError, ValueError, KeyError, OSError) as error:
            log.warning("no feature maps of %s: %s", group.runs[0].path, error)
            found.append(Map(group, problem=str(error)))
    return found


def _failures(run: Run) -> tuple[str, list[tuple[int, str, int, str]]]:
    """A headline, and seed, return, length and replaying command of every failed episode; of a task without success, of the worst."""
    outcome = run.outcome
    if outcome.solvable:
        chosen = np.flatnonzero(~outcome.successes)
        words = f"{len(chosen)} of {len(outcome.seeds)} episodes failed"
    else:
        chosen = np.argsort(outcome.returns)[:WORST]
        words = f"the {len(chosen)} lowest returns of {len(outcome.seeds)}"
    seeds = [outcome.seeds[i] for i in chosen]
    returns = [number(float(x)) for x in outcome.returns[chosen]]
    commands = [replay_command(run, seed) for seed in seeds]
    return words, list(zip(seeds, returns, outcome.lengths[chosen].tolist(), commands, strict=True))


def _film(run: Run) -> tuple[str, str]:
    """Name and data URL of the run's last film."""
    path = videos(run)[0]
    return path.name, f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _timing(run: Run) -> Iterator[tuple[str, str]]:
    """How long it took and what on; medians over iterations or epochs."""
    last = [row["time/wall"] for row in run.rows if row.get("time/wall")][-1:]
    if last:
        yield "in all", f"{last[0] / 60:.1f} min"
    for key, words in _TIMES.items():
        values = [row[key] for row in run.rows if row.get(key) is not None]
        if values:
            yield words, number(float(np.median(values)))


def _apart(groups: Sequence[Group]) -> Iterator[tuple[str, list[Group], dict[str, list[Any]]]]:
    """For every stage and task with several groups: what differs in their configurations."""
    for task, stage in dict.fromkeys((group.task, group.stage) for group in groups):
        some = [group for group in groups if (group.task, group.stage) == (task, stage)]
        if len(some) > 1:
            yield f"{task}, {_STAGES.get(stage, stage)}", some, differences([group.runs[0].settings for group in some])
