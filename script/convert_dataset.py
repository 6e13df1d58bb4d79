"""Demonstrations of any format that is known here -> train.npz and normalization.npz, or an HDF5 file in robomimic's layout.

    python script/convert_dataset.py can.hdf5 data/robomimic/can                              robomimic's, image files: --cameras
    python script/convert_dataset.py ~/.minari/datasets/mujoco/hopper/medium-v0 data/gym/hopper-medium-v2     Minari's, D4RL's
    python script/convert_dataset.py my_lerobot_data data/mine --cameras front --image_size 96 96           LeRobotDataset v3
    python script/convert_dataset.py old/train.pkl data/old           the ancestors' pickles (padded or flat): never unpickled
    python script/convert_dataset.py environments/dataset/data/avoiding/data data/d3il/avoid                      D3IL's files
    python script/convert_dataset.py data/mine mine.hdf5                                            npz -> robomimic's layout
    python script/convert_dataset.py data/mine-img data/mine-img-mapped --cameras --uncompressed   images larger than memory

What SRC is, is recognised by what is inside. DST is a folder, or an HDF5 file if it is called .hdf5 or .h5. Values are mapped to
[-1, 1] by 2 (x - min) / (max - min + 1e-6) - 1; npz data keep their normalization.npz, through an HDF5 file and back as well.
--uncompressed makes a larger file whose images stay there in training and may be more than memory holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from agent.dataset.demonstrations import Demonstrations, Images, write_about, write_npz  # noqa: E402
from agent.dataset.formats import Wishes, read_any  # noqa: E402
from agent.dataset.robomimic_like import write_hdf5  # noqa: E402
from agent.errors import UsageError  # noqa: E402
from env.errors import EnvError  # noqa: E402
from script.process_robomimic_dataset import split  # noqa: E402

HDF5_SUFFIXES = {".hdf5", ".h5"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC", type=Path, help="file or folder to read")
    parser.add_argument("target", metavar="DST", type=Path, help="folder, or file called .hdf5, to write")
    parser.add_argument(
        "--cameras", nargs="*", help="take images along: of these cameras (no name: all, or the published)"
    )
    parser.add_argument("--image_size", nargs=2, type=int, metavar=("H", "W"), help="scale images to this size")
    parser.add_argument("--uncompressed", action="store_true", help="store images so that training need not load them")
    parser.add_argument(
        "--obs_keys", nargs="+", default=(), help="what makes the state, side by side (default: as usual)"
    )
    parser.add_argument("--max_episodes", type=int, help="the first so many only")
    parser.add_argument("--filter_key", help="robomimic: only the demonstrations of mask/<filter_key>")
    parser.add_argument(
        "--env_name", help="Minari, D4RL: which data these are, as hopper-medium-v2 (default: as they say)"
    )
    parser.add_argument(
        "--tight", action="store_true", help="normalise by the data's own range, whether 0 is in it or not"
    )
    parser.add_argument("--val_split", type=float, default=0.0, help="share for val.npz (mask/valid), drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the random split (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser.parse_args(argv)


def targets(args: argparse.Namespace) -> list[Path]:
    """The files to be written: one, or train, val, normalization and about. Raises ``UsageError`` where one is there already."""
    if args.target.suffix in HDF5_SUFFIXES:
        paths = [args.target]
    else:
        paths = [args.target / name for name in ("train.npz", "val.npz", "normalization.npz", "about.json")]
    there = [path for path in paths if path.exists()]
    if args.target.is_file() and args.target.suffix not in HDF5_SUFFIXES:
        raise UsageError(f"{args.target}: expected a folder, or a name with .hdf5 or .h5; found a file")
    if there and not args.overwrite:
        raise UsageError(f"{there[0]} exists; --overwrite replaces it")
    sources = {p.resolve() for p in (args.source, args.source / "train.npz")}
    if sources & {p.resolve() for p in paths}:
        raise UsageError(f"{args.target}: is what is read; write elsewhere")
    return paths


def read(args: argparse.Namespace) -> Demonstrations:
    """SRC, images scaled and with a progress bar. Raises ``UsageError``, ``EnvError``."""
    if args.max_episodes is not None and args.max_episodes < 1:
        raise UsageError(f"--max_episodes: expected at least 1, found {args.max_episodes}")
    if args.image_size and (args.cameras is None or min(args.image_size) < 1):
        raise UsageError("--image_size: expected two positive numbers, and --cameras")
    if args.uncompressed and (args.cameras is None or args.target.suffix in HDF5_SUFFIXES):
        raise UsageError("--uncompressed: is for images in npz files: it needs --cameras and a folder to write to")
    cameras = None if args.cameras is None else tuple(args.cameras)
    wishes = Wishes(cameras, tuple(args.obs_keys), args.max_episodes, args.filter_key, args.env_name, args.tight)
    demos = read_any(args.source.expanduser(), wishes)
    if demos.images is None:
        return demos
    images = demos.images.resized(*args.image_size) if args.image_size else demos.images
    return dataclasses.replace(demos, images=_with_bar(images, demos))


def _with_bar(images: Images, demos: Demonstrations) -> Images:
    def frames(episodes: Sequence[int]) -> Iterator[np.ndarray]:
        with tqdm(total=len(demos.rows(episodes)), desc="images", unit="frame") as bar:
            for piece in images.frames(episodes):
                yield piece
                bar.update(len(piece))

    return dataclasses.replace(images, frames=frames)


def write(demos: Demonstrations, args: argparse.Namespace, paths: Sequence[Path]) -> list[Path]:
    """Everything; returns what was written. Raises ``UsageError``."""
    train, val = split(len(demos), args.val_split, args.seed)
    if len(paths) == 1:
        write_hdf5(paths[0], demos, {"train": train, "valid": val} if val else None)
        return list(paths)
    train_path, val_path, normalization, about = paths
    write_npz(train_path, demos, train, not args.uncompressed)
    if val:
        write_npz(val_path, demos, val, not args.uncompressed)
    else:
        val_path.unlink(missing_ok=True)  # of another conversion, normalised in another way
    demos.scale.save(normalization)
    write_about(about, demos, episodes=len(demos), train_episodes=train)
    return [train_path, *([val_path] if val else []), normalization, about]


def summary(demos: Demonstrations, written: Sequence[Path]) -> str:
    """What a person wants to know of it."""
    lengths, about = demos.traj_lengths, demos.about
    columns = ", ".join(f"{key} {width}" for key, width in demos.columns.items())
    lines = [
        f"{about['format']}: {len(demos)} episodes of {lengths.min()} to {lengths.max()} steps, {lengths.sum()} transitions",
        f"states {demos.states.shape[1]} ({columns}), actions {demos.actions.shape[1]}"
        + (f", images {demos.images.shape} of {', '.join(demos.images.cameras)}" if demos.images else ""),
    ]
    if demos.rewards is not None:
        ends = np.cumsum(lengths)
        returns = np.add.reduceat(demos.rewards.astype(np.float64), ends - lengths)
        lines.append(f"returns {returns.min():g} to {returns.max():g}, mean {returns.mean():g}")
    lines += [f"{key}: {about[key]}" for key in ("images", "normalization") if key in about]
    lines += [
        f"left out: {about[key]} {key.replace('_', ' ')}"
        for key in ("dropped_episodes", "unfinished_transitions")
        if about.get(key)
    ]
    lines += [f"wrote {path} ({path.stat().st_size / 2**20:.2f} MiB)" for path in written]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Entry point; exit code 2 for a mistake a person can mend."""
    args = parse(argv)
    try:
        paths = targets(args)
        demos = read(args)
        written = write(demos, args, paths)
    except (UsageError, EnvError) as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)
    sys.stdout.write(summary(demos, written))


if __name__ == "__main__":
    main()
