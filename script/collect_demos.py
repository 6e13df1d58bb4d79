"""Make demonstrations with a scripted expert: no download, a minute at most.

    python script/collect_demos.py --task lift
    python script/collect_demos.py --task lift --episodes 300 --noise 0.3 --seed 0 --out data

Writes <out>/<suite>/<task>/train.npz and normalization.npz, the files that pre-training reads. Only episodes that end in success are
kept; the expert's own success rate is printed. These demonstrations are scripted: they are not the papers' data, and results from them are
not the papers' results.
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
from agent.errors import DatasetError, UsageError  # noqa: E402
from agent.files import atomic_write  # noqa: E402
from agent.metrics import wilson_interval  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.normalizer import Normalizer  # noqa: E402
from env.registry import EXPERTS, make_vector_env  # noqa: E402

FIRST_SEED = 5_000_000  # apart from the seeds of evaluation (1 and 2 million) and from training's hashed ones


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=sorted(EXPERTS), help="which task's expert")
    parser.add_argument("--episodes", type=int, default=300, help="demonstrations to keep (default 300)")
    parser.add_argument("--steps", type=int, default=100, help="control steps per demonstration (default 100)")
    parser.add_argument(
        "--noise", type=float, default=0.3, help="how clumsy the expert is: 0 perfect, 0.3 human-like (default)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other demonstrations (default 0)")
    parser.add_argument(
        "--n-envs", type=int, default=50, help="simulations side by side (default 50); part of what a seed means"
    )
    parser.add_argument(
        "--out", default=os.environ.get("DPPO_DATA_DIR", "data"), help="data folder (default $DPPO_DATA_DIR or data)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace demonstrations that are already there")
    return parser.parse_args(argv)


def collect(args: argparse.Namespace) -> dict[str, object]:
    """Run the expert until ``args.episodes`` successes are together.

    Returns:
        ``states (T, Do)`` and ``actions (T, Da)`` raw, ``lengths (E,)``, ``rewards (T,)``, the number of episodes ``tried`` and ``won``.

    Raises:
        DatasetError: the expert succeeds so rarely that the demonstrations will not come together.
    """
    suite, make_expert = EXPERTS[args.task]
    n = min(args.n_envs, args.episodes)
    venv = make_vector_env(
        {"name": args.task, "env_type": suite, "n_envs": n, "max_episode_steps": args.steps, "act_steps": 1}
    )
    seeds = FIRST_SEED + np.random.SeedSequence(args.seed).generate_state(1)[0].astype(np.int64) * 1_000_000
    limit = 20 * args.episodes
    obs = venv.reset([int(seeds) + k for k in range(limit)])
    expert = make_expert(n, np.random.default_rng((args.seed, 7)), noise=args.noise)
    running: list[list[tuple[np.ndarray, np.ndarray, float]]] = [[] for _ in range(n)]
    kept, tried, won = [], 0, 0
    bar = tqdm(total=args.episodes, desc=f"{args.task}: successful demonstrations", unit="demo")
    while len(kept) < args.episodes:
        state = obs["state"][:, -1].copy()
        action = expert.act(state).astype(np.float32)
        result = venv.step(action[:, None])
        if not result.info["active"].any():
            raise DatasetError(
                f"the expert solved only {won} of {tried} episodes (noise {args.noise}); a smaller --noise succeeds more often"
            )
        for i in range(n):
            running[i].append((state[i], action[i], float(result.reward[i])))
        done = result.terminated | result.truncated
        for i in np.flatnonzero(done):
            tried += 1
            if result.success[i] and not result.info["invalid"][i]:
                won += 1
                kept.append(running[i])
                bar.update(len(kept) <= args.episodes)
            running[i] = []
        if done.any():
            expert.reset_rows(done)
        obs = result.obs
    bar.close()
    venv.close()
    kept = kept[: args.episodes]
    states, actions, rewards = (
        np.concatenate([np.stack([step[k] for step in demo]) for demo in kept]) for k in range(3)
    )
    lengths = np.array([len(demo) for demo in kept])
    return {"states": states, "actions": actions, "rewards": rewards, "lengths": lengths, "tried": tried, "won": won}


def write(args: argparse.Namespace, demos: dict[str, object]) -> Path:
    """Normalise and save; returns the folder."""
    folder = Path(args.out).expanduser() / EXPERTS[args.task][0] / args.task
    statistics = Normalizer.fit(demos["states"], demos["actions"])
    lengths, rewards = demos["lengths"], demos["rewards"]
    save_demos(
        folder / "train.npz",
        statistics.normalize_obs(demos["states"]).astype(np.float32),
        statistics.normalize_action(demos["actions"]).astype(np.float32),
        lengths,
        rewards=rewards,
        terminals=np.zeros(len(rewards), bool),  # time ran out; nothing ended
    )
    statistics.save(folder / "normalization.npz")
    low, high = wilson_interval(demos["won"], demos["tried"])
    about = {
        "made_by": "script/collect_demos.py: a scripted expert, not the papers' demonstrations",
        "arguments": {key: value for key, value in vars(args).items() if key not in {"out", "overwrite"}},
        "expert_success_rate": demos["won"] / demos["tried"],
        "expert_success_interval": [low, high],
        "episodes": len(lengths),
        "transitions": int(lengths.sum()),
    }
    with atomic_write(folder / "about.json") as file:
        file.write((json.dumps(about, indent=2) + "\n").encode())
    return folder


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args = parse(argv)
    target = Path(args.out).expanduser() / EXPERTS[args.task][0] / args.task / "train.npz"
    try:
        if args.episodes < 1 or args.steps < 1 or args.n_envs < 1 or args.noise < 0:
            raise UsageError("--episodes, --steps and --n-envs must be at least 1, --noise at least 0")
        if target.exists() and not args.overwrite:
            raise UsageError(f"{target} exists; --overwrite replaces it, --out writes elsewhere")
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
