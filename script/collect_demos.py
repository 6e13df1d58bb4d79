"""Make demonstrations with a scripted expert: no download, a minute at most.

    python script/collect_demos.py --task lift
    python script/collect_demos.py --task can --episodes 300 --noise 1.0 --seed 0 --out data
    python script/collect_demos.py --task lift --images --episodes 100
    python script/collect_demos.py --task hopper

Writes <out>/<suite>/<task>/train.npz and normalization.npz, the files that pre-training reads. Only successes are kept; the expert's own
success rate is printed. A demonstration ends some steps after its first success (of lift only with --until-success: by default all of an
episode is kept). These demonstrations are scripted: they are not the papers' data, and results from them are not the papers' results.

Locomotion (hopper, walker2d, halfcheetah) has a medium behaviour policy instead of an expert: all of its episodes are kept, drawn with its
own noise, in <out>/gym/<task>-medium-v2/. The policies are this project's (script/train_medium.py); the data are not D4RL's.

With --images, <out>/<suite>/<task>-img/ gets camera images and, as states, the arms' own coordinates alone. Images are drawn once
all demonstrations are together, from where the bodies were, so that only what is kept is drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from agent.dataset.demos import save_demos  # noqa: E402
from agent.download import forget  # noqa: E402
from agent.errors import DatasetError, UsageError  # noqa: E402
from agent.eval.statistics import wilson_interval  # noqa: E402
from agent.files import atomic_write  # noqa: E402
from env.engine.camera_gl import choose_backend  # noqa: E402
from env.engine.renderers import NATIVE, RENDERERS, resolve  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.normalizer import Normalizer  # noqa: E402
from env.registry import EXPERTS, make_vector_env  # noqa: E402
from script.demo_images import Sight, proprioception, save_with_images  # noqa: E402
from script.policy_demos import MEDIUM, folder_name, roll_out, save_rollouts  # noqa: E402

SOURCES = {**EXPERTS, **MEDIUM}
FIRST_SEED = 5_000_000  # apart from the seeds of evaluation (1 and 2 million) and from training's hashed ones
AFTER_SUCCESS = 5, 10  # control steps that a demonstration goes on after its success, at least and at most


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=sorted(SOURCES), help="which task's expert or policy")
    parser.add_argument("--episodes", type=int, help=f"demonstrations to keep (default {_defaults('episodes')})")
    parser.add_argument("--steps", type=int, help=f"control steps an episode may take (default {_defaults('steps')})")
    parser.add_argument(
        "--noise", type=float, help=f"how clumsy the expert is: 0 perfect; default, human-like: {_defaults('noise')}"
    )
    parser.add_argument(
        "--until-success",
        action=argparse.BooleanOptionalAction,
        help="try again after a miss, and end a demonstration 5 to 10 steps after its first success; with --no-..., one try, and "
        f"all --steps are kept if it has succeeded at the end (default {_defaults('until_success')})",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other demonstrations (default 0)")
    parser.add_argument(
        "--n-envs", type=int, default=50, help="simulations side by side (default 50); part of what a seed means"
    )
    parser.add_argument(
        "--out", default=os.environ.get("DPPO_DATA_DIR", "data"), help="data folder (default $DPPO_DATA_DIR or data)"
    )
    parser.add_argument("--images", action="store_true", help="camera images and proprioception, for image policies")
    parser.add_argument(
        "--render-quality", default="balanced", choices=("faithful", "balanced", "fast"),
        help="of --images; policies must be run with the same (env.render_quality; default balanced)",
    )  # fmt: skip
    parser.add_argument(
        "--renderer", default="auto", choices=RENDERERS,
        help="of --images: native needs no OpenGL, gl is EGL or OSMesa; auto: gl where a GPU draws, else native (policies follow)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=int, default=96, help="of --images: height and width in pixels (default 96)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace demonstrations that are already there")
    args = parser.parse_args(argv)
    for name in ("steps", "noise", "until_success", "episodes"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(SOURCES[args.task], name))
    return args


def _defaults(name: str) -> str:
    return ", ".join(f"{task} {getattr(expert, name)}" for task, expert in SOURCES.items())


def first_seed(seed: int) -> int:
    """Of the episodes of ``--seed``."""
    return FIRST_SEED + int(np.random.SeedSequence(seed).generate_state(1)[0]) * 1_000_000


class Takes:
    """The episodes of ``n`` slots while they run, and those that ended, in the order of their seeds.

    Which episodes are kept must not depend on how long they took; so one counts once all that began before it have ended.
    """

    def __init__(self, n: int, wanted: int) -> None:
        self.wanted, self.kept, self.tried, self.won = wanted, [], 0, 0
        self._running: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(n)]
        self._ended: dict[int, list[tuple[np.ndarray, ...]] | None] = {}

    @property
    def complete(self) -> bool:
        """Whether enough successes are together."""
        return len(self.kept) >= self.wanted

    def add(self, slot: int, *moment: np.ndarray) -> None:
        """One control step: state, action, reward."""
        self._running[slot].append(moment)

    def end(self, slot: int, number: int, success: bool) -> None:
        """The slot's episode, the ``number``-th to begin, is over."""
        self._ended[number] = self._running[slot] if success else None
        self._running[slot] = []
        while self.tried in self._ended:
            take = self._ended.pop(self.tried)
            self.tried += 1
            if take is not None:
                self.won += 1
                self.kept.append(take)


