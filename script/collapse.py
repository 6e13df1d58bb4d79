"""Show whether features collapse: pre-trained runs beside others, on the same demonstrations, at the same epochs.

    python script/collapse.py --plain log/can_plain_0 log/can_plain_1 --dispersive log/can_dispersive_0 log/can_dispersive_1

Writes collapse.csv and collapse.png (effective rank, how far similar observations are apart, how well phases of the task can be told
apart; early, mid and late hidden layer; mean and range of the runs) to --out.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from omegaconf import OmegaConf
from tqdm import tqdm

from agent.agent import build
from agent.collapse import Sample, rows_of
from agent.errors import UsageError
from agent.features import LAYERS

SHOWN = {
    "effective_rank": "effective rank",
    "neighbour_distance": "distance of similar observations / mean",
    "phase_separability": "neighbours in the same phase",
    "phase_probe": "phase, linear probe",
    "feature_norm": "feature norm",
}
COLOURS = {"plain": "C0", "dispersive": "C1"}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure and draw; returns the rows of the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for group in COLOURS:
        parser.add_argument(f"--{group}", nargs="+", type=Path, required=True, help="run directories of pre-training")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the results")
    args = parser.parse_args(argv)
    groups = {group: getattr(args, group) for group in COLOURS}
    for run in (run for runs in groups.values() for run in runs):
        if not (run / "config.yaml").is_file():
            raise UsageError(f"{run}: no config.yaml in it; expected the run directory of a pre-training")
    data = OmegaConf.load(groups["plain"][0] / "config.yaml").train_dataset
    sample = Sample.of(build({**data, "device": "cpu"}))
    rows = list(tqdm(rows_of(groups, sample), desc="checkpoints x layers", unit="", disable=None))
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "collapse.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, args.out / "collapse.png")
    sys.stdout.write(summary(rows))
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown of the last epoch: mean [least, most] of the runs."""
    last = max(row["epoch"] for row in rows)
    shown = [name for name in SHOWN if name in rows[0]]
    lines = [
        f"| epoch {last}: layer | | " + " | ".join(SHOWN[name] for name in shown) + " |",
        "|---" * (len(shown) + 2) + "|",
    ]
    for layer in LAYERS:
        for group in COLOURS:
            found = [row for row in rows if (row["epoch"], row["layer"], row["group"]) == (last, layer, group)]
            values = [[row[name] for row in found] for name in shown]
            cells = [f"{np.mean(v):.3g} [{min(v):.3g}, {max(v):.3g}]" for v in values if v]
            lines.append(f"| {layer} | {group} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A row of panels for each number, a column for each layer; over epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [name for name in SHOWN if name in rows[0]]
    figure = Figure(figsize=(9.5, 2.0 * len(shown) + 0.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), len(LAYERS), sharex=True, squeeze=False)
    for line, name in zip(axes, shown, strict=True):
        for axis, layer in zip(line, LAYERS, strict=True):
            for group, colour in COLOURS.items():
                found = [row for row in rows if row["group"] == group and row["layer"] == layer]
                epochs = sorted({row["epoch"] for row in found})
                values = [[row[name] for row in found if row["epoch"] == epoch] for epoch in epochs]
                axis.plot(epochs, [np.mean(v) for v in values], color=colour, marker="o", ms=4, label=group)
                axis.fill_between(
                    epochs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2, lw=0
                )
            axis.grid(alpha=0.3)
            top = 1.08 * max(row[name] for row in rows if row["layer"] == layer)
            axis.set_ylim(0, top)
        line[0].set_ylabel(SHOWN[name], fontsize=8)
    for axis, layer in zip(axes[0], LAYERS, strict=True):
        axis.set_title(layer, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
