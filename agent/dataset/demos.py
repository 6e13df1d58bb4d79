"""Demonstration files: what is in them, and every way in which one can be wrong.

``train.npz`` (spec 4.1): trajectories one after another without padding, normalised to [-1, 1]::

    states (T, Do), actions (T, Da) float32 | traj_lengths (E,) int, their sum is T
    optional: images (T, C, H, W) uint8 | rewards (T,) float32 | terminals (T,) bool

Never a pickle: reading a file must not run it.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agent.errors import DatasetError, UsageError
from agent.files import atomic_write
from agent.memory import preflight

NEEDED = ("states", "actions", "traj_lengths")
RANGE_SLACK = 1e-3  # rounding beyond [-1, 1] that a normalised file may show
_PICKLE_SUFFIXES = {".pkl", ".pickle"}
_DAMAGE = (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile, NotImplementedError)
_CONVERT = (
    "Only npz files of plain arrays are read: convert it, or collect new ones with `python script/collect_demos.py`"
)
_ZIP_START = b"PK\x03\x04"
_READ_AT_ONCE = 2**24  # bytes


def read_demos(
    path: str | os.PathLike[str], use_img: bool = False, max_n_episodes: int | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a demonstration file, checked. Images are read only with ``use_img``, and of those only what the first
    ``max_n_episodes`` trajectories need: once, straight into the array that is returned.

    Raises:
        DatasetError: absent, a pickle, damaged, an array missing or of a wrong shape, values that are not finite or
            not normalised, lengths that do not add up.
        UsageError: the images need more memory than is free.
    """
    path = Path(path).expanduser()
    _check_kind(path)
    wanted = (*NEEDED, "rewards", "terminals")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            arrays = {name: archive[name] for name in wanted if name in names}
            if use_img and "images" in names and "traj_lengths" in arrays:
                images = _read_images(archive.zip, arrays["traj_lengths"], max_n_episodes, path)
    except UsageError:
        raise
    except _DAMAGE as error:
        if "allow_pickle" in str(error):
            raise DatasetError(
                f"{path}: holds Python objects (a pickle), which could run code when read. {_CONVERT}"
            ) from error
        raise DatasetError(f"{path}: damaged or cut short ({error}). Make or download it again") from error
    missing = [name for name in (*NEEDED, *(("images",) if use_img else ())) if name not in names]
    if missing:
        raise DatasetError(
            f"{path}: no {', '.join(missing)} in it (expected {', '.join(NEEDED)}; found {', '.join(sorted(names))})"
        )
    check_arrays(arrays, str(path))
    return {**arrays, "images": images} if use_img else arrays


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


def check_arrays(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raise ``DatasetError`` for the first rule of the module docstring that ``arrays`` break; ``where`` names the
    file."""
    lengths = arrays["traj_lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or lengths.size == 0 or int(lengths.min()) < 1:
        raise DatasetError(f"{where}: traj_lengths: expected (E,) positive integers, found {_describe(lengths)}")
    total = int(lengths.sum())
    for name in ("states", "actions"):
        array = arrays[name]
        if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiu":
            raise DatasetError(f"{where}: {name}: expected (T, D) numbers, found {_describe(array)}")
    if "images" in arrays and (arrays["images"].ndim != 4 or arrays["images"].dtype != np.uint8):
        raise DatasetError(f"{where}: images: expected (T, C, H, W) uint8, found {_describe(arrays['images'])}")
    for name, array in arrays.items():
        if name != "traj_lengths" and len(array) != total:
            raise DatasetError(f"{where}: {name} has {len(array)} rows, but traj_lengths add up to {total}")
    for name in ("states", "actions", "rewards"):
        if name in arrays:
            _check_finite(arrays[name], f"{where}: {name}")
    for name in ("states", "actions"):
        _check_range(arrays[name], f"{where}: {name}")


def _read_images(archive: zipfile.ZipFile, lengths: np.ndarray, max_n_episodes: int | None, path: Path) -> np.ndarray:
    """Images of the first trajectories, ``(T', C, H, W)`` uint8: no second copy in memory, nothing read beyond them."""
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise DatasetError(f"{path}: traj_lengths: expected (E,) positive integers, found {_describe(lengths)}")
    total, wanted = int(lengths.sum()), int(lengths[:max_n_episodes].sum())
    with archive.open("images.npy") as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(member)
        if len(shape) != 4 or dtype != np.uint8 or fortran:
            raise DatasetError(f"{path}: images: expected (T, C, H, W) uint8, found shape {shape}, {dtype}")
        if shape[0] != total:
            raise DatasetError(f"{path}: images has {shape[0]} rows, but traj_lengths add up to {total}")
        preflight({f"images of {wanted} steps": wanted * math.prod(shape[1:])}, ["train_dataset.max_n_episodes"])
        images = np.empty((wanted, *shape[1:]), np.uint8)
        rest = memoryview(images.reshape(-1))
        while len(rest):
            n = member.readinto(rest[:_READ_AT_ONCE])
            if not n:
                raise EOFError(f"images end {len(rest)} bytes too early")
            rest = rest[n:]
        if wanted == total and member.read(1):  # reading to the end also checks the member's checksum
            raise EOFError("images has more bytes than its shape says")
    return images


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
            "Normalise it with the min and "
            "max in normalization.npz (env.normalizer.Normalizer), or collect it with `python script/collect_demos.py`"
        )


def _describe(array: np.ndarray) -> str:
    text = f"shape {array.shape}, {array.dtype}"
    return text + (f", smallest {array.min()}" if array.size and array.dtype.kind in "iuf" else "")
