"""HDF5 files of other projects, read with suspicion.

A file may be damaged or made to deceive: it can claim more data than it has, or that they lie in another file. What is read
here is in the file itself and no larger than the file can hold, and whatever HDF5's library says of the rest becomes one error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from agent.errors import DatasetError, UsageError
from env.errors import EnvError

_DAMAGE = (
    OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, MemoryError, SystemError,
)  # fmt: skip
_MAX_RATIO = 1100  # the best that deflate does is 1032 bytes in one
_UNWRITTEN = 2**20  # bytes that a file may claim without having them (HDF5 fills them in)


def open_hdf5(path: Path, whose: str) -> h5py.File:
    """The file, for reading; ``whose`` says what was expected there.

    Raises:
        DatasetError: absent, of another format, damaged.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; expected an HDF5 file of {whose}")
    if not h5py.is_hdf5(path):
        raise DatasetError(f"{path}: no HDF5 file (it does not begin like one). Download it again")
    with reading(path):
        return h5py.File(path, "r")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what h5py raises at a damaged file into ``DatasetError``."""
    try:
        yield
    except (UsageError, EnvError):
        raise
    except _DAMAGE as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"{path}: damaged or cut short ({what}). Download it again") from error


def member(group: h5py.Group, key: str) -> Any:
    """The group or data set at ``key`` (a path), or None; what a link to another file leads to counts as absent."""
    found: Any = group
    for name in key.split("/"):
        if not isinstance(found, h5py.Group) or isinstance(found.get(name, getlink=True), h5py.ExternalLink):
            return None
        found = found.get(name)
    return found


def numbers(source: h5py.Dataset, where: str, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """The data set as float64, of ``shape`` (an entry None: any length; None: any shape) and finite; ``where`` names it.

    Raises:
        DatasetError: another shape, no numbers, NaN or infinity, a compressed block that does not decompress.
    """
    wanted = source.shape if shape is None else shape
    fits = source.shape is not None and len(source.shape) == len(wanted)
    fits = fits and all(n is None or n == m for n, m in zip(wanted, source.shape))
    if not fits or source.dtype.kind not in "fiub":
        listed = ", ".join("any" if n is None else str(n) for n in wanted or ())
        raise DatasetError(f"{where}: expected numbers of shape ({listed}), found {source.shape} {source.dtype}")
    array = np.asarray(rows(source, where), np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        index = [int(i) for i in bad[0]]
        raise DatasetError(f"{where}{index} is {array[tuple(index)]}; expected finite numbers")
    return array


def rows(source: h5py.Dataset, where: str, part: slice = slice(None)) -> np.ndarray:
    """Rows of a data set, of all types. Raises ``DatasetError`` where they cannot be read or are not in the file."""
    try:
        if source.is_virtual or source.external:
            raise DatasetError(f"{where}: its data are said to be in another file; only what is in this one is read")
        stored = source.id.get_storage_size()
        if source.nbytes > _MAX_RATIO * stored + _UNWRITTEN:
            raise DatasetError(f"{where}: is said to have {source.nbytes} bytes, but the file holds {stored} of it")
        return source[part] if source.shape else source[()]
    except DatasetError:
        raise
    except _DAMAGE as error:  # a compressed block that does not decompress
        raise DatasetError(f"{where}: cannot be read ({error}); the file is damaged: download it again") from error


def text(value: Any) -> str:
    """An attribute as text, whichever way it was stored."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def listed(names: Any) -> str:
    """The first names, for a message."""
    return ", ".join(sorted(map(str, names))[:30]) or "nothing"
