"""The README's pictures from finished quickstarts of one task: learning curves of several seeds, and the policy at work before and after.

    python script/quickstart_figure.py log/quickstart/seed_0 log/quickstart/seed_1 log/quickstart/seed_2 --out assets/quickstart.png

A folder may also be a fine-tuning run itself. The film strips show the first recorded seed on which the pre-trained policy fails and the
fine-tuned one does not. Runs of several tasks get a panel of curves each instead, and no films; where nothing can be solved (locomotion),
curves are of returns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from agent.checkpoint import load_policy  # noqa: E402
from agent.eval import evaluate  # noqa: E402
from agent.eval.video import CAMERA, VISUAL_GEOMS  # noqa: E402
from agent.plots import read_metrics  # noqa: E402
from env.registry import make_vector_env  # noqa: E402
from env.video import render_frames  # noqa: E402

N_FRAMES = 6


def finetuning(run: Path) -> Path:
    """The fine-tuning run of a quickstart's folder, or the folder itself."""
    return run / "finetune" if (run / "finetune").is_dir() else run


def film(checkpoint: str, env: dict[str, Any], seed: int, steps: Sequence[int]) -> list[np.ndarray]:
    """Frames of one episode of a checkpoint's policy, at control steps ``steps``."""
    policy = load_policy(checkpoint)
    venv = make_vector_env(env, policy.normalizer)
    venv.record([0])
    evaluate(policy, venv, seeds=[seed])
    episode = venv.recorded()[0]
    rows = [min(step, len(episode.qpos) - 1) for step in steps]
    camera = getattr(venv.family, "camera", CAMERA)
    frames = render_frames(venv.render_model(episode.start), episode.qpos[rows], camera, 320, 320, VISUAL_GEOMS)
    venv.close()
    closer = slice(40, 280) if env["name"] == "lift" else slice(None)  # Lift happens in the middle of the picture
    return [frame[closer, closer] for frame in frames]


def curves(axis: Any, runs: list[Path], title: str) -> None:
    """Success (return, where nothing can be solved) over environment steps, one line per seed, with the intervals before -> after."""
    for k, run in enumerate(runs):
        folder = finetuning(run)
        rows, result = read_metrics(folder / "metrics.jsonl"), json.loads((folder / "result.json").read_text())
        solvable = result["after"].get("solvable", True)
        what, mean, interval = (
            ("success_rate", "success_rate", "success_interval")
            if solvable
            else ("episode_return", "mean_return", "return_interval")
        )
        lines = {
            stage: [(r["env_steps"] / 1e3, r[f"{stage}/{what}"]) for r in rows if r.get(f"{stage}/{what}") is not None]
            for stage in ("train", "eval")
        }
        end = result["env_steps"] / 1e3
        lines["eval"].append((end, result["after"][mean]))
        axis.plot(*zip(*lines["train"], strict=True), color=f"C{k}", lw=0.8, alpha=0.4)
        axis.plot(*zip(*lines["eval"], strict=True), color=f"C{k}", lw=1.8, marker="o", ms=3.5, label=_label(folder))
        for x, key in ((0, "before"), (end, "after")):
            axis.plot([x, x], result[key][interval], color=f"C{k}", lw=5, alpha=0.3, solid_capstyle="butt")
    axis.set(xlabel="thousand environment steps", ylabel="success rate" if solvable else "return", title=title)
    axis.set_ylim(0, 1.03 if solvable else None)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", frameon=False, title="thick: evaluated, thin: exploring", title_fontsize="small")


def _config(folder: Path) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)


def _label(folder: Path) -> str:
    return f"seed {_config(folder)['seed']}"


def by_task(runs: list[Path]) -> dict[str, list[Path]]:
    """Runs of each task, in the order given."""
    tasks: dict[str, list[Path]] = {}
    for run in runs:
        tasks.setdefault(_config(finetuning(run))["env_name"], []).append(run)
    return tasks


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished quickstarts")
    parser.add_argument("--steps", type=int, default=70, help="control steps the film strips span at most (default 70)")
    parser.add_argument("--out", type=Path, default=Path("assets/quickstart.png"))
    args = parser.parse_args()
    tasks = by_task(args.runs)
    figure = panels(tasks) if len(tasks) > 1 else with_films(args.runs, args.steps)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)


def panels(tasks: dict[str, list[Path]]) -> Figure:
    """A panel of curves for each task."""
    figure = Figure(figsize=(4.4 * len(tasks), 3.9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (task, runs) in zip(figure.subplots(1, len(tasks)), tasks.items(), strict=True):
        curves(axis, runs, task)
    return figure


def with_films(runs: list[Path], span: int) -> Figure:
    """Curves beside the policy at work, before and after, over at most ``span`` control steps."""
    folder = finetuning(runs[0])
    result = json.loads((folder / "result.json").read_text())
    config = _config(folder)
    env = {**config["env"], "n_envs": 1, "act_steps": config["act_steps"]}
    before, after = result["before"], result["after"]
    seed, length = next(
        (s, n)
        for s, b, a, n in zip(after["seeds"], before["successes"], after["successes"], after["lengths"], strict=True)
        if a and not b
    )
    steps = np.linspace(0, min(length, span), N_FRAMES).astype(int).tolist()
    strips = [film(result[key], env, seed, steps) for key in ("base_policy_path", "checkpoint")]
    figure = Figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.75))
    pixels = ", from pixels" if "robomimic_image" in env["wrappers"] else ""
    curves(left.subplots(), runs, f"{config['env_name'].capitalize()}{pixels}: PPO over the denoising chain")
    axes = right.subplots(2, N_FRAMES, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for row, strip, label in zip(axes, strips, ("pre-trained", "fine-tuned"), strict=True):
        for axis, frame, step in zip(row, strip, steps, strict=True):
            axis.imshow(frame)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{step / 20:.1f} s", fontsize=8, pad=2)
        row[0].set_ylabel(label)
    right.suptitle(f"the same episode (seed {seed}) before and after", fontsize=11)
    return figure


if __name__ == "__main__":
    main()
