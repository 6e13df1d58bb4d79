"""Locomotion data sets of Minari and of D4RL, read and checked without either package.

Minari (``mujoco/hopper/medium-v0`` and the like; ``data/main_data.hdf5``, with ``metadata.json`` beside it)::

    episode_<i>              attributes: id, total_steps (T)
      observations (T + 1, Do)   the last one is where the episode ended
      actions      (T, Da)
      rewards, terminations, truncations (T,)

D4RL (``hopper_medium-v2.hdf5`` and the like)::

    observations (N, Do), actions (N, Da), rewards, terminals, timeouts (N,)   one episode after another

An episode ends where the robot fell (``terminations``, ``terminals``) or time ran out (``truncations``, ``timeouts``); what
follows the last end is unfinished: it counts for the range of the data, as published, but is no demonstration.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from agent.dataset.hdf5 import listed, member, numbers, open_hdf5, reading, text
from agent.errors import DatasetError, UsageError

DIMENSIONS = {"hopper": (11, 3), "walker2d": (17, 6), "halfcheetah": (17, 6)}  # observations, actions
_NAME = re.compile(rf"(?P<body>{'|'.join(DIMENSIONS)})[-_/](?P<data>[a-z][a-z_-]*?)(?:-v\d+)?")
_D4RL = ("observations", "actions", "rewards", "terminals", "timeouts")


@dataclass(frozen=True)
class Episode:
    """One episode in the robot's own units."""

    name: str
    states: np.ndarray  # (T, Do) float64, before each action
    actions: np.ndarray  # (T, Da) float64
    rewards: np.ndarray  # (T,) float64
    terminated: bool  # the robot fell at the last step; otherwise time ran out


@dataclass(frozen=True)
class GymData:
    """What a file holds; ``unfinished`` are steps after the last end of an episode, as (states, actions)."""

    path: Path
    layout: str  # "minari" or "d4rl"
    env_name: str  # as the configurations say it: hopper-medium-v2
    env_id: str | None  # Gymnasium's, where the file says it: Hopper-v5
    episodes: list[Episode]
    unfinished: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def everything(self) -> tuple[np.ndarray, np.ndarray]:
        """States and actions of the whole file, unfinished ones included: (N, Do), (N, Da)."""
        parts = [(e.states, e.actions) for e in self.episodes] + self.unfinished
        return np.concatenate([s for s, _ in parts]), np.concatenate([a for _, a in parts])


def read_gym(
    path: str | os.PathLike[str],
    env_name: str | None = None,
    obs_keys: Sequence[str] = (),
    any_robot: bool = False,
) -> GymData:
    """Read a Minari or D4RL file, or the folder of a Minari data set.

    Args:
        env_name: which data these are (``hopper-medium-v2``); None: as the file or its name says.
        obs_keys: of a Minari data set whose observations are a dictionary: which of them (``a/b`` within one another), side
            by side; empty: all arrays, by name.
        any_robot: also read data of robots other than ``DIMENSIONS``, of whatever dimensions.

    Raises:
        DatasetError: no such file, neither layout, a key missing, a wrong shape, NaN, ends in the middle of an episode,
            another robot. The message names file and key, what was expected and what was found.
        UsageError: nothing says which robot's data these are, or ``env_name`` names none.
    """
    path = _located(Path(path).expanduser())
    with open_hdf5(path, "Minari or D4RL") as file, reading(path):
        minari = any(name.startswith("episode_") for name in file)
        if not minari and not isinstance(member(file, "observations"), h5py.Dataset):
            raise DatasetError(
                f"{path}: neither Minari's layout (episode_0, ...) nor D4RL's (observations, ...); it has {listed(file)}"
            )
        about = _metadata(path, file) if minari else {}
        known, env_id = about.get("dataset_id") or path.stem, _env_id(about)
        if any_robot and _NAME.fullmatch(_plain(env_name or str(known))) is None:
            env_name, dimensions = env_name or str(known), (None, None)
        else:
            env_name, body = _named(path, env_name, str(known), env_id)
            dimensions = DIMENSIONS[body]
        reader = _Reader(path, file, *dimensions, tuple(obs_keys))
        episodes, unfinished = reader.minari() if minari else reader.d4rl()
    if not episodes:
        raise DatasetError(f"{path}: no episode ends in it; expected at least one {_ENDS[minari]}")
    return GymData(path, "minari" if minari else "d4rl", env_name, env_id, episodes, unfinished)


_ENDS = {True: "termination or truncation", False: "terminal or timeout"}


