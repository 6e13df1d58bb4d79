"""Durations of a deployment as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_BINS = 40
_PERCENTILES = (50, 95, 99)


def summarize(durations: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """For each name, of its finite durations in seconds: ``n``, and in milliseconds ``mean, p50, p95, p99, max`` and a histogram
    (``counts (40,)`` between ``edges (41,)``). Names without any are left out."""
    summary = {}
    for name, seconds in sorted(durations.items()):
        ms = np.asarray(seconds, np.float64) * 1e3
        ms = ms[np.isfinite(ms)]
        if ms.size:
            counts, edges = np.histogram(
                ms, _BINS, (ms.min(), max(ms.max(), ms.min() + 1.0))
            )  # a virtual clock's are all alike
            percentiles = {f"p{p}": float(np.percentile(ms, p)) for p in _PERCENTILES}
            summary[name] = {"n": int(ms.size), "mean": float(ms.mean()), **percentiles, "max": float(ms.max())}
            summary[name] |= {"edges": edges.tolist(), "counts": counts.tolist()}
    return summary


def write_picture(summary: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The histograms of ``summarize``, one under the other, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 1.9 * len(summary)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (name, numbers) in zip(figure.subplots(len(summary), squeeze=False)[:, 0], summary.items()):
        axis.stairs(numbers["counts"], numbers["edges"], fill=True, color="C0")
        axis.set_yscale("symlog", linthresh=10)  # one late tick among a thousand must be seen
        for p, colour in (("p50", "0.3"), ("p99", "C3")):
            axis.axvline(numbers[p], color=colour, lw=1, label=f"{p} {numbers[p]:.2f} ms")
        axis.set(
            title=f"{name}: n {numbers['n']}, mean {numbers['mean']:.2f} ms, max {numbers['max']:.2f} ms", xlabel="ms"
        )
        axis.legend(loc="upper right", frameon=False)
    with open(path, "wb") as file:
        figure.savefig(file, format="png")
