"""Which format a file or folder of demonstrations is in, and reading it: one function for all of them.

Recognised by what is inside, not by name. Everything comes out as ``Demonstrations``, in its own units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.dataset import lerobot
from agent.dataset.d3il_files import find_demos, read_demo
from agent.dataset.demonstrations import (
    Demonstrations,
    Images,
    exactly_unnormalized,
    published_range,
    read_about,
)
from agent.dataset.demos import RANGE_SLACK, check_images, read_demos
from agent.dataset.gym_hdf5 import DIMENSIONS, Episode, read_gym
from agent.dataset.hdf5 import member, open_hdf5, reading
from agent.dataset.other_pickles import read_pickle
from agent.dataset.robomimic_hdf5 import RobomimicFile
from agent.dataset.robomimic_like import is_known_task, read_generic, read_terminals, scale_of
from agent.errors import DatasetError, UsageError
from env.errors import EnvError
from env.normalizer import Normalizer
from env.npz import NpzError, NpzFile, read_into

PIECE = 256  # frames handed over at once
FORMATS = "npz (train.npz), the ancestors' pickles, D3IL's env_*.pkl, robomimic's HDF5, Minari, D4RL's HDF5, LeRobotDataset v3"
_HDF5 = b"\x89HDF"


@dataclass(frozen=True)
class Wishes:
    """What is wanted of a data set; None or empty: what is usual for its format."""

    cameras: tuple[str, ...] | None = None  # None: no images; empty: all of them, or the published ones
    obs_keys: tuple[str, ...] = ()
    max_episodes: int | None = None
    filter_key: str | None = None
    env_name: str | None = None
    tight: bool = False

    def given(self) -> set[str]:
        """Names of what is not as usual."""
        return {f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}


def recognise(path: Path) -> str:
    """The format of a file or folder, a key of ``READERS``. Raises ``DatasetError`` for none that is known."""
    if path.is_dir():
        return _folder(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
    if start[:2] == b"PK":
        return "npz"
    if start == _HDF5:
        return _hdf5(path)
    if start[:1] in (b"\x80", b"(", b"}", b"]"):
        return "d3il" if path.stem.startswith("env_") else "pickle"
    raise DatasetError(f"{path}: of no format that is known here: {FORMATS}")


def _folder(path: Path) -> str:
    if (path / lerobot.INFO).is_file():
        return "lerobot"
    if any((path / inside).is_file() for inside in ("data/main_data.hdf5", "main_data.hdf5")):
        return "minari"
    if (path / "train.npz").is_file():
        return recognise(path / "train.npz")
    if any(path.glob("env_*.pkl")):
        return "d3il"
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:20]) or "nothing"
    raise DatasetError(f"{path}: a folder of no format that is known here ({FORMATS}); it has {names}")


def _hdf5(path: Path) -> str:
    with open_hdf5(path, "robomimic, Minari or D4RL") as file, reading(path):
        if member(file, "data") is not None:
            return "robomimic"
        if any(name.startswith("episode_") for name in file):
            return "minari"
        if "observations" in file:
            return "d4rl"
        names = ", ".join(sorted(file)[:20]) or "nothing"
    raise DatasetError(
        f"{path}: neither robomimic's layout (data) nor Minari's (episode_0) nor D4RL's (observations): {names}"
    )


def read_any(path: Path, wishes: Wishes = Wishes()) -> Demonstrations:
    """Demonstrations of whatever format; ``about["format"]`` says which.

    Raises:
        DatasetError, EnvError: what is wrong with the file.
        UsageError: a wish that means nothing for this format.
    """
    kind = recognise(path)
    reader, understood = READERS[kind]
    strange = sorted(wishes.given() - understood - {"max_episodes"})
    if strange:
        raise UsageError(f"--{strange[0]}: means nothing for {kind} data ({path})")
    try:
        demos = reader(path, wishes)
    except EnvError as error:  # statistics of numbers that are too large, for instance
        raise error if str(path) in str(error) else DatasetError(f"{path}: {error}") from error
    about = {"made_by": "script/convert_dataset.py", "source": path.name, "format": kind, **demos.about}
    return dataclasses.replace(demos, about=about)


# --------------------------------------------------------------------------------------------------------- the ancestors'


def _npz(path: Path, wishes: Wishes) -> Demonstrations:
    path = path / "train.npz" if path.is_dir() else path
    arrays = read_demos(path, normalized=False)
    demos = _flat(path, arrays, wishes)
    with _npz_file(path) as archive:
        if wishes.cameras is None or "images" not in archive.names:
            left_out = {"images": "left out (--cameras takes them along)"} if "images" in archive.names else {}
            return dataclasses.replace(demos, about={**demos.about, **left_out})
        header = archive.header("images")
    check_images(header, int(arrays["traj_lengths"].sum()), str(path))
    shape, about = header.shape[1:], demos.about
    cameras = about.get("cameras") or [f"camera{k}" for k in range(max(shape[0] // 3, 1))]
    if wishes.cameras:
        raise UsageError(f"--cameras: name none for {path}: its images are taken as they are")
    images = Images(shape, tuple(map(str, cameras)), lambda episodes: _npz_frames(path, demos, episodes))
    return dataclasses.replace(demos, images=images)


def _npz_file(path: Path) -> NpzFile:
    try:
        return NpzFile(path)
    except NpzError as error:
        raise DatasetError(str(error)) from error


def _npz_frames(path: Path, demos: Demonstrations, episodes: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames of ``episodes``: out of a mapped member as asked for, else in one pass over the file from its beginning."""
    try:
        with NpzFile(path) as archive:
            mapped, rows = archive.map("images"), demos.rows(episodes)
            if mapped is not None:
                for start in range(0, len(rows), PIECE):
                    yield mapped[rows[start : start + PIECE]]
            elif (np.diff(rows) > 0).all():
                yield from _streamed(archive, rows)
            else:
                raise DatasetError(f"{path}: compressed images are read in order; found other episodes {episodes}")
    except NpzError as error:
        raise DatasetError(str(error)) from error


