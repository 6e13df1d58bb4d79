"""Looks through HDF5 files in a process of its own: ``python hdf5_probe.py``, ``ready``, then a path a line in, ``done`` a line out; called by ``hdf5.py``.

HDF5's library can loop for ever over a damaged file (found by fuzzing HDF5 2.0: the text of an attribute in a broken heap), and
nothing in the same process can end that. What is looked at here is what the readers will look at, and what goes wrong without a
loop or a crash is left to them to say.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from typing import Any

if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: names in it must not shadow installed packages

import h5py

SECONDS, BYTES_PER_SECOND = (
    10.0,
    2e7,
)  # of the processor that looking through a file may take: so many, and more for a large one
WHOLE = 2**22  # bytes of a data set that is read from start to end; of others the first and the last row
MAX_RATIO = 1100  # the best that deflate does is 1032 bytes in one
UNWRITTEN = 2**20  # bytes that a file may claim without having them (HDF5 fills them in)


def limit_time(path: str) -> None:
    """Let this process end (SIGXCPU) when it has worked too long on ``path``; how busy the machine is does not count."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = used.ru_utime + used.ru_stime + SECONDS + os.path.getsize(path) / BYTES_PER_SECOND
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(soft), resource.getrlimit(resource.RLIMIT_CPU)[1]))


def look(path: str) -> None:
    """Every name, attribute, shape and index of chunks in ``path``, and its data as far as ``WHOLE`` says."""
    with contextlib.suppress(Exception), h5py.File(path, "r") as file:
        _look_at("/", file)
        file.visititems(_look_at)


def _look_at(_: str, item: Any) -> None:
    for key in _kept(lambda: list(item.attrs)) or ():
        _kept(lambda key=key: item.attrs.get(key))
    if isinstance(item, h5py.Dataset):
        _kept(lambda: _look_into(item))
    else:
        for name in _kept(lambda: list(item)) or ():
            _kept(lambda name=name: item.get(name, getlink=True))


def _look_into(source: h5py.Dataset) -> None:
    if source.is_virtual or source.external or source.shape is None:
        return
    if source.nbytes > MAX_RATIO * source.id.get_storage_size() + UNWRITTEN:
        return
    if source.chunks:
        source.id.get_num_chunks()
    if source.nbytes <= WHOLE or not source.shape:
        source[()]
    else:
        source[:1], source[-1:]


def _kept(look_at: Any) -> Any:
    with contextlib.suppress(Exception):
        return look_at()
    return None


if __name__ == "__main__":
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        limit_time(line.rstrip("\n"))
        look(line.rstrip("\n"))
        sys.stdout.write("done\n")
        sys.stdout.flush()
