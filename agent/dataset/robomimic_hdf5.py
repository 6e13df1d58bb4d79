"""robomimic's HDF5 demonstrations, read and checked without the robomimic package.

Layout (robomimic v0.1, v141 and later; raw ``demo.hdf5`` files have no ``obs`` yet)::

    data                      attributes: env_args (JSON: env_name, env_version, type, env_kwargs), total
      demo_<i>                attributes: num_samples (T), model_file (the episode's MJCF)
        actions   (T, Da)     in [-1, 1]
        rewards   (T,)        and dones (T,)
        states    (T, 1 + nq + nv)   MuJoCo's time, qpos, qvel before each action
        obs/<key> (T, D)      robot0_eef_pos, ..., object; <camera>_image (T, H, W, 3) uint8
        next_obs/<key>
    mask/<filter_key>         names of demonstrations: train, valid, 20_percent, ...

Observations come in the published order (``env.robomimic.env_meta``), ``object`` in the arrangement of robosuite 1.4.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from agent.dataset.demos import RANGE_SLACK
from agent.dataset.hdf5 import listed, member, numbers, open_hdf5, reading, rows, text
from agent.errors import DatasetError
from env.errors import EnvError
from env.robomimic.env_meta import TASKS, EnvMeta, check_env_args
from env.robomimic.object_obs import to_published

OTHER_NAMES = {"object": ("object", "object-state")}
PIECE = 256  # frames read at once: 7 MB of 96 x 96 images
_IMAGE = "_image"
_RAW = (
    "a raw demo file holds states only; robomimic's dataset_states_to_obs.py (--done_mode 2; for images --camera_names "
    "... --camera_height 96 --camera_width 96) writes the observations"
)


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def inner(self: RobomimicFile, *args: Any, **kwargs: Any) -> Any:
        with reading(self.path):
            return method(self, *args, **kwargs)

    return inner


@dataclass(frozen=True)
class Demo:
    """One demonstration in the task's own units."""

    name: str
    states: np.ndarray  # (T, Do) float64, in the published order
    actions: np.ndarray  # (T, Da) float64 in [-1, 1]
    rewards: np.ndarray  # (T,) float64


