"""D3IL's demonstrations of "avoiding" -> train.npz and normalization.npz of those that pass the cylinders on certain sides.

    python script/filter_d3il_avoid_data.py --load_path environments/dataset/data/avoiding/data --subset avoid_m1
    python script/filter_d3il_avoid_data.py --load_path data/d3il/avoid --desired_modes 5 6 --required_modes 1 2 --save_dir data/d3il/avoid_m1

The source is a folder of D3IL's own files (env_*.pkl, read as data, never unpickled) or one with train.npz and normalization.npz, as
`script/collect_demos.py --task avoid` makes it. A demonstration is kept if its desired positions raise any of --desired_modes (default: all
are kept), all of --required_modes and none of --avoid_modes; flags 0 to 8 are those of env/d3il/field.py. Normalisation is that of
what is kept, 0 included as in the published files (--tight: not).

D3IL's own demonstrations pair a desired position with the actual one of a step before: give env.observation_delay=demonstrations to
what is trained on them, or leave it at published as DPPO does. Their licence is not stated: check that you may use them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from agent.dataset.d3il_files import find_demos, read_demo  # noqa: E402
from agent.dataset.demonstrations import published_range  # noqa: E402
from agent.dataset.demos import read_demos, save_demos  # noqa: E402
from agent.errors import DatasetError, UsageError  # noqa: E402
from agent.files import atomic_write  # noqa: E402
from env.d3il.field import N_FLAGS, SUBSETS, flags_of, keeps, mode_of  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.normalizer import Normalizer  # noqa: E402
from script.process_robomimic_dataset import split  # noqa: E402


@dataclass(frozen=True)
class Course:
    """One demonstration, in metres: ``states (T, 4)`` desired and actual x y, ``actions (T, 2)``."""

    states: np.ndarray
    actions: np.ndarray


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line: the published one, and what was missing from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--load_path", required=True, help="folder of D3IL's files, or of train.npz and normalization.npz"
    )
    parser.add_argument("--subset", choices=sorted(SUBSETS), help="a published choice of flags, and its folder")
    parser.add_argument("--save_dir", help="where to write (default: d3il/<subset> in $DPPO_DATA_DIR or data)")
    parser.add_argument("--save_name_prefix", default="", help="put before the names of the files written")
    parser.add_argument("--val_split", type=float, default=0.0, help="share of them for val.npz, at random (default 0)")
    parser.add_argument("--desired_modes", nargs="+", type=int, default=[], help="keep what raises any of these flags")
    parser.add_argument(
        "--desired_mode_ratios", nargs="+", type=float, default=[], help="of each of them, this share only, at random"
    )
    parser.add_argument("--required_modes", nargs="+", type=int, default=[], help="and all of these")
    parser.add_argument("--avoid_modes", nargs="+", type=int, default=[], help="and none of these")
    parser.add_argument(
        "--tight", action="store_true", help="normalise by the data's own range, whether 0 is in it or not"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are already there")
    args = parser.parse_args(argv)
    if args.subset:
        args.desired_modes, args.required_modes = SUBSETS[args.subset].desired, SUBSETS[args.subset].required
    return args


def check(args: argparse.Namespace) -> None:
    """Raise ``UsageError`` for the first argument that makes no sense."""
    wrong = [m for m in (*args.desired_modes, *args.required_modes, *args.avoid_modes) if not 0 <= m < N_FLAGS]
    if wrong:
        raise UsageError(f"modes are 0 to {N_FLAGS - 1}, found {wrong[0]}")
    if args.desired_mode_ratios and len(args.desired_mode_ratios) != len(args.desired_modes):
        raise UsageError(
            f"--desired_mode_ratios: expected one per desired mode ({len(args.desired_modes)}), found "
            f"{len(args.desired_mode_ratios)}"
        )
    if args.save_dir is None and args.subset is None:
        raise UsageError("--save_dir (or --subset, which has a folder of its own) is needed")


def courses(folder: Path) -> list[Course]:
    """All demonstrations of a folder of either kind. Raises ``DatasetError`` or ``EnvError`` where there are none."""
    if not (folder / "train.npz").is_file():
        return [Course(d.states, d.actions) for d in map(read_demo, find_demos(folder))]
    arrays, scale = read_demos(folder / "train.npz"), Normalizer.load(folder / "normalization.npz")
    if scale.obs_dim != 4 or scale.action_dim != 2:
        raise DatasetError(f"{folder}: {scale.obs_dim} states and {scale.action_dim} actions; avoiding has 4 and 2")
    cuts = np.cumsum(arrays["traj_lengths"])[:-1]
    states = np.split(scale.unnormalize_obs(arrays["states"]), cuts)
    actions = np.split(scale.unnormalize_action(arrays["actions"]), cuts)
    return [Course(s, a) for s, a in zip(states, actions, strict=True)]


def chosen(found: Sequence[Course], args: argparse.Namespace, rng: np.random.Generator) -> list[Course]:
    """Those the flags ask for. Raises ``DatasetError`` for none."""
    kept = []
    for course in found:
        xy = course.states[:, :2]
        if not keeps(xy, args.desired_modes or range(N_FLAGS), args.required_modes, args.avoid_modes):
            continue
        if args.desired_mode_ratios:
            shares = dict(zip(args.desired_modes, args.desired_mode_ratios, strict=True))
            flag = next(f for f in args.desired_modes if f in flags_of(xy))
            if rng.random() > shares[flag]:
                continue
        kept.append(course)
    if not kept:
        raise DatasetError(f"none of {len(found)} demonstrations passes on the sides asked for; check the modes")
    return kept


def statistics(kept: Sequence[Course], tight: bool) -> Normalizer:
    """Ranges of everything kept, training and validation."""
    return published_range(np.concatenate([c.states for c in kept]), np.concatenate([c.actions for c in kept]), tight)


def write(path: Path, kept: Sequence[Course], scale: Normalizer) -> None:
    """One npz."""
    lengths = np.array([len(c.actions) for c in kept])
    save_demos(
        path,
        states=scale.normalize_obs(np.concatenate([c.states for c in kept])),
        actions=scale.normalize_action(np.concatenate([c.actions for c in kept])),
        traj_lengths=lengths,
        rewards=np.zeros(lengths.sum(), np.float32),  # D3IL keeps none
        terminals=np.zeros(lengths.sum(), bool),
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args = parse(argv)
    try:
        check(args)
        data = Path(os.environ.get("DPPO_DATA_DIR", "data")).expanduser()
        folder = Path(args.save_dir).expanduser() if args.save_dir else data / "d3il" / args.subset
        target = folder / f"{args.save_name_prefix}train.npz"
        if target.exists() and not args.overwrite:
            raise UsageError(f"{target} exists; --overwrite replaces it, --save_dir writes elsewhere")
        rng = np.random.default_rng(args.seed)
        found = courses(Path(args.load_path).expanduser())
        kept = chosen(found, args, rng)
        train, val = split(len(kept), args.val_split, args.seed)
        scale = statistics(kept, args.tight)
        write(target, [kept[i] for i in train], scale)
        validation = folder / f"{args.save_name_prefix}val.npz"
        if val:
            write(validation, [kept[i] for i in val], scale)
        else:
            validation.unlink(missing_ok=True)  # of another choice, normalised in another way
        scale.save(folder / f"{args.save_name_prefix}normalization.npz")
        counts = Counter("-".join(str(flag) for flag in mode_of(c.states[:, 2:])) for c in kept)
        about = {
            "made_by": "script/filter_d3il_avoid_data.py", "arguments": {k: v for k, v in vars(args).items() if k != "overwrite"},
            "of": len(found), "modes": dict(sorted(counts.items())),
        }  # fmt: skip
        with atomic_write(folder / f"{args.save_name_prefix}about.json") as file:
            file.write((json.dumps(about, indent=2) + "\n").encode())
    except (UsageError, EnvError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    modes = ", ".join(f"{mode} x {n}" for mode, n in sorted(counts.items()))
    print(
        f"{len(kept)} of {len(found)} demonstrations, {sum(len(c.actions) for c in kept)} transitions in {folder}: {modes}"
    )


if __name__ == "__main__":
    main()
