"""The picture of an ablation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.ablation.outcome import Outcome

_ROW, _TITLE, _COLUMN, _LABELS = 0.3, 0.75, 4.2, 1.6  # inches

Panel = list[Mapping[str, Any]]


def ablation_figure(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> Path:
    """Every row of the table as a point with its interval, every seed as a dot, PNG. A grid is a row of panels, a task a column; what the
    others are compared with is a line with its interval as a band behind them.

    Args:
        rows: of ``agent.ablation.outcome.rows_of``, at least one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grids: dict[str, dict[str, Panel]] = {}
    for row in rows:
        grids.setdefault(row["grid"], {}).setdefault(row["task"], []).append(row)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    sizes = [max(map(len, panels.values())) for panels in grids.values()]
    height = 0.9 + _ROW * sum(sizes) + _TITLE * len(sizes)
    figure = Figure(figsize=(_LABELS + _COLUMN * max(len(tasks), 1.4), height), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(grids), len(tasks), squeeze=False, sharex="col", height_ratios=[size + 0.8 for size in sizes]
    )
    for line, (grid, panels) in zip(axes, grids.items(), strict=True):
        for axis, task in zip(line, tasks, strict=True):
            panel = panels.get(task, [])
            axis.set_visible(bool(panel))
            if panel:
                _draw(axis, panel, reference_row(rows, task))
                axis.set_title(f"{grid}: {task}" if task else grid, loc="left", fontsize=10)
    figure.supxlabel(f"{rows[0]['measured']}: mean over training seeds (small dots) with its 95 % interval", fontsize=9)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def curves_figure(outcomes: Sequence[Outcome], path: Path, title: str) -> Path | None:
    """Fine-tuning as it went, PNG: a panel for each task, a line for each setting (the mean of its training seeds), every seed behind it as a
    thin one. Scores in between are of fewer episodes than the table's, which is the last. None, and no file, where nothing was fine-tuned.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[str, dict[str, list[Outcome]]] = {}
    for outcome in outcomes:
        if outcome.curve:
            label = next(", ".join(axes.values()) for axes in outcome.cell.labels.values())
            lines.setdefault(outcome.cell.task, {}).setdefault(label, []).append(outcome)
    if not lines:
        return None
    figure = Figure(figsize=(7.2 * len(lines), 4.6), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    # a colour is one setting in all panels
    order = list(dict.fromkeys(label for settings in lines.values() for label in settings))
    for axis, (task, settings) in zip(figure.subplots(1, len(lines), squeeze=False)[0], lines.items(), strict=True):
        for label, found in settings.items():
            k = order.index(label)
            colour, dash = colormaps["tab10"](k % 10), ("-", "--")[k // 10 % 2]
            for outcome in found:
                axis.plot(*np.transpose(outcome.curve), color=colour, lw=0.7, alpha=0.4)
            shared = sorted(set.intersection(*({x for x, _ in outcome.curve} for outcome in found)))
            means = [np.mean([dict(outcome.curve)[x] for outcome in found]) for x in shared]
            axis.plot(shared, means, dash, color=colour, lw=2, label=label)
        solvable = next(iter(settings.values()))[0].solvable
        axis.set(xlabel="environment steps", ylabel="success rate" if solvable else "return", title=task)
        axis.grid(alpha=0.3)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def reference_row(rows: Sequence[Mapping[str, Any]], task: str) -> Mapping[str, Any] | None:
    """The row of ``task`` that all others are compared with; None where there are several, or none."""
    compared = any(row["task"] == task and not math.isnan(row["difference"]) for row in rows)
    found = {row["setting"]: row for row in rows if row["task"] == task and math.isnan(row["difference"])}
    return next(iter(found.values())) if compared and len(found) == 1 else None


def _draw(axis: Any, panel: Panel, reference: Mapping[str, Any] | None) -> None:
    if reference is not None:
        axis.axvline(reference["mean"], color="C1", lw=1.2, ls="--", zorder=0)
        if not math.isnan(reference["low"]):
            axis.axvspan(reference["low"], reference["high"], color="C1", alpha=0.12, lw=0, zorder=0)
    for y, row in enumerate(panel):
        if not math.isnan(row["low"]):
            axis.plot([row["low"], row["high"]], [y, y], color="C0", lw=2.2, solid_capstyle="butt")
        axis.plot(row["by_seed"], [y] * len(row["by_seed"]), "o", color="0.35", ms=3.5, mew=0, zorder=3)
        axis.plot(row["mean"], y, "o", color="C0", ms=7)
    axis.set_yticks(range(len(panel)), [row["setting"] for row in panel], fontsize=8)
    axis.set_ylim(len(panel) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(labelbottom=True, labelsize=8)
    if panel[0]["measured"] == "success":
        axis.set_xlim(-0.02, 1.02)
