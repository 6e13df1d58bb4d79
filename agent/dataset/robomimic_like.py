"""HDF5 files in robomimic's layout (``agent.dataset.robomimic_hdf5``) whatever their task: read, and written.

Besides robomimic's own groups a file that is written here has ``normalization/{obs_min, obs_max, action_min, action_max}``, and
``terminals`` beside ``dones`` where they are known, so that nothing of ``train.npz`` is lost on the way there and back. What
reads robomimic's files skips both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from agent.dataset.demonstrations import Demonstrations, Images, published_range
from agent.dataset.hdf5 import listed, member, numbers, open_hdf5, reading, rows, text
from agent.errors import DatasetError
from agent.files import atomic_write
from env.normalizer import Normalizer
from env.robomimic.env_meta import FOLDER, TASKS

PIECE = 256  # frames read at once
_IMAGE = "_image"
_GYM_TYPE = 2  # robomimic's number for any Gym environment
_STATISTICS = ("obs_min", "obs_max", "action_min", "action_max")
_SUITE_NAMES = {facts.suite_name for facts in TASKS.values()}


def is_known_task(path: Path) -> bool:
    """Whether a file in robomimic's layout says that it is of one of the tasks that are simulated here."""
    with open_hdf5(path, "robomimic") as file, reading(path):
        args = _env_args(file)
        return args.get("env_name") in _SUITE_NAMES


def scale_of(
    path: Path, states: np.ndarray, actions: np.ndarray, columns: Mapping[str, int], tight: bool
) -> Normalizer:
    """The statistics that were written with the file, if they are of these ``columns``; else those of the data. Raises ``DatasetError``."""
    with open_hdf5(path, "robomimic") as file, reading(path):
        group = member(file, "normalization")
        if not isinstance(group, h5py.Group) or text(group.attrs.get("obs_keys")) != json.dumps(dict(columns)):
            return published_range(states, actions, tight)
        where = f"{path}: normalization"
        found = {key: _array(member(group, key), f"{where}/{key}") for key in _STATISTICS}
        scale = Normalizer(**{key: numbers(source, f"{where}/{key}", (None,)) for key, source in found.items()})
    if (scale.obs_dim, scale.action_dim) != (states.shape[1], actions.shape[1]):
        raise DatasetError(
            f"{where}: is of {scale.obs_dim} states and {scale.action_dim} actions, not of those in the file"
        )
    return scale


def read_terminals(path: Path, names: Sequence[str], lengths: Sequence[int]) -> np.ndarray:
    """``terminals`` of the demonstrations ``names`` as one array; all False where the file keeps none."""
    with open_hdf5(path, "robomimic") as file, reading(path):
        parts = []
        for name, length in zip(names, lengths, strict=True):
            source = member(file, f"data/{name}/terminals")
            where = f"{path}: data/{name}/terminals"
            parts.append(np.zeros(length) if source is None else numbers(_array(source, where), where, (length,)))
        return np.concatenate(parts) != 0


def read_generic(
    path: Path, obs_keys: Sequence[str] = (), cameras: Sequence[str] | None = None, max_episodes: int | None = None,
    tight: bool = False,
) -> Demonstrations:  # fmt: skip
    """Demonstrations of a task that is not simulated here, or of other observations.

    Args:
        obs_keys: which of ``obs``, side by side (``a/b`` within one another); empty: all of one row of numbers a step, by name.
        cameras: None: no images; empty: all of ``obs`` that are images.

    Raises:
        DatasetError: not the layout, a key missing, shapes that differ from demonstration to demonstration, values that are
            not finite.
    """
    with open_hdf5(path, "robomimic") as file, reading(path):
        names = _names(file, path)[:max_episodes]
        first = _group(file, f"data/{names[0]}/obs", path)
        keys = list(obs_keys) or sorted(k for k in first if _is_row(member(first, k)))
        if not keys:
            raise DatasetError(f"{path}: data/{names[0]}/obs: no rows of numbers in it; it has {listed(first)}")
        episodes = [_episode(file, name, keys, path) for name in names]
        columns = {key: array.shape[1] for key, array in zip(keys, episodes[0]["obs"], strict=True)}
        for name, episode in zip(names, episodes, strict=True):
            found = {key: array.shape[1] for key, array in zip(keys, episode["obs"], strict=True)}
            if found != columns or episode["actions"].shape[1:] != episodes[0]["actions"].shape[1:]:
                raise DatasetError(f"{path}: data/{name}: other dimensions than data/{names[0]}")
        pictures = (
            None if cameras is None else _images(file, path, names, cameras, [len(e["actions"]) for e in episodes])
        )
        about = {"env_name": text(_env_args(file).get("env_name", path.stem))}
    states = np.concatenate([np.concatenate(e["obs"], axis=1) for e in episodes])
    actions = np.concatenate([e["actions"] for e in episodes])
    lengths = np.array([len(e["actions"]) for e in episodes])
    rewarded = all(e["rewards"] is not None for e in episodes)
    return Demonstrations(
        states, actions, lengths, scale_of(path, states, actions, columns, tight), columns,
        rewards=np.concatenate([e["rewards"] for e in episodes]) if rewarded else None,
        terminals=read_terminals(path, names, lengths), images=pictures, about=about,
    )  # fmt: skip


