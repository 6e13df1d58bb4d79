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
    """Success while exploring and when evaluated (with 95 % intervals), over environment steps; written as PNG to ``path``. Of a task
    that nothing ever solved, and that locomotion never is, the returns instead.

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
    solved = (final is not None and final.success_rate > 0) or any(
        _number(r.get(key)) and r[key] > 0 for r in rows for key in ("train/success_rate", "eval/success_rate")
    )
    if solved:
        what, train_key, label, digits = "success rate", "train/success_rate", "95 % interval (Wilson)", ".3f"
        keys = ("eval/success_rate", "eval/success_ci_low", "eval/success_ci_high")
        last = None if final is None else (final.success_rate, *final.success_interval)
        axis.set_ylim(-0.02, 1.04)
    else:
        what, train_key, label, digits = "return", "train/episode_return", "95 % interval (bootstrap)", ".0f"
        keys = ("eval/episode_return", "eval/return_ci_low", "eval/return_ci_high")
        last = None if final is None else (final.mean_return, *final.return_interval)
    train = [(r["env_steps"] / scale, r[train_key]) for r in rows if _number(r.get(train_key))]
    if train:
        axis.plot(*zip(*train, strict=True), color="0.65", lw=1.2, label="while exploring (training episodes)")
    points = [(r["env_steps"] / scale, *(r[k] for k in keys)) for r in rows if all(_number(r.get(k)) for k in keys)]
    if last is not None and rows:
        points.append((rows[-1]["env_steps"] / scale, *last))
    if points:
        x, y, low, high = zip(*points, strict=True)
        axis.plot(x, y, color="C0", marker="o", ms=4, lw=1.8, label="evaluated on recorded seeds")
        axis.fill_between(x, low, high, color="C0", alpha=0.2, lw=0, label=label)
        axis.annotate(f"{y[0]:{digits}}", (x[0], y[0]), textcoords="offset points", xytext=(6, -12))
        axis.annotate(f"{y[-1]:{digits}}", (x[-1], y[-1]), textcoords="offset points", xytext=(-14, -16))
    axis.set(xlabel=f"{unit}environment steps", ylabel=what, title=title)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
