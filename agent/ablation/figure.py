"""The picture of an ablation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_INCHES_PER_ROW = 0.34


def ablation_figure(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> Path:
    """Every row of the table as a point with its interval, every seed as a dot; a panel for each grid and task, PNG.

    Args:
        rows: of ``agent.ablation.outcome.rows_of``, at least one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["grid"], row["task"]), []).append(row)
    sizes = [len(panel) for panel in panels.values()]
    height = 1.4 + _INCHES_PER_ROW * sum(sizes) + 0.75 * len(sizes)
    figure = Figure(figsize=(9.0, height), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=[size + 1.2 for size in sizes])[:, 0]
    for axis, ((grid, task), panel) in zip(axes, panels.items(), strict=True):
        _draw(axis, panel)
        axis.set_title(f"{grid}: {task}" if task else grid, loc="left", fontsize=10)
    axes[-1].set_xlabel("mean over training seeds (dots) with 95 % interval: " + rows[0]["measured"])
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw(axis: Any, panel: Sequence[Mapping[str, Any]]) -> None:
    for y, row in enumerate(panel):
        if not math.isnan(row["low"]):
            axis.plot([row["low"], row["high"]], [y, y], color="C0", lw=2.2, solid_capstyle="butt")
        axis.plot(row["by_seed"], [y] * len(row["by_seed"]), "o", color="0.45", ms=3.5, mew=0)
        axis.plot(row["mean"], y, "o", color="C0", ms=7)
    axis.set_yticks(range(len(panel)), [row["setting"] for row in panel], fontsize=8)
    axis.set_ylim(len(panel) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    if panel[0]["measured"] == "success":
        axis.set_xlim(-0.02, 1.02)
