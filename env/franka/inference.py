"""Where the policy is asked: in a thread of its own, so that a hanging one hangs nothing else; or in lockstep, with a latency to play."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from env.franka.types import Clock


class Answer(NamedTuple):
    """To question ``number``: ``result``, or the ``error`` that came instead."""

    number: int
    result: Any
    error: Exception | None
    t_start: float
    t_end: float


class ThreadedInference:
    """One question at a time, asked in a daemon thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._questions: queue.SimpleQueue[tuple[int, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.busy = False
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    def submit(self, number: int, question: Callable[[], Any]) -> None:
        self.busy = True
        self._questions.put((number, question))

    def poll(self, wait_until: float | None = None) -> list[Answer]:
        """The answers there are; with ``wait_until``, the first one may be waited for until then."""
        found = []
        timeout = 0.0 if wait_until is None else max(wait_until - self._clock.now(), 0.0)
        while True:
            try:
                found.append(self._answers.get(timeout=timeout) if timeout else self._answers.get_nowait())
            except queue.Empty:
                return found
            timeout = 0.0

    def close(self) -> None:
        self._questions.put(None)

    def _work(self) -> None:
        while (job := self._questions.get()) is not None:
            number, question = job
            start, result, error = self._clock.now(), None, None
            try:
                result = question()
            except Exception as e:  # noqa: BLE001  whatever a policy raises is an answer to be judged by the runner
                error = e
            self._answers.put(Answer(number, result, error, start, self._clock.now()))
            self.busy = False


class LockstepInference:
    """The question is answered at once, and the answer held back for ``latency()`` seconds of the virtual clock."""

    def __init__(self, clock: Clock, latency: Callable[[], float]) -> None:
        self._clock, self._latency = clock, latency
        self._held: list[tuple[float, Answer]] = []

    @property
    def busy(self) -> bool:
        return bool(self._held)

    def submit(self, number: int, question: Callable[[], Any]) -> None:
        start, result, error = self._clock.now(), None, None
        try:
            result = question()
        except Exception as e:  # noqa: BLE001  as above
            error = e
        ready = start + self._latency()
        self._held.append((ready, Answer(number, result, error, start, ready)))

    def poll(self, wait_until: float | None = None) -> list[Answer]:
        """The answers that are ready by now; there is nothing to wait for: time stands still."""
        now = self._clock.now()
        found = [a for t, a in self._held if t <= now + 1e-9]
        self._held = [(t, a) for t, a in self._held if t > now + 1e-9]
        return found

    def close(self) -> None: ...
