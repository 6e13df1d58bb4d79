"""The picture of ``env.renderer``: MuJoCo's rendering by OpenGL, ours without it, and where they differ, in scenes of all tasks.

    python script/renderer_figure.py --out assets/renderer.png --json renderer.json

Costs are CPU milliseconds per image on one thread, the median of three passes over the states of an episode. Similarity (SSIM, windows of
7 x 7) and mean difference are over the same states, against MuJoCo's default rendering. Ours is drawn in the quality named; it has no shadows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from env.engine.camera_gl import choose_backend  # noqa: E402
from env.engine.cameras import QUALITIES  # noqa: E402
from env.engine.native_threads import NativeThreads  # noqa: E402
from script.bench.scenes import MOMENTS, OTHERS, Mujoco, Scene, scene_of, similarity  # noqa: E402

AMPLIFIED = 8  # differences, to be seen
PASSES = 3


@dataclass(frozen=True)
class Row:
    """One camera of one task: CPU ms per image of both, and how alike they are."""

    task: str
    camera: str
    pixels: int
    native_ms: float
    mujoco_ms: float
    similarity: float
    mean_difference: float


def compare(scene: Scene, quality: str, backend: str) -> tuple[list[Row], np.ndarray, np.ndarray]:
    """Draw and time a scene: one row per camera, and the images of MuJoCo and of ours, (T, 3 M, H, W)."""
    threads = NativeThreads(scene.model, scene.cameras, (scene.size, scene.size), quality, 1, scene.groups)
    theirs, ours, gl = Mujoco(scene, backend), scene.blank(), scene.blank()

    def draw_gl() -> None:
        for pose, image in zip(scene.poses, gl, strict=True):
            theirs.draw(pose, scene.looks, image)

    costs = [_cost(lambda: threads.draw(scene.poses, [scene.looks] * len(ours), ours)), _cost(draw_gl)]
    theirs.close()
    rows, each = [], len(ours) * len(scene.cameras)
    for k, camera in enumerate(scene.cameras):
        a, b = ours[:, 3 * k : 3 * k + 3], gl[:, 3 * k : 3 * k + 3]
        apart = float(np.abs(a.astype(int) - b).mean())
        name = scene.model.camera(camera).name
        rows.append(Row(scene.task, name, scene.size, *(c / each for c in costs), similarity(a, b), apart))
    return rows, gl, ours


def _cost(draw: Callable[[], None]) -> float:
    """CPU milliseconds, the median of ``PASSES``; the first call is not counted."""
    draw()
    costs = []
    for _ in range(PASSES):
        begin = time.process_time()
        draw()
        costs.append(1e3 * (time.process_time() - begin))
    return median(costs)


def picture(shown: list[tuple[Row, np.ndarray, np.ndarray]], quality: str, path: Path) -> None:
    """One column per camera: MuJoCo, ours, the difference; each image (H, W, 3)."""
    figure = Figure(figsize=(1.75 * len(shown), 5.9), layout="constrained")
    axes = figure.subplots(3, len(shown), squeeze=False)
    for column, (row, gl, ours) in zip(axes.T, shown, strict=True):
        difference = np.minimum(AMPLIFIED * np.abs(ours.astype(int) - gl), 255).astype(np.uint8)
        for axis, image in zip(column, (gl, ours, difference), strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        column[0].set_title(f"{row.task}\n{row.camera}, {row.pixels} px", fontsize=8)
        column[0].set_xlabel(f"{row.mujoco_ms:.1f} ms", fontsize=8)
        column[1].set_xlabel(f"{row.native_ms:.2f} ms", fontsize=8)
        column[2].set_xlabel(f"SSIM {row.similarity:.4f}\nmean {row.mean_difference:.2f} / 255", fontsize=8)
    for axis, label in zip(
        axes[:, 0], ("MuJoCo, OpenGL", f"native, {quality}", f"difference x {AMPLIFIED}"), strict=True
    ):
        axis.set_ylabel(label, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=ROOT / "assets" / "renderer.png", type=Path, help="file to write")
    parser.add_argument("--tasks", default=",".join([*MOMENTS, *OTHERS]), help="which tasks (default: all)")
    parser.add_argument("--quality", default="faithful", choices=QUALITIES, help="of ours (default faithful)")
    parser.add_argument("--json", type=Path, help="also write the table here")
    args = parser.parse_args(argv)
    backend, shown = choose_backend(), []
    for task in args.tasks.split(","):
        rows, gl, ours = compare(scene_of(task), args.quality, backend)
        for k, row in enumerate(rows):
            shown.append((row, *(x[-1, 3 * k : 3 * k + 3].transpose(1, 2, 0) for x in (gl, ours))))
            sys.stdout.write(
                f"{row.task:<15}{row.camera:<20} {row.pixels:4d} px  native {row.native_ms:6.2f} ms  MuJoCo {row.mujoco_ms:6.1f} ms  "
                f"{row.mujoco_ms / row.native_ms:5.1f} x  SSIM {row.similarity:.4f}  mean difference {row.mean_difference:.2f}\n"
            )
    picture(shown, args.quality, args.out)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row, _, _ in shown], indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"written: {args.out}\n")


if __name__ == "__main__":
    main()
