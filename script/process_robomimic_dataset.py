"""robomimic's HDF5 demonstrations -> train.npz and normalization.npz, which pre-training reads. Needs no robomimic package.

    python script/process_robomimic_dataset.py --load_path lift/ph/low_dim_v141.hdf5
    python script/process_robomimic_dataset.py --load_path lift/ph/image_v141.hdf5 --cameras robot0_eye_in_hand --max_episodes 100
    python script/process_robomimic_dataset.py --load_path can.hdf5 --save_dir data/robomimic/can --val_split 0.1 --check-replay 20

The task comes from the file itself, and its env_args are checked: actions recorded under another controller are refused, by
the name of the setting. States are robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos (robot1_... likewise in transport),
then object, which --cameras leaves out. Everything is mapped to [-1, 1] by 2 (x - min) / (max - min + 1e-6) - 1; as in the
published files the range always includes 0 (--tight: it does not). Images are stored as uint8 (transitions, channels, height,
width), cameras side by side along the channels; files larger than memory are no problem.

Where to get the data: robomimic.github.io, "Datasets". For images run robomimic's dataset_states_to_obs.py first
(--done_mode 2 --camera_height 96 --camera_width 96).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from agent.dataset.demonstrations import published_range  # noqa: E402
from agent.dataset.demos import save_demos  # noqa: E402
from agent.dataset.image_stream import save_demos_streamed  # noqa: E402
from agent.dataset.robomimic_hdf5 import Demo, RobomimicFile  # noqa: E402
from agent.errors import UsageError  # noqa: E402
from agent.files import atomic_write  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.normalizer import Normalizer  # noqa: E402


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line: the published one, and what was missing from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load_path", required=True, help="the HDF5 file")
    parser.add_argument(
        "--save_dir", help="where to write (default: robomimic/<task> or <task>-img in $DPPO_DATA_DIR or data)"
    )
    parser.add_argument("--save_name_prefix", default="", help="put before the names of the files written")
    parser.add_argument(
        "--val_split",
        type=float,
        default=0.0,
        help="share of the demonstrations for val.npz, drawn at random (default 0)",
    )
    parser.add_argument(
        "--max_episodes", type=int, default=-1, help="the first so many demonstrations only (default: all)"
    )
    parser.add_argument(
        "--normalize", action="store_true", help="accepted for the sake of old commands: normalised is all there is"
    )
    parser.add_argument(
        "--cameras",
        nargs="*",
        help="store these cameras' images and leave object out (no name: the task's published ones)",
    )
    parser.add_argument("--filter_key", help="only the demonstrations of mask/<filter_key>, for instance train")
    parser.add_argument(
        "--tight", action="store_true", help="normalise by the data's own range, whether 0 is in it or not"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random split (default 0)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that are already there (a former val.npz goes)"
    )
    parser.add_argument(
        "--check-replay", type=int, default=0, metavar="N",
        help="replay the first N demonstrations in the engine and compare the final states with the recorded ones",
    )  # fmt: skip
    parser.add_argument("--only-check", action="store_true", help="check (and replay) without writing anything")
    return parser.parse_args(argv)


def read_all(file: RobomimicFile, names: Sequence[str]) -> list[Demo]:
    """Every demonstration, checked. Raises ``DatasetError`` for the first that is wrong, before anything is written."""
    return [file.read(name) for name in tqdm(names, desc=f"{file.task}: reading", unit="demo")]


def statistics(demos: Sequence[Demo], tight: bool = False) -> Normalizer:
    """Per-column range over all demonstrations, training and validation; 0 is part of it unless ``tight``."""
    states, actions = (np.concatenate([getattr(d, kind) for d in demos]) for kind in ("states", "actions"))
    return published_range(states, actions, tight)


def split(n: int, val_split: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of training and validation, each in the file's order.

    Raises:
        UsageError: no share, or one that leaves training nothing.
    """
    if not 0.0 <= val_split < 1.0:
        raise UsageError(f"--val_split: expected a share from 0 to below 1, found {val_split}")
    n_train = int(n * (1.0 - val_split) + 1e-9)
    if n_train == 0:
        raise UsageError(f"--val_split {val_split} leaves no demonstration of {n} for training")
    order = np.random.default_rng(seed).permutation(n)
    return sorted(order[:n_train].tolist()), sorted(order[n_train:].tolist())


def write(path: Path, file: RobomimicFile, demos: Sequence[Demo], scale: Normalizer) -> None:
    """One npz of ``demos``; images, if wanted, straight from the file."""
    rewards = np.concatenate([d.rewards for d in demos]).astype(np.float32)
    arrays = {
        "states": scale.normalize_obs(np.concatenate([d.states for d in demos])),
        "actions": scale.normalize_action(np.concatenate([d.actions for d in demos])),
        "traj_lengths": np.array([len(d.actions) for d in demos]),
        "rewards": rewards,
        "terminals": np.zeros(len(rewards), bool),  # robomimic's episodes end by time, not by the task
    }
    if file.cameras is None:
        save_demos(path, **arrays)
    else:
        save_demos_streamed(path, arrays, _frames(file, demos, path.name), file.image_shape())


def _frames(file: RobomimicFile, demos: Sequence[Demo], name: str) -> Iterator[np.ndarray]:
    with tqdm(total=sum(len(d.actions) for d in demos), desc=f"{name}: images", unit="frame") as bar:
        for demo in demos:
            for piece in file.frames(demo.name):
                yield piece
                bar.update(len(piece))


