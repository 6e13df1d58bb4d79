"""Where a published file may come from: a mirror, in a folder or on the web, and Google Drive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import quote, urljoin, urlsplit

from agent.download import notes
from agent.download.catalogue import DRIVE, Entry
from agent.download.transfer import NoConnectionError, Patience, RefusedError, discard, disk_error, fetch_text, transfer
from agent.errors import DownloadError

_GOOGLE = (".google.com", ".googleusercontent.com")


class Source(Protocol):
    """Somewhere a file may come from."""

    name: str

    def sha256(self, patience: Patience) -> str | None:
        """What the source says the file's sha256 is."""

    def bring(self, part: Path, patience: Patience) -> str:
        """Write ``part``; returns the suffix of what came."""


class FolderMirror:
    """A folder that holds the published files under their paths."""

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.name, self._file = f"mirror {folder}", folder / entry.target

    def sha256(self, patience: Patience) -> str | None:
        return notes.recorded(self._file)

    def bring(self, part: Path, patience: Patience) -> str:
        try:
            with part.open("wb") as target:
                for block in _blocks(self._file):
                    target.write(block)
        except OSError as error:
            discard(part)
            raise disk_error(error, part) from error
        return self._file.suffix


class WebMirror:
    """A server that does."""

    def __init__(self, address: str, entry: Entry) -> None:
        self.name, self._target = f"mirror {address}", entry.target
        self._url = f"{address.rstrip('/')}/{quote(entry.target)}"

    def sha256(self, patience: Patience) -> str | None:
        text = fetch_text(f"{self._url}.sha256", patience)
        if text is None or text.lstrip().startswith("<"):  # some servers answer a page instead of 404
            return None
        return notes.digest_in(text, f"{self._url}.sha256")

    def bring(self, part: Path, patience: Patience) -> str:
        transfer(self._url, part, patience, title=self._target)
        return PurePosixPath(self._target).suffix


class Drive:
    """Google Drive. Data sets are files in a folder there."""

    def __init__(self, entry: Entry) -> None:
        self.name, self._entry = "Google Drive", entry

    def sha256(self, patience: Patience) -> str | None:
        return None

    def bring(self, part: Path, patience: Patience) -> str:
        target, drive_id = PurePosixPath(self._entry.target), self._entry.drive_id
        suffix = target.suffix
        if self._entry.kind == "dataset":
            suffix, drive_id = _pick(_list_folder(drive_id, patience), target.name)
        transfer(f"{DRIVE}/uc?id={drive_id}", part, patience, _confirm, title=str(target))
        return suffix


def _blocks(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as source:
            while block := source.read(2**20):
                yield block
    except OSError as error:
        raise RefusedError(f"{file}: {error.strerror}") from None


def sources_of(entry: Entry) -> tuple[list[Source], list[str]]:
    """Where ``entry`` may come from, best first; and why not from elsewhere."""
    mirror, offline = os.environ.get("DPPO_MIRROR", ""), os.environ.get("DPPO_OFFLINE", "").strip().lower()
    offline = offline not in {"", "0", "false", "no", "off"}
    scheme = urlsplit(mirror).scheme
    if scheme not in {"", "http", "https"} or (mirror and not scheme and not Path(mirror).expanduser().is_dir()):
        raise DownloadError(f"DPPO_MIRROR: expected an http(s) address or an existing folder, found {mirror!r}")
    found: list[Source] = []
    if mirror and not scheme:
        found.append(FolderMirror(Path(mirror).expanduser(), entry))
    if offline:
        return found, [f"not asked, since DPPO_OFFLINE is set: {'the mirror and ' if scheme else ''}Google Drive"]
    if scheme:
        found.append(WebMirror(mirror, entry))
    return [*found, Drive(entry)], []


def _list_folder(folder_id: str, patience: Patience) -> dict[str, str]:
    """Name and id of every file in a folder of Google Drive."""
    import gdown
    from gdown.exceptions import DownloadError as GdownError

    try:
        files = gdown.download_folder(
            id=folder_id, skip_download=True, quiet=True, use_cookies=False, timeout=patience.timeout_s
        )
    except OSError as error:  # of requests
        raise NoConnectionError(f"no connection ({type(error).__name__})") from error
    except (GdownError, AssertionError, KeyError, ValueError) as error:
        raise RefusedError(f"the folder cannot be listed ({str(error).splitlines()[0]})") from error
    return {file.path: file.id for file in files}


def _pick(files: dict[str, str], name: str) -> tuple[str, str]:
    """The only one of ``files`` (path: id) that is called ``name``, or the only zip file, in which it may be: suffix and id."""
    named = [drive_id for file, drive_id in files.items() if PurePosixPath(file).name == name]
    zipped = [drive_id for file, drive_id in files.items() if file.lower().endswith(".zip")]
    if len(named) == 1:
        return PurePosixPath(name).suffix, named[0]
    if not named and len(zipped) == 1:
        return ".zip", zipped[0]
    raise RefusedError(f"the folder holds {', '.join(sorted(files)) or 'nothing'}; expected one {name} or one zip file")


def _confirm(page: str) -> str:
    """The address behind the page on which Google Drive says that it did not look for viruses."""
    from gdown.download import get_url_from_gdrive_confirmation
    from gdown.exceptions import DownloadError as GdownError

    try:
        address = urljoin(DRIVE, get_url_from_gdrive_confirmation(page))
    except (GdownError, AssertionError, KeyError) as error:
        raise RefusedError(
            f"gives a page instead of the file: not shared any more, or too many downloads today ({str(error).splitlines()[0]})"
        ) from None
    there, drive = urlsplit(address), urlsplit(DRIVE)
    if there.scheme != drive.scheme or not (there.netloc == drive.netloc or there.netloc.endswith(_GOOGLE)):
        raise RefusedError(f"its page leads to {there.scheme}://{there.netloc}, which is not followed")
    return address
