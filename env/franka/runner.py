"""One episode on a robot: the state machine, and how the parts of a deployment are driven.

    DISCONNECTED -> IDLE -> HOMING -> READY -> RUNNING <-> HOLD -> STOPPED
                      ^                           any -> FAULT -> RECOVERING -> IDLE

With a clock of the wall the servo (250 Hz), the policy and the gripper have threads of their own and the caller's thread keeps the 20 Hz
tick. With a ``VirtualClock`` (``clock.lockstep``) everything runs in the caller's thread, in a fixed order, and the robot advances when
the clock does: that is how the twin and the tests run.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from env.franka import frames
from env.franka.gripper import GripperSettings, GripperWorker
from env.franka.latency import summarize
from env.franka.machine import STATES, SUITE_HOME, EpisodeResult, RunnerSettings, StateMachine
from env.franka.pilot import Pilot
from env.franka.reference import Reference, ReferenceSettings
from env.franka.safety import HOLD, SafetyMonitor, Verdict
from env.franka.schedule import ChunkScheduler, ScheduleSettings, Step
from env.franka.servo import Servo, ServoThread, as_fault, punctual
from env.franka.types import (
    Camera,
    Clock,
    ControlSettings,
    DeploymentError,
    Frame,
    Gripper,
    GripperState,
    Observation,
    Operator,
    Policy,
    Recorder,
    Robot,
    RobotFault,
    RobotState,
    Tick,
)

__all__ = ["STATES", "SUITE_HOME", "EpisodeResult", "EpisodeRunner", "ObservationBuilder", "RunnerSettings"]


_PRIORITY = 10  # of the thread that keeps the action ticks, below the servo's


class ObservationBuilder(Protocol):
    """``env/franka/observation.py``: what the policy is shown, from what the robot and the cameras say."""

    def build(
        self, state: RobotState, gripper: GripperState | None, frames: Mapping[str, Frame]
    ) -> Observation: ...  # called once per action tick: it keeps the history of To observations itself

    def reset(self) -> None:
        """A new episode: forget the history."""


class EpisodeRunner(StateMachine):
    """Runs episodes: ``connect()`` once, ``run(recorder)`` for each, ``close()`` at the end (all safe to repeat).

    ``cameras`` by the name the builder knows them by. ``unnormalise`` takes the policy's action ``(..., Da)`` to the task's units (the
    checkpoint's ``Normalizer.unnormalize_action``); None where they are the same. ``world`` is where the robot's base stands in the frame
    in which the policy's translation and rotation deltas are meant. ``finished()`` says True when the task is solved (the twin knows);
    it is asked once a tick. ``policy`` is called from one thread at a time, ``builder`` from the caller's only.
    """

    def __init__(
        self,
        robot: Robot,
        gripper: Gripper | None,
        cameras: Mapping[str, Camera],
        builder: ObservationBuilder,
        policy: Policy,
        *,
        monitor: SafetyMonitor,
        operator: Operator,
        clock: Clock,
        settings: RunnerSettings | None = None,
        control: ControlSettings | None = None,
        schedule: ScheduleSettings | None = None,
        reference: ReferenceSettings | None = None,
        grip: GripperSettings | None = None,
        world: frames.Transform = frames.IDENTITY,
        unnormalise: Callable[[np.ndarray], np.ndarray] | None = None,
        finished: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__()
        self.settings, self._control = settings or RunnerSettings(), control or ControlSettings()
        self._robot, self._cameras, self._builder, self._policy = robot, dict(cameras), builder, policy
        self._monitor, self._operator, self._clock, self._finished = monitor, operator, clock, finished
        self._lockstep = bool(getattr(clock, "lockstep", False))
        self._period = 1.0 / self.settings.control_hz
        monitor.limits = robot.limits
        scheduler = ChunkScheduler(schedule or ScheduleSettings(), policy.act_steps, policy.horizon_steps, self._period)
        self._pilot = Pilot(policy, scheduler, monitor, clock, world, unnormalise)
        self._gripper = None if gripper is None else GripperWorker(gripper, clock, grip, self._gripper_failed)
        self._servo = Servo(
            robot,
            clock,
            monitor,
            reference or ReferenceSettings(),
            self._control,
            shadow=self.settings.mode == "shadow",
            watch=self._watch,
            on_verdict=self._on_verdict,
            on_fault=self._on_fault,
            measure=self._measure,
        )

    # ------------------------------------------------------------------------------------------------------ life and death

    def connect(self) -> None:
        """DISCONNECTED -> IDLE. Raises ``DeploymentError`` where the robot or a camera is not as asked."""
        if self.state != "DISCONNECTED":
            return
        atexit.register(self._robot.stop)
        self._robot.connect()
        self._robot.configure(self._control)
        for camera in self._cameras.values():
            camera.start()
        if self._gripper is not None and not self._lockstep:
            self._gripper.start()
        self._enter("IDLE", "connected")

    def run(
        self,
        recorder: Recorder,
        seed: int | None = None,
        verdict: Callable[[EpisodeResult], str | float | None] | None = None,
    ) -> EpisodeResult:
        """One episode, from IDLE; the state is STOPPED (or IDLE, where ``finished`` or ``max_steps`` ended it) afterwards.

        Whatever happens, the robot has been stopped and ``recorder.finish(verdict(result))`` called when this returns or raises.
        """
        if self.state == "STOPPED":
            self._enter("IDLE", "a new episode")
        if self.state != "IDLE":
            raise DeploymentError(
                f"an episode begins in IDLE, not in {self.state}: connect() first, or look at what is wrong."
            )
        self._begin(recorder)
        start, verdict_of = self._clock.now(), verdict or (lambda result: None)
        try:
            if self._home(seed) and self._ready():
                self._fly()
                while self.state == "FAULT" and self._recovered() and self._ready():
                    self._fly()
        except BaseException as error:
            self._end("STOPPED", f"{type(error).__name__}: {error}")
            recorder.finish(None)
            raise
        finally:
            self._halt()
        success = None if self._finished is None else self._solved
        result = EpisodeResult(
            self.state,
            self.reason,
            self._steps,
            success,
            self._monitor.recoveries,
            self._clock.now() - start,
            summarize(self._durations),
        )
        recorder.finish(verdict_of(result))
        return result

    def stop(self, reason: str = "stop() was called") -> None:
        """End the motion now; safe from any thread and from a signal handler."""
        self._asked_to_stop = reason
        self._robot.stop()

    def close(self) -> None:
        """Stop, let go of robot, gripper and cameras: DISCONNECTED."""
        if self.state == "DISCONNECTED":
            return
        self._halt()
        atexit.unregister(self._robot.stop)
        self._pilot.inference.close()
        if self._gripper is not None:
            self._gripper.close()
        for part in (*self._cameras.values(), self._robot):
            try:
                part.close()
            except Exception as error:  # noqa: BLE001  the others must be closed, too
                self._monitor.event("close", "warn", repr(error)[:200])
        self.state = "DISCONNECTED"

    def _begin(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._monitor.begin(recorder)
        self._durations: dict[str, list[float]] = {}
        self._steps = self._number = 0
        self._quit, self._solved, self._asked_to_stop, self._fault = False, False, None, None
        self._hold_since, self._hold_cause = 0.0, ""
        self._seen = {}

    # -------------------------------------------------------------------------------------------- before the first tick

    def _home(self, seed: int | None) -> bool:
        """HOMING: to the start, blocking; whether nothing went wrong."""
        self._enter("HOMING", "to the start")
        self._builder.reset()
        if self._pilot.busy:
            self._end("STOPPED", "the policy is still busy with the last episode")
            return False
        self._pilot.reset(seed)
        shadow = self.settings.mode == "shadow"
        if self._gripper is not None and not shadow:
            self._gripper.open()
        try:
            if self.settings.home is not None and not shadow and not self._go_home(np.array(self.settings.home)):
                return False
            self._robot.check()
        except RobotFault as fault:
            self._on_fault(fault)
            return self._recovered()
        return True

    # ------------------------------------------------------------------------------------------------------------- running

    def _fly(self) -> None:
        """RUNNING <-> HOLD, until something ends it."""
        shadow = self.settings.mode == "shadow"
        try:
            if not shadow:
                self._robot.start()
            self._servo.begin(self._robot.state())
        except DeploymentError:
            raise
        except Exception as error:  # noqa: BLE001  as in the servo
            self._on_fault(as_fault(error))
            return
        self._look()
        self._start_over()
        self._enter("RUNNING", "started")
        if not self._lockstep:
            self._thread = ServoThread(self._servo, self._clock, self.settings.servo_hz, self._on_fault)
        with contextlib.nullcontext(True) if self._lockstep else punctual(_PRIORITY) as allowed:
            if not allowed:
                self._monitor.event(
                    "realtime", "warn", None, None, "no real-time priority: see installation/install_franka.md"
                )
            self._loop()
        if self._thread is not None:
            self._thread.close()
            self._thread = None

    def _loop(self) -> None:
        """Tick after tick."""
        while self.state in ("RUNNING", "HOLD"):
            self._pass(self._t0 + self._tick * self._period)
            self._judge_end()
            if self.state not in ("RUNNING", "HOLD"):
                break
            late = self._clock.now() - (self._t0 + self._tick * self._period)
            self._measure("tick_jitter", late)
            if late > self._period:  # ticks that were missed are missed: no volley afterwards
                self._monitor.event("tick_late", "warn", late, self._period)
                self._t0 += late
                self._pilot.scheduler.shift(late)
            try:
                self._one_tick()
            except DeploymentError as error:  # a camera that is gone, an observation that cannot be
                self._monitor.event("observation", "hold", None, None, str(error)[:300])
                self._on_verdict(Verdict(HOLD, "observation"))
            except RobotFault as fault:
                self._on_fault(fault)
            self._tick += 1

    def _start_over(self) -> None:
        """Tick 0 is now, nothing is planned, and motion fades in; the builder has no history."""
        self._builder.reset()
        self._tick, self._t0 = 0, self._clock.now()
        self._ramp_from = self._t0
        self._pilot.begin(self._t0)

    def _pass(self, t: float) -> None:
        """Let time pass to ``t``; in lockstep with everything that happens on the way."""
        if not self._lockstep:
            self._supervise(t)
            return
        if self._servo.active:
            step = 1.0 / self.settings.servo_hz
            while (due := self._servo.last + step) <= t + 1e-9 and self.state in ("RUNNING", "HOLD"):
                self._clock.sleep_until(due)
                self._servo.tick()
        self._clock.sleep_until(t)
        if self._gripper is not None:
            self._gripper.tick(self._clock.now())

    def _look(self) -> dict[str, Frame]:
        """The newest image of each camera; when each was last a new one is noted."""
        found = {}
        for name, camera in self._cameras.items():
            frame = camera.latest()
            number, t = self._seen.get(name, (None, self._clock.now()))
            if frame is not None:
                found[name] = frame
                if frame.number != number:
                    number, t = frame.number, frame.t_host
            self._seen[name] = (number, t)
            self._measure(f"camera_age.{name}", self._clock.now() - t)
        return found

    def _one_tick(self) -> None:
        state = self._robot.state() if self._lockstep else self._servo.state
        gripper = None if self._gripper is None else self._gripper.state
        pictures = self._look()
        self._servo.width = self._pilot.width if gripper is None else gripper.width
        step, request = None, None
        self._servo.couple()
        if self.state == "HOLD":
            self._maybe_resume()
        ramp = (self._clock.now() - self._ramp_from + self._period) / max(self.settings.ramp_s, self._period)
        self._pilot.see(state.q, self._servo.width, self.settings.speed_scale * min(ramp, 1.0))
        if self.state == "RUNNING":
            self._on_verdict(self._pilot.collect(self._tick))
            request = self._pilot.ask(self._tick, self._servo.snapshot())
        shown = state
        if request is not None and request.expected is not None:
            ahead = request.expected
            shown = dataclasses.replace(
                state, position=ahead.position, quaternion=frames.same_sign(ahead.quaternion, state.quaternion)
            )
        observation = self._builder.build(shown, gripper, pictures)
        if request is not None:
            self._pilot.put(request, observation.values)
            self._on_verdict(self._pilot.collect(self._tick, self._clock.now() + self._period / 2))
        if self.state == "RUNNING":
            step = self._pilot.scheduler.step(self._tick)
        executed = self._act(step)
        self._record(state, gripper, pictures, observation, request is not None, step, executed)

    def _act(self, step: Step | None) -> np.ndarray:
        """Hand the action of this tick on; what of it is executed, (Da,)."""
        executed = np.zeros(self._policy.action_dim)
        if step is None:
            return executed
        goal, executed = self._pilot.goal(self._servo.snapshot(), step.action, step.goal)
        self._steps += 1
        if goal is None:
            self._on_verdict(Verdict(HOLD, "joints"))
        elif self.state == "RUNNING":
            self._servo.aim(*goal)
            if self._gripper is not None and self.settings.mode != "shadow":
                self._gripper.wish(self._pilot.gripper(step.action))
        return executed

    def _record(
        self,
        state: RobotState,
        gripper: GripperState | None,
        pictures: dict[str, Frame],
        observation: Observation,
        asked: bool,
        step: Step | None,
        executed: np.ndarray,
    ) -> None:
        ref: Reference = self._servo.reference
        spans = self._pilot.spans.get(-1 if step is None else step.chunk, (np.nan, np.nan))
        self._recorder.tick(
            Tick(
                number=self._number,
                t_host=self._clock.now(),
                state=self.state,
                robot=state,
                gripper=gripper,
                frames=pictures,
                observation=observation if asked else None,
                raw_action=np.full(self._policy.action_dim, np.nan) if step is None else step.action.copy(),
                action=executed,
                reference_position=ref.position,
                reference_quaternion=ref.quaternion,
                t_infer_start=spans[0],
                t_infer_end=spans[1],
                raw=observation.raw,
            )
        )
        self._number += 1