def _streamed(archive: NpzFile, rows: np.ndarray) -> Iterator[np.ndarray]:
    with archive.open("images") as (header, stream):
        for start in range(0, int(rows[-1]) + 1, PIECE):
            piece = np.empty((min(PIECE, header.shape[0] - start), *header.shape[1:]), np.uint8)
            read_into(stream, piece)
            wanted = rows[(rows >= start) & (rows < start + len(piece))] - start
            if len(wanted):
                yield piece[wanted]


def _pickle(path: Path, wishes: Wishes) -> Demonstrations:
    path = path / "train.npz" if path.is_dir() else path
    return _flat(path, read_pickle(path), wishes)


def _flat(path: Path, arrays: dict[str, np.ndarray], wishes: Wishes) -> Demonstrations:
    """The arrays of ``train.npz``: normalised by ``normalization.npz`` beside it; or, without that, as they are if they are in
    [-1, 1], and else in their own units."""
    lengths = arrays["traj_lengths"][: wishes.max_episodes].astype(np.int64)
    cut = {name: array[: lengths.sum()] for name, array in arrays.items() if name != "traj_lengths"}
    states, actions = (cut[name].astype(np.float64) for name in ("states", "actions"))
    beside, note = path.with_name("normalization.npz"), {}
    if beside.is_file():
        scale = Normalizer.load(beside)
        if (scale.obs_dim, scale.action_dim) != (states.shape[1], actions.shape[1]):
            raise DatasetError(
                f"{beside}: {scale.obs_dim} states and {scale.action_dim} actions; {path.name} has {states.shape[1]} and "
                f"{actions.shape[1]}"
            )
    elif max(np.abs(states).max(), np.abs(actions).max()) <= 1.0 + RANGE_SLACK:
        scale = Normalizer(*(np.full(n, sign) for n in (states.shape[1], actions.shape[1]) for sign in (-1.0, 1.0)))
        note = {"normalization": "no normalization.npz beside it: values in [-1, 1] are taken to be normalised"}
    else:
        scale = None
    if scale is not None:
        for name, array in (("states", states), ("actions", actions)):
            if np.abs(array).max() > 1.0 + RANGE_SLACK:
                raise DatasetError(
                    f"{path}: {name} reach {np.abs(array).max():g}, but normalization.npz beside it says they are normalised; "
                    "expected values in [-1, 1]. Remove the one that does not belong here"
                )
        states = exactly_unnormalized(states, scale.obs_min, scale.obs_max)
        actions = exactly_unnormalized(actions, scale.action_min, scale.action_max)
    about = read_about(path.with_name("about.json"))
    columns = about.get("obs_keys")
    if not isinstance(columns, dict) or not _adds_up(columns, states.shape[1]):
        columns = {"state": states.shape[1]}
    kept = {key: about[key] for key in ("task", "env_name", "render_quality", "renderer", "cameras") if key in about}
    terminals = cut["terminals"] != 0 if "terminals" in cut else None
    return Demonstrations(
        states, actions, lengths, scale or published_range(states, actions, wishes.tight), columns,
        rewards=cut.get("rewards"), terminals=terminals, about={**kept, **note},
    )  # fmt: skip


