"""A recorded episode: robomimic's HDF5 layout with what a deployment knows beside it, read back, and collected for training.

While it runs (and after a crash) an episode is two streams of rows (``rows.py``): ``ticks``, one per action, and ``inputs``, one per
inference. When it is over they become ``episode.hdf5``::

    data                   attributes: env_args (JSON), total
      demo_0               attributes: num_samples, score, checkpoint_sha256
        actions (T, Da), rewards (T,), dones (T,)
        obs/<published key>      (T, D); images (T, H, W, 3) uint8
        deploy/<column>          (T, ...) times, raw actions, reference and measured poses, ...
        deploy/inputs/<column>   (N, ...) what the policy was shown, to the bit; ``number`` is that of its tick
        deploy/events            (E,) lines of JSON

which ``script/process_robomimic_dataset.py`` reads.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from env.franka.rows import Rows, atomically, has_rows, read_rows
from env.franka.types import DeploymentError
from env.robomimic.env_meta import FOLDER, TASKS

HDF5, EVENTS, ABOUT = "episode.hdf5", "events.jsonl", "about.json"
TICKS, INPUTS = "ticks", "inputs"
_INPUTS, _EVENTS, _IMAGE = "deploy/inputs/", "deploy/events", "_image"


@dataclass(frozen=True)
class Episode:
    """What was recorded: ``ticks`` and ``inputs`` by column (named as in the file, inputs without a prefix), ``events``, and ``about``
    (``about.json``; empty where it is absent)."""

    path: Path
    ticks: Rows
    inputs: Rows = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ticks["actions"])

    def column(self, name: str) -> np.ndarray:
        """Raises ``DeploymentError`` where it was not recorded."""
        if name not in self.ticks:
            raise DeploymentError(f"{self.path}: no column {name}; it has {', '.join(sorted(self.ticks))}")
        return self.ticks[name]

    def times(self) -> np.ndarray:
        """``(T,)`` seconds since the first tick."""
        t = self.column("deploy/t_exec")
        if not np.isfinite(t).all() or (np.diff(t) < 0).any():
            raise DeploymentError(f"{self.path}: deploy/t_exec: expected times that never go back")
        return t - t[0]


def row_at(times: np.ndarray, seconds: float) -> int:
    """The last row that had happened ``seconds`` after the first; the first before, the last after the end."""
    return int(np.clip(np.searchsorted(times, seconds + 1e-9, side="right") - 1, 0, len(times) - 1))


# ---------------------------------------------------------------------------------------------------------------- writing


def write_hdf5(path: Path, demos: Sequence[tuple[Rows, Mapping[str, Any]]], task: str) -> None:
    """One HDF5 file of ``demos``: the columns (``columns_of``) and the attributes of each. Whole or not at all; raises ``OSError``."""
    env_args = env_args_of(task, demos[0][0])

    def write(partial: Path) -> None:
        with h5py.File(partial, "w") as file:
            data = file.create_group("data")
            for k, (columns, attributes) in enumerate(demos):
                group = data.create_group(f"demo_{k}")
                for name, values in columns.items():
                    group.create_dataset(name, data=values)
                group.attrs["num_samples"] = len(columns["actions"])
                group.attrs.update(attributes)
            data.attrs["total"] = sum(len(columns["actions"]) for columns, _ in demos)
            data.attrs["env_args"] = json.dumps(env_args, indent=4)

    atomically(path, write)


def env_args_of(task: str, columns: Rows) -> dict[str, Any]:
    """What a robomimic file says of its environment: the published one of ``task``, with the cameras of ``columns``.

    Raises ``DeploymentError`` for a task that is not robomimic's.
    """
    if task not in TASKS:
        raise DeploymentError(f"task: expected one of {', '.join(TASKS)}, found {task!r}")
    cameras = [name[4 : -len(_IMAGE)] for name in sorted(columns) if name.startswith("obs/") and name.endswith(_IMAGE)]
    args = json.loads((FOLDER / f"{task}{'-img' if cameras else ''}.json").read_text(encoding="utf-8"))
    return {**args, "env_kwargs": {**args["env_kwargs"], **({"camera_names": cameras} if cameras else {})}}


def columns_of(episode: Episode, score: float | None) -> Rows:
    """All that goes into ``demo_<i>``: with ``dones``, and the ``score`` (0 to 1) as the last reward."""
    rewards = np.zeros(len(episode))
    rewards[-1] = score or 0.0
    dones = np.arange(len(episode)) == len(episode) - 1
    lines = [json.dumps(event).encode() for event in episode.events]
    events = {_EVENTS: np.array(lines, dtype="S")} if lines else {}
    inputs = {_INPUTS + name: values for name, values in episode.inputs.items()}
    return {**episode.ticks, **inputs, **events, "rewards": rewards, "dones": dones.astype(np.int64)}


# ---------------------------------------------------------------------------------------------------------------- reading


def read_episode(path: str | os.PathLike[str]) -> Episode:
    """A recorded episode: its folder (also that of a process that died) or its HDF5 file.

    Raises:
        DeploymentError: no recording, or a damaged one.
    """
    path = Path(path).expanduser()
    folder, file = (path, path / HDF5) if path.is_dir() else (path.parent, path)
    if file.is_file():
        columns = _read_hdf5(file)
    elif path.is_dir() and has_rows(path, TICKS):
        columns = read_rows(path, TICKS)
        if has_rows(path, INPUTS):
            columns |= {_INPUTS + name: values for name, values in read_rows(path, INPUTS).items()}
    else:
        raise DeploymentError(
            f"{path}: expected the folder of a recorded episode with {HDF5} in it, or such a file; found neither"
        )
    lines = columns.pop(_EVENTS, None)
    inputs = {
        name: columns.pop(_INPUTS + name) for name in [n[len(_INPUTS) :] for n in columns if n.startswith(_INPUTS)]
    }
    for rows, what in ((columns, "actions"), (inputs, "number")):
        lengths = {name: len(values) for name, values in rows.items()}
        if (rows or rows is columns) and (what not in rows or len(set(lengths.values())) != 1 or not lengths[what]):
            raise DeploymentError(f"{path}: expected columns of one length, {what} among them, found {lengths}")
    return Episode(path, columns, inputs, _events(folder / EVENTS, lines), _about(folder / ABOUT))


def _read_hdf5(path: Path) -> Rows:
    columns: Rows = {}

    def take(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            columns[name] = np.atleast_1d(item[()])

    try:
        with h5py.File(path, "r") as file:
            file["data/demo_0"].visititems(take)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise DeploymentError(f"{path}: expected a recorded episode (data/demo_0), found {error}") from error
    return columns


def _events(path: Path, stored: np.ndarray | None) -> list[dict[str, Any]]:
    """The events beside the recording, else those inside; a last line that was cut short is left out."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    else:
        lines = [] if stored is None else [bytes(line).decode(errors="replace") for line in stored]
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events


