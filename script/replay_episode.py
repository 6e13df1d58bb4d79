"""Look at recorded episodes: what was done, and what a policy would have done. No robot moves.

    python script/replay_episode.py EPISODE                       # a table: timing, tracking, forces, events
    python script/replay_episode.py EPISODE --picture replay.png  # reference and measured pose, actions
    python script/replay_episode.py EPISODE --checkpoint FILE     # what this policy says to the very inputs that were recorded
    python script/replay_episode.py EPISODE ... --collect lift.hdf5 --task lift --least-score 50

EPISODE is the folder of a recorded episode (also of one whose process died), or its episode.hdf5. With --collect, the episodes with at
least that verdict (y is 100) become one robomimic file, for script/process_robomimic_dataset.py.

A diffusion policy draws noise: --checkpoint draws as the episode did where its seed was recorded; else, differences of the size that two
draws have are to be expected, and a second draw of the same policy is shown beside for comparison.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from agent.errors import UsageError  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.franka.episode import Episode, collect, read_episode  # noqa: E402
from env.franka.frames import angle_between  # noqa: E402
from env.franka.latency import summarize  # noqa: E402
from env.franka.types import Policy  # noqa: E402

AXES = ("x", "y", "z", "turn x", "turn y", "turn z", "gripper")
_CONTEXT = ("number", "t_obs", "camera_age")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("episodes", nargs="+", metavar="EPISODE", help="folder or HDF5 file of a recorded episode")
    parser.add_argument("--checkpoint", metavar="FILE", help="compare with what this policy would have done")
    parser.add_argument("--ddim-steps", type=int, help="of the checkpoint's policy (default: as trained)")
    parser.add_argument("--picture", metavar="PNG", help="draw the (first) episode")
    parser.add_argument("--collect", metavar="HDF5", help="write the good episodes as one robomimic file")
    parser.add_argument("--task", help="of robomimic: the task of --collect")
    parser.add_argument(
        "--least-score", type=float, default=50.0, help="verdict from which an episode is good (default 50)"
    )
    return parser.parse_args(argv)


def table(episode: Episode) -> list[tuple[str, str]]:
    """What was done, in words and numbers."""
    ticks, t, get = episode.ticks, episode.times(), episode.column
    dt = summarize({"dt": np.diff(t)}).get("dt")
    inference = summarize({"s": get("deploy/t_infer_end") - get("deploy/t_infer_start")}).get("s")
    position = get("deploy/measured_position")
    error = np.linalg.norm(get("deploy/reference_position") - position, axis=1) * 1e3
    turned = np.degrees(angle_between(get("deploy/reference_quaternion"), get("deploy/measured_quaternion")))
    force = np.linalg.norm(get("deploy/wrench")[:, :3], axis=1)
    counted = Counter(event.get("name", "?") for event in episode.events)
    about = episode.about
    rows = [
        ("verdict", f"{about.get('verdict')} (score {about.get('score')})"),
        ("ticks", f"{len(episode)} in {t[-1]:.2f} s, {int(ticks.get('deploy/running', np.ones(len(t))).sum())} of them running"),
        ("tick", "-" if dt is None else f"mean {dt['mean']:.2f}, p99 {dt['p99']:.2f}, max {dt['max']:.2f} ms"),
        ("inference", "-" if inference is None else f"mean {inference['mean']:.1f}, p99 {inference['p99']:.1f}, max {inference['max']:.1f} ms"),
        ("path", f"{np.linalg.norm(np.diff(position, axis=0), axis=1).sum() * 1e3:.0f} mm"),
        ("reference - measured", f"mean {error.mean():.1f}, max {error.max():.1f} mm; mean {turned.mean():.2f}, max {turned.max():.2f} degrees"),
        ("force", f"mean {force.mean():.1f}, max {force.max():.1f} N"),
        ("commands in time", f"at least {100 * np.min(get('deploy/success_rate')):.0f} %"),
        ("events", ", ".join(f"{name} x{n}" for name, n in counted.most_common()) or "none"),
    ]  # fmt: skip
    return rows + [("problem", str(about["problem"]))] * bool(about.get("problem"))


def chunks(episode: Episode, policy: Policy, seed: int | None) -> np.ndarray:
    """What ``policy`` says to the recorded inputs: ``(T, Da)`` normalised, at the ticks of each chunk; NaN where the episode has none.

    Raises:
        UsageError: nothing was recorded that the policy could be shown, or inputs of another policy.
    """
    values = {key: array for key, array in episode.inputs.items() if key not in _CONTEXT}
    if "state" not in values:
        raise UsageError(f"{episode.path}: no inputs of a policy were recorded")
    policy.reset(seed)
    said, numbers = np.full((len(episode), policy.action_dim), np.nan), episode.column("deploy/number")
    for k, number in enumerate(episode.inputs["number"]):
        try:
            actions = policy(
                {key: array[k].astype(np.uint8 if key == "rgb" else np.float32) for key, array in values.items()}
            )
        except (RuntimeError, ValueError, KeyError) as error:
            shapes = {key: array.shape[1:] for key, array in values.items()}
            raise UsageError(f"{episode.path}: its inputs {shapes} are none of this policy's ({error})") from error
        first = int(np.searchsorted(numbers, number))
        rows = min(len(actions), policy.act_steps, len(said) - first)
        said[first : first + rows] = actions[:rows]
    return said


def compare(episode: Episode, said: np.ndarray, again: np.ndarray) -> list[tuple[str, str]]:
    """Differences to the recorded raw actions by axis; ``again`` is a second draw, and how far two draws are apart."""
    recorded = episode.column("deploy/action_raw")
    if recorded.shape != said.shape:
        raise UsageError(f"{episode.path}: its actions are {recorded.shape}, the policy's {said.shape}")
    both = np.isfinite(recorded).all(axis=1) & np.isfinite(said).all(axis=1)
    if not both.any():
        raise UsageError(f"{episode.path}: no tick at which both the episode and the policy have an action")
    rows = [("axis", "recorded - policy: mean, max   two draws: mean (normalised)")]
    for i in range(said.shape[1]):
        off, apart = np.abs(recorded - said)[both, i], np.abs(said - again)[both, i]
        rows.append(
            (AXES[i] if i < len(AXES) else str(i), f"{off.mean():.4f}, {off.max():.4f}   {np.nanmean(apart):.4f}")
        )
    return rows


def draw(episode: Episode, path: Path, said: np.ndarray | None) -> None:
    """Reference and measured position, and the actions, over time; ``said``: the policy's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    t, recorded = episode.times(), episode.column("deploy/action_raw")
    figure = Figure(figsize=(9.0, 1.5 * (3 + recorded.shape[1])), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3 + recorded.shape[1], sharex=True)
    for i in range(3):
        axes[i].plot(t, episode.column("deploy/reference_position")[:, i], color="C0", label="reference")
        axes[i].plot(t, episode.column("deploy/measured_position")[:, i], color="C1", label="measured")
        axes[i].set_ylabel(f"{AXES[i]} (m)")
    for i, axis in enumerate(axes[3:]):
        axis.step(t, recorded[:, i], where="post", color="0.4", label="recorded action")
        if said is not None:
            axis.step(t, said[:, i], where="post", color="C3", lw=1, label="policy")
        axis.set_ylabel(AXES[i] if i < len(AXES) else str(i))
    for axis in (axes[0], axes[3]):
        axis.legend(loc="upper right", frameon=False, ncols=2)
    axes[-1].set_xlabel("s")
    figure.savefig(path)