def collect(args: argparse.Namespace) -> dict[str, object]:
    """Run the expert until ``args.episodes`` successes are together.

    Returns:
        ``states (T, Do)`` and ``actions (T, Da)`` raw, ``lengths (E,)``, ``rewards (T,)``, the number of episodes ``tried`` and ``won``;
        with ``args.images`` also ``sights``: what there was to see in each demonstration.

    Raises:
        DatasetError: the expert succeeds so rarely that the demonstrations will not come together.
    """
    entry, n = EXPERTS[args.task], min(args.n_envs, args.episodes)
    venv = make_vector_env(
        {
            "name": entry.env or args.task,
            "env_type": entry.suite,
            "n_envs": n,
            "max_episode_steps": args.steps,
            "act_steps": 1,
        }
    )
    seeds = first_seed(args.seed)
    limit = 20 * args.episodes
    obs = venv.reset([seeds + k for k in range(limit)])
    expert = entry.make(n, np.random.default_rng((args.seed, 7)), noise=args.noise, retry=args.until_success)
    takes, rest = Takes(n, args.episodes), np.random.default_rng((args.seed, 8))
    left = np.full(n, -1)  # control steps until a demonstration that has succeeded ends; -1: it has not
    bar = tqdm(total=args.episodes, desc=f"{args.task}: successful demonstrations", unit="demo")
    while not takes.complete:
        state = obs["state"][:, -1].copy()
        action = expert.act(state).astype(np.float32)
        if args.images:
            poses, starts = venv.poses(), venv.starts()
        result = venv.step(action[:, None])
        active, seed = result.info["active"], result.info["seed"]
        if not active.any():
            raise DatasetError(
                f"the expert solved only {takes.won} of {takes.tried} episodes (noise {args.noise}); a smaller --noise succeeds more often"
            )
        obs, solved = result.obs, result.success & ~result.info["invalid"]
        over = result.terminated | result.truncated
        good = solved | ((left >= 0) & ~result.info["invalid"]) if args.until_success else solved
        left -= left > 0
        first = solved & (left < 0) & args.until_success
        left[first] = rest.integers(*AFTER_SUCCESS, first.sum(), endpoint=True)
        enough = active & (left == 0) & ~over
        for i in np.flatnonzero(active):
            takes.add(i, state[i], action[i], result.reward[i], *((poses[i], starts[i]) if args.images else ()))
            if over[i] or enough[i]:
                takes.end(i, int(seed[i] - seeds), bool(good[i]))
        if enough.any():
            obs = venv.skip(np.flatnonzero(enough))
        if (over | enough).any():
            expert.reset_rows(over | enough)
            left[over | enough] = -1
            bar.update(min(len(takes.kept), args.episodes) - bar.n)
    bar.close()
    venv.close()
    kept = takes.kept[: args.episodes]
    states, actions, rewards = (
        np.concatenate([np.stack([moment[k] for moment in take]) for take in kept]) for k in range(3)
    )
    lengths = np.array([len(take) for take in kept])
    sights = [Sight(np.stack([moment[3] for moment in take]), take[0][4]) for take in kept] if args.images else []
    return {
        "states": states, "actions": actions, "rewards": rewards, "lengths": lengths, "tried": takes.tried, "won": takes.won,
        "sights": sights,
    }  # fmt: skip


