"""Demonstration files: what is in them, and every way in which one can be wrong.

``train.npz`` (spec 4.1): trajectories one after another without padding, normalised to [-1, 1]::

    states (T, Do), actions (T, Da) float32 | traj_lengths (E,) int, their sum is T
    optional: images (T, C, H, W) uint8 | rewards (T,) float32 | terminals (T,) bool

Never a pickle: reading a file must not run it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agent.errors import DatasetError
from agent.files import atomic_write
from agent.memory import preflight
from env.npz import Header, NpzError, NpzFile, read_into

NEEDED = ("states", "actions", "traj_lengths")
ARRAYS = (*NEEDED, "rewards", "terminals")
RANGE_SLACK = 1e-3  # rounding beyond [-1, 1] that a normalised file may show
_PICKLE_SUFFIXES = {".pkl", ".pickle"}
_CONVERT = (
    "Only npz files of plain arrays are read: `python script/convert_dataset.py <this file> <folder>` makes one of it, without "
    "running it, or `python script/collect_demos.py` collects new ones"
)
_ZIP_START = b"PK\x03\x04"
WORTH_A_WORD = 2**26  # bytes of numbers
_SMALLER = (
    "train_dataset.max_n_episodes",
    "store its images uncompressed, which are never in memory (script/convert_dataset.py --uncompressed)",
)


def read_demos(
    path: str | os.PathLike[str], use_img: bool = False, max_n_episodes: int | None = None, normalized: bool = True
) -> dict[str, np.ndarray]:
    """The arrays of a demonstration file, checked. Images come only with ``use_img``, and of those only what the first
    ``max_n_episodes`` trajectories need: a read-only ``np.memmap`` where the file has them uncompressed, else read once,
    straight into the array that is returned. ``normalized=False`` also lets through values beyond [-1, 1].

    Raises:
        DatasetError: absent, a pickle, damaged, an array missing or of a wrong shape, values that are not finite or
            not normalised, lengths that do not add up.
        UsageError: the arrays need more memory than is free.
    """
    path = Path(path).expanduser()
    _check_kind(path)
    try:
        with NpzFile(path) as archive:
            needed = (*NEEDED, *(("images",) if use_img else ()))
            missing = [name for name in needed if name not in archive.names]
            if missing:
                raise DatasetError(
                    f"{path}: no {', '.join(missing)} in it (expected {', '.join(NEEDED)}; found "
                    f"{', '.join(sorted(archive.names))})"
                )
            names = [name for name in ARRAYS if name in archive.names]
            sizes = {name: archive.header(name).n_bytes for name in names}
            if sum(sizes.values()) > WORTH_A_WORD:
                preflight(sizes, _SMALLER)
            arrays = {name: archive.read(name) for name in names}
            check_arrays(arrays, str(path), normalized)
            return arrays | ({"images": _images(archive, arrays["traj_lengths"], max_n_episodes)} if use_img else {})
    except NpzError as error:
        raise DatasetError(f"{error}. {_CONVERT}" if "pickle" in str(error) else str(error)) from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error


def save_demos(
    path: str | os.PathLike[str],
    states: np.ndarray,
    actions: np.ndarray,
    traj_lengths: np.ndarray,
    rewards: np.ndarray | None = None,
    terminals: np.ndarray | None = None,
    images: np.ndarray | None = None,
) -> None:
    """Write a demonstration file, compressed, in one step (a reader sees the old file or the new one).

    Args:
        path: ``.../train.npz``; missing folders are made.
        states, actions: ``(T, Do)``, ``(T, Da)``, normalised to [-1, 1]; stored as float32.
        traj_lengths: ``(E,)``, summing to ``T``.
        rewards, terminals: ``(T,)``.
        images: ``(T, C, H, W)`` uint8.

    Raises:
        DatasetError: the arrays break one of the rules of ``read_demos``, or the file cannot be written.
    """
    given = {"rewards": rewards, "terminals": terminals, "images": images}
    arrays = {"states": states, "actions": actions, "traj_lengths": traj_lengths}
    arrays |= {name: value for name, value in given.items() if value is not None}
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    check_arrays(arrays, str(path))
    kinds = {
        "states": np.float32,
        "actions": np.float32,
        "rewards": np.float32,
        "traj_lengths": np.int64,
        "terminals": np.bool_,
    }
    try:
        with atomic_write(path) as file:
            np.savez_compressed(
                file, **{name: value.astype(kinds.get(name, value.dtype)) for name, value in arrays.items()}
            )
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be written ({error.strerror or error}). Free space or set DPPO_DATA_DIR"
        ) from error


def check_arrays(arrays: Mapping[str, np.ndarray], where: str, normalized: bool = True) -> None:
    """Raise ``DatasetError`` for the first rule of the module docstring that ``arrays`` break; ``where`` names the
    file."""
    lengths = arrays["traj_lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or lengths.size == 0 or int(lengths.min()) < 1:
        raise DatasetError(f"{where}: traj_lengths: expected (E,) positive integers, found {_describe(lengths)}")
    for name in ("states", "actions"):
        array = arrays[name]
        if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiu":
            raise DatasetError(f"{where}: {name}: expected (T, D) numbers, found {_describe(array)}")
    for name in ("rewards", "terminals"):
        if name in arrays and (arrays[name].ndim != 1 or arrays[name].dtype.kind not in "biuf"):
            raise DatasetError(f"{where}: {name}: expected (T,) numbers, found {_describe(arrays[name])}")
    if (longest := int(lengths.max())) > len(
        arrays["states"]
    ):  # first: a sum of huge lengths could come out as anything
        raise DatasetError(f"{where}: traj_lengths holds {longest}, but states has {len(arrays['states'])} rows")
    total = int(lengths.sum())
    if "images" in arrays:
        check_images(arrays["images"], total, where)
    for name, array in arrays.items():
        if name != "traj_lengths" and len(array) != total:
            raise DatasetError(f"{where}: {name} has {len(array)} rows, but traj_lengths add up to {total}")
    for name in ("states", "actions", "rewards", "terminals"):
        if name in arrays and arrays[name].dtype.kind == "f":
            _check_finite(arrays[name], f"{where}: {name}")
    for name in ("states", "actions") if normalized else ():
        _check_range(arrays[name], f"{where}: {name}")


def _images(archive: NpzFile, lengths: np.ndarray, max_n_episodes: int | None) -> np.ndarray:
    """Images of the first trajectories, ``(T', C, H, W)`` uint8: a view of the file where they are stored uncompressed, else
    read, without a second copy in memory and nothing beyond them."""
    total, wanted = int(lengths.sum()), int(lengths[:max_n_episodes].sum())
    with archive.open("images") as (header, member):
        check_images(header, total, str(archive.path))
        mapped = archive.map("images")
        if mapped is not None:
            return mapped[:wanted]
        shape = (wanted, *header.shape[1:])
        preflight({f"images of {wanted} steps": math.prod(shape)}, _SMALLER)
        images = np.empty(shape, np.uint8)
        read_into(member, images)
    return images


def check_images(header: Header | np.ndarray, total: int, where: str) -> None:
    """Raise ``DatasetError`` unless these are ``(T, C, H, W)`` uint8 in C order with ``T = total``."""
    shape, fortran = header.shape, getattr(header, "fortran", False)
    if len(shape) != 4 or header.dtype != np.uint8 or fortran or not math.prod(shape[1:]):
        raise DatasetError(f"{where}: images: expected (T, C, H, W) uint8, found shape {shape}, {header.dtype}")
    if shape[0] != total:
        raise DatasetError(f"{where}: images has {shape[0]} rows, but traj_lengths add up to {total}")


def _check_kind(path: Path) -> None:
    if not path.is_file():
        raise DatasetError(
            f"{path}: no such demonstration file. Make one with `python script/collect_demos.py --task <task>` (for "
            "instance --task lift), or "
            "set DPPO_DATA_DIR (or train_dataset_path) to where the downloaded data are"
        )
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix in _PICKLE_SUFFIXES or start[:1] == b"\x80":
        raise DatasetError(f"{path}: a pickle, which could run code when read. {_CONVERT}")
    if start != _ZIP_START:
        raise DatasetError(f"{path}: damaged or no npz file (it does not begin like one). Make or download it again")


def _check_finite(array: np.ndarray, where: str) -> None:
    good = np.isfinite(array)
    if not good.all():
        index = tuple(int(i) for i in np.argwhere(~good)[0])
        raise DatasetError(
            f"{where}{list(index)} is {array[index]}; expected finite numbers. Make or download the file again"
        )


def _check_range(array: np.ndarray, where: str) -> None:
    outside = np.abs(array) > 1.0 + RANGE_SLACK
    if outside.any():
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        raise DatasetError(
            f"{where}{list(index)} is {array[index]:g}; expected values in [-1, 1]: the file is not normalised. "
            "`python script/convert_dataset.py <this file> <folder>` normalises it, or collect it with "
            "`python script/collect_demos.py`"
        )


def _describe(array: np.ndarray) -> str:
    text = f"shape {array.shape}, {array.dtype}"
    return text + (f", smallest {array.min()}" if array.size and array.dtype.kind in "iuf" else "")
