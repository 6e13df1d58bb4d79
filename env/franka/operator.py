"""The person at the machine: a dead-man switch and a few keys; or a stand-in, where there is a twin or a test.

A terminal does not say when a key is let go, only that it repeats. So the space bar counts as held from its second repetition on until
``RELEASE`` seconds after the last: letting go is noticed within a tenth of a second, and a press takes half a second to count.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator

from env.franka.types import Clock, DeploymentError

RELEASE = 0.1  # s
_KEYS = {"\x1b": "stop", "q": "quit", "r": "recover"}


class Presses:
    """A switch that is known by its pulses: held while they come more often than every ``RELEASE`` seconds."""

    def __init__(self) -> None:
        self._last = self._pressed = -1e9
        self._held = False

    def pulse(self, t: float) -> None:
        if t - self._last > RELEASE:
            self._held = False
        elif not self._held:
            self._held, self._pressed = True, t
        self._last = t

    def held(self, t: float) -> bool:
        return self._held and t - self._last <= RELEASE

    def pressed_since(self, t: float) -> bool:
        return self._pressed > t


class KeyboardOperator:
    """SPACE held: go; ESC: stop; q: end the episode; r: recover from a fault. From the terminal, as a context manager."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._presses = clock, Presses()
        self._commands: deque[str] = deque()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> KeyboardOperator:
        if not sys.stdin.isatty():
            raise DeploymentError(
                "the dead-man switch is the space bar of a terminal, and standard input is none: start it in one."
            )
        import termios
        import tty

        self._terminal = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin)
        self._thread = threading.Thread(target=self._read, name="keyboard", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        import termios

        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._terminal)

    def _read(self) -> None:
        file = sys.stdin.fileno()
        while not self._end.is_set():
            if select.select([file], [], [], 0.05)[0]:
                self.keys(os.read(file, 64).decode(errors="replace"))

    def keys(self, text: str) -> None:
        """What was typed. An arrow or function key starts with ESC, too: that stops, which does no harm."""
        for key in text:
            if key == " ":
                self._presses.pulse(self._clock.now())
            elif key in _KEYS:
                self._commands.append(_KEYS[key])

    def held(self) -> bool:
        return self._presses.held(self._clock.now())

    def pressed_since(self, t: float) -> bool:
        return self._presses.pressed_since(t)

    def command(self) -> str | None:
        return self._commands.popleft() if self._commands else None


class AlwaysHeld:
    """Nobody there, and nobody needed: for the twin. It never confirms a recovery. ``say`` is heard as a command."""

    def __init__(self) -> None:
        self._commands: deque[str] = deque()

    def say(self, command: str) -> None:
        self._commands.append(command)

    def held(self) -> bool:
        return True

    def pressed_since(self, t: float) -> bool:
        return True

    def command(self) -> str | None:
        return self._commands.popleft() if self._commands else None


class ScriptedOperator:
    """Holds the switch during the given spans of time ``[(from, to), ...]`` and says commands ``[(when, what), ...]`` when it is time."""

    def __init__(
        self, clock: Clock, held: list[tuple[float, float]], commands: list[tuple[float, str]] | None = None
    ) -> None:
        self._clock, self._spans = clock, sorted(held)
        self._commands = deque(sorted(commands or []))

    def held(self) -> bool:
        return any(start <= self._clock.now() < end for start, end in self._spans)

    def pressed_since(self, t: float) -> bool:
        return any(t < start <= self._clock.now() for start, _ in self._spans)

    def command(self) -> str | None:
        due = self._commands and self._commands[0][0] <= self._clock.now()
        return self._commands.popleft()[1] if due else None


@contextlib.contextmanager
def stop_on_signals(stop: Callable[[str], None]) -> Iterator[None]:
    """Within: SIGINT, SIGTERM and SIGHUP call ``stop(reason)`` instead of tearing the main thread out of what it does.

    ``stop`` only raises a flag, so that an inference or a write under way ends as it should; the control loop sees it at its next tick.
    A second SIGINT is a KeyboardInterrupt, as ever. Outside of the main thread signals cannot be caught: then nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def handle(number: int, _frame: object) -> None:
        if number == signal.SIGINT and number in seen:
            raise KeyboardInterrupt
        seen.append(number)
        stop(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
