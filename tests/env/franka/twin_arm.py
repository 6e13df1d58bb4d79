"""The twin, with the faults of ``stand_ins.Arm``: for tests of what the arm itself does."""

from __future__ import annotations

import dataclasses

import numpy as np

from env.franka import kinematics
from env.franka.robot_mujoco import MujocoRobot
from env.franka.types import RobotFault, RobotState

LOST = 0.02  # s, after which a control unit that hears nothing stops by itself


class TwinArm(MujocoRobot):
    """``fail``, ``deaf``, ``dead``, ``wrench``, ``success``: see ``stand_ins.Arm``. Its motion is watched every 4 ms."""

    def __init__(self, clock) -> None:
        super().__init__(clock)
        self._clock = clock
        self._fail: RobotFault | None = None
        self._dead, self.deaf, self.wrench, self.success, self._stuck = False, False, np.zeros(6), 1.0, None
        self._seen: list[tuple[float, float, float, float]] = []
        self._watch()

    def _watch(self) -> None:
        state = super().state()
        twist = kinematics.jacobian(state.q) @ state.dq
        speeds = np.linalg.norm(twist[:3]), np.linalg.norm(twist[3:]), np.abs(state.dq).max()
        self._seen.append((self._clock.now(), *speeds))
        self._clock.at(self._clock.now() + 0.004, self._watch)

    def motion(self, begin: float, end: float) -> np.ndarray:
        """The largest of the hand's speed (m/s), its turning (rad/s) and any joint's (rad/s) between two moments that have passed."""
        assert begin < end <= self._clock.now()
        return np.array([s[1:] for s in self._seen if begin <= s[0] <= end]).max(0)

    joints = property(lambda self: self.data.qpos[self._q])

    @property
    def fail(self) -> RobotFault | None:
        return self._fail

    @fail.setter
    def fail(self, fault: RobotFault | None) -> None:
        """It has stopped by itself."""
        self._fail = fault
        if fault is not None:
            super().stop()

    @property
    def dead(self) -> bool:
        return self._dead

    @dead.setter
    def dead(self, dead: bool) -> None:
        """The driver, that is: the arm goes on as it was told last until its control unit misses it."""
        self._dead = dead
        self._clock.at(self._clock.now() + LOST, super().stop)

    def _alive(self) -> None:
        if self._dead:
            raise OSError("connection reset by peer")

    def set_target(self, position, quaternion, twist) -> None:
        self._alive()
        super().set_target(position, quaternion, twist)

    def brake(self, position, quaternion) -> None:
        self._alive()
        super().brake(position, quaternion)

    def state(self) -> RobotState:
        self._alive()
        state = dataclasses.replace(super().state(), wrench=self.wrench, success_rate=self.success)
        self._stuck = (self._stuck or state) if self.deaf else None
        return self._stuck or state

    def check(self) -> None:
        self._alive()
        if self._fail is not None:
            raise self._fail
        super().check()

    def stop(self) -> None:
        if not self._dead:  # else nobody is there to pass it on
            super().stop()
