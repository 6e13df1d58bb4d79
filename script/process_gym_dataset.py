"""Locomotion data of Minari or D4RL (HDF5) -> train.npz and normalization.npz, which pre-training reads. Needs neither package.

    python script/process_gym_dataset.py --load_path hopper_medium-v2.hdf5
    python script/process_gym_dataset.py --load_path <minari data sets>/mujoco/hopper/medium-v0
    python script/process_gym_dataset.py --load_path data.hdf5 --env_name walker2d-medium-v2 --max_episodes 200 --val_split 0.1

Episodes end where the robot falls or time runs out; what is left at the end of the file is no episode, and episodes whose
rewards do not add up to more than 0 are left out. Everything is mapped to [-1, 1] by 2 (x - min) / (max - min + 1e-6) - 1
with the range of the whole file. As published for D4RL.

Where to get the data: `pip install minari[hdf5]`, then `minari download mujoco/hopper/medium-v0`; D4RL's files are at
rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2 (hopper_medium-v2.hdf5, ...). D4RL's -v2 was recorded with an older
MuJoCo than today's; Minari's in Gymnasium's -v5 (env.version=v5).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from agent.dataset.demos import save_demos  # noqa: E402
from agent.dataset.gym_hdf5 import Episode, GymData, read_gym  # noqa: E402
from agent.errors import UsageError  # noqa: E402
from agent.files import atomic_write  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.normalizer import Normalizer  # noqa: E402
from script.process_robomimic_dataset import split  # noqa: E402


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, that of ``process_robomimic_dataset.py`` where it applies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load_path", required=True, help="the HDF5 file, or the folder of a Minari data set")
    parser.add_argument("--env_name", help="which data these are, as hopper-medium-v2 (default: as the file says)")
    parser.add_argument("--save_dir", help="where to write (default: gym/<env_name> in $DPPO_DATA_DIR or data)")
    parser.add_argument("--save_name_prefix", default="", help="put before the names of the files written")
    parser.add_argument(
        "--val_split", type=float, default=0.0, help="share of the episodes for val.npz, drawn at random (default 0)"
    )
    parser.add_argument("--max_episodes", type=int, default=-1, help="the first so many episodes only (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the random split (default 0)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that are already there (a former val.npz goes)"
    )
    return parser.parse_args(argv)


def write(path: Path, episodes: Sequence[Episode], scale: Normalizer) -> None:
    """One npz of ``episodes``, normalised; ``terminals`` are falls, not the time limit."""
    lengths = np.array([len(e.actions) for e in episodes])
    terminals = np.zeros(lengths.sum(), bool)
    terminals[np.cumsum(lengths) - 1] = [e.terminated for e in episodes]
    save_demos(
        path,
        states=scale.normalize_obs(np.concatenate([e.states for e in episodes])),
        actions=scale.normalize_action(np.concatenate([e.actions for e in episodes])),
        traj_lengths=lengths,
        rewards=np.concatenate([e.rewards for e in episodes]).astype(np.float32),
        terminals=terminals,
    )


def targets(args: argparse.Namespace, env_name: str) -> dict[str, Path]:
    """The files to be written. Raises ``UsageError`` where one is there already and ``--overwrite`` was not given."""
    folder = Path(args.save_dir or Path(os.environ.get("DPPO_DATA_DIR") or "data") / "gym" / env_name).expanduser()
    names = {"train": "train.npz", "val": "val.npz", "normalization": "normalization.npz", "about": "about.json"}
    paths = {key: folder / (args.save_name_prefix + name) for key, name in names.items()}
    there = [path for path in paths.values() if path.exists()]
    if there and not args.overwrite:
        raise UsageError(f"{there[0]} exists; --overwrite replaces it, --save_dir writes elsewhere")
    return paths


def process(args: argparse.Namespace) -> None:
    """Read, check, convert.

    Raises:
        UsageError, EnvError: what is wrong with the file or the arguments.
    """
    if args.max_episodes == 0:
        raise UsageError("--max_episodes must be at least 1 (or -1: all)")
    data = read_gym(args.load_path, args.env_name)
    paths = targets(args, data.env_name)
    kept = [e for e in data.episodes if e.rewards.sum() > 0]
    if not kept:
        raise UsageError(f"{data.path}: rewards: no episode adds up to more than 0, and only such are used")
    dropped = len(data.episodes) - len(kept)
    kept = kept[: None if args.max_episodes < 0 else args.max_episodes]
    train, val = split(len(kept), args.val_split, args.seed)
    scale = Normalizer.fit(*data.everything())
    write(paths["train"], [kept[i] for i in train], scale)
    if val:
        write(paths["val"], [kept[i] for i in val], scale)
    else:
        paths["val"].unlink(missing_ok=True)  # of another conversion, normalised in another way
    scale.save(paths["normalization"])
    returns = np.array([e.rewards.sum() for e in kept])
    _write_about(paths["about"], data, kept, dropped)
    states, actions = kept[0].states.shape[1], kept[0].actions.shape[1]
    sys.stdout.write(
        f"{len(train)} episodes, {sum(len(kept[i].actions) for i in train)} transitions of {data.env_name} ({data.layout}) "
        f"in {paths['train']}"
        + (f"; {len(val)} in {paths['val']}" if val else "")
        + f"\nstates {states}, actions {actions}; returns {returns.min():.1f} to {returns.max():.1f}, mean {returns.mean():.1f}; "
        f"left out: {dropped} episodes, {sum(len(a) for _, a in data.unfinished)} unfinished transitions\n"
    )
    if data.env_id and data.env_id.endswith("-v5"):
        sys.stdout.write(f"recorded in {data.env_id}: env.version=v5 simulates that one (the default is v4)\n")


def _write_about(path: Path, data: GymData, kept: Sequence[Episode], dropped: int) -> None:
    about = {
        "made_by": "script/process_gym_dataset.py",
        "source": data.path.name,
        "layout": data.layout,
        "env_name": data.env_name,
        "env_id": data.env_id,
        "episodes": len(kept),
        "dropped_episodes": dropped,
        "unfinished_transitions": sum(len(a) for _, a in data.unfinished),
        "mean_return": float(np.mean([e.rewards.sum() for e in kept])),
    }
    with atomic_write(path) as out:
        out.write((json.dumps(about, indent=2) + "\n").encode())


def main(argv: list[str] | None = None) -> None:
    """Entry point; exit code 2 for a mistake a person can mend."""
    try:
        process(parse(argv))
    except (UsageError, EnvError) as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
