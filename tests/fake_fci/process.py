"""The fake control unit in a process of its own, as tests want it: it ends with its owner, whatever happens to that."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0  # s, for an answer


def address() -> str:
    """A loopback address of this process alone: the ports are fixed, and tests run side by side."""
    pid = os.getpid()
    return f"127.{1 + (pid >> 16) % 250}.{(pid >> 8) % 256}.{1 + pid % 254}"


class FakeRobot:
    """``with FakeRobot() as robot: PandaRobot(robot.host)``. ``say`` takes the words of ``python -m tests.fake_fci --help``."""

    def __init__(self, lockstep: bool = True, patience: float = 5.0) -> None:
        self.host = address()
        command = [sys.executable, "-m", "tests.fake_fci", "--piped", "--host", self.host, "--patience", str(patience)]
        command += ["--lockstep"] if lockstep else []
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self._process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ, OMP_NUM_THREADS="1"), **pipes)
        self.started = self._answer()

    def _answer(self) -> dict:
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            self.kill()
            raise TimeoutError(f"the fake control unit has been silent for {PATIENCE:g} s")
        return json.loads(self._process.stdout.readline() or '{"error": "the fake control unit has ended"}')

    def say(self, *words: object) -> dict:
        """One command and its answer."""
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        answer = self._answer()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def advance(self, milliseconds: int) -> dict:
        """Let so much of the robot's time pass, and then halt it: what comes out does not depend on the machine's load."""
        return self.say("advance", milliseconds)

    def report(self) -> dict:
        return self.say("report")

    def kill(self) -> None:
        """As when somebody pulls the plug."""
        self._process.kill()
        self._process.wait()

    def suspend(self, asleep: bool) -> None:
        """A control unit that has stopped answering altogether; its kernel still holds the connections."""
        os.kill(self._process.pid, signal.SIGSTOP if asleep else signal.SIGCONT)

    def __enter__(self) -> FakeRobot:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self.kill()
        self._process.stdout.close()