def _env_args(file: h5py.File) -> dict[str, Any]:
    data = member(file, "data")
    found = data.attrs.get("env_args") if isinstance(data, h5py.Group) else None
    try:
        args = json.loads(text(found)) if found is not None else {}
    except ValueError:
        return {}
    return args if isinstance(args, dict) else {}


def _group(file: h5py.File, name: str, path: Path) -> h5py.Group:
    group = member(file, name)
    if not isinstance(group, h5py.Group):
        raise DatasetError(f"{path}: {name} is missing (or no group); the file has {listed(file)}")
    return group


def _array(source: Any, where: str) -> h5py.Dataset:
    if not isinstance(source, h5py.Dataset):
        raise DatasetError(f"{where} is missing, or no array")
    return source


def _names(file: h5py.File, path: Path) -> list[str]:
    names = [name for name in _group(file, "data", path) if name.removeprefix("demo_").isdecimal()]
    if not names:
        raise DatasetError(f"{path}: data: no demonstrations called demo_<number> in it")
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def _is_row(source: Any) -> bool:
    return isinstance(source, h5py.Dataset) and len(source.shape or ()) in (1, 2) and source.dtype.kind in "fiub"


def _episode(file: h5py.File, name: str, keys: Sequence[str], path: Path) -> dict[str, Any]:
    group, where = _group(file, f"data/{name}", path), f"{path}: data/{name}"
    actions = numbers(_array(member(group, "actions"), f"{where}/actions"), f"{where}/actions", (None, None))
    if not actions.size:
        raise DatasetError(f"{where}/actions: expected at least one row, found {actions.shape}")
    obs = []
    for key in keys:
        array = numbers(_array(member(group, f"obs/{key}"), f"{where}/obs/{key}"), f"{where}/obs/{key}")
        array = array[:, None] if array.ndim == 1 else array
        if array.ndim != 2 or len(array) != len(actions) or not array.shape[1]:
            raise DatasetError(f"{where}/obs/{key}: expected {len(actions)} rows of numbers, found shape {array.shape}")
        obs.append(array)
    rewards = member(group, "rewards")
    if rewards is not None:
        rewards = numbers(_array(rewards, f"{where}/rewards"), f"{where}/rewards", (len(actions),))
    return {"actions": actions, "obs": obs, "rewards": rewards}


def _images(
    file: h5py.File, path: Path, names: Sequence[str], cameras: Sequence[str], lengths: Sequence[int]
) -> Images:
    obs = _group(file, f"data/{names[0]}/obs", path)
    every = [k for k in obs if isinstance(member(obs, k), h5py.Dataset) and len(obs[k].shape or ()) == 4]
    keys = [k if k in obs else f"{k}{_IMAGE}" for k in cameras] or sorted(every)
    if not keys:
        raise DatasetError(f"{path}: data/{names[0]}/obs: no images in it; it has {listed(obs)}")
    size = _array(member(obs, keys[0]), f"{path}: data/{names[0]}/obs/{keys[0]}").shape[1:3]
    for name, length in zip(names, lengths, strict=True):
        for key in keys:
            where = f"{path}: data/{name}/obs/{key}"
            source = _array(member(file, f"data/{name}/obs/{key}"), where)
            if source.shape != (length, *size, 3) or source.dtype != np.uint8 or 0 in size:
                raise DatasetError(
                    f"{where}: expected ({length}, H, W, 3) uint8 of one size, found {source.shape} {source.dtype}"
                )

    def frames(episodes: Sequence[int]) -> Iterator[np.ndarray]:
        with open_hdf5(path, "robomimic") as again, reading(path):
            for i in episodes:
                where = f"data/{names[i]}/obs"
                for start in range(0, lengths[i], PIECE):
                    part = slice(start, start + PIECE)
                    seen = [rows(member(again, f"{where}/{key}"), f"{path}: {where}/{key}", part) for key in keys]
                    yield np.ascontiguousarray(np.concatenate(seen, axis=3).transpose(0, 3, 1, 2))

    return Images((3 * len(keys), *size), tuple(key.removesuffix(_IMAGE) for key in keys), frames)


