"""Rows of numbers appended to a file as they happen; whatever ends the process, every whole row before it can be read.

``<stream>.json`` lists the columns (name, dtype, shape), ``<stream>.bin`` has the rows, all of one size. The first row decides on columns
and shapes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from env.franka.types import DeploymentError

Rows = dict[str, np.ndarray]  # {column: (T, ...)}


class RowLog:
    """Rows of one stream in ``folder``. ``pack`` belongs to the thread that has the row, ``append`` and ``close`` to the one that writes."""

    def __init__(self, folder: Path, stream: str) -> None:
        self._columns, self._file = folder / f"{stream}.json", GrowingFile(folder / f"{stream}.bin")
        self._dtype: np.dtype | None = None
        self._begun = False

    def __bool__(self) -> bool:
        return self._dtype is not None

    def pack(self, row: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
        """The bytes of a row, and for each column that does not fit what was found; those are NaN (numbers without a point: 0)."""
        if self._dtype is None:
            self._dtype = row_type(row)
        record, misfits = np.zeros((), self._dtype), {name: "unknown" for name in row.keys() - set(self._dtype.names)}
        for name in self._dtype.names:
            value, part = row.get(name), self._dtype[name]
            if value is not None and value.shape == part.shape and np.can_cast(value.dtype, part.base, "same_kind"):
                record[name] = value
            else:
                record[name] = np.nan if part.base.kind == "f" else 0
                found = "nothing" if value is None else f"{value.shape} {value.dtype}"
                misfits[name] = f"expected {part.shape} {part.base}, found {found}"
        return record.tobytes(), misfits

    def append(self, data: bytes) -> None:
        """Raises ``OSError``."""
        if not self._begun:
            self._begun = True
            columns = [[name, part.base.str, list(part.shape)] for name, (part, *_) in self._dtype.fields.items()]
            atomically(self._columns, lambda path: path.write_text(json.dumps(columns), encoding="utf-8"))
        self._file.append(data)

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Both files, which are not needed any more."""
        self._columns.unlink(missing_ok=True)
        self._file.path.unlink(missing_ok=True)


def row_type(row: Mapping[str, np.ndarray]) -> np.dtype:
    """The type of all rows, as the first one has it: numbers with a point are float64."""
    kinds = {name: np.dtype(np.float64) if value.dtype.kind == "f" else value.dtype for name, value in row.items()}
    return np.dtype([(name, kinds[name], value.shape) for name, value in row.items()])


def has_rows(folder: Path, stream: str) -> bool:
    """Whether a stream was begun in ``folder``."""
    return (folder / f"{stream}.json").is_file() and (folder / f"{stream}.bin").is_file()


def read_rows(folder: Path, stream: str) -> Rows:
    """All whole rows of a stream, also of one that is being written. Raises ``DeploymentError``."""
    source, data = folder / f"{stream}.json", folder / f"{stream}.bin"
    try:
        columns = json.loads(source.read_text(encoding="utf-8"))
        dtype = np.dtype([(str(name), str(kind), tuple(map(int, shape))) for name, kind, shape in columns])
        if dtype.hasobject or not dtype.itemsize:
            raise ValueError(f"columns {columns}")
        rows = np.fromfile(data, dtype)  # a last one cut short is left out
    except (OSError, ValueError, TypeError) as error:
        raise DeploymentError(f"{source}: expected the columns of {data.name} beside it, found {error}") from error
    return {name: np.ascontiguousarray(rows[name]) for name in dtype.names}


class GrowingFile:
    """A new file without a buffer, made by the first bytes that are appended."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, None

    def append(self, data: bytes) -> None:
        """All of ``data``, or ``OSError``."""
        if self._file is None:
            self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115  closed by close
        written = self._file.write(data)
        if written != len(data):
            raise OSError(f"{self.path}: only {written} of {len(data)} bytes could be written: is the disk full?")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` a neighbour of ``path`` that takes its name once it is whole and on the disk. Raises ``OSError``."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
