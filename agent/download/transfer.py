"""One file from one HTTP address, over a network that cuts off, stalls and answers nonsense.

The bytes go to a partial file. It is resumed where the server allows it and says that the file is still the same one, else begun again;
``check`` then tells a whole npz, pt or zip from a damaged one or from a web page. Whoever calls ``transfer`` gives the file its final name.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

_BLOCK = 2**16  # bytes
_PAGE = 2**20  # bytes that are read of a web page
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may be gone in a moment
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_HEADERS = {"User-Agent": "Mozilla/5.0 (d2ppo)", "Accept-Encoding": "identity"}  # offsets count the file's own bytes
_ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError)
_END_OF_ZIP = b"PK\x05\x06"  # begins the last 22 bytes of a zip file without a comment
_MOST_INFLATED = 2**30, 300  # bytes and times: a zip file that says it grows beyond both is a trap


class RefusedError(Exception):
    """This source does not give the file, and asking again would not help. The message says why."""


class NoConnectionError(RefusedError):
    """Nobody answered: there is no network, or no such host."""


class DamagedError(RefusedError):
    """All that was announced came, but it is not the file."""


class DiskError(Exception):
    """This machine cannot hold the file, wherever it comes from."""


class _PassingError(Exception):
    """What went wrong may not go wrong a second time."""


@dataclass(frozen=True)
class Patience:
    """How long to wait and how often to ask again."""

    timeout_s: float = 10.0  # without an answer, or with fewer than window_bytes in it
    window_bytes: int = 1024
    tries: int = 5  # in a row that brought less than progress_bytes
    progress_bytes: int = 2**16
    pause_s: float = 1.0  # before the second of them; doubled before each further one


def transfer(
    url: str,
    part: Path,
    patience: Patience | None = None,
    follow: Callable[[str], str] | None = None,
    title: str = "",
) -> None:
    """Bring the bytes behind ``url`` to the file ``part``, going on where an earlier call was cut off.

    Args:
        url: http or https.
        part: grows in place; ``<part>.json`` beside it says of which file it is a part.
        follow: given the text of a web page that comes in place of the file, returns the address it leads to.
        title: of the progress bar.

    Raises:
        NoConnectionError: nobody answered; not tried again, so that a machine without internet says so at once.
        RefusedError: any other reason to stop. Where it makes sense the partial file is kept.
        DiskError: the disk is full (the partial file is removed) or not writable.
    """
    patience = patience or Patience()
    idle, best, troubles = 0, size_of(part), []
    while True:
        try:
            _attempt(url, part, patience, follow, title)
            return
        except NoConnectionError as error:
            if not troubles:
                raise
            troubles.append(str(error))
        except _PassingError as error:
            troubles.append(str(error))
        have = size_of(part)
        if have - best >= patience.progress_bytes:
            idle, best = 0, have
        idle += 1
        if idle >= patience.tries:
            kept = f"; the first {have} bytes are kept and will be gone on from" if have else ""
            said = ", then ".join(dict.fromkeys(troubles[-idle:]))
            raise RefusedError(f"given up after {idle} attempts without progress: {said}{kept}")
        time.sleep(patience.pause_s * 2 ** (idle - 1))


def fetch_text(url: str, patience: Patience, limit: int = 1024) -> str | None:
    """The first ``limit`` bytes behind ``url`` as text; None where the server says that there is nothing.

    Raises:
        RefusedError: no answer, after ``patience.tries`` attempts.
    """
    for attempt in range(patience.tries):
        time.sleep(patience.pause_s * 2 ** (attempt - 1) if attempt else 0.0)
        try:
            with _open(url, {}, patience) as reply:
                return _text(reply, patience, limit)
        except NoConnectionError:
            raise
        except RefusedError:
            return None
        except (_PassingError, OSError, http.client.HTTPException) as error:
            trouble = error
    raise RefusedError(f"{url}: {trouble}")


def check(path: Path, kind: str) -> None:
    """Look whether ``path`` is a whole file of ``kind``, its suffix: ``.npz``, ``.pt``, ``.pth``, ``.zip``. Every checksum in it is
    compared; nothing in it is unpickled.

    Raises:
        DamagedError: it is not.
    """
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(max(0, size_of(path) - 22))
        end = file.read(22)
    if start.lstrip()[:1] == b"<":
        raise DamagedError(f"a web page came in place of the file{_page_title(start.decode('utf-8', 'replace'))}")
    if not start.startswith(b"PK\x03\x04") or not end.startswith(_END_OF_ZIP):
        raise DamagedError(f"{size_of(path)} bytes came that are no whole {kind} file (it begins with {start[:8]!r})")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            inflated, (most, times) = sum(member.file_size for member in members), _MOST_INFLATED
            if inflated > max(most, times * size_of(path)):
                raise DamagedError(f"the {kind} file says that it inflates to {inflated} bytes")
            if not members or min(member.header_offset for member in members) > 0 or archive.comment:
                raise DamagedError(f"more or less came than one {kind} file")
            broken = archive.testzip()
    except _ZIP_DAMAGE as error:
        raise DamagedError(f"the {kind} file is damaged ({error})") from error
    if broken is not None:
        raise DamagedError(f"the {kind} file is damaged ({broken} does not match its checksum)")
    names = [member.filename for member in members]
    fits = {".npz": all(n.endswith(".npy") for n in names), ".zip": True}
    if not fits.get(kind, any(n.endswith("data.pkl") for n in names)):
        raise DamagedError(f"a zip file came, but of another kind than {kind} (it holds {', '.join(names[:4])})")


def discard(part: Path) -> None:
    """Forget what has come so far."""
    part.unlink(missing_ok=True)
    _state_path(part).unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes in ``path``; 0 where there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def disk_error(error: OSError, path: Path) -> DiskError:
    """What a person should read when ``path`` could not be written."""
    reason = "the disk is full" if error.errno in _FULL else error.strerror or str(error)
    return DiskError(f"{path.parent} cannot be written ({reason})")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect to a local file, an FTP server, or from https down to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: ANN001, ANN201  urllib's own signature
        scheme = urlsplit(newurl).scheme
        if scheme not in ({"https"} if req.type == "https" else {"http", "https"}):
            raise RefusedError(f"the server redirects to {newurl[:80]}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_opener = urllib.request.build_opener(_SafeRedirects, urllib.request.HTTPCookieProcessor(CookieJar()))


def _open(url: str, headers: dict[str, str], patience: Patience) -> http.client.HTTPResponse:
    """The server's answer, its body not yet read."""
    try:
        return _opener.open(urllib.request.Request(url, headers=_HEADERS | headers), timeout=patience.timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"the server answers HTTP {error.code} ({str(error.reason).splitlines()[0]})"
        if error.code in _PASSING or (error.code == 416 and headers):
            raise (_StaleError if error.code == 416 else _PassingError)(reason) from None
        raise RefusedError(reason) from None
    except urllib.error.URLError as error:
        raise NoConnectionError(f"no connection ({getattr(error.reason, 'strerror', None) or error.reason})") from None
    except (http.client.InvalidURL, UnicodeError) as error:
        raise RefusedError(f"not an address: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _PassingError(f"the server hangs up or does not answer ({error or type(error).__name__})") from None


class _StaleError(_PassingError):
    """The partial file does not belong to what the server has now."""


def _attempt(url: str, part: Path, patience: Patience, follow: Callable[[str], str] | None, title: str) -> None:
    """One request for what is missing of ``part``."""
    state = _read_state(part, url)
    have = size_of(part) if state else 0
    if have and have == state["length"]:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and state["validator"]:
        headers["If-Range"] = state["validator"]
    try:
        reply = _open(url, headers, patience)
        if follow is not None and _is_page(reply):
            with reply:
                page = _text(reply, patience)
            reply = _open(follow(page), headers, patience)
        with reply:
            if _is_page(reply):
                raise RefusedError(f"a web page came in place of the file{_page_title(_text(reply, patience))}")
            start, length = _place(reply, have, state)
            _receive(reply, part, (url, start, length), patience, title)
    except _StaleError:
        discard(part)
        raise
    except (http.client.HTTPException, OSError) as error:
        raise _PassingError(f"the connection breaks ({error})") from error


def _place(reply: http.client.HTTPResponse, have: int, state: dict[str, Any]) -> tuple[int, int | None]:
    """Where in the file the body of ``reply`` begins, and how long the whole file is (None: not said)."""
    if reply.headers.get("Content-Encoding", "identity").lower() not in {"", "identity"}:
        raise RefusedError("the server compresses the file although it was asked not to")
    if reply.status == 200:
        length = reply.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.headers.get("Content-Range", ""))
    if reply.status != 206 or given is None:
        raise _StaleError(f"the server answers HTTP {reply.status}, but not with the range that was asked for")
    first, last, length = (int(number) for number in given.groups())
    same = state["length"] in (None, length) and state["validator"] in (None, _validator(reply))
    if first != have or last != length - 1 or not same:
        raise _StaleError("the server goes on with another file or from another place")
    return have, length


def _receive(
    reply: http.client.HTTPResponse,
    part: Path,
    place: tuple[str, int, int | None],
    patience: Patience,
    title: str,
) -> None:
    """Write the body of ``reply`` into ``part`` from ``start`` on. ``place`` is (url, start, length)."""
    url, start, length = place
    try:
        _check_space(part, None if length is None else length - start)
        with open(part, "r+b" if start else "wb", buffering=0) as file:
            if not start:  # after the old bytes are gone: they must never stand beside the new state
                state = {"url": url, "validator": _validator(reply), "length": length}
                _state_path(part).write_text(json.dumps(state), encoding="utf-8")
            file.seek(start)
            have = _pump(reply, file, (start, length), patience, title)
    except OSError as error:
        if error.errno in _FULL:
            with contextlib.suppress(OSError):
                discard(part)  # whatever else is writing to this disk needs the space more
        raise disk_error(error, part) from error
    if length is not None and have < length:
        raise _PassingError(f"the connection ends after {have} of {length} bytes")


def _pump(
    reply: http.client.HTTPResponse,
    file: BinaryIO,
    place: tuple[int, int | None],
    patience: Patience,
    title: str,
) -> int:
    """Copy until the body ends; returns how long the file is then."""
    have, length = place
    since, in_window = time.monotonic(), 0
    with tqdm(total=length, initial=have, unit="B", unit_scale=True, desc=title, disable=None, leave=False) as bar:
        while length is None or have < length:
            try:
                block = reply.read1(_BLOCK if length is None else min(_BLOCK, length - have))
            except (OSError, http.client.HTTPException) as error:
                raise _PassingError(f"the connection stalls or breaks after {have} bytes ({error})") from error
            if not block:
                break
            rest = memoryview(block)
            while rest:
                rest = rest[file.write(rest) :]
            have += len(block)
            in_window += len(block)
            bar.update(len(block))
            if time.monotonic() - since > patience.timeout_s:
                if in_window < patience.window_bytes:
                    raise _PassingError(f"the connection stalls: {in_window} bytes in {patience.timeout_s:g} s")
                since, in_window = time.monotonic(), 0
    return have


def _check_space(part: Path, needed: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed is not None and needed > free:
        raise DiskError(
            f"{part.parent}: {needed / 1e6:,.1f} MB are still to come, but only {free / 1e6:,.1f} MB are free"
        )


def _text(reply: http.client.HTTPResponse, patience: Patience, limit: int = _PAGE) -> str:
    """The first ``limit`` bytes of the body, or as many as come in time."""
    text, until = b"", time.monotonic() + patience.timeout_s
    while len(text) < limit and time.monotonic() < until:
        block = reply.read1(limit - len(text))
        if not block:
            break
        text += block
    return text.decode("utf-8", "replace")


def _is_page(reply: http.client.HTTPResponse) -> bool:
    return reply.headers.get("Content-Type", "").lower().startswith("text/html")


def _page_title(text: str) -> str:
    found = re.search(r"<title[^>]*>([^<]{1,200})", text, re.IGNORECASE)
    return f' ("{" ".join(found[1].split())}")' if found else ""


def _validator(reply: http.client.HTTPResponse) -> str | None:
    """What tells this file from a later one at the same address: a strong ETag, or when it was changed."""
    tag = reply.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else reply.headers.get("Last-Modified")


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path, url: str) -> dict[str, Any]:
    """Of which file ``part`` is a part; empty if that is not known, or if it is of another address."""
    try:
        state = json.loads(_state_path(part).read_bytes())
        known = isinstance(state, dict) and state["url"] == url
        return {key: state[key] for key in ("validator", "length")} if known else {}
    except (OSError, ValueError, KeyError):
        return {}