class _Reader:
    """Checked access to one file of a robot with ``obs_dim`` observations and ``action_dim`` actions (None: any)."""

    def __init__(
        self, path: Path, file: h5py.File, obs_dim: int | None, action_dim: int | None, obs_keys: tuple[str, ...]
    ) -> None:
        self._path, self._file, self._obs, self._action, self._keys = path, file, obs_dim, action_dim, obs_keys

    def minari(self) -> tuple[list[Episode], list[tuple[np.ndarray, np.ndarray]]]:
        """Episodes in numeric order, and those that never ended."""
        names = [name for name in self._file if name.startswith("episode_")]
        wrong = [name for name in names if not name.removeprefix("episode_").isdecimal()]
        if wrong:
            raise DatasetError(f"{self._path}: {wrong[0]}: expected episodes called episode_<number>")
        episodes, unfinished = [], []
        for name in sorted(names, key=lambda n: int(n.removeprefix("episode_"))):
            group = member(self._file, name)
            if not isinstance(group, h5py.Group):
                raise DatasetError(f"{self._path}: {name}: expected a group, found {group!r}")
            actions = self._numbers(group, "actions", (None, self._action))
            length = len(actions)
            declared = int(group.attrs.get("total_steps", length))
            if not length or length != declared:
                raise DatasetError(
                    f"{self._path}: {name}/actions: expected {declared} rows (attribute total_steps; at least 1), found {length}"
                )
            states = self._observations(group, length + 1)[:-1]
            rewards = self._numbers(group, "rewards", (length,))
            ends = [self._flags(group, key, length) for key in ("terminations", "truncations")]
            early = np.flatnonzero((ends[0] | ends[1])[:-1])
            if len(early):
                raise DatasetError(
                    f"{self._path}: {name}: ends at step {early[0]} of {length}; expected an end at its last step only"
                )
            if ends[0][-1] or ends[1][-1]:
                episodes.append(Episode(name, states, actions, rewards, bool(ends[0][-1])))
            else:
                unfinished.append((states, actions))
        return episodes, unfinished

    def d4rl(self) -> tuple[list[Episode], list[tuple[np.ndarray, np.ndarray]]]:
        """Episodes cut at terminals and timeouts, and the rest."""
        missing = [key for key in _D4RL if key not in self._file]
        if missing:
            old = " (D4RL's files before -v2 have no timeouts)" if "timeouts" in missing else ""
            raise DatasetError(f"{self._path}: {missing[0]} is missing{old}; it has {listed(self._file)}")
        states = self._numbers(self._file, "observations", (None, self._obs))
        actions = self._numbers(self._file, "actions", (len(states), self._action))
        rewards = self._numbers(self._file, "rewards", (len(states),))
        terminals, timeouts = (self._flags(self._file, key, len(states)) for key in ("terminals", "timeouts"))
        episodes, start = [], 0
        for end in np.flatnonzero(terminals | timeouts):
            rows = slice(start, int(end) + 1)
            name = f"steps {rows.start} to {int(end)}"
            episodes.append(Episode(name, states[rows], actions[rows], rewards[rows], bool(terminals[end])))
            start = rows.stop
        return episodes, [(states[start:], actions[start:])] if start < len(states) else []

    def _observations(self, group: h5py.Group, length: int) -> np.ndarray:
        inside = member(group, "observations")
        if not isinstance(inside, h5py.Group):
            return self._numbers(group, "observations", (length, self._obs))
        keys = self._keys or sorted(key for key in inside if isinstance(member(inside, key), h5py.Dataset))
        if not keys:
            raise DatasetError(f"{self._where(group, 'observations')}: no arrays in it; name some with --obs_keys")
        return np.concatenate([self._numbers(group, f"observations/{key}", (length, None)) for key in keys], axis=1)

    def _numbers(self, group: h5py.Group, key: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """The data set ``key`` as float64, of ``shape`` (None: any length) and finite."""
        source, where = member(group, key), self._where(group, key)
        if not isinstance(source, h5py.Dataset):
            raise DatasetError(f"{where} is missing (or no array); {group.name} has {listed(group)}")
        return numbers(source, where, shape)

    def _flags(self, group: h5py.Group, key: str, length: int) -> np.ndarray:
        values = self._numbers(group, key, (length,))
        if not np.isin(values, (0.0, 1.0)).all():
            raise DatasetError(f"{self._where(group, key)}: expected true or false, found {values.max():g}")
        return values.astype(bool)

    def _where(self, group: h5py.Group, key: str) -> str:
        return f"{self._path}: {f'{group.name}/{key}'.strip('/')}"


def _plain(name: str) -> str:
    return name.removeprefix("mujoco/").lower()


def _located(path: Path) -> Path:
    """The file itself, of a file or of a Minari data set's folder."""
    if path.is_dir():
        for inside in ("data/main_data.hdf5", "main_data.hdf5"):
            if (path / inside).is_file():
                return path / inside
        raise DatasetError(f"{path}: a folder without data/main_data.hdf5; expected a Minari data set or an HDF5 file")
    return path


def _metadata(path: Path, file: h5py.File) -> dict[str, Any]:
    """What Minari says of its data set: beside the file (from 0.5 on), or as the file's attributes."""
    beside = path.with_name("metadata.json")
    if not beside.is_file():
        return {key: text(value) for key, value in file.attrs.items()}
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{beside}: cannot be read ({error}). Download it again or remove it") from error
    return found if isinstance(found, dict) else {}


def _env_id(about: dict[str, Any]) -> str | None:
    """Gymnasium's name of the environment that the data were recorded in."""
    spec = about.get("env_spec")
    try:
        spec = json.loads(spec) if isinstance(spec, str) else spec
    except ValueError:
        return None
    return spec.get("id") if isinstance(spec, dict) else None


def _named(path: Path, env_name: str | None, known: str, env_id: str | None) -> tuple[str, str]:
    """The data's name (``hopper-medium-v2``) and the robot's."""
    recorded = env_id.split("-")[0].lower() if env_id else None
    if env_name is None:
        match = _NAME.fullmatch(_plain(known))
        if match is None:
            raise UsageError(
                f"--env_name: {path.name} does not say which data these are; expected something like hopper-medium-v2 "
                f"(robots: {', '.join(DIMENSIONS)})"
            )
        body, env_name = match["body"], f"{match['body']}-{match['data'].replace('_', '-')}-v2"
    else:
        body = env_name.split("-")[0]
        if body not in DIMENSIONS:
            raise UsageError(f"--env_name: expected {', '.join(DIMENSIONS)} and -<data>-v2 behind, found {env_name!r}")
    if recorded is not None and recorded != body:
        raise DatasetError(f"{path}: recorded in {env_id}; expected data of {body}, as {env_name} says")
    return env_name, body
