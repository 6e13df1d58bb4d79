"""Fetch published files, checked on the way; the front is ``agent/download/__init__.py``."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from agent.download import notes
from agent.download.catalogue import Entry, find
from agent.download.sources import Source, sources_of
from agent.download.transfer import DamagedError, DiskError, Patience, RefusedError, check, discard, disk_error, size_of
from agent.errors import DownloadError
from agent.files import publish

log = logging.getLogger(__name__)


def ensure(path: str | os.PathLike[str], patience: Patience | None = None) -> None:
    """Before ``path`` is read: fetch it if it is a published file that is not there; compare it with its note if it is.

    Files that are not published are left alone, here or absent.

    Raises:
        DownloadError: it cannot be fetched (says why, the link, where to put it, and how to do without), it has changed since it was
            downloaded, or the file beside it is of other demonstrations.
    """
    path = Path(path).expanduser()
    if path.exists() and not notes.note_of(path).exists():
        return
    entry = find(path)
    if entry is None:
        return
    if path.exists():
        notes.verify(path)
        return
    if entry.kind != "checkpoint":
        _refuse_to_mix(entry, path)
    fetch(entry, path, patience)


def fetch(entry: Entry, path: Path, patience: Patience | None = None) -> None:
    """Bring the published file to ``path``; a process that already does is waited for. What is there already is only verified.

    Raises:
        DownloadError: see ``ensure``.
    """
    sources, reasons = sources_of(entry)
    with _locked(path) if sources else contextlib.nullcontext():
        if path.exists():
            notes.verify(path)
            return
        for source in sources:
            try:
                log.info("fetching %s from %s", path, source.name)
                _take(source, path, patience or Patience())
                return
            except DiskError as error:
                raise DownloadError(
                    f"{path}: {error}. Free space or set DPPO_DATA_DIR, DPPO_LOG_DIR to where there is some. Nothing unfinished is used"
                ) from error
            except (RefusedError, DownloadError) as error:
                reasons.append(f"{source.name}: {error}")
            finally:
                if not size_of(part_of(path)):
                    discard(part_of(path))
    raise DownloadError(
        f"{path} is not there and could not be fetched.\n  "
        + "\n  ".join(reasons)
        + f"\nBy hand: get it from {entry.link}\n  and put it at {path}\n{entry.alternative}"
    )


def part_of(path: Path) -> Path:
    """Where the bytes of ``path`` are collected until they are complete."""
    return path.with_name(f"{path.name}.download")


def _take(source: Source, path: Path, patience: Patience) -> None:
    """From ``source`` to ``path``, checked on the way. Damaged bytes get one more chance, from the beginning."""
    part = part_of(path)
    expected, noted = notes.recorded(path), True
    if expected is None:
        expected, noted = source.sha256(patience), False
    for chance in (1, 2):
        kind = source.bring(part, patience)
        try:
            check(part, kind)
            if kind == ".zip":
                _unpack(part, path.name)
                check(part, path.suffix)
            found = notes.sha256(part)
            if expected is not None and found != expected:
                where = f"noted in {notes.note_of(path)}: delete that if the file was published anew"
                raise DamagedError(
                    f"its sha256 is {found}, expected {expected} ({where if noted else 'given beside it'})"
                )
            break
        except DamagedError as error:
            discard(part)
            if chance == 2:
                raise
            log.warning("%s: %s; once more from the beginning", path, error)
    try:
        notes.write(path, found)
        publish(part, path)
    except OSError as error:
        raise disk_error(error, path) from error
    discard(part)
    log.info("fetched %s (%.1f MB, sha256 %s)", path, path.stat().st_size / 1e6, found)


def _unpack(part: Path, name: str) -> None:
    """Replace the zip file ``part`` by its only member called ``name``, in whatever folder of the archive. No path in the archive is
    ever used for writing."""
    unpacked = part.with_name(f"{part.name}.unpacked")
    try:
        with zipfile.ZipFile(part) as archive:
            members = [m for m in archive.infolist() if PurePosixPath(m.filename).name == name and not m.is_dir()]
            if len(members) != 1:
                raise RefusedError(f"the zip file holds {len(members)} files called {name}, expected one")
            with archive.open(members[0]) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
        os.replace(unpacked, part)
    except OSError as error:
        unpacked.unlink(missing_ok=True)
        raise disk_error(error, part) from error


def _refuse_to_mix(entry: Entry, path: Path) -> None:
    """Published statistics do not belong to demonstrations made here, nor the other way round."""
    strangers = [
        file.name
        for file in (path.parent / name for name in ("train.npz", "normalization.npz", "normalization.pth"))
        if file != path and file.exists() and not notes.note_of(file).exists()
    ]
    if strangers:
        raise DownloadError(
            f"{path} is not there. The published one is not fetched by itself, since {strangers[0]} beside it was not downloaded and may "
            f"belong to other demonstrations. Put the file that belongs to it there; or, if that one is a published file, fetch this one "
            f"too: python script/download.py {entry.target}\n{entry.alternative}"
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time fetches ``path``. What was only made for that is gone afterwards: the lock, and folders if no file came."""
    lock = path.with_name(f".{path.name}.lock")
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        descriptor = _lock(lock)
    except OSError as error:
        raise DownloadError(
            f"{path}: {disk_error(error, path)}. Set DPPO_DATA_DIR, DPPO_LOG_DIR to folders that can be"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def _lock(lock: Path) -> int:
    """The descriptor that holds ``lock``."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process has just removed the folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that fetches the same file (%s)", lock)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: what is fetched is checked all the same
            return descriptor
        if os.fstat(descriptor).st_nlink:  # else another process has removed it in the meantime
            return descriptor
        os.close(descriptor)
