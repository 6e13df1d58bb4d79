"""What came out of a cell, and of all cells of a setting: one row of the table."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.ablation.grid import Cell
from agent.eval.statistics import Estimate, bootstrap_interval, student_mean, wilson_interval
from agent.files import atomic_write
from agent.logger import METRICS, RESULT
from agent.plots import read_metrics

_ENDS = ("", "_low", "_high")  # of an interval's columns
FEATURES = ("effective_rank", "neighbour_distance")  # of each layer, at the end of pre-training


@dataclass(frozen=True)
class Outcome:
    """Of one cell that is finished."""

    cell: Cell
    scores: list[float]  # by evaluation seed: whether solved, or (locomotion) the return
    solvable: bool
    features: dict[str, float]  # <layer>/<name>
    steps_to: float  # environment steps until success reached the threshold; NaN: never, or nothing was fine-tuned
    seconds: float  # of wall clock, all stages
    start: list[float] | None = None  # the scores before fine-tuning, of the same episodes
    env_steps: float = math.nan  # of fine-tuning
    per_iteration: float = math.nan  # seconds of fine-tuning, evaluations apart: the median
    env_steps_per_s: float = math.nan  # of such an iteration
    curve: tuple[tuple[float, float], ...] = ()  # (environment steps, mean score) of fine-tuning, its end last


def outcome_of(cell: Cell, folder: Path, threshold: float | None) -> Outcome | None:
    """Read what the stages of ``cell`` left under ``folder``; None unless all are finished."""
    results = {}
    for stage, _, _ in cell.stages:
        file = folder / stage / RESULT
        if not file.is_file():
            return None
        results[stage] = json.loads(file.read_text())
    measured = results["finetune"]["after"] if "finetune" in results else results["evaluate"]
    solvable = measured.get("solvable", True)
    key = "successes" if solvable else "returns"
    seconds = sum(result.get("wall_seconds", result.get("seconds", 0.0)) for result in results.values())
    tuned = results.get("finetune", {})
    curve = _curve(folder / "finetune" / METRICS, "eval/success_rate" if solvable else "eval/episode_return")
    end = ((float(tuned["env_steps"]), float(np.mean(measured[key]))),) if "env_steps" in tuned else ()
    reached = (steps for steps, score in curve if solvable and threshold is not None and score >= threshold)
    return Outcome(
        cell,
        [float(x) for x in measured[key]],
        solvable,
        _features(folder / "pretrain" / METRICS),
        next(reached, math.nan),
        seconds,
        [float(x) for x in tuned["before"][key]] if tuned.get("before") else None,
        float(tuned.get("env_steps", math.nan)),
        *_pace(folder / "finetune" / METRICS),
        curve + end,
    )


def rows_of(outcomes: Sequence[Outcome], reference: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each grid and setting: mean over seeds with its interval, and the difference to ``reference``.

    The interval of a mean is Student's over the training seeds (what another run may give) and, for rates of success, at least as wide as
    Wilson's over all episodes: seeds that happen to agree are no proof. The difference is paired: of the same training seeds on the
    same evaluation seeds, Student's interval.

    Args:
        reference: settings of the cells that others of the same task and seed are compared with, each with the one it shares most settings
            with (of a small batch that of small batches); empty: none.
    """
    groups: dict[tuple, list[Outcome]] = {}
    for outcome in outcomes:
        for grid in outcome.cell.labels:
            groups.setdefault((grid, outcome.cell.task, outcome.cell.setting), []).append(outcome)
    references = [
        o for o in outcomes if reference and all(o.cell.settings.get(key) == value for key, value in reference.items())
    ]
    order = list(dict.fromkeys(grid for grid, _, _ in groups))
    ordered = sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    return [_row(grid, task, found, references) for (grid, task, _), found in ordered]


def _nearest(outcome: Outcome, references: Sequence[Outcome]) -> Outcome | None:
    same = [r for r in references if (r.cell.task, r.cell.seed) == (outcome.cell.task, outcome.cell.seed)]
    mine = outcome.cell.settings.items()
    return max(same, key=lambda r: sum(r.cell.settings.get(k) == v for k, v in mine), default=None)


def _row(grid: str, task: str, found: Sequence[Outcome], references: Sequence[Outcome]) -> dict[str, Any]:
    means = [float(np.mean(outcome.scores)) for outcome in found]
    labels = found[0].cell.labels[grid]
    shown = (
        f"{axis.rpartition('.')[2].removeprefix('dispersive_').removeprefix('loss_')}={label}"
        for axis, label in labels.items()
        if axis != "task"
    )
    row = {"grid": grid, "task": task, "setting": ", ".join(shown)}
    row |= {"seeds": len(found), "episodes": sum(len(outcome.scores) for outcome in found)}
    row |= {"measured": "success" if found[0].solvable else "return"}
    row |= dict(zip(("mean", "low", "high"), _mean(found, means), strict=True))
    pairs = [(_nearest(outcome, references), outcome) for outcome in found]
    differences = [
        float(np.subtract(o.scores, r.scores).mean())
        for r, o in pairs
        if r is not None and r is not o and len(r.scores) == len(o.scores)
    ]
    compared = student_mean(differences) if differences else Estimate(math.nan, math.nan, math.nan)
    row |= dict(zip(("difference", "difference_low", "difference_high"), compared, strict=True))
    for name in sorted({name for outcome in found for name in outcome.features}):
        row[name] = float(np.mean([outcome.features[name] for outcome in found if name in outcome.features]))
    row["steps_to_threshold"] = float(np.mean([outcome.steps_to for outcome in found]))
    row |= _tuning(found, [r for r, _ in pairs])
    return row | {"seconds": sum(outcome.seconds for outcome in found), "by_seed": means}


