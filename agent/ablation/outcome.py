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
from agent.eval.statistics import Estimate, student_mean, wilson_interval
from agent.files import atomic_write
from agent.logger import METRICS, RESULT
from agent.plots import read_metrics

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
    seconds = sum(result.get("wall_seconds", result.get("seconds", 0.0)) for result in results.values())
    return Outcome(
        cell,
        [float(x) for x in measured["successes" if solvable else "returns"]],
        solvable,
        _features(folder / "pretrain" / METRICS),
        _steps_to(folder / "finetune" / METRICS, threshold),
        seconds,
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
        o for o in outcomes if reference and all(_settings(o).get(key) == value for key, value in reference.items())
    ]
    order = list(dict.fromkeys(grid for grid, _, _ in groups))
    ordered = sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    return [_row(grid, task, found, references) for (grid, task, _), found in ordered]


def _settings(outcome: Outcome) -> dict[str, Any]:
    """Of its pre-training."""
    return outcome.cell.stages[0][2]


def _nearest(outcome: Outcome, references: Sequence[Outcome]) -> Outcome | None:
    same = [r for r in references if (r.cell.task, r.cell.seed) == (outcome.cell.task, outcome.cell.seed)]
    return max(same, key=lambda r: sum(_settings(r).get(k) == v for k, v in _settings(outcome).items()), default=None)


def _row(grid: str, task: str, found: Sequence[Outcome], references: Sequence[Outcome]) -> dict[str, Any]:
    means = [float(np.mean(outcome.scores)) for outcome in found]
    labels = found[0].cell.labels[grid]
    shown = (
        f"{axis.rpartition('.')[2].removeprefix('dispersive_')}={label}"
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
    return row | {"seconds": sum(outcome.seconds for outcome in found), "by_seed": means}


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


def _steps_to(metrics: Path, threshold: float | None) -> float:
    rows = read_metrics(metrics) if threshold is not None and metrics.is_file() else ()
    reached = (row["env_steps"] for row in rows if (row.get("eval/success_rate") or 0.0) >= threshold)
    return float(next(reached, math.nan))


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
    """The table for people: what was varied, what came out, with intervals."""
    ranks = [f"{layer}/effective_rank" for layer in ("early", "mid", "late")]
    head = (
        "grid",
        "task",
        "setting",
        "seeds x episodes",
        "mean [95 %]",
        "difference [95 %]",
        "effective rank: early, mid, late",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        digits = 3 if row["measured"] == "success" else 0
        mean, difference = (
            _interval([row[key] for key in keys], digits)
            for keys in (("mean", "low", "high"), ("difference", "difference_low", "difference_high"))
        )
        rank = ", ".join(f"{row[key]:.1f}" if key in row else "-" for key in ranks)
        each = row["episodes"] // row["seeds"]
        lines.append(
            f"| {row['grid']} | {row['task']} | {row['setting']} | {row['seeds']} x {each} | {mean} | {difference} | {rank} |"
        )
    return "\n".join(lines) + "\n"


def _interval(numbers: Sequence[float], digits: int) -> str:
    value, low, high = numbers
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(f"{x:.4g}" for x in value)
    return "" if isinstance(value, float) and math.isnan(value) else value