def show(rows: list[tuple[str, str]], title: str) -> None:
    """A table on the standard output."""
    width = max(len(name) for name, _ in rows)
    sys.stdout.write(f"{title}\n" + "".join(f"  {name:<{width}}  {text}\n" for name, text in rows))


def replay(args: argparse.Namespace, load: Callable[..., Any]) -> None:
    """All that was asked for. ``load(checkpoint, ddim_steps)`` is the policy. Raises ``UsageError``, ``EnvError``."""
    policy = None if args.checkpoint is None else load(args.checkpoint, args.ddim_steps)
    for i, source in enumerate(args.episodes):
        episode, said = read_episode(source), None
        show(table(episode), str(source))
        if policy is not None:
            seed = episode.about.get("seed")
            said = chunks(episode, policy, seed)
            show(
                compare(episode, said, chunks(episode, policy, None)),
                f"{args.checkpoint}, {'its own noise' if seed is None else f'seed {seed}'}",
            )
        if args.picture and i == 0:
            draw(episode, Path(args.picture), said)
    if args.collect:
        if args.task is None:
            raise UsageError("--collect needs --task (lift, can, square)")
        n = collect(args.episodes, args.collect, args.task, args.least_score / 100)
        sys.stdout.write(f"{n} of {len(args.episodes)} episodes in {args.collect}\n")


def _load(path: str, ddim_steps: int | None) -> Policy:
    from agent.deployment import LocalPolicy

    return LocalPolicy(path, device="cpu", ddim_steps=ddim_steps)


def main(argv: list[str] | None = None) -> None:
    """Entry point; exit code 2 for a mistake a person can mend."""
    try:
        replay(parse(argv), _load)
    except (UsageError, EnvError) as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
