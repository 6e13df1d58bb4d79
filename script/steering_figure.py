"""The README's picture of steering: success as trained, from zero without learning, and after PPO over the start, with intervals.

    python script/steering_figure.py RUN:EVALUATION [RUN:EVALUATION ...] --out assets/steering.png

RUN is a finished run of a ``*_steer*`` leaf, EVALUATION one of its base policy on the same seeds with ``model.start_std=0``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf

WHO = (
    ("as trained", "0.6", "o"),
    ("start at zero, nothing learned", "tab:orange", "D"),
    ("PPO over the start", "tab:blue", "o"),
)


def read(pair: str) -> tuple[str, list[dict]]:
    """A row's name, and the results of the three policies in the order of ``WHO``.

    Raises:
        SystemExit: the two were not evaluated on the same seeds.
    """
    run, _, zero = pair.partition(":")
    result, other = (json.loads((Path(folder) / "result.json").read_text()) for folder in (run, zero))
    if other["seeds"] != result["after"]["seeds"]:
        raise SystemExit(
            f"{zero}: expected the seeds of {run}; evaluate with n_episodes={len(result['after']['seeds'])} eval_seed={result['after']['seeds'][0]}"
        )
    config = OmegaConf.load(Path(run) / "config.yaml")
    pixels = ", pixels" if "rgb" in config.get("shape_meta", {}).get("obs", {}) else ""
    name = config.task.get("dataset") or config.env_name
    return f"{name.replace('_', ' ')}{pixels}\n{len(other['seeds'])} episodes", [
        result["before"],
        other,
        result["after"],
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="RUN:EVALUATION")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    rows = [read(pair) for pair in args.pairs]
    figure = Figure(figsize=(8, 1.2 + 0.75 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for k, (label, color, marker) in enumerate(WHO):
        for row, (_, results) in enumerate(rows):
            y, (low, high) = row + 0.22 * (k - 1), results[k]["success_interval"]
            axis.plot([low, high], [y, y], color=color, linewidth=2)
            axis.plot(results[k]["success_rate"], y, marker, color=color, label=label if row == 0 else None)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.02)
    axis.set_xlabel("success, the same held-out episodes; Wilson 95 % intervals")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(args.out, dpi=110)
    sys.stdout.write(f"{args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
