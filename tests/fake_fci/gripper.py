"""The gripper of the fake control unit: fingers that take their time, with or without a thing between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.fake_fci import protocol_v5 as wire
from tests.fake_fci.protocol_v5 import GripperCommand, GripperStatus

if TYPE_CHECKING:
    from tests.fake_fci.server import Link

MAX_WIDTH = 0.08  # m
STATE_PERIOD = 1.0 / 30.0  # s


class FakeGripper:
    """``thing``: the width of what stands between the fingers, 0 for nothing. ``slow``: divides every speed. ``fails``: grasps do."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.width, self.thing, self.slow, self.fails, self.grasped = MAX_WIDTH, 0.0, 1.0, False, False
        self._job: tuple[int, int, float, float] | None = None  # command, its number, width, speed
        self._accept = (0.0, 0.0)  # widths that count as a grasp
        self._state = np.zeros((), wire.GRIPPER_STATE)
        self._last = self._published = 0.0

    def take(self, command: int, number: int, payload: bytes) -> None:
        """A message of the client's."""
        if command == GripperCommand.CONNECT:
            version, self.link.udp_port = wire.CONNECT.unpack(payload)
            fits = version == wire.GRIPPER_VERSION
            self.link.answer(command, number, wire.GRIPPER_CONNECTED.pack(not fits, wire.GRIPPER_VERSION))
            return
        self._finish(GripperStatus.ABORTED)  # a new command ends the old one
        if command == GripperCommand.STOP:
            self._answer(command, number, GripperStatus.SUCCESS)
        elif command == GripperCommand.HOMING:
            self._job = (command, number, MAX_WIDTH, 0.1)
        elif command == GripperCommand.MOVE:
            width, speed = wire.GRIPPER_MOVE.unpack(payload)
            if 0.0 <= width <= MAX_WIDTH and speed > 0.0:
                self._job, self.grasped = (command, number, width, speed), False
            else:
                self._answer(command, number, GripperStatus.FAIL)
        else:
            width, inner, outer, speed, _ = wire.GRASP.unpack(payload)
            self._job, self._accept = (command, number, 0.0, speed), (width - inner, width + outer)

    def update(self, now: float) -> None:
        """Let time pass until ``now`` (s)."""
        elapsed, self._last = min(now - self._last, 0.1), now
        if self._job is not None:
            command, _, goal, speed = self._job
            reach = speed / self.slow * elapsed
            stop = max(goal, self.thing) if goal < self.width else goal
            self.width += float(np.clip(stop - self.width, -reach, reach))
            if self.width == stop:
                self._arrived(command, goal)
        if now - self._published >= STATE_PERIOD:
            self._published = now
            self._state["message_id"] += np.uint32(1)
            self._state["width"], self._state["max_width"] = self.width, MAX_WIDTH
            self._state["is_grasped"], self._state["temperature"] = self.grasped, 30
            self.link.publish(self._state)

    def _arrived(self, command: int, goal: float) -> None:
        ok = self.width == goal
        if command == GripperCommand.GRASP:
            # nothing between the fingers is no grasp, whatever the tolerances allow
            ok = self.grasped = self.thing > 0.0 and self._accept[0] <= self.width <= self._accept[1] and not self.fails
        self._finish(GripperStatus.SUCCESS if ok else GripperStatus.UNSUCCESSFUL)

    def _finish(self, status: GripperStatus) -> None:
        if self._job is not None:
            (command, number, *_), self._job = self._job, None
            self._answer(command, number, status)

    def _answer(self, command: int, number: int, status: GripperStatus) -> None:
        self.link.answer(command, number, int(status).to_bytes(2, "little"))
