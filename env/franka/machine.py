"""The state machine of a deployment: what an operator, a verdict or a fault makes of it, and what is done then.

    DISCONNECTED -> IDLE -> HOMING -> READY -> RUNNING <-> HOLD -> STOPPED
                      ^                           any -> FAULT -> RECOVERING -> IDLE

A HOLD brakes the reference and ends control only after ``hold_limit_s``; it is left when its cause is gone and the switch has been pressed
anew. STOPPED and FAULT end control at once. Verdicts and faults come from the servo's thread as well as from the caller's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from env.franka.gripper import GripperWorker
from env.franka.pilot import Pilot
from env.franka.safety import GO, HOLD, STOP, SafetyMonitor, Verdict
from env.franka.servo import Servo, ServoThread
from env.franka.types import Clock, Operator, Recorder, Robot, RobotFault

STATES = ("DISCONNECTED", "IDLE", "HOMING", "READY", "RUNNING", "HOLD", "STOPPED", "FAULT", "RECOVERING")
SUITE_HOME = (0.0, 0.19634954, 0.0, -2.61799388, 0.0, 2.94159265, 0.78539816)  # robosuite's Panda at reset


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


class StateMachine:
    """State, what may change it, and what that does to the robot. ``EpisodeRunner`` is one; its constructor sets the parts."""

    _robot: Robot
    _gripper: GripperWorker | None
    _pilot: Pilot
    _servo: Servo
    _monitor: SafetyMonitor
    _operator: Operator
    _clock: Clock
    _recorder: Recorder
    _lockstep: bool
    _finished: Callable[[], bool] | None
    _steps: int
    settings: RunnerSettings

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._thread: ServoThread | None = None
        self.state, self.reason = "DISCONNECTED", ""
        self._asked_to_stop: str | None = None
        self._fault: RobotFault | None = None
        self._quit = False
        self._hold_since, self._hold_cause = 0.0, ""
        self._seen: dict[str, tuple[int | None, float]] = {}  # by camera: number and time of its last new image
        self._durations: dict[str, list[float]] = {}

    def _pass(self, t: float) -> None:
        """Let time pass to ``t``."""
        raise NotImplementedError

    def _start_over(self) -> None:
        """Nothing is planned, tick 0 is now, motion fades in, and the builder has no history."""
        raise NotImplementedError

    def _enter(self, state: str, why: str) -> None:
        with self._lock:
            self.state, self.reason = state, why
        self._monitor.event(f"runner.{state}", "log", None, None, why)

    def _end(self, state: str, why: str) -> None:
        """The episode is over: the motion ends with it."""
        with self._lock:
            if self.state in ("STOPPED", "FAULT") and state != "STOPPED":
                return
            self._servo.end()
            self._try(self._robot.stop)
            if self._gripper is not None and state == "STOPPED":
                self._gripper.stop()
            self._enter(state, why)

    def _halt(self) -> None:
        self._servo.end()
        if self._thread is not None:
            self._thread.close()
            self._thread = None
        self._try(self._robot.stop)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  what cannot be stopped by a call is stopped by the emergency stop
            self._monitor.event("robot.stop", "warn", repr(error)[:200])

    # --------------------------------------------------------------------------------------------- what the servo finds

    def _watch(self, now: float) -> Verdict:
        """At each servo tick, in its thread: the operator, the cameras, the policy's punctuality."""
        command = self._asked_to_stop or self._operator.command()
        if command == "quit":
            self._quit = True
        elif command == "stop" or self._asked_to_stop:
            self._monitor.event("operator.stop", "stop", None, None, self._asked_to_stop or "the operator's key")
            return Verdict(STOP, "operator")
        due = self._pilot.due if self.state == "RUNNING" else np.inf
        seen = {name: t for name, (_, t) in self._seen.items()}
        found = (
            self._monitor.watch_inputs(now, seen, due),
            self._monitor.watch_operator(self._operator),
            Verdict(HOLD if self._recorder.problem else GO, "recorder"),
        )
        return max(found, key=lambda v: v.level)

    def _on_verdict(self, verdict: Verdict) -> None:
        with self._lock:
            if verdict.level == STOP and self.state in ("RUNNING", "HOLD"):
                self._end("STOPPED", verdict.name)
            elif verdict.level == HOLD and self.state == "RUNNING":
                self._servo.hold()
                self._hold_since, self._hold_cause = self._clock.now(), verdict.name
                self._enter("HOLD", verdict.name)

    def _on_fault(self, fault: RobotFault) -> None:
        with self._lock:
            if self._asked_to_stop is not None:  # a driver that was stopped under the servo's hands says so its own way
                self._end("STOPPED", self._asked_to_stop)
            elif self.state in ("RUNNING", "HOLD", "READY", "HOMING"):
                self._fault = fault
                self._monitor.event(f"fault.{fault.kind}", "fault", None, None, str(fault))
                self._end("FAULT", str(fault))

    def _supervise(self, t: float) -> None:
        """Sleep to ``t`` with an eye on the servo: one that has stopped ticking sends nothing, and cannot say so."""
        limits = self._monitor.settings
        while True:
            now = self._clock.now()
            silent = now - self._servo.last if self._thread is not None else 0.0
            if silent > limits.servo_stop:
                self._monitor.event("servo_silent", "stop", silent, limits.servo_stop)
                self._on_verdict(Verdict(STOP, "servo_silent"))
            elif silent > limits.servo_hold:
                self._on_verdict(Verdict(HOLD, "servo_silent"))
            if now >= t or (self.state in ("STOPPED", "FAULT") and self._thread is not None):
                return
            self._clock.sleep_until(min(t, now + 0.02))

    def _measure(self, name: str, seconds: float) -> None:
        self._durations.setdefault(name, []).append(seconds)
        self._recorder.measure(name, seconds)

    def _gripper_failed(self, error: Exception) -> None:
        self._monitor.event("gripper", "warn", repr(error)[:200])

    def _pressed(self, since: float) -> bool:
        """Waits until the switch is held that was pressed after ``since``; False where the operator stops or ends it instead."""
        while not (self._operator.held() and self._operator.pressed_since(since)):
            if self._asked_to_stop is not None or self._operator.command() in ("stop", "quit"):
                self._end("STOPPED", "stopped before the start")
                return False
            self._pass(self._clock.now() + 0.02)
        return True

    def _go_home(self, home: np.ndarray) -> bool:
        """Moves while the switch is held, which blocks; whether it got there."""
        if not self._pressed(-np.inf):
            return False
        if self._lockstep:
            self._robot.move_joints(home, self.settings.home_speed)
            return True
        found: list[Exception] = []

        def move() -> None:
            try:
                self._robot.move_joints(home, self.settings.home_speed)
            except Exception as error:  # noqa: BLE001  raised below, in the caller's thread
                found.append(error)

        thread = threading.Thread(target=move, name="homing", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.02)
            let_go = not self._operator.held()
            if let_go or self._asked_to_stop is not None or self._operator.command() in ("stop", "quit"):
                self._end(
                    "STOPPED",
                    "the switch was let go on the way to the start" if let_go else "stopped on the way to the start",
                )
                return False
        if found:
            raise found[0]
        return True

    def _ready(self) -> bool:
        """READY: until the switch is pressed anew; whether it was."""
        if self.state == "FAULT":
            return False
        self._enter("READY", "press the dead-man switch")
        return self._pressed(self._clock.now() - 1e-9)

    def _recovered(self) -> bool:
        """FAULT: waits for a person's word, then RECOVERING -> IDLE; whether the robot may be started again."""
        until = self._clock.now() + self.settings.confirm_s
        fault = self._fault
        while fault.recoverable and self._clock.now() < until and self._asked_to_stop is None:
            command = self._operator.command()
            if command == "recover":
                break
            if command in ("stop", "quit"):
                fault.recoverable = False
            self._pass(self._clock.now() + self._period)
        else:
            self._end("STOPPED", f"{fault}; not recovered")
            return False
        if not self._monitor.may_recover():
            self._end("STOPPED", f"{fault}; recovered too often")
            return False
        self._enter("RECOVERING", str(fault))
        try:
            recovered = self._robot.recover()
        except Exception as error:  # noqa: BLE001  then it has not
            recovered = False
            self._monitor.event("recover", "warn", repr(error)[:200])
        self._fault = None
        if not recovered:
            self._end("STOPPED", f"{fault}; could not be recovered")
            return False
        self._enter("IDLE", "recovered")
        return True

    def _maybe_resume(self) -> None:
        """HOLD -> RUNNING: the cause gone, the switch pressed anew, the policy free."""
        if self._clock.now() - self._hold_since > self.settings.hold_limit_s:
            self._monitor.event("hold_limit", "stop", self._clock.now() - self._hold_since, self.settings.hold_limit_s)
            self._on_verdict(Verdict(STOP, f"held too long by {self._hold_cause}"))
            return
        clear = self._servo.verdict.level == GO and not self._pilot.busy
        if clear and self._operator.held() and self._operator.pressed_since(self._hold_since):
            self._servo.release()
            self._pilot.inference.poll()
            self._start_over()
            self._enter("RUNNING", f"after {self._hold_cause}")

    def _judge_end(self) -> None:
        if self.state not in ("RUNNING", "HOLD"):
            return
        if self._finished is not None and self._finished():
            self._solved = True
            self._end("IDLE", "solved")
        elif self._steps >= self.settings.max_steps:
            self._end("IDLE", "max_steps")
        elif self._quit:
            self._end("IDLE", "the operator ended it")