def _adds_up(columns: dict[str, int], width: int) -> bool:
    return all(type(n) is int and n > 0 for n in columns.values()) and sum(columns.values()) == width


# ------------------------------------------------------------------------------------------------------------- others'


def _d3il(path: Path, wishes: Wishes) -> Demonstrations:
    demos = [read_demo(p) for p in (find_demos(path) if path.is_dir() else [path])][: wishes.max_episodes]
    states, actions = (np.concatenate([getattr(d, kind) for d in demos]) for kind in ("states", "actions"))
    lengths = np.array([len(d.actions) for d in demos])
    return Demonstrations(
        states, actions, lengths, published_range(states, actions, wishes.tight), {"desired": 2, "actual": 2},
        rewards=np.zeros(len(states)), terminals=np.zeros(len(states), bool), about={"env_name": "avoiding"},
    )  # fmt: skip


def _robomimic(path: Path, wishes: Wishes) -> Demonstrations:
    if wishes.obs_keys or not is_known_task(path):
        if wishes.filter_key:
            raise UsageError(f"--filter_key: means nothing for robomimic data of other tasks or --obs_keys ({path})")
        return read_generic(path, wishes.obs_keys, wishes.cameras, wishes.max_episodes, wishes.tight)
    with RobomimicFile(path, cameras=wishes.cameras) as file:
        names = file.names(wishes.filter_key, wishes.max_episodes)
        demos = [file.read(name) for name in names]
        shape = None if file.cameras is None else file.image_shape()
        states, actions, rewards = (
            np.concatenate([getattr(d, k) for d in demos]) for k in ("states", "actions", "rewards")
        )
        lengths = np.array([len(d.actions) for d in demos])
        about = {"task": file.task} | ({} if shape is None else {"render_quality": "faithful"})

        def frames(episodes: Sequence[int]) -> Iterator[np.ndarray]:
            with RobomimicFile(path, cameras=wishes.cameras) as again:
                for i in episodes:
                    yield from again.frames(names[i])

        return Demonstrations(
            states, actions, lengths, scale_of(path, states, actions, file.obs_keys, wishes.tight),
            file.obs_keys, rewards=rewards, terminals=read_terminals(path, names, lengths), about=about,
            images=None if shape is None else Images(shape, file.cameras, frames),
        )  # fmt: skip


def _gym(path: Path, wishes: Wishes) -> Demonstrations:
    """As ``script/process_gym_dataset.py``: locomotion's episodes without a positive return are left out; others' are kept."""
    data = read_gym(path, wishes.env_name, wishes.obs_keys, any_robot=True)
    locomotion = data.env_name.split("-")[0] in DIMENSIONS
    kept: list[Episode] = [e for e in data.episodes if not locomotion or e.rewards.sum() > 0][: wishes.max_episodes]
    if not kept:
        raise DatasetError(f"{data.path}: rewards: no episode adds up to more than 0, and only such are used")
    lengths = np.array([len(e.actions) for e in kept])
    terminals = np.zeros(lengths.sum(), bool)
    terminals[np.cumsum(lengths) - 1] = [e.terminated for e in kept]
    states, actions, rewards = (np.concatenate([getattr(e, k) for e in kept]) for k in ("states", "actions", "rewards"))
    about = {
        "env_name": data.env_name, "env_id": data.env_id, "dropped_episodes": len(data.episodes) - len(kept),
        "unfinished_transitions": sum(len(a) for _, a in data.unfinished),
    }  # fmt: skip
    return Demonstrations(
        states, actions, lengths, Normalizer.fit(*data.everything()), {"state": states.shape[1]},
        rewards=rewards, terminals=terminals, about=about,
    )  # fmt: skip


def _lerobot(path: Path, wishes: Wishes) -> Demonstrations:
    return lerobot.read_lerobot(path, wishes.obs_keys, wishes.cameras, wishes.max_episodes)


READERS: dict[str, tuple[Callable[[Path, Wishes], Demonstrations], set[str]]] = {
    "npz": (_npz, {"cameras", "tight"}),
    "pickle": (_pickle, {"tight"}),
    "d3il": (_d3il, {"tight"}),
    "robomimic": (_robomimic, {"cameras", "obs_keys", "filter_key", "tight"}),
    "minari": (_gym, {"env_name", "obs_keys"}),
    "d4rl": (_gym, {"env_name"}),
    "lerobot": (_lerobot, {"cameras", "obs_keys"}),
}
