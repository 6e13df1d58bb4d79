"""A contestant in a process of its own: its thread pools, caches and global switches cannot disturb the other side.

PyTorch's thread count is global to a process, and OpenMP threads go on spinning for a while after their work; two
training loops in one process would therefore measure each other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol


class Task(Protocol):
    """What the child process holds: built once, then run on demand."""

    def run(self) -> dict[str, Any]:
        """One turn -> plain results."""

    def close(self) -> None:
        """Free processes and threads."""


class Isolated:
    """Builds ``build(*arguments)`` in a spawned process; ``run()`` runs one turn of it there.

    ``build`` must be a function of an importable module. Raises RuntimeError with the child's traceback if it fails
    there.
    """

    def __init__(self, build: Callable[..., Task], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        # Not a daemon: it starts workers itself.
        self._process = context.Process(target=_serve, args=(child, build, arguments))
        self._process.start()
        child.close()
        self._receive()

    def run(self) -> dict[str, Any]:
        """One turn of the task in its process."""
        self._pipe.send("run")
        return self._receive()

    def close(self) -> None:
        """End the process; idempotent."""
        if self._process.is_alive():
            with contextlib.suppress(OSError):  # it died first: nothing to tell
                self._pipe.send("close")
            self._process.join(20)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:
        try:
            ok, content = self._pipe.recv()
        except EOFError:
            self._process.join(5)
            raise RuntimeError(
                f"the benchmark's process ended by itself (exit code {self._process.exitcode}); out of memory?"
            ) from None
        if not ok:
            self.close()
            raise RuntimeError(f"in the benchmark's own process:\n{content}")
        return content


def _serve(pipe: Connection, build: Callable[..., Task], arguments: tuple[Any, ...]) -> None:
    task: Task | None = None
    try:
        task = build(*arguments)
        pipe.send((True, {}))
        while pipe.recv() == "run":
            pipe.send((True, task.run()))
    except EOFError:
        pass  # the parent is gone
    except Exception:  # its text is the parent's error message
        pipe.send((False, traceback.format_exc()))
    finally:
        if task is not None:
            task.close()
