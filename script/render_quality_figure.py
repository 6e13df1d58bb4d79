"""The picture of ``env.render_quality``: every task's cameras in all three modes, drawn by OpenGL, with what an image costs.

    python script/render_quality_figure.py --out assets/render_quality.png

Costs are CPU milliseconds per image on one thread, the median of three passes over the states of an episode of the scripted expert; the mean
difference is that to ``faithful``, whose pixels are robosuite's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from env.engine.cameras import QUALITIES, CameraPool, pose_of  # noqa: E402
from env.registry import family  # noqa: E402
from env.robomimic.env_meta import TASKS  # noqa: E402
from script.bench.scenes import MOMENTS, episode  # noqa: E402


@dataclass
class Shown:
    """One task in one mode: the image (3 M, H, W), CPU ms per camera image, mean difference to ``faithful``."""

    image: np.ndarray
    milliseconds: float
    difference: float = 0.0


def draw(task: str, quality: str, poses: np.ndarray, start: np.ndarray, passes: int = 3) -> Shown:
    """Draw the episode in one mode, on one thread, and time it."""
    pool = CameraPool(family(task), TASKS[task].cameras, (96, 96), quality, 1, "gl")
    try:
        looks, images = [pool.appearance(start)] * len(poses), np.zeros((len(poses), *pool.image_shape), np.uint8)
        pool.render(poses, looks, list(images))
        costs = []
        for _ in range(passes):
            begin = time.process_time()
            pool.render(poses, looks, list(images))
            costs.append(1e3 * (time.process_time() - begin) / (len(poses) * len(pool.cameras)))
        return Shown(images, median(costs))
    finally:
        pool.close()


def measure(tasks: list[str]) -> dict[str, dict[str, Shown]]:
    """All modes of all tasks."""
    shown: dict[str, dict[str, Shown]] = {}
    for task in tasks:
        seen, start = episode(task)
        poses = np.stack([pose_of(data) for data in seen])
        shown[task] = {quality: draw(task, quality, poses, start) for quality in QUALITIES}
        faithful = shown[task]["faithful"].image.astype(int)
        for one in shown[task].values():
            one.difference = float(np.abs(one.image - faithful).mean())
            one.image = one.image[-1]
    return shown


def picture(shown: dict[str, dict[str, Shown]], path: Path) -> None:
    """One row per mode, one column per camera."""
    columns = [(task, k, name) for task in shown for k, name in enumerate(TASKS[task].cameras)]
    figure = Figure(figsize=(2.1 * len(columns), 2.5 * len(QUALITIES)), layout="constrained")
    axes = figure.subplots(len(QUALITIES), len(columns), squeeze=False)
    for row, quality in zip(axes, QUALITIES, strict=True):
        for axis, (task, k, name) in zip(row, columns, strict=True):
            one = shown[task][quality]
            axis.imshow(one.image[3 * k : 3 * k + 3].transpose(1, 2, 0), interpolation="nearest")
            if quality == "faithful":
                axis.set_title(f"{task}\n{name}", fontsize=9)
            likeness = (
                "robosuite's own pixels" if quality == "faithful" else f"mean difference {one.difference:.2f} / 255"
            )
            axis.set_xlabel(f"{one.milliseconds:.1f} ms, {likeness}", fontsize=7)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(quality, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=ROOT / "assets" / "render_quality.png", type=Path, help="file to write")
    parser.add_argument("--tasks", default=",".join(MOMENTS), help="which tasks (default: all four)")
    args = parser.parse_args(argv)
    shown = measure(args.tasks.split(","))
    picture(shown, args.out)
    for task, modes in shown.items():
        for quality, one in modes.items():
            sys.stdout.write(
                f"{task:<10} {quality:<9} {one.milliseconds:6.2f} CPU ms/image  mean difference {one.difference:.2f}\n"
            )
    sys.stdout.write(f"written: {args.out}\n")


if __name__ == "__main__":
    main()
