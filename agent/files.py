"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".part"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; when the block ends well it replaces ``path`` in one step, on disk.

    Whatever goes wrong in between (a full disk, an exception, Ctrl-C), ``path`` keeps its old content and the
    temporary file is removed. After a SIGKILL it may stay behind: ``remove_leftovers`` clears it. Missing parent
    folders are made.

    Raises:
        OSError: as the file system reports it; callers turn it into their own error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_leftovers(folder: str | os.PathLike[str]) -> list[str]:
    """Remove temporary files that a killed process left in ``folder``; returns their names."""
    names = []
    for leftover in sorted(Path(folder).glob(f".*{TEMPORARY_SUFFIX}")):
        leftover.unlink(missing_ok=True)
        names.append(leftover.name)
    return names


def publish(temporary: Path, path: Path) -> None:
    """Give the complete file ``temporary`` the name ``path``, in one step and on disk.

    Raises:
        OSError: as the file system reports it.
    """
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut. Some file systems cannot sync a folder; then the rename is as safe
    as it gets."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
