"""One episode on a robot: the state machine, and how the parts of a deployment are driven.

    DISCONNECTED -> IDLE -> HOMING -> READY -> RUNNING <-> HOLD -> STOPPED
                      ^                           any -> FAULT -> RECOVERING -> IDLE

With a clock of the wall the servo (250 Hz), the policy and the gripper have threads of their own and the caller's thread keeps the 20 Hz
tick. With a ``VirtualClock`` (``clock.lockstep``) everything runs in the caller's thread, in a fixed order, and the robot advances when
the clock does: that is how the twin and the tests run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from env.franka import frames
from env.franka.types import (
    Camera,
    Clock,
    ControlSettings,
    Frame,
    Gripper,
    GripperState,
    Observation,
    Operator,
    Policy,
    Recorder,
    Robot,
    RobotState,
)

STATES = ("DISCONNECTED", "IDLE", "HOMING", "READY", "RUNNING", "HOLD", "STOPPED", "FAULT", "RECOVERING")
SUITE_HOME = (0.0, 0.19634954, 0.0, -2.61799388, 0.0, 2.94159265, 0.78539816)  # robosuite's Panda at reset


class ObservationBuilder(Protocol):
    """``env/franka/observation.py``: what the policy is shown, from what the robot and the cameras say."""

    def build(
        self, state: RobotState, gripper: GripperState | None, frames: Mapping[str, Frame]
    ) -> Observation: ...  # called once per action tick: it keeps the history of To observations itself

    def reset(self) -> None:
        """A new episode: forget the history."""


@dataclass(frozen=True)
class RunnerSettings:
    """How an episode is run."""

    mode: str = "run"  # "shadow": all is computed and recorded, nothing is sent
    speed_scale: float = 0.3  # of the policy's motion; 1.0 only after a look at 0.3
    control_hz: float = 20.0
    servo_hz: float = 250.0
    max_steps: int = 400  # action ticks in which the policy was followed
    home: tuple[float, ...] | None = SUITE_HOME  # joints at the start; None: where it stands
    home_speed: float = 0.2  # of the maximum
    ramp_s: float = 0.5  # motion fades in over this after a start, a HOLD and a recovery
    hold_limit_s: float = 60.0  # a HOLD nobody ends becomes a STOP
    confirm_s: float = 30.0  # how long a fault waits for a person's "recover"


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode went."""

    state: str  # in which it ended
    reason: str
    steps: int  # ticks in which the policy was followed
    success: bool | None  # as ``finished`` says; None without one
    recoveries: int
    seconds: float
    timing: Mapping[str, Mapping[str, Any]]  # by quantity: count, mean, p50, p99, max (ms), and a histogram


class EpisodeRunner:
    """Runs episodes: ``connect()`` once, ``run(recorder)`` for each, ``close()`` at the end (all safe to repeat).

    ``cameras`` by the name the builder knows them by. ``unnormalise`` takes the policy's action ``(..., Da)`` to the task's units (the
    checkpoint's ``Normalizer.unnormalize_action``); None where they are the same. ``world`` is where the robot's base stands in the frame
    in which the policy's translation and rotation deltas are meant. ``finished()`` says True when the task is solved (the twin knows);
    it is asked once a tick. ``policy`` and ``builder`` are only ever called from one thread at a time.
    """

    def __init__(
        self,
        robot: Robot,
        gripper: Gripper | None,
        cameras: Mapping[str, Camera],
        builder: ObservationBuilder,
        policy: Policy,
        *,
        monitor: Any,  # SafetyMonitor
        operator: Operator,
        clock: Clock,
        settings: RunnerSettings | None = None,
        control: ControlSettings | None = None,
        schedule: Any = None,  # ScheduleSettings
        reference: Any = None,  # ReferenceSettings
        world: frames.Transform = frames.IDENTITY,
        unnormalise: Callable[[np.ndarray], np.ndarray] | None = None,
        finished: Callable[[], bool] | None = None,
    ) -> None:
        raise NotImplementedError

    def connect(self) -> None:
        """DISCONNECTED -> IDLE. Raises ``DeploymentError`` where the robot or a camera is not as asked."""

    def run(
        self,
        recorder: Recorder,
        seed: int | None = None,
        verdict: Callable[[EpisodeResult], str | float | None] | None = None,
    ) -> EpisodeResult:
        """One episode, from IDLE; the state is STOPPED (or IDLE, where ``finished`` or ``max_steps`` ended it) afterwards.

        Whatever happens, the robot has been stopped and ``recorder.finish(verdict(result))`` called when this returns or raises.
        """

    def stop(self) -> None:
        """End the motion now; safe from any thread and from a signal handler."""

    def close(self) -> None:
        """Stop, let go of robot, gripper and cameras: DISCONNECTED."""
