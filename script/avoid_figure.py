"""Where the rod goes in "avoiding", before and after fine-tuning: every episode's path over the cylinders, coloured by its mode.

    python script/avoid_figure.py log/d3il-finetune/<name>/<time>_42
    python script/avoid_figure.py --checkpoints a.pt b.pt --titles before after --episodes 100 --out modes.png

A folder is a finished fine-tuning run: the policy it began with and the one it ended with. Episodes have recorded seeds; a path ends where
the rod touches a cylinder (a cross) or the episode does.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Circle  # noqa: E402

from agent.checkpoint import load, load_policy  # noqa: E402
from agent.errors import UsageError  # noqa: E402
from agent.eval import evaluate  # noqa: E402
from env.d3il import field  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.registry import make_vector_env  # noqa: E402

FIRST_SEED = 2_000_000
Mode = tuple[int | None, int | None, int | None]
_HUES = {5: 0.33, 6: 0.60, 7: 0.09, 8: 0.80}  # of the last row's flags, which the reward is about


@dataclass(frozen=True)
class Course:
    """One episode: positions ``xy (T, 2)`` until the rod touched something, and whether it did."""

    xy: np.ndarray
    touched: bool

    @property
    def mode(self) -> Mode:
        """See ``field.mode_of``."""
        return field.mode_of(self.xy)


def paths(checkpoint: str, episodes: int, seed: int) -> tuple[list[Course], float]:
    """The paths of a checkpoint's policy in the environment it was meant for, and its success rate."""
    policy = load_policy(checkpoint)
    env = environment(load(checkpoint).get("config") or {}, episodes)
    venv = make_vector_env(env, policy.normalizer)
    venv.record(range(episodes))
    result = evaluate(policy, venv, episodes, seed)
    found = [cut(venv.family.paths(recording.qpos)) for recording in venv.recorded()]
    venv.close()
    return found, result.success_rate


def environment(config: dict[str, Any], n: int) -> dict[str, Any]:
    """``n`` environments as the checkpoint's configuration has them (a pre-trained policy's has none: the published one)."""
    env = config.get("env") or {}
    return {
        "name": env.get("name") or config.get("env_name") or "avoiding-m5",
        "n_envs": n,
        "act_steps": config.get("act_steps", 4),
        "max_episode_steps": env.get("max_episode_steps", 100),
        "observation_delay": env.get("observation_delay", "published"),
    }


def cut(xy: np.ndarray) -> Course:
    """A path until the rod is nearer to a cylinder than their radii."""
    gaps = [np.hypot(xy[:, 0] - x, xy[:, 1] - y) - radius - field.ROD_RADIUS for _, x, y, radius, _ in field.CYLINDERS]
    inside = np.min(gaps, axis=0) < 0.0
    return Course(xy[: int(np.argmax(inside)) + 1] if inside.any() else xy, bool(inside.any()))


def colour(mode: Mode) -> tuple[float, float, float]:
    """The last row decides on the hue, the rows before on its shade; grey: never got there."""
    if mode[2] is None:
        return 0.55, 0.55, 0.55
    shade = 0.35 + 0.08 * (3 * (mode[0] or 0) + (mode[1] or 2) - 2)
    return colorsys.hls_to_rgb(_HUES[mode[2]], shade, 0.75)


def draw(axis: Any, episodes: Sequence[Course], title: str, target: int | None) -> None:
    """One panel."""
    for _, x, y, radius, _ in field.CYLINDERS:
        axis.add_patch(Circle((x, y), radius, color="0.25", zorder=3))
        axis.add_patch(Circle((x, y), radius + field.ROD_RADIUS, fill=False, color="0.25", linewidth=0.6, zorder=3))
    axis.axhline(field.GOAL, color="0.2", linewidth=1.2)
    axis.text(field.X_RANGE[1], field.GOAL + 0.006, "reward", ha="right", fontsize=8)
    counts = Counter(episode.mode for episode in episodes if not episode.touched)
    for episode in episodes:
        axis.plot(*episode.xy.T, color=colour(episode.mode), linewidth=0.9, alpha=0.6)
        if episode.touched:
            axis.plot(*episode.xy[-1], "x", color="firebrick", markersize=5, zorder=4)
    for mode, n in counts.most_common():
        star = " (rewarded)" if mode[2] is not None and mode[2] == target else ""
        name = "-".join("?" if flag is None else str(flag) for flag in mode)
        axis.plot([], [], color=colour(mode), linewidth=3, label=f"{name}: {n}{star}")
    if touched := sum(episode.touched for episode in episodes):
        axis.plot([], [], "x", color="firebrick", label=f"touched: {touched}")
    axis.legend(fontsize=7, loc="lower left", frameon=False)
    axis.set(xlim=field.X_RANGE, ylim=(-0.32, 0.58), title=title, xlabel="x (m)", ylabel="y (m)", aspect="equal")


def figure(panels: Sequence[tuple[str, str]], episodes: int, seed: int, out: Path) -> None:
    """A panel per (title, checkpoint)."""
    picture = Figure((4.6 * len(panels), 6.0), dpi=120, layout="constrained")
    FigureCanvasAgg(picture)
    for k, (title, checkpoint) in enumerate(panels):
        found, success = paths(checkpoint, episodes, seed)
        axis = picture.add_subplot(1, len(panels), k + 1)
        target = environment(load(checkpoint).get("config") or {}, 1)["name"].rpartition("-m")[2]
        draw(
            axis,
            found,
            f"{title}: success {success:.2f}, {episodes} episodes",
            int(target) if target.isdigit() else None,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(out)


def panels_of(run: Path) -> list[tuple[str, str]]:
    """Before and after of a fine-tuning run's folder. Raises ``UsageError`` where it has not finished."""
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        return [("before", result["base_policy_path"]), ("after", result["checkpoint"])]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{run}: no result.json of a finished fine-tuning run ({error}); give its folder, or --checkpoints"
        ) from error


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished fine-tuning run")
    parser.add_argument("--checkpoints", nargs="+", help="or these checkpoints, a panel each")
    parser.add_argument("--titles", nargs="+", help="of the panels (default: the checkpoints' names)")
    parser.add_argument("--episodes", type=int, default=100, help="per panel (default 100)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help=f"of the first episode (default {FIRST_SEED})")
    parser.add_argument("--out", type=Path, help="the picture (default: modes.png in the run's folder, or here)")
    args = parser.parse_args(argv)
    try:
        if (args.run is None) == (args.checkpoints is None) or args.episodes < 1:
            raise UsageError("give either a run's folder or --checkpoints, and at least one episode")
        if args.run is not None:
            panels = panels_of(args.run)
        else:
            titles = args.titles or [Path(c).stem for c in args.checkpoints]
            if len(titles) != len(args.checkpoints):
                raise UsageError(f"{len(titles)} --titles for {len(args.checkpoints)} --checkpoints")
            panels = list(zip(titles, args.checkpoints, strict=True))
        out = args.out or (args.run or Path(".")) / "modes.png"
        figure(panels, args.episodes, args.seed, out)
    except (UsageError, EnvError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    print(out)


if __name__ == "__main__":
    main()
