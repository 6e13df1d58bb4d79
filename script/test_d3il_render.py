"""Show the scene of "avoiding": a picture of the arm among the cylinders, while a scripted expert goes through them.

    python script/test_d3il_render.py
    python script/test_d3il_render.py --mode 1 2 5 --steps 20 45 70 --camera above --out avoiding.png

Says what is missing where nothing can draw.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import imageio.v3 as iio  # noqa: E402
import numpy as np  # noqa: E402

from agent.eval.video import VISUAL_GEOMS  # noqa: E402
from env.d3il.avoiding_expert import AvoidingExpert  # noqa: E402
from env.d3il.field import MODES  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.registry import make_vector_env  # noqa: E402
from env.video import render_frames  # noqa: E402

CAMERAS = ("field", "above")


def motion(mode: tuple[int, ...], steps: int) -> tuple[object, np.ndarray]:
    """The scene with everything visible, and its coordinates (steps + 1, 7) while the expert goes through ``mode``."""
    venv = make_vector_env(
        {"name": "avoiding", "n_envs": 1, "act_steps": 1, "max_episode_steps": steps + 1, "n_threads": 1}
    )
    expert, obs = AvoidingExpert(1, np.random.default_rng(0), modes=[mode]), venv.reset([0])
    venv.record([0])
    for _ in range(steps):
        obs = venv.step(expert.act(obs["state"][:, -1])[:, None]).obs
    qpos, model = venv.recorded()[0].qpos, venv.render_model()
    venv.close()
    return model, qpos


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mode", nargs=3, type=int, default=(1, 2, 5), help="flags of env/d3il/field.py (default 1 2 5)"
    )
    parser.add_argument(
        "--steps", nargs="+", type=int, default=(12, 36, 60, 80), help="control steps to show, side by side"
    )
    parser.add_argument(
        "--camera", choices=CAMERAS, default="field", help="from the side or from above (default field)"
    )
    parser.add_argument("--size", type=int, default=480, help="pixels, height and width of each picture (default 480)")
    parser.add_argument("--out", type=Path, default=Path("avoiding.png"), help="the picture (default avoiding.png)")
    args = parser.parse_args(argv)
    try:
        if tuple(args.mode) not in MODES or min(args.steps) < 0 or not 16 <= args.size <= 1024:
            raise EnvError(
                "expected a mode like 1 2 5 (0-1, 2-4, 5-8), steps from 0 on, and a size of 16 to 1024 pixels"
            )
        model, qpos = motion(tuple(args.mode), max(*args.steps, 1))
        frames = render_frames(model, qpos[list(args.steps)], args.camera, args.size, args.size, VISUAL_GEOMS)
    except EnvError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(args.out, np.concatenate(list(frames), axis=1))
    print(args.out)


if __name__ == "__main__":
    main()
