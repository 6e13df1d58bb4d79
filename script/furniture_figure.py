"""One assembly of each of Furniture-Bench's tasks (our re-implementation) by its scripted expert: a strip of moments, and a video of each.

    python script/furniture_figure.py --out assets/furniture.png
    python script/furniture_figure.py --tasks lamp_med --seed 7005 --out assets/furniture.png

Writes the strip to --out, a row per task, and <out without suffix>_<task>.mp4 and .gif beside it. An episode is of the first seed from --seed on with
which the expert succeeds. The strip shows the start, the moments in between at even distances, and the furniture assembled.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from tqdm import tqdm  # noqa: E402

from env.engine.batch import EngineVectorEnv, Recording  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.furniture import assembly  # noqa: E402
from env.furniture.facts import TASKS  # noqa: E402
from env.registry import EXPERTS  # noqa: E402
from env.video import render_frames, write_video  # noqa: E402

DEFAULT = ("one_leg_low", "lamp_low", "round_table_low")
FIRST_SEED, TRIES, MOMENTS = 7001, 5, 5
WIDTH, HEIGHT = 320, 240  # pixels
AFTERWARDS = 20  # control steps that are shown after success
STRIDE = 3  # control steps from one frame of the video to the next
SPEED = 4  # times as fast as it happened


def success(task: str, seed: int) -> tuple[EngineVectorEnv, Recording]:
    """The environment and the recording of the expert's first success, from ``seed`` on.

    Raises:
        EnvError: none in ``TRIES``.
    """
    entry = EXPERTS[task]
    venv = EngineVectorEnv(assembly.family(f"{task}_dim"), 1, 1, entry.steps, n_threads=1)
    for k in range(seed, seed + TRIES):
        obs, expert, left = venv.reset([k]), entry.make(1, np.random.default_rng(k), entry.noise, True), AFTERWARDS
        venv.record([0])
        for _ in tqdm(range(entry.steps - 1), desc=f"{task}, seed {k}", unit="step"):
            result = venv.step(expert.act(obs["state"][:, 0])[:, None].astype(np.float32))
            obs, left = result.obs, left - int(result.success[0])
            if left == 0:
                return venv, venv.recorded()[0]
    raise EnvError(f"{task}: the expert did not succeed with seeds {seed} to {seed + TRIES - 1}; give another --seed")


def draw(task: str, seed: int, video: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the task's video; the strip's images (MOMENTS, H, W, 3), and when they were, in s."""
    venv, recording = success(task, seed)
    rows = np.append(np.arange(0, len(recording.qpos) - 1, STRIDE), len(recording.qpos) - 1)
    frames = render_frames(
        venv.render_model(recording.start), recording.qpos[rows], venv.family.camera, WIDTH, HEIGHT, timeout_s=600.0
    )
    venv.close()
    hz = venv.family.control_hz
    write_video(frames, video, hz * SPEED / STRIDE)
    shown = np.linspace(0, len(rows) - 1, MOMENTS).round().astype(int)
    return frames[shown], rows[shown] / hz


def strip(tasks: list[str], seed: int, out: Path) -> None:
    """A row of moments per task -> ``out``."""
    picture = Figure((2.6 * MOMENTS, 2.1 * len(tasks)), dpi=100, layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots(len(tasks), MOMENTS, squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        images, seconds = draw(task, seed, out.with_name(f"{out.stem}_{task}"))
        for axis, image, second in zip(row, images, seconds, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{second:.0f} s", fontsize=9)
        row[0].set_ylabel(task)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(out)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=DEFAULT, choices=sorted(TASKS), help=f"rows (default {DEFAULT})")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help=f"of the first episode (default {FIRST_SEED})")
    parser.add_argument("--out", type=Path, required=True, help="the strip; videos get names from it")
    args = parser.parse_args(argv)
    try:
        strip(list(args.tasks), args.seed, args.out)
    except EnvError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    print(args.out)


if __name__ == "__main__":
    main()
