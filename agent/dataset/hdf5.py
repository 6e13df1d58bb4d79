"""HDF5 files of other projects, read with suspicion.

A file may be damaged or made to deceive: it can claim more data than it has, or that they lie in another file. What is read
here is in the file itself and no larger than the file can hold, and whatever HDF5's library says of the rest becomes one error.
Before this process opens a file another one looks through it (``hdf5_probe.py``), which may crash or never end.
"""

from __future__ import annotations

import atexit
import contextlib
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from agent.dataset.hdf5_probe import BYTES_PER_SECOND, MAX_RATIO, SECONDS, UNWRITTEN
from agent.errors import DatasetError, UsageError
from env.errors import EnvError

_DAMAGE = (
    OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, MemoryError, SystemError,
)  # fmt: skip
BUSY = 20.0  # how much longer things may take on a machine that does others
_START_SECONDS = 120.0


def open_hdf5(path: Path, whose: str) -> h5py.File:
    """The file, for reading; ``whose`` says what was expected there.

    Raises:
        DatasetError: absent, of another format, damaged.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; expected an HDF5 file of {whose}")
    if not h5py.is_hdf5(path):
        raise DatasetError(f"{path}: no HDF5 file (it does not begin like one). Download it again")
    _PROBE.check(path)
    with reading(path):
        return h5py.File(path, "r")


class _Probe:
    """The process that looks through files first; started when it is needed, and anew after a file was too much for it."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._good: dict[str, tuple[int, int, int]] = {}  # path -> the state of the file that did

    def check(self, path: Path) -> None:
        """Raise ``DatasetError`` for a file that makes HDF5's library crash or loop."""
        with self._lock:
            try:
                where, stat = str(path.resolve()), path.stat()
                state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                if "\n" in where or self._good.get(where) == state:
                    return
                answer, code = self._ask(where, BUSY * (SECONDS + stat.st_size / BYTES_PER_SECOND))
            except OSError as error:
                raise DatasetError(f"{path}: cannot be looked through ({error.strerror or error})") from error
            if answer == "damaged":
                raise DatasetError(f"{path}: damaged: not all that it says to hold can be opened. Download it again")
            if answer != "done":
                endless = answer is None or code == -signal.SIGXCPU
                what = "does not come to an end with it" if endless else f"crashes on it ({code})"
                raise DatasetError(f"{path}: damaged: HDF5's library {what}. Download it again")
            self._good[where] = state

    def _ask(self, where: str, seconds: float) -> tuple[str | None, int | None]:
        if self._child is not None and self._child.poll() is not None:  # somebody ended it
            self.close()
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, str(self._program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )  # fmt: skip
            self._answer(_START_SECONDS)
        self._child.stdin.write(f"{where}\n")
        self._child.stdin.flush()
        answer = self._answer(seconds)
        return answer, None if answer in ("done", "damaged") else self.close()

    def _answer(self, seconds: float) -> str | None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            return self._child.stdout.readline().strip() if selector.select(seconds) else None

    def close(self) -> int | None:
        """End the process, if there is one; what it ended with."""
        child, self._child = self._child, None
        if child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that died by itself says how
            child.wait(0.1)
        child.kill()
        with contextlib.suppress(OSError):
            child.stdin.close()
        child.stdout.close()
        return child.wait()


_PROBE = _Probe(Path(__file__).with_name("hdf5_probe.py"))
atexit.register(_PROBE.close)


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
        if source.nbytes > MAX_RATIO * stored + UNWRITTEN:
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
