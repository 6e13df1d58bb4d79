"""Pictures of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def learning_curve(metrics: Path, path: Path, title: str, final: Any = None) -> Path:
    """Success while exploring and when evaluated (with 95 % intervals), over environment steps; written as PNG to ``path``.

    Args:
        final: an ``EvalResult`` drawn at the end, on seeds that nothing else used.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    figure = Figure(figsize=(7.0, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    scale, unit = (1e6, "million ") if rows and rows[-1]["env_steps"] > 2e6 else (1e3, "thousand ")
    train = [(r["env_steps"] / scale, r["train/success_rate"]) for r in rows if _number(r.get("train/success_rate"))]
    if train:
        axis.plot(*zip(*train, strict=True), color="0.65", lw=1.2, label="while exploring (training episodes)")
    points = [
        (r["env_steps"] / scale, r["eval/success_rate"], r["eval/success_ci_low"], r["eval/success_ci_high"])
        for r in rows
        if _number(r.get("eval/success_rate"))
    ]
    if final is not None and rows:
        points.append((rows[-1]["env_steps"] / scale, final.success_rate, *final.success_interval))
    if points:
        x, y, low, high = zip(*points, strict=True)
        axis.plot(x, y, color="C0", marker="o", ms=4, lw=1.8, label="evaluated on recorded seeds")
        axis.fill_between(x, low, high, color="C0", alpha=0.2, lw=0, label="95 % interval (Wilson)")
        axis.annotate(f"{y[0]:.3f}", (x[0], y[0]), textcoords="offset points", xytext=(6, -12))
        axis.annotate(f"{y[-1]:.3f}", (x[-1], y[-1]), textcoords="offset points", xytext=(-14, -16))
    axis.set(xlabel=f"{unit}environment steps", ylabel="success rate", title=title, ylim=(-0.02, 1.04))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
