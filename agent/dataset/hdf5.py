"""HDF5 files of other projects."""

from __future__ import annotations

from pathlib import Path

import h5py

from agent.errors import DatasetError


def open_hdf5(path: Path, whose: str) -> h5py.File:
    """The file, for reading; ``whose`` says what was expected there.

    Raises:
        DatasetError: absent, of another format, damaged.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; expected an HDF5 file of {whose}")
    if not h5py.is_hdf5(path):
        raise DatasetError(f"{path}: no HDF5 file (it does not begin like one). Download it again")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path}: damaged or cut short ({error}). Download it again") from error
