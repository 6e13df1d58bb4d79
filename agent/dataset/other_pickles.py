"""Demonstrations that the ancestors kept in pickles, read without unpickling anything (``agent.dataset.plain_pickle``).

The older layout, one row of zeros after another behind every episode::

    observations (E, Tmax, Do), actions (E, Tmax, Da), traj_length (E,) int | optional: rewards, terminals (E, Tmax)

and the present one, the arrays of ``train.npz`` (``agent.dataset.demos``). D3IL's processing script called such a file train.npz, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent.dataset.demos import ARRAYS, check_arrays
from agent.dataset.plain_pickle import read_plain
from agent.errors import DatasetError

MAX_BYTES = 2**34
_FLAT_NAMES = {"observations": "states", "traj_length": "traj_lengths"}


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """The arrays of ``train.npz`` out of a pickle of either layout; checked, but for their range.

    Raises:
        DatasetError: not plain data, an array missing, shapes or lengths that do not fit, values that are not finite.
    """
    found = read_plain(path, MAX_BYTES)
    if not isinstance(found, Mapping):
        raise DatasetError(f"{path}: expected a dictionary of arrays, found a {type(found).__name__}")
    arrays = {_FLAT_NAMES.get(key, key): np.asarray(value) for key, value in found.items() if _is_wanted(key, value)}
    missing = [name for name in ("states", "actions", "traj_lengths") if name not in arrays]
    if missing:
        listed = ", ".join(sorted(map(str, found))[:30]) or "nothing"
        raise DatasetError(
            f"{path}: no {' and no '.join(missing)} in it (or no array of numbers); expected observations, actions and "
            f"traj_length (padded), or states, actions and traj_lengths; found {listed}"
        )
    if arrays["states"].ndim == 3:
        arrays = _without_padding(arrays, path)
    check_arrays(arrays, str(path), normalized=False)
    return arrays


def _is_wanted(key: Any, value: Any) -> bool:
    plain = isinstance(value, np.ndarray) or (isinstance(value, list) and all(isinstance(n, int) for n in value))
    return plain and _FLAT_NAMES.get(key, key) in ARRAYS


def _without_padding(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    lengths = arrays["traj_lengths"]
    episodes, longest = arrays["states"].shape[:2]
    if lengths.shape != (episodes,) or lengths.dtype.kind not in "iu" or not episodes:
        raise DatasetError(
            f"{path}: traj_length: expected ({episodes},) integers, found {lengths.shape} {lengths.dtype}"
        )
    if lengths.min() < 1 or lengths.max() > longest:
        raise DatasetError(
            f"{path}: traj_length: expected numbers from 1 to {longest}, found {lengths.min()} to {lengths.max()}"
        )
    for name, array in arrays.items():
        if name != "traj_lengths" and array.shape[:2] != (episodes, longest):
            raise DatasetError(f"{path}: {name}: expected shape ({episodes}, {longest}, ...), found {array.shape}")
    inside = np.arange(longest) < lengths[:, None]
    return {name: array if name == "traj_lengths" else array[inside] for name, array in arrays.items()}