@dataclass(frozen=True)
class _Targets:
    """The files to be written."""

    train: Path
    val: Path | None
    normalization: Path
    about: Path


def targets(args: argparse.Namespace, task: str) -> _Targets:
    """Raises ``UsageError`` where one of them is there already and ``--overwrite`` was not given."""
    data = Path(os.environ.get("DPPO_DATA_DIR") or "data")
    folder = args.save_dir or data / "robomimic" / (task if args.cameras is None else f"{task}-img")
    names = {"train": "train.npz", "val": "val.npz", "normalization": "normalization.npz", "about": "about.json"}
    paths = {key: Path(folder).expanduser() / (args.save_name_prefix + name) for key, name in names.items()}
    there = [path for path in paths.values() if path.exists()]
    if there and not args.overwrite:
        raise UsageError(f"{there[0]} exists; --overwrite replaces it, --save_dir writes elsewhere")
    return _Targets(**(paths | ({} if args.val_split > 0 else {"val": None})))


def check_replay(file: RobomimicFile, demos: Sequence[Demo]) -> bool:
    """Replay ``demos`` in the engine, print what came of it, and say whether all went as recorded."""
    from env.registry import family
    from env.robomimic.replay import SAME_STATE, SAME_STEP, Recording, replay

    recordings = [
        Recording(d.name, states, d.actions, d.rewards, xml) for d in demos for states, xml in [file.physics(d.name)]
    ]
    results = replay(family(file.task), recordings)
    final = np.array([r.final for r in results])
    same, chaotic = sum(r.same for r in results), sum(r.chaotic for r in results)
    agree = sum(r.solved == r.recorded_solved for r in results)
    sys.stdout.write(
        f"replayed {len(results)} demonstrations: {same} end in the recorded state (within {SAME_STATE:g} m, rad), {chaotic} "
        f"elsewhere by the same physics (each step within {SAME_STEP:g}), {len(results) - same - chaotic} differ\n"
        f"final difference: median {np.median(final):.2g}, largest {final.max():.2g}; success as recorded in {agree} of "
        f"{len(results)}\n"
    )
    for r in [r for r in results if not r.same and not r.chaotic][:5]:
        sys.stdout.write(f"  {r.name}: final difference {r.final:.2g}, per step {r.step:.2g} (median)\n")
    return same + chaotic == len(results)


def process(args: argparse.Namespace) -> bool:
    """Read, check, convert; returns whether the replay, if asked for, went as recorded.

    Raises:
        UsageError, EnvError: what is wrong with the file or the arguments.
    """
    if args.max_episodes == 0 or args.check_replay < 0:
        raise UsageError("--max_episodes must be at least 1 (or -1: all), --check-replay at least 0")
    with RobomimicFile(args.load_path, cameras=args.cameras) as file:
        for warning in file.meta.warnings:
            sys.stderr.write(f"note: {warning}\n")
        where = None if args.only_check else targets(args, file.task)
        names = file.names(args.filter_key, None if args.max_episodes < 0 else args.max_episodes)
        train, val = split(len(names), args.val_split, args.seed)
        demos = read_all(file, names)
        if where is not None:
            scale = statistics(demos, args.tight)
            write(where.train, file, [demos[i] for i in train], scale)
            if not val:  # of another conversion, normalised in another way
                where.train.with_name(args.save_name_prefix + "val.npz").unlink(missing_ok=True)
            elif where.val is not None:
                write(where.val, file, [demos[i] for i in val], scale)
            scale.save(where.normalization)
            _write_about(where.about, file, args, demos, train)
            sys.stdout.write(
                f"{len(train)} demonstrations, {sum(len(demos[i].actions) for i in train)} transitions in {where.train}"
                + (f"; {len(val)} in {where.val}" if where.val and val else "")
                + f"\nstates {demos[0].states.shape[1]} ({', '.join(file.obs_keys)}), actions {file.action_dim}"
                + (f", images {file.image_shape()}" if file.cameras is not None else "")
                + "\n"
            )
        return not args.check_replay or check_replay(file, demos[: args.check_replay])


def _write_about(
    path: Path, file: RobomimicFile, args: argparse.Namespace, demos: Sequence[Demo], train: Sequence[int]
) -> None:
    about = {
        "made_by": "script/process_robomimic_dataset.py",
        "source": file.path.name,
        "task": file.task,
        "robosuite_version": ".".join(map(str, file.meta.version)),
        "obs_keys": dict(file.obs_keys),
        **_images(file),
        "filter_key": args.filter_key,
        "episodes": len(demos),
        "train_episodes": [demos[i].name for i in train],
        "solved_episodes": sum(bool(d.rewards.max() > 0) for d in demos),
        "zero_in_range": not args.tight,
    }
    with atomic_write(path) as out:
        out.write((json.dumps(about, indent=2) + "\n").encode())


def _images(file: RobomimicFile) -> dict[str, object]:
    """What ``agent/images.py`` wants to know: robosuite's own rendering is what ``faithful`` reproduces."""
    if file.cameras is None:
        return {}
    return {"render_quality": "faithful", "cameras": list(file.cameras), "image_size": list(file.image_shape()[1:])}


def main(argv: list[str] | None = None) -> None:
    """Entry point; exit code 2 for a mistake a person can mend, 1 where the replay differs."""
    try:
        fine = process(parse(argv))
    except (UsageError, EnvError) as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)
    if not fine:
        sys.exit(1)


if __name__ == "__main__":
    main()
