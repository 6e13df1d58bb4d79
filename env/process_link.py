"""The parent's side of a worker process: name an environment, start its process, ask it with a deadline, end it.

Nothing is pickled: an environment is named by module, name and plain arguments, so the same request works in
another interpreter.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from env.errors import EnvError

WORKER = Path(__file__).with_name("process_worker.py")


class WorkerError(EnvError):
    """A worker raised, died or did not answer; the message names environment, slot and seed, and quotes it."""


@dataclass(frozen=True)
class Factory:
    """What makes an environment, in words: "module:name" or "path/to/file.py:name", called with plain values."""

    target: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    file: str | None = None  # where the module's source is, should it not be importable by name

    @classmethod
    def of(cls, make: Callable[[], Any] | str | Factory) -> Factory:
        """Name a callable: a function or class that can be imported, or a ``functools.partial`` of one.

        Raises ``EnvError`` for a lambda, a nested function, a bound method, or arguments that are not plain values.
        """
        if isinstance(make, Factory):
            return make._checked()
        if isinstance(make, str):
            return cls(make)._checked()
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(make, functools.partial):
            make, args, kwargs = make.func, make.args, dict(make.keywords)
        name, module = getattr(make, "__qualname__", ""), getattr(make, "__module__", None)
        if not name or "<" in name or module is None or inspect.ismethod(make):
            raise EnvError(
                f"An environment factory must be importable by name in another process, and {make!r} is not. Use a "
                "function or class at the top of a module, functools.partial(gymnasium.make, 'Name-v0') or the string "
                "'module:name'."
            )
        return cls(f"{module}:{name}", args, kwargs, _source(make))._checked()

    def request(self) -> dict[str, Any]:
        """As the worker understands it: module (None: only the file counts), file, name, args, kwargs."""
        module, _, name = self.target.rpartition(":")
        file = self.file
        if module.endswith(".py"):
            module, file = "", str(Path(module).resolve())
        elif module == "__main__":
            module = ""  # in the worker, __main__ is the worker
        return {"module": module or None, "file": file, "name": name, "args": list(self.args), "kwargs": self.kwargs}

    def __str__(self) -> str:
        parts = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"{self.target}({', '.join(parts)})"

    def _checked(self) -> Factory:
        module, _, name = self.target.rpartition(":")
        if not module or not name:
            raise EnvError(f"An environment is named 'module:name' or 'path/to/file.py:name', found {self.target!r}.")
        try:
            json.dumps([self.args, self.kwargs], allow_nan=True)
        except TypeError as error:
            raise EnvError(
                f"The arguments of {self} must be numbers, strings, lists or dicts of these: {error}."
            ) from None
        return self


class WorkerLink:
    """A worker process and the conversation with it: every ``send`` is answered by one ``receive``. ``program`` is what it runs."""

    def __init__(self, factory: Factory, slot: int, python: str | None, program: Path = WORKER) -> None:
        self.factory, self.slot, self.seed, self._doing = factory, slot, -1, "start"
        self._pending = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker, closed in kill()
        environment = _single_threaded(dict(os.environ))
        if python is not None:  # paths of this interpreter are of no use to another one
            for name in ("PYTHONPATH", "PYTHONHOME"):
                environment.pop(name, None)
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the parent only, and kill() the worker's own children
            )
        except OSError as error:
            self._stderr.close()
            raise WorkerError(
                f"{python or sys.executable} cannot be started: {error.strerror} (key `python`)."
            ) from error
        paths = None if python is not None else [path or os.getcwd() for path in sys.path]
        self.send({"paths": paths})

    def send(self, request: dict[str, Any]) -> None:
        """Send one request. Raises ``WorkerError`` when the process is gone."""
        self._doing = request.get("do", self._doing)
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._death() from None

    def receive(self, since: float, timeout_s: float) -> dict[str, Any]:
        """The answer to the oldest request sent; it may take ``timeout_s`` from the ``time.monotonic()`` ``since`` on.

        Raises ``WorkerError`` when the worker raised (with its traceback), died, or stays silent for too long.
        """
        answer = json.loads(self._read_line(since, timeout_s))
        if "error" in answer:
            raise WorkerError(f"{self} raised in {self._doing!r}:\n{answer['error'].rstrip()}")
        return answer

    def kill(self) -> None:
        """End the process and its children now; idempotent."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            try:
                stream.close()
            except BrokenPipeError:  # an unsent request in the buffer of a dead worker
                continue

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def __str__(self) -> str:
        seed = f", seed {self.seed}" if self.seed >= 0 else ""
        return f"Environment {self.factory} (slot {self.slot}{seed})"

    def _read_line(self, since: float, timeout_s: float) -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, since + timeout_s - time.monotonic())):
                    raise WorkerError(
                        f"{self} did not answer {self._doing!r} within {timeout_s:g} s; raise timeout_s if it is only "
                        f"slow.{self._said()}"
                    )
                received = os.read(self._process.stdout.fileno(), 65536)
                if not received:
                    raise self._death()
                self._pending += received
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _death(self) -> WorkerError:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return WorkerError(f"{self} closed its pipe without answering.{self._said()}")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return WorkerError(f"{self}: its process {how}.{self._said()}")

    def _said(self) -> str:
        """The last lines the worker wrote to stderr."""
        if self._stderr.closed:
            return ""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 4000))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()[-20:]
        return " Its last words:\n" + "\n".join(lines) if lines else ""


def end_all(links: list[WorkerLink], patience_s: float) -> None:
    """Ask every worker to close its environment, give them ``patience_s`` seconds together, then end what is left."""
    since = time.monotonic()
    asked = []
    for link in links:
        try:
            link.send({"do": "close"})
            asked.append(link)
        except WorkerError:
            continue
    for link in asked:
        try:
            while link.alive:  # answers to earlier, abandoned requests may come first
                link.receive(since, patience_s)
        except WorkerError:
            continue
    for link in links:
        link.kill()


def _single_threaded(environment: dict[str, str]) -> dict[str, str]:
    """One thread per worker, unless the user said otherwise: there are as many workers as anybody needs."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, "1")
    return environment


def _source(make: Callable[[], Any]) -> str | None:
    try:
        return inspect.getsourcefile(make)
    except TypeError:
        return None
