"""The picture of a pre-training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def loss_curve(rows: list[dict[str, Any]], path: Path, title: str) -> Path | None:
    """Losses over epochs as a PNG: the parts in training, and on held-out trajectories where there are some.

    Args:
        rows: of ``metrics.jsonl``, with ``epoch`` and ``train/...``, ``val/...``.
        path: where it goes.
        title: above the picture.

    Returns:
        ``path``, or None where there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes half a second to import: only when needed
    from matplotlib.figure import Figure

    names = sorted({key for row in rows for key in row if key.startswith(("train/", "val")) and key.endswith("loss")})
    curves = {name: [(row["epoch"], row[name]) for row in rows if row.get(name) is not None] for name in names}
    if len(names) > 1 and "train/diffusion loss" in names and curves["train/loss"] == curves["train/diffusion loss"]:
        curves = {
            name: points for name, points in curves.items() if not name.endswith("/loss")
        }  # one part: the total says nothing new
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    figure = Figure(figsize=(7.0, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for name, points in curves.items():
        epochs, values = zip(*points, strict=True)
        axis.plot(epochs, values, lw=1.5, label=name, marker="o" if len(points) == 1 else None)
    if all(value > 0 for points in curves.values() for _, value in points):
        axis.set_yscale("log")  # the dispersive part is negative: then the axis stays linear
    axis.set(xlabel="epoch", ylabel="loss", title=title)
    axis.grid(alpha=0.3, which="both")
    axis.legend(frameon=False)
    figure.savefig(path)
    return path
