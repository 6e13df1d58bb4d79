"""The picture of a pre-training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CURVES = {
    "train": ("C0", "training"),
    "val": ("C1", "held-out trajectories"),
    "val_ema": ("C2", "held-out trajectories, averaged weights"),
}


def loss_curve(rows: list[dict[str, Any]], path: Path, title: str) -> Path | None:
    """Losses over epochs as a PNG: a panel for each part of the loss, in training and on held-out trajectories.

    Args:
        rows: of ``metrics.jsonl``: ``epoch`` and ``train/<part> loss``, ``val/...``, ``val_ema/...``.
        path: where it goes.
        title: above the picture.

    Returns:
        ``path``, or None where there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes half a second to import: only when needed
    from matplotlib.figure import Figure

    names = {key.partition("/")[2] for row in rows for key in row if key.startswith("train/") and key.endswith("loss")}
    parts = sorted(names - {"loss"}) or sorted(names)  # the total says nothing beyond its parts
    if not parts:
        return None
    figure = Figure(figsize=(7.0, 1.2 + 3.0 * len(parts)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(parts), sharex=True, squeeze=False)[:, 0]
    for axis, part in zip(axes, parts, strict=True):
        values = [_draw(axis, rows, f"{prefix}/{part}", *style) for prefix, style in CURVES.items()]
        if min((value for curve in values for value in curve), default=0.0) > 0.0:
            axis.set_yscale("log")
        axis.set(ylabel=part)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_title(title)
    axes[0].legend(frameon=False)
    axes[-1].set_xlabel("epoch")
    figure.savefig(path)
    return path


def _draw(axis: Any, rows: list[dict[str, Any]], name: str, colour: str, label: str) -> list[float]:
    """Draw the curve of one metric where there is one; returns its values."""
    points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
    if not points:
        return []
    epochs, values = zip(*points, strict=True)
    axis.plot(epochs, values, color=colour, label=label, lw=1.5, marker="o" if len(points) == 1 else None)
    return list(values)