def target_of(args: argparse.Namespace) -> Path:
    """The folder the demonstrations go to."""
    name = folder_name(args.task) if args.task in MEDIUM else args.task
    return Path(args.out).expanduser() / SOURCES[args.task].suite / (name + ("-img" if args.images else ""))


def write(args: argparse.Namespace, demos: dict[str, object]) -> Path:
    """Normalise and save; returns the folder."""
    folder = target_of(args)
    states = demos["states"][:, proprioception(args.task)] if args.images else demos["states"]
    statistics = Normalizer.fit(states, demos["actions"])
    lengths, rewards = demos["lengths"], demos["rewards"]
    arrays = {
        "states": statistics.normalize_obs(states).astype(np.float32),
        "actions": statistics.normalize_action(demos["actions"]).astype(np.float32),
        "traj_lengths": lengths,
        "rewards": rewards,
        "terminals": np.zeros(len(rewards), bool),  # time ran out; nothing ended
    }
    looks: dict[str, object] = {}
    if args.images:
        target = folder / "train.npz"
        how = args.render_quality, args.image_size, args.renderer
        looks = save_with_images(target, args.task, arrays, demos["sights"], *how)
    else:
        save_demos(folder / "train.npz", **arrays)
    statistics.save(folder / "normalization.npz")
    low, high = wilson_interval(demos["won"], demos["tried"])
    about = {
        "made_by": "script/collect_demos.py: a scripted expert, not the papers' demonstrations",
        "arguments": {key: value for key, value in vars(args).items() if key not in {"out", "overwrite"}},
        "expert_success_rate": demos["won"] / demos["tried"],
        "expert_success_interval": [low, high],
        "episodes": len(lengths),
        "transitions": int(lengths.sum()),
        **looks,
    }
    with atomic_write(folder / "about.json") as file:
        file.write((json.dumps(about, indent=2) + "\n").encode())
    return folder


def policy_rollouts(args: argparse.Namespace) -> None:
    """Locomotion: whole episodes of a medium policy, good or bad, instead of an expert's successes."""
    if args.images or args.until_success:
        raise UsageError(f"--images and --until-success are for manipulation, not for {args.task}")
    first = first_seed(args.seed)
    demos = roll_out(args.task, args.episodes, args.steps, args.noise, first, args.seed, args.n_envs)
    given = {key: getattr(args, key) for key in ("task", "episodes", "steps", "noise", "seed", "n_envs")}
    about = save_rollouts(target_of(args), demos, given)
    low, high = about["mean_return_interval"]
    sys.stdout.write(
        f"{about['episodes']} episodes, {about['transitions']} transitions in {target_of(args)}\n"
        f"mean return {about['mean_return']:.0f} [{low:.0f}, {high:.0f}]: this project's own medium policy, not D4RL's data\n"
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args = parse(argv)
    target = target_of(args) / "train.npz"
    try:
        if args.episodes < 1 or args.steps < 1 or args.n_envs < 1 or args.noise < 0 or args.image_size < 1:
            raise UsageError("--episodes, --steps, --n-envs and --image-size must be at least 1, --noise at least 0")
        if target.exists() and not args.overwrite:
            raise UsageError(f"{target} exists; --overwrite replaces it, --out writes elsewhere")
        for name in ("train.npz", "normalization.npz"):
            forget(target.with_name(name))  # what stood there may have been downloaded
        if args.task in MEDIUM:
            policy_rollouts(args)
            return
        if args.images and EXPERTS[args.task].suite != "robomimic":
            raise UsageError(f"--images: {args.task} has no policies that look at images; robomimic's tasks have")
        if args.images:
            args.renderer = resolve(args.renderer)
            if args.renderer != NATIVE:  # where nothing can draw, that is said before the work, not after it
                choose_backend(args.renderer)
        demos = collect(args)
        folder = write(args, demos)
    except (UsageError, EnvError) as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)
    low, high = wilson_interval(demos["won"], demos["tried"])
    sys.stdout.write(
        f"{len(demos['lengths'])} demonstrations, {int(demos['lengths'].sum())} transitions in {folder}\n"
        f"expert success {demos['won'] / demos['tried']:.3f} [{low:.3f}, {high:.3f}] over {demos['tried']} episodes\n"
    )


if __name__ == "__main__":
    main()
