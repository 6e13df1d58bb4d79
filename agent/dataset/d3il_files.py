"""D3IL's own demonstrations (``env_*.pkl``) as data: read without unpickling anything (``agent.dataset.plain_pickle``).

A file holds ``{"robot": {"des_c_pos": (T, 3), "c_pos": (T, 3), ...}, ...}``, metres, one row per 35 ms. A demonstration is

    state t  = [desired x y, actual x y] of row t,        action t = desired x y of row t + 1 minus that of row t.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.dataset.plain_pickle import read_plain
from agent.errors import DatasetError

MAX_BYTES = 2**28  # of one file; D3IL's have 30 kB
_KEYS = ("des_c_pos", "c_pos")


@dataclass(frozen=True)
class Demo:
    """One demonstration: ``states (T, 4)`` and ``actions (T, 2)``, metres."""

    name: str
    states: np.ndarray
    actions: np.ndarray


def read_demo(path: str | os.PathLike[str]) -> Demo:
    """One of D3IL's files.

    Raises:
        DatasetError: absent, too large, not plain data, an array missing or of a wrong shape, values that are not finite.
    """
    path = Path(path)
    robot = read_plain(path, MAX_BYTES)
    robot = robot.get("robot") if isinstance(robot, dict) else None
    if not isinstance(robot, dict) or any(key not in robot for key in _KEYS):
        found = ", ".join(map(str, robot)) if isinstance(robot, dict) else type(robot).__name__
        raise DatasetError(f'{path}: expected {{"robot": {{{", ".join(_KEYS)}, ...}}}}, found {found or "nothing"}')
    desired, actual = (np.asarray(robot[key]) for key in _KEYS)
    for key, array in zip(_KEYS, (desired, actual), strict=True):
        if (
            array.ndim != 2
            or array.shape[1] < 2
            or len(array) < 2
            or array.dtype.kind != "f"
            or len(array) != len(desired)
        ):
            raise DatasetError(
                f"{path}: robot/{key}: expected (T, 3) numbers, T >= 2, found {array.shape}, {array.dtype}"
            )
        if not np.isfinite(array[:, :2]).all():
            raise DatasetError(
                f"{path}: robot/{key}: NaN or infinity in row {int(np.argwhere(~np.isfinite(array))[0, 0])}"
            )
    states = np.concatenate([desired[:-1, :2], actual[:-1, :2]], axis=1)
    return Demo(path.stem, states, np.diff(desired[:, :2], axis=0))


def find_demos(folder: str | os.PathLike[str]) -> list[Path]:
    """The demonstration files in ``folder``, by name. Raises ``DatasetError`` without any."""
    found = sorted(Path(folder).expanduser().glob("*.pkl"))
    if not found:
        raise DatasetError(
            f"{folder}: no *.pkl in it; D3IL keeps its demonstrations in environments/dataset/data/avoiding/data"
        )
    return found