# ------------------------------------------------------------------------------------------------------------- writing


def write_hdf5(path: Path, demos: Demonstrations, masks: dict[str, Sequence[int]] | None = None) -> None:
    """All of ``demos`` as one file in robomimic's layout, in one step; ``masks``: filter key -> episodes.

    Images are stored as ``obs/<camera>_image (T, H, W, 3)``.

    Raises:
        DatasetError: images that are not of three colours a camera, or a file that cannot be written.
    """
    images = demos.images
    if images is not None and images.shape[0] != 3 * len(images.cameras):
        raise DatasetError(f"{path}: {images.shape[0]} channels of {len(images.cameras)} cameras; expected 3 of each")
    names = [f"demo_{k}" for k in range(len(demos))]
    try:
        with atomic_write(path) as part, h5py.File(part.name, "w") as file:
            data = file.create_group("data")
            for k, name in enumerate(names):
                _write_episode(data.create_group(name), demos, k)
            if images is not None:
                _write_images(data, demos, images)
            data.attrs["total"] = len(demos.actions)
            data.attrs["env_args"] = json.dumps(_meta(demos), indent=4)
            for key, episodes in (masks or {}).items():
                file[f"mask/{key}"] = np.array([names[i] for i in episodes], dtype="S")
            for key, value in demos.scale.to_dict().items():
                file[f"normalization/{key}"] = value
            file["normalization"].attrs["obs_keys"] = json.dumps(dict(demos.columns))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be written ({error.strerror or error})") from error


def _write_episode(group: h5py.Group, demos: Demonstrations, k: int) -> None:
    rows_of = demos.rows([k])
    states, done = demos.states[rows_of], np.zeros(len(rows_of), np.int64)
    done[-1] = 1
    group["actions"], group["dones"] = demos.actions[rows_of], done
    for name in ("rewards", "terminals"):
        if (values := getattr(demos, name)) is not None:
            group[name] = values[rows_of]
    start = 0
    for key, width in demos.columns.items():
        group[f"obs/{key}"] = states[:, start : start + width]
        start += width
    group.attrs["num_samples"] = len(rows_of)


def _write_images(data: h5py.Group, demos: Demonstrations, images: Images) -> None:
    """One pass over all frames, cut where an episode ends."""
    pieces = images.frames(range(len(demos)))
    left = np.empty((0, *images.shape), np.uint8)
    for k, length in enumerate(demos.traj_lengths):
        sinks = [
            data[f"demo_{k}"].create_dataset(
                f"obs/{camera}{_IMAGE}", (length, *images.shape[1:], 3), np.uint8, chunks=(1, *images.shape[1:], 3),
                compression="gzip", compression_opts=1,
            )
            for camera in images.cameras
        ]  # fmt: skip
        row = 0
        while row < length:
            piece = left if len(left) else next(pieces, left)
            if not len(piece):
                raise DatasetError(f"images: they end within demonstration {k}, at step {row} of {length}")
            now, left = piece[: length - row], piece[length - row :]
            for c, sink in enumerate(sinks):
                sink[row : row + len(now)] = now[:, 3 * c : 3 * c + 3].transpose(0, 2, 3, 1)
            row += len(now)


def _meta(demos: Demonstrations) -> dict[str, Any]:
    """``env_args``: the published ones for a task's published observations, else the name only."""
    task = demos.about.get("task")
    if task in TASKS and list(demos.columns) in [list(TASKS[task].obs_dims(use)) for use in (True, False)]:
        name = task if demos.images is None else f"{task}-img"
        return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return {"env_name": str(demos.about.get("env_name") or "unknown"), "type": _GYM_TYPE, "env_kwargs": {}}
