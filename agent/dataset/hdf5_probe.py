"""Looks through HDF5 files in a process of its own, for ``hdf5.py``: ``ready``, then a path a line in, ``done`` or ``damaged`` a line out.

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


def look(path: str) -> bool:
    """Every name, attribute, shape and index of chunks in ``path``, and its data as far as ``WHOLE`` says.

    Returns:
        Whether all that the file's groups name could be opened (``visititems`` ends at the first that cannot, and would
        leave the rest unseen). A file that cannot be opened itself is left to its reader.
    """
    with contextlib.suppress(OSError), h5py.File(path, "r") as file:
        return _walk(file, set())
    return True


def _walk(group: h5py.Group, seen: set[int]) -> bool:
    """Look at ``group`` and all below it, each once. False if something in it cannot be opened."""
    _look_at(group)
    names = _kept(lambda: list(group))
    whole = names is not None
    for name in names or ():
        if not isinstance(_kept(lambda name=name: group.get(name, getlink=True)), h5py.HardLink):
            continue  # leads to another name of this file, or out of it, where no reader follows
        item = _kept(lambda name=name: group[name])
        address = _kept(lambda item=item: h5py.h5o.get_info(item.id).addr)
        if address is None:
            whole = False
        elif address not in seen:
            seen.add(address)
            if isinstance(item, h5py.Group):
                whole &= _walk(item, seen)
            else:
                _look_at(item)
    return whole


def _look_at(item: Any) -> None:
    for key in _kept(lambda: list(item.attrs)) or ():
        _kept(lambda key=key: item.attrs.get(key))
    if isinstance(item, h5py.Dataset):
        _kept(lambda: _look_into(item))


def _look_into(source: h5py.Dataset) -> None:
    if source.is_virtual or source.external or source.shape is None:
        return
    if source.nbytes > MAX_RATIO * source.id.get_storage_size() + UNWRITTEN:
        return
    if source.chunks:
        _kept(source.id.get_num_chunks)  # which may fail where reading crashes
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
        sys.stdout.write("done\n" if look(line.rstrip("\n")) else "damaged\n")
        sys.stdout.flush()