def _tuning(found: Sequence[Outcome], references: Sequence[Outcome | None]) -> dict[str, float]:
    """What fine-tuning gained on the episodes it began with (paired, bootstrap interval: of these runs, not of others like them) and
    cost; the latter also in iterations of the reference."""
    gains = [np.subtract(o.scores, o.start) for o in found if o.start is not None and len(o.start) == len(o.scores)]
    if not gains:
        return {}
    together = np.concatenate(gains)
    shares = [o.per_iteration / r.per_iteration for o, r in zip(found, references, strict=True) if r is not None]
    return {
        **dict(
            zip(("gain", "gain_low", "gain_high"), (float(together.mean()), *bootstrap_interval(together)), strict=True)
        ),
        "env_steps": float(np.mean([o.env_steps for o in found])),
        "env_steps_per_s": float(np.mean([o.env_steps_per_s for o in found])),
        "seconds_per_iteration": float(np.mean([o.per_iteration for o in found])),
        "relative_iteration": float(np.mean(shares)) if shares else math.nan,
    }


def _mean(found: Sequence[Outcome], means: Sequence[float]) -> Estimate:
    mean, low, high = student_mean(means)
    if not found[0].solvable:
        return Estimate(mean, low, high)
    scores = [score for outcome in found for score in outcome.scores]
    least, most = wilson_interval(int(sum(scores)), len(scores))
    if math.isnan(low):
        return Estimate(mean, least, most)
    return Estimate(mean, max(0.0, min(low, least)), min(1.0, max(high, most)))


def _features(metrics: Path) -> dict[str, float]:
    """The last ones that were logged."""
    found: dict[str, float] = {}
    for row in read_metrics(metrics) if metrics.is_file() else ():
        for key, value in row.items():
            kind, _, name = key.partition("/")
            if kind == "features" and name.rpartition("/")[2] in FEATURES and value is not None:
                found[name] = value
    return found


def _pace(metrics: Path) -> tuple[float, float]:
    """Seconds of the median iteration, collecting and learning, and environment steps in each of those seconds; NaN if none was logged."""
    seconds, counts = [], [0]
    for row in read_metrics(metrics) if metrics.is_file() else ():
        if row.get("time/update") is not None:
            seconds.append(row.get("time/collect", 0.0) + row["time/update"])
            counts.append(row["env_steps"])
    if not seconds:
        return math.nan, math.nan
    middle = float(np.median(seconds))
    return middle, float(np.median(np.diff(counts))) / middle


def _curve(metrics: Path, key: str) -> tuple[tuple[float, float], ...]:
    rows = read_metrics(metrics) if metrics.is_file() else ()
    return tuple((float(row["env_steps"]), float(row[key])) for row in rows if row.get(key) is not None)


def write_table(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """``table.csv``, with everything, and ``table.md``, to be read; returns their paths."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows([{key: _plain(value) for key, value in row.items()} for row in rows])
    files = {"table.csv": text.getvalue(), "table.md": markdown(rows)}
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content.encode())
    return [folder / name for name in files]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for people: what was varied, what came out, with intervals; what fine-tuning cost, where it was fine-tuned."""
    ranks = [f"{layer}/effective_rank" for layer in ("early", "mid", "late")]
    ranked, tuned = any(key in row for row in rows for key in ranks), any("gain" in row for row in rows)
    head = ["grid", "task", "setting", "seeds x episodes", "mean [95 %]", "difference [95 %]"]
    head += ["effective rank: early, mid, late"] * (ranked or not tuned)
    head += ["gain over its start [95 %]", "environment steps", "a second", "seconds per iteration", "relative"] * tuned
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        digits = 3 if row["measured"] == "success" else 0
        mean, difference, gain = (
            _interval([row.get(f"{name}{end}", math.nan) for end in ends], digits)
            for name, ends in (("", ("mean", "low", "high")), ("difference", _ENDS), ("gain", _ENDS))
        )
        cells = [
            row["grid"],
            row["task"],
            row["setting"],
            f"{row['seeds']} x {row['episodes'] // row['seeds']}",
            mean,
            difference,
        ]
        cells += [", ".join(f"{row[key]:.1f}" if key in row else "-" for key in ranks)] * (ranked or not tuned)
        cost = (
            ("env_steps", ",.0f"),
            ("env_steps_per_s", ",.0f"),
            ("seconds_per_iteration", ".3g"),
            ("relative_iteration", ".2f"),
        )
        cells += [gain, *(_number(row.get(key, math.nan), style) for key, style in cost)] * tuned
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float, style: str) -> str:
    return "-" if math.isnan(value) else format(value, style)


def _interval(numbers: Sequence[float], digits: int) -> str:
    value, low, high = numbers
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(f"{x:.4g}" for x in value)
    return "" if isinstance(value, float) and math.isnan(value) else value
