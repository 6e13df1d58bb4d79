"""An arm and a hand that do again what was recorded, whatever they are told: for the question what a policy would have done."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from env.franka.episode import Episode, row_at
from env.franka.limits import PANDA
from env.franka.types import Clock, ControlSettings, GripperState, RobotState


class ReplayRobot:
    """A ``Robot`` (``types.py``) at the recorded poses; time is the clock's since ``start``, and after the last row it stands still.

    ``targets`` are what it was told since: (seconds, position, quaternion) each. ``gripper`` is its hand.

    Raises:
        DeploymentError: the recording lacks a column.
    """

    name, limits = "replay", PANDA

    def __init__(self, episode: Episode, clock: Clock) -> None:
        self._clock, self._times = clock, episode.times()
        names = ("q", "dq", "measured_position", "measured_quaternion", "wrench", "success_rate", "t_robot")
        self._rows = [episode.column(f"deploy/{name}") for name in names]
        self._begin, self._moving = clock.now(), False
        self.targets: list[tuple[float, np.ndarray, np.ndarray]] = []
        self.gripper = ReplayGripper(self, episode.column("deploy/gripper_width"), episode.column("deploy/grasped"))

    def __len__(self) -> int:
        """Ticks."""
        return len(self._times)

    def connect(self) -> None: ...

    def configure(self, settings: ControlSettings) -> None: ...

    def move_joints(self, q: np.ndarray, speed: float = 0.2) -> None: ...

    def start(self) -> None:
        """The recording begins."""
        self._begin, self._moving, self.targets = self._clock.now(), True, []

    def set_target(self, position: np.ndarray, quaternion: np.ndarray, twist: np.ndarray) -> None:
        if not all(np.isfinite(value).all() for value in (position, quaternion, twist)):
            raise ValueError(f"a target that is not finite: {position}, {quaternion}, {twist}")
        self.targets.append((self.seconds(), np.array(position), np.array(quaternion)))

    def brake(self, position: np.ndarray, quaternion: np.ndarray) -> None:
        self.set_target(position, quaternion, np.zeros(6))

    def seconds(self) -> float:
        """Since the recording began."""
        return self._clock.now() - self._begin if self._moving else 0.0

    def row(self) -> int:
        """Of the recording, now."""
        return row_at(self._times, self.seconds())

    def state(self) -> RobotState:
        row = self.row()
        q, dq, position, quaternion, wrench, rate, t_robot = (column[row] for column in self._rows)
        return RobotState(
            self._clock.now(), float(t_robot), q, dq, position, quaternion, wrench, float(rate), self._moving
        )

    def check(self) -> None: ...

    def stop(self) -> None:
        self._moving = False

    def recover(self) -> bool:
        return True

    def close(self) -> None:
        self.stop()


@dataclass
class ReplayGripper:
    """A ``Gripper`` at the recorded widths; ``commands`` are what it was told."""

    robot: ReplayRobot
    widths: np.ndarray  # (T,)
    grasped: np.ndarray  # (T,)
    max_width: float = 0.08
    commands: list[tuple[float, str]] = field(default_factory=list)

    def goto(self, width: float, speed: float) -> None:
        self.commands.append((self.robot.seconds(), f"goto {width:.3f}"))

    def grasp(self, force: float, speed: float) -> bool:
        self.commands.append((self.robot.seconds(), "grasp"))
        return bool(self.grasped[self.robot.row()])

    def state(self) -> GripperState:
        row = self.robot.row()
        return GripperState(self.robot.state().t_host, float(self.widths[row]), bool(self.grasped[row]))

    def stop(self) -> None: ...