def _about(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise DeploymentError(f"{path}: expected a JSON object, found {error}") from error


# ------------------------------------------------------------------------------------------------------------- collecting


def collect(
    episodes: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str], task: str, least_score: float = 0.5
) -> int:
    """One robomimic file of the episodes whose score is at least ``least_score``, for ``script/process_robomimic_dataset.py``.

    Episodes without a verdict count as failed, and so do those in which nothing was sent to the robot (``mode=shadow``). Ticks at which
    the policy was not followed (HOLD) are left out: the arm stood still. Returns how many episodes went in.

    Raises:
        DeploymentError: an episode that cannot be read, none that is good enough, or a file that cannot be written.
    """
    demos = []
    for source in episodes:
        episode = read_episode(source)
        score = episode.about.get("score")
        followed = episode.ticks.get("deploy/running", np.ones(len(episode), bool))
        sent = (episode.about.get("configuration") or {}).get("mode") != "shadow"
        if score is not None and score >= least_score and sent and followed.any():
            episode = replace(episode, ticks={name: values[followed] for name, values in episode.ticks.items()})
            demos.append((columns_of(episode, score), {"score": score, "source": str(source)}))
    if not demos:
        raise DeploymentError(
            f"{path}: of {len(episodes)} episodes none has a score of {least_score:g} or more: nothing to collect"
        )
    try:
        write_hdf5(Path(path), demos, task)
    except OSError as error:
        raise DeploymentError(f"{path}: cannot be written ({error})") from error
    return len(demos)
