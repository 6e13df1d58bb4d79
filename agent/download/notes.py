"""The sha256 of a downloaded file, noted in ``<file>.sha256`` beside it, in the format of ``sha256sum -c``."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from agent.errors import DownloadError
from agent.files import atomic_write


def verify(path: Path) -> bool:
    """Compare ``path`` with the sha256 that was noted when it was downloaded; False if none was.

    Raises:
        DownloadError: they differ.
    """
    expected = recorded(path)
    if expected is None:
        return False
    found = sha256(path)
    if found != expected:
        raise DownloadError(
            f"{path}: not what was downloaded (sha256 {found}, expected {expected} from {note_of(path).name}). "
            f"Delete it to fetch it again; if it was replaced on purpose, delete {note_of(path)}"
        )
    return True


def recorded(path: Path) -> str | None:
    """The noted sha256 of ``path``, if there is one.

    Raises:
        DownloadError: the note cannot be read, or is not one.
    """
    try:
        return digest_in(note_of(path).read_text(encoding="utf-8", errors="replace"), str(note_of(path)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DownloadError(f"{note_of(path)}: cannot be read ({error.strerror})") from error


def note_of(path: Path) -> Path:
    """Where the sha256 of ``path`` is noted."""
    return path.with_name(f"{path.name}.sha256")


def sha256(path: Path) -> str:
    """Of the file's content, in hexadecimal.

    Raises:
        DownloadError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise DownloadError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def write(path: Path, digest: str) -> None:
    """Note that the sha256 of ``path`` is ``digest``.

    Raises:
        OSError: as the file system reports it.
    """
    with atomic_write(note_of(path)) as note:
        note.write(f"{digest}  {path.name}\n".encode())


def forget(path: Path) -> None:
    """``path`` is about to be replaced by a file of one's own."""
    note_of(path).unlink(missing_ok=True)


def digest_in(text: str, where: str) -> str:
    """The sha256 that the note ``text`` begins with.

    Raises:
        DownloadError: it begins with something else.
    """
    words = text.split()
    if not words or not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
        raise DownloadError(f"{where}: not a sha256 (64 hexadecimal digits), but {text[:40]!r}. Delete it")
    return words[0].lower()
