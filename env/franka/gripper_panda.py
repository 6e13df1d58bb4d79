"""The hand of a Panda through ``panda_py``, in a child process (``gripper_child.py`` says why)."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from env.franka import driver
from env.franka.types import DeploymentError, GripperState, RobotFault

CHILD, ROOT = "env.franka.gripper_child", Path(__file__).resolve().parents[2]
CONNECT_PATIENCE, PATIENCE, STOP_PATIENCE = 10.0, 30.0, 2.0  # s
WIDTH_MIN = 0.01  # m: a hand that opens less has not been homed


class PandaGripper:
    """``env/franka/types.py: Gripper``; connects when it is made. ``ip``: the control unit's.

    Raises:
        DeploymentError: there is no hand there, or it has not been homed.
    """

    def __init__(self, ip: str, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._write, self._number, self._lost = now, threading.Lock(), 0, ""
        self._waiting: dict[int, queue.SimpleQueue] = {}
        self._first, self._state = threading.Event(), GripperState(now(), 0.0)
        self.max_width = 0.0
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self._child = subprocess.Popen([sys.executable, "-m", CHILD, ip], cwd=ROOT, **pipes)
        self._reader = threading.Thread(target=self._listen, name="gripper", daemon=True)
        self._reader.start()
        if not self._first.wait(CONNECT_PATIENCE) or self._lost:
            self.close()
            raise driver.connection_error(
                ip, "panda-python (gripper)", RuntimeError(self._lost or "connection timeout")
            )
        if self.max_width < WIDTH_MIN:
            self.close()
            raise DeploymentError(
                f"robot.ip={ip}: the hand opens {self.max_width:g} m; home it in the robot's web page"
            )

    def _listen(self) -> None:
        for line in self._child.stdout:
            said = json.loads(line)
            if "width" in said:
                self.max_width = said["max_width"]
                self._state = GripperState(self._now(), said["width"], said["grasped"], bool(self._waiting))
                self._first.set()
            elif "done" in said:
                waiting = self._waiting.pop(said["done"], None)
                if waiting is not None:
                    waiting.put(said)
            else:
                self._lost = said["lost"]
        self._lost = self._lost or "the gripper's process has ended"
        self._first.set()
        for waiting in list(self._waiting.values()):
            waiting.put({"ok": False, "error": self._lost})

    def _ask(self, word: str, amount: float, speed: float, patience: float = PATIENCE) -> bool:
        if not (0.0 <= amount < 1e3 and 0.0 <= speed < 1e3):  # no number passes neither
            raise ValueError(f"gripper: expected a width or force and a speed, found {amount!r} and {speed!r}")
        answer: queue.SimpleQueue = queue.SimpleQueue()
        with self._write:
            self._number += 1
            number = self._number
            self._waiting[number] = answer
            try:
                self._child.stdin.write(json.dumps([number, word, amount, speed]) + "\n")
            except (OSError, ValueError):  # it has gone, or is closed
                self._waiting.pop(number, None)
                raise RobotFault("network", self._lost or "the gripper is closed", False) from None
        if self._lost:
            raise RobotFault("network", self._lost, False)
        try:
            said = answer.get(timeout=patience)
        except queue.Empty:
            raise RobotFault("driver", f"the gripper has not finished {word} within {patience:g} s", True) from None
        if said["error"] and "aborted" not in said["error"].lower():  # aborted: by the next command, or stop
            raise driver.fault(said["error"])
        return said["ok"]

    def goto(self, width: float, speed: float) -> None:
        """Returns when the fingers are there, or another command has ended the motion."""
        self._ask("goto", min(width, self.max_width), speed)

    def grasp(self, force: float, speed: float) -> bool:
        """See ``types.Gripper``."""
        return self._ask("grasp", force, speed)

    def state(self) -> GripperState:
        """The last state heard; never waits."""
        if self._lost:
            raise RobotFault("network", self._lost, False)
        return self._state

    def stop(self) -> None:
        """Let go of the present motion."""
        with contextlib.suppress(RobotFault):
            self._ask("stop", 0.0, 0.0, STOP_PATIENCE)

    def close(self) -> None:
        """End the process; the hand stays as it is."""
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        try:
            self._child.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._reader.join(STOP_PATIENCE)
        self._child.stdout.close()