class RobomimicFile:
    """An HDF5 file of one task's demonstrations; ``with RobomimicFile(path) as file: ...``.

    Args:
        path: the file.
        task: which task it must hold; None: whichever it says.
        cameras: None: state policies (``object`` observed); else the cameras whose images are wanted (``object`` left
            out, as in the published image policies), or empty: the published ones of the task.

    ``task``, ``meta`` (``env_args``, checked), ``cameras`` and ``obs_keys`` (key -> columns) say what is in it.

    Raises:
        DatasetError: no HDF5, not robomimic's layout, or made in an environment other than the engine's. Here and in
            every method the message names file, demonstration and key, what was expected and what was found.
    """

    def __init__(
        self, path: str | os.PathLike[str], task: str | None = None, cameras: Sequence[str] | None = None
    ) -> None:
        self.path = Path(path).expanduser()
        self._file = open_hdf5(self.path, "robomimic")
        try:
            with reading(self.path):
                self._data = member(self._file, "data")
                if not isinstance(self._data, h5py.Group):
                    raise DatasetError(f"{self.path}: no group 'data' in it; it has {listed(self._file)}")
                self.meta = self._checked_meta(task)
                self.task = self.meta.task
                facts = TASKS[self.task]
                self.cameras = (
                    None if cameras is None else tuple(c.removesuffix(_IMAGE) for c in cameras) or facts.cameras
                )
                self.obs_keys = facts.obs_dims(use_object=cameras is None)
                self.action_dim = facts.action_dim
                self._names = self._sorted_names()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RobomimicFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    @_guarded
    def names(self, filter_key: str | None = None, max_episodes: int | None = None) -> list[str]:
        """Demonstrations in numeric order: those of ``mask/<filter_key>`` (None: all), the first ``max_episodes``."""
        names = self._names
        if filter_key is not None:
            masks = member(self._file, "mask")
            mask = member(masks, filter_key) if isinstance(masks, h5py.Group) else None
            if not isinstance(mask, h5py.Dataset):
                known = listed(masks) if isinstance(masks, h5py.Group) else "no filter keys"
                raise DatasetError(f"{self.path}: mask/{filter_key} is not in it; it has {known}")
            wanted = {text(entry) for entry in np.atleast_1d(rows(mask, f"{self.path}: mask/{filter_key}")).ravel()}
            absent = wanted - set(names)
            if absent:
                raise DatasetError(f"{self.path}: mask/{filter_key} names {min(absent)}, which is not in data")
            names = [name for name in names if name in wanted]
        if not names:
            raise DatasetError(f"{self.path}: no demonstrations" + (f" in mask/{filter_key}" if filter_key else ""))
        return names[:max_episodes]

    @_guarded
    def read(self, name: str) -> Demo:
        """One demonstration without its images, which must be there all the same where cameras were asked for; checked."""
        actions = self._numbers(name, "actions", (None, self.action_dim))
        length = len(actions)
        self._check_length(name, length)
        outside = np.abs(actions) > 1.0 + RANGE_SLACK
        if outside.any():
            t, column = (int(i) for i in np.argwhere(outside)[0])
            raise DatasetError(
                f"{self._where(name, 'actions')}[{t}, {column}] is {actions[t, column]:g}; expected values in [-1, 1] "
                "(deltas, not absolute poses)"
            )
        rewards = self._numbers(name, "rewards", (length,))
        obs = {key: self._numbers(name, f"obs/{key}", (length, dim)) for key, dim in self.obs_keys.items()}
        if "object" in obs:
            try:
                obs["object"] = to_published(self.task, obs["robot0_eef_pos"], obs["robot0_eef_quat"], obs["object"])
            except EnvError as error:
                raise DatasetError(f"{self._where(name, 'obs/object')}: {error}") from error
        for key in ("dones", "states"):
            if key in self._group(name) and len(self._dataset(name, key)) != length:
                raise DatasetError(
                    f"{self._where(name, key)}: expected {length} rows like actions, found {len(self._group(name)[key])}"
                )
        self._sources(name)
        return Demo(name, np.concatenate(list(obs.values()), axis=1), actions, rewards)

    @_guarded
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the images, all cameras side by side along C; of the first demonstration."""
        shapes = [self._image(self._names[0], camera).shape for camera in self.cameras or ()]
        if not shapes:
            raise DatasetError(f"{self.path}: no cameras were asked for")
        return sum(s[3] for s in shapes), *shapes[0][1:3]

    def frames(self, name: str, piece: int = PIECE) -> Iterator[np.ndarray]:
        """Images of one demonstration, ``(n, C, H, W)`` uint8 with n at most ``piece``, so that memory stays small."""
        with reading(self.path):
            sources, length = self._sources(name), len(self._dataset(name, "actions"))
            for start in range(0, length, piece):
                parts = [
                    rows(source, self._where(name, f"obs/{camera}{_IMAGE}"), slice(start, start + piece))
                    for camera, source in sources.items()
                ]
                yield np.ascontiguousarray(np.concatenate(parts, axis=3).transpose(0, 3, 1, 2))

    @_guarded
    def physics(self, name: str) -> tuple[np.ndarray, str | None]:
        """MuJoCo's states ``(T, 1 + nq + nv)`` (time, qpos, qvel before each action), and the episode's MJCF if kept."""
        states = self._numbers(name, "states", (len(self._dataset(name, "actions")), None))
        model = self._group(name).attrs.get("model_file")
        return states, None if model is None else text(model)

    # ------------------------------------------------------------------------------------------------- checks

    def _checked_meta(self, task: str | None) -> EnvMeta:
        env_args = self._data.attrs.get("env_args")
        if env_args is None:
            raise DatasetError(
                f"{self.path}: data has no attribute env_args; it has {listed(self._data.attrs)}. Robosuite's own "
                "recordings become robomimic's with its convert_robosuite.py"
            )
        try:
            return check_env_args(text(env_args), f"{self.path}: env_args", task)
        except EnvError as error:
            raise DatasetError(str(error)) from error

    def _sorted_names(self) -> list[str]:
        wrong = [name for name in self._data if not name.removeprefix("demo_").isdecimal()]
        if wrong:
            raise DatasetError(f"{self.path}: data/{wrong[0]}: expected demonstrations called demo_<number>")
        names = sorted(self._data, key=lambda name: int(name.removeprefix("demo_")))
        total = self._data.attrs.get("total")
        if total is not None:
            found = sum(len(self._dataset(name, "actions")) for name in names)
            if int(total) != found:
                raise DatasetError(f"{self.path}: data's attribute total is {total}, but the actions are {found} rows")
        return names

    def _check_length(self, name: str, length: int) -> None:
        declared = self._group(name).attrs.get("num_samples", length)
        if length < 1 or int(declared) != length:
            raise DatasetError(
                f"{self._where(name, 'actions')}: expected {declared} rows as attribute num_samples says (at least 1), "
                f"found {length}"
            )

    def _where(self, name: str, key: str) -> str:
        return f"{self.path}: data/{name}/{key}"

    def _group(self, name: str) -> h5py.Group:
        group = member(self._data, name)
        if not isinstance(group, h5py.Group):
            raise DatasetError(f"{self.path}: data/{name}: expected a group, found {group!r}")
        return group

    def _dataset(self, name: str, key: str) -> h5py.Dataset:
        group = self._group(name)
        folder, _, leaf = key.rpartition("/")
        if folder and not isinstance(member(group, folder), h5py.Group):
            raise DatasetError(f"{self._where(name, folder)} is missing (it has {listed(group)}): {_RAW}")
        parent = member(group, folder) if folder else group
        for other in OTHER_NAMES.get(leaf, (leaf,)):
            found = member(parent, other)
            if isinstance(found, h5py.Dataset) and found.shape:
                return found
        hint = f". {_RAW}" if leaf.endswith(_IMAGE) else ""
        raise DatasetError(
            f"{self._where(name, key)} is missing; {folder or 'the demonstration'} has {listed(parent)}{hint}"
        )

    def _sources(self, name: str) -> dict[str, h5py.Dataset]:
        """The images of every camera, of one size in all of the file."""
        expected = (len(self._dataset(name, "actions")), *self.image_shape()[1:], 3) if self.cameras else ()
        sources = {camera: self._image(name, camera) for camera in self.cameras or ()}
        for camera, source in sources.items():
            if source.shape != expected:
                raise DatasetError(
                    f"{self._where(name, f'obs/{camera}{_IMAGE}')}: expected shape {expected}, found {source.shape}"
                )
        return sources

    def _image(self, name: str, camera: str) -> h5py.Dataset:
        source = self._dataset(name, f"obs/{camera}{_IMAGE}")
        if source.ndim != 4 or source.shape[3] != 3 or source.dtype != np.uint8:
            raise DatasetError(
                f"{self._where(name, f'obs/{camera}{_IMAGE}')}: expected (T, H, W, 3) uint8, found {source.shape} "
                f"{source.dtype}"
            )
        return source

    def _numbers(self, name: str, key: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """The dataset as float64, of ``shape`` (None: any length) and finite."""
        return numbers(self._dataset(name, key), self._where(name, key), shape)
