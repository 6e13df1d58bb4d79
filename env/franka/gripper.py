"""The gripper, off the servo's path: its calls last as long as its motions, and a new wish interrupts an old motion."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from env.franka.types import Clock, Gripper, GripperState


@dataclass(frozen=True)
class GripperSettings:
    """When the last column of an action (+1 closes) is a wish, and how it is carried out."""

    threshold: float = 0.5  # hysteresis: above it close, below its negative open, between leave as it is
    dwell: float = 0.6  # s between two changes of mind, at least
    speed: float = 0.1  # m/s
    force: float = 40.0  # N
    poll: float = 0.1  # s between two looks at its state


class GripperWorker:
    """``wish(value)`` from the control loop; the gripper's own calls in a thread, or, in lockstep, in ``tick``.

    ``report(error)`` is told of what a call raises: a gripper that fails is no reason to fall.
    """

    def __init__(
        self,
        gripper: Gripper,
        clock: Clock,
        settings: GripperSettings | None = None,
        report: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.settings = settings or GripperSettings()
        self._gripper, self._clock, self._report = gripper, clock, report
        self._wake, self._look, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._closed: bool | None = None  # what it has been told last
        self._changed = -1e9
        self._due: bool | None = None
        self._moving = self._interrupt = False
        self._looked = -1e9
        self._state: GripperState | None = None
        self._threads: list[threading.Thread] = []
        self._end = False

    @property
    def state(self) -> GripperState | None:
        """As last looked at; never waits."""
        return self._state

    @property
    def closed(self) -> bool | None:
        """What it has been told last; None: nothing yet."""
        return self._closed

    def wish(self, value: float) -> bool:
        """An action's gripper column: whether it changes anything."""
        s, now = self.settings, self._clock.now()
        if not abs(value) > s.threshold:  # NaN is no wish
            return False
        close = value > 0
        if close == self._closed or now - self._changed < s.dwell:
            return False
        with self._lock:
            self._closed, self._changed, self._due = close, now, close
            self._interrupt = self._moving
        self._wake.set()
        self._look.set()
        return True

    def open(self) -> None:
        """At the start of an episode: open, whatever was before."""
        with self._lock:
            self._closed, self._changed, self._due = False, -1e9, False
        self._wake.set()

    def start(self) -> None:
        """Begin to work: one thread carries wishes out, which may take long, another looks on, and interrupts where it must."""
        if not self._threads:
            self._end = False
            self._threads = [
                threading.Thread(target=self._loop, args=args, name="gripper", daemon=True)
                for args in ((self._act, self._wake), (self._watch, self._look))
            ]
            for thread in self._threads:
                thread.start()

    def tick(self, now: float) -> None:
        """What is due now, in the caller's thread: for lockstep."""
        self._act()
        if now - self._looked >= self.settings.poll:
            self._looked = now
            self._watch()

    def stop(self) -> None:
        """Interrupt what it does, and forget what it should do. What it holds, it keeps."""
        with self._lock:
            self._due = None
        self._try(self._gripper.stop)

    def close(self) -> None:
        self._end = True
        self._wake.set()
        self._look.set()
        for thread in self._threads:
            thread.join(timeout=1.0)
        self._threads = []

    def _loop(self, do: Callable[[], None], event: threading.Event) -> None:
        while not self._end:
            do()
            event.wait(self.settings.poll)
            event.clear()

    def _watch(self) -> None:
        with self._lock:
            interrupt, self._interrupt = self._interrupt, False
        if interrupt:
            self._try(self._gripper.stop)
        state = self._try(self._gripper.state)
        self._state = state or self._state

    def _act(self) -> None:
        with self._lock:
            due, self._due = self._due, None
            self._moving = due is not None
        s = self.settings
        if due is not None:
            if due:
                self._try(lambda: self._gripper.grasp(s.force, s.speed))
            else:
                self._try(lambda: self._gripper.goto(self._gripper.max_width, s.speed))
            self._moving = False

    def _try(self, call: Callable[[], object]) -> object:
        try:
            return call()
        except Exception as error:  # noqa: BLE001  see the class
            self._report(error)
            return None
