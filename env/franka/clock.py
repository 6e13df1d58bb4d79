"""Time of a deployment: the wall's, or a virtual one that stands still until somebody sleeps."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable


class WallClock:
    """Monotonic seconds of this machine."""

    lockstep = False

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, t: float) -> None:
        """Return at ``t``, or at once where that has passed."""
        left = t - time.monotonic()
        if left > 0:
            time.sleep(left)


class VirtualClock:
    """Time that passes only inside ``sleep_until``, in one thread: what runs on it is deterministic, and as fast as the machine allows.

    A simulated robot asks to be told of every step of time (``subscribe``) and advances with it: *lockstep*. A test plans what shall
    happen when (``at``). Both may read the clock; sleeping inside either is an error, for time is already on its way.
    """

    lockstep = True

    def __init__(self, start: float = 0.0) -> None:
        self._now = float(start)
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()  # of two plans for one moment the first made comes first
        self._listeners: list[Callable[[float], None]] = []
        self._moving = False

    def now(self) -> float:
        return self._now

    def subscribe(self, listener: Callable[[float], None]) -> None:
        """``listener(t)`` is called whenever time has become ``t``."""
        self._listeners.append(listener)

    def at(self, t: float, action: Callable[[], None]) -> None:
        """Call ``action()`` when it is ``t``; one that has passed, at the next step of time."""
        heapq.heappush(self._planned, (t, next(self._number), action))

    def sleep_until(self, t: float) -> None:
        """Let time pass to ``t``, stopping at what is planned on the way."""
        if self._moving:
            raise RuntimeError("sleep_until inside a listener or a planned action of the same VirtualClock")
        self._moving = True
        try:
            while self._planned and self._planned[0][0] <= t:
                when, _, action = heapq.heappop(self._planned)
                self._move(when)
                action()
            self._move(t)
        finally:
            self._moving = False

    def _move(self, t: float) -> None:
        if t > self._now:
            self._now = t
            for listener in self._listeners:
                listener(t)
