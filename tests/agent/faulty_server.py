"""A web server on this machine that does what servers and networks do wrong, one fault per request."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = (
    b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>Too many users</body></html>"
)
FAULTS = (
    "cut", "stall", "drip", "no_range", "flip", "short", "long", "endless", "404", "403", "500", "503", "loop", "elsewhere", "page",
    "plain_page", "moved_range", "moved_end", "other", "joined", "gzip", "silent",
)  # fmt: skip


class Server:
    """``files`` by path. ``faults`` by path: what happens at its next requests, ``(name, number)``; then it is served well."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[tuple[str, int]]] = {}
        self.pages: dict[str, bytes] = {}  # answered with an HTML page instead
        self.asked: list[tuple[str, str]] = []  # (path, Range) of every request
        self.over = threading.Event()

    def ranges(self, path: str) -> list[str]:
        """The Range header of every request for ``path``; empty where there was none."""
        return [wanted for asked, wanted in self.asked if asked == path]


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A server while the block runs."""

    class Handler(_Handler):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        Handler.server_of = Server(f"http://127.0.0.1:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield Handler.server_of
        finally:
            Handler.server_of.over.set()
            http.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_of: Server
    disable_nagle_algorithm = True  # else each answer waits 40 ms between its headers and its body

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server_of
        server.asked.append((self.path, self.headers.get("Range", "")))
        content = server.files.get(self.path)
        waiting = server.faults.get(self.path)
        fault, number = waiting.pop(0) if waiting else ("", 0)
        with contextlib.suppress(OSError):
            if self.path in server.pages:
                self._answer(200, server.pages[self.path], **{"Content-Type": "text/html; charset=utf-8"})
            elif fault.isdecimal() or content is None:
                self.send_error(int(fault or 404))
            elif fault in ("loop", "elsewhere"):
                self._answer(302, b"", Location=self.path if fault == "loop" else "ftp://127.0.0.1/file")
            elif fault in ("page", "plain_page"):
                self._answer(200, PAGE, **{"Content-Type": "text/html" if fault == "page" else "application/zip"})
            elif fault == "silent":
                server.over.wait(9)
            else:
                self._file(content, fault, number)

    def _file(self, content: bytes, fault: str, number: int) -> None:
        start, total = 0, len(content)
        wanted = self.headers.get("Range", "")
        headers = {"ETag": f'"{hash(content)}"'}
        if fault in ("other", "joined"):  # the file was replaced: another content under another tag
            content = bytes(reversed(content))
            headers["ETag"] = '"other"'
        same = self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        if wanted and same and int(wanted[6:-1]) >= total:
            self.send_error(416)
            return
        if wanted and (same or fault == "joined") and fault != "no_range":
            start = int(wanted[6:-1]) - (3 if fault == "moved_range" else 0)
            end = total + (4 if fault == "moved_end" else 0)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{end}"
        if fault == "gzip":
            headers["Content-Encoding"] = "gzip"
        body = bytearray(content[start:])
        if fault == "flip" and body:
            body[number % len(body)] ^= 1 << (number % 8)
        announced = len(body) + {"short": -1, "long": 5}.get(fault, 0)
        if fault == "endless":  # no length, and the connection ends somewhere: nobody can tell that it is too early
            del body[number % (len(body) + 1) :]
            announced = None
        self._start(206 if "Content-Range" in headers else 200, announced, headers)
        until = min(number, len(body)) if fault in ("cut", "stall", "drip") else len(body)
        self.wfile.write(body[:until])
        if fault == "stall":
            self.server_of.over.wait(9)
        for k in range(until, len(body)) if fault == "drip" else ():
            self.wfile.write(body[k : k + 1])
            if self.server_of.over.wait(0.02):
                break

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self._start(status, len(body), headers)
        self.wfile.write(body)

    def _start(self, status: int, length: int | None, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(max(0, length)))
        self.end_headers()
