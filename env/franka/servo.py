"""The servo: 250 times a second it watches the robot, lets the reference model go on, and streams its pose.

It owns the reference. Whatever it finds wrong it tells its owner at once, in its own thread, and a HOLD begins with the very tick that
found the cause. The last thing before the driver is a look at every number: no NaN may reach it (one aborts the driver's process).
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np

from env.franka import dynamics, guards
from env.franka.reference import Reference, ReferenceSettings
from env.franka.safety import GO, STOP, SafetyMonitor, Verdict
from env.franka.types import Clock, ControlSettings, DeploymentError, Robot, RobotFault, RobotState

_PRIORITY = 20  # of the servo's thread among real-time ones; a driver's own is higher
_ASTRAY = 0.5  # rad between the joints of the arm and those it would have in robosuite: then they are the former
_FOLLOWS = 0.06  # s, for which a braking reference goes with the arm: where that then is, it stays
_LONGEST = 0.02  # s of the reference's time in one tick: after a stall it goes on where it was, it does not catch up


class Servo:
    """One servo tick after the other; ``ServoThread`` paces it, or, in lockstep, the runner does.

    ``watch(now)`` is the owner's own verdict (cameras, operator); ``on_verdict`` and ``on_fault`` are told of what is found. ``shadow``:
    everything but sending. ``measure(name, seconds)`` gets the time between ticks.
    """

    def __init__(
        self,
        robot: Robot,
        clock: Clock,
        monitor: SafetyMonitor,
        settings: ReferenceSettings,
        control: ControlSettings,
        *,
        shadow: bool,
        watch: Callable[[float], Verdict],
        on_verdict: Callable[[Verdict], None],
        on_fault: Callable[[RobotFault], None],
        measure: Callable[[str, float], None],
    ) -> None:
        self._robot, self._clock, self._monitor = robot, clock, monitor
        self._settings, self._stiffness, self._shadow = settings, control.stiffness[0], shadow
        self._caps = settings.caps.within(robot.limits)
        self._watch, self._on_verdict, self._on_fault, self._measure = watch, on_verdict, on_fault, measure
        self.lock = threading.RLock()
        self.reference: Reference | None = None
        self.active = False  # whether it streams
        self.width = 0.08  # m, between the fingers: for the table's sake
        self.state: RobotState | None = None
        self.verdict = Verdict(GO)  # of the last tick
        self.last = math.nan  # when that was

    def begin(self, state: RobotState) -> None:
        """Stream from the pose that is measured. Raises ``DeploymentError`` where that is none the robot may be in."""
        settings = self._monitor.settings
        low, high = guards.walls(state.quaternion, self.width, settings, clearance=0.0)
        if not ((state.position >= low) & (state.position <= high)).all():
            raise DeploymentError(
                f"the grip site is at {np.round(state.position, 3)} (base frame, m), outside of the workspace from {np.round(low, 3)} to "
                f"{np.round(high, 3)} (the floor: no fingertip below the table at {settings.table}). Move the robot, or change safety.low, "
                f"safety.high or safety.table."
            )
        with self.lock:
            self.state, self._until, self.last = state, self._clock.now(), self._clock.now()
            self.reference = Reference(state.position, state.quaternion, self._settings)
            self._arm, self._coupled = dynamics.SuiteArm(state.q), self._until
            self.active = True

    def end(self) -> None:
        with self.lock:
            self.active = False

    def couple(self) -> None:
        """Once per action tick: how translation and rotation pull at each other by now."""
        if not self._settings.coupled:
            return
        with self.lock:
            ref, q, now = self.reference.copy(), self.state.q, self._clock.now()
        since, self._coupled = now - self._coupled, now
        found = self._arm.update(
            ref.position, ref.quaternion, ref.twist, since
        )  # 2 ms, in which the servo is not to wait
        if not np.abs(self._arm.q - q).max() < _ASTRAY:  # nor NaN
            self._arm.at(q)
        if all(np.isfinite(part).all() for part in found):
            with self.lock:
                self.reference.couple(*found)

    def snapshot(self) -> Reference:
        """The reference as it is now, to look ahead with."""
        with self.lock:
            self._advance(self._clock.now())
            return self.reference.copy()

    def aim(self, position: np.ndarray, quaternion: np.ndarray) -> None:
        """Where to go from now on."""
        with self.lock:
            if not self.reference.braking:
                self.reference.aim(position, quaternion)

    def hold(self) -> None:
        """Brake and stay."""
        with self.lock:
            if self.reference is not None and not self.reference.braking:
                self.reference.brake()
                self._braked = self._clock.now()

    def release(self) -> None:
        """End of a HOLD: at rest where the robot is, and free to go."""
        with self.lock:
            self.reference.snap(self.state.position, self.state.quaternion)
            self._arm.at(self.state.q)
            self._coupled = self._clock.now()

    def tick(self) -> None:
        """One tick: watch, advance, send."""
        now = self._clock.now()
        since, self.last = now - self.last, now
        self._measure("servo_dt", since)
        try:
            self._robot.check()
            self.state = state = self._robot.state()
        except Exception as error:  # noqa: BLE001  a driver may die of anything; the answer is the same
            self._on_fault(as_fault(error))
            return
        self.verdict = max(self._monitor.watch_robot(now, state, since), self._watch(now), key=lambda v: v.level)
        if self.verdict.level > GO:
            self._on_verdict(self.verdict)
        with self.lock:
            if not self.active:
                return
            self._advance(now)
            ref = self.reference
            target, braking = (ref.position, ref.quaternion, ref.twist), ref.braking
        # outside of the lock: whoever is stuck in the driver keeps nobody else from stopping it
        problem = self._send(*target, braking=braking)
        if isinstance(problem, RobotFault):
            self._on_fault(problem)
        elif problem is not None:
            self._on_verdict(problem)

    def _advance(self, now: float) -> None:
        ref = self.reference
        if ref.braking and now - self._braked < _FOLLOWS:
            ref.brake(self.state.position, self.state.quaternion)
        walls = guards.walls_ahead(ref.quaternion, ref.goal_quaternion, self.width, self._monitor.settings)
        ref.advance(min(now - self._until, _LONGEST), self._caps, *walls)
        self._until = max(now, self._until)
        if ref.leash(self.state.position, self.state.quaternion, self._stiffness):
            self._monitor.leashed(self._settings.leash_force / self._stiffness)

    def _send(
        self, position: np.ndarray, quaternion: np.ndarray, twist: np.ndarray, *, braking: bool
    ) -> RobotFault | Verdict | None:
        """Stream the reference, or brake at it; what went wrong."""
        if not all(np.isfinite(part).all() for part in (position, quaternion, twist)):
            self.active = False
            detail = "the reference model is not finite; nothing was sent"
            self._monitor.event("finite_target", "stop", None, None, detail)
            return Verdict(STOP, "finite_target")
        if self._shadow:
            return None
        try:
            if braking:
                self._robot.brake(position, quaternion)
            else:
                self._robot.set_target(position, quaternion, twist)
        except Exception as error:  # noqa: BLE001  as above
            self.active = False
            return as_fault(error)
        return None


def as_fault(error: Exception) -> RobotFault:
    """What a driver raised, as a fault: anything but its own is one of the driver, beyond recovery."""
    if isinstance(error, RobotFault):
        return error
    return RobotFault("driver", f"{type(error).__name__}: {error}", recoverable=False)


@contextlib.contextmanager
def realtime(priority: int) -> Iterator[bool]:
    """Within, the calling thread runs before those of other processes (SCHED_FIFO); threads begun within are as ever.

    Whether the system allows that: it takes root or an rtprio limit, which a robot's PC has.
    """
    before, priority_before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, before | os.SCHED_RESET_ON_FORK, priority_before)


@contextlib.contextmanager
def punctual(priority: int) -> Iterator[bool]:
    """``realtime``, and no thread of ours keeps the interpreter from the others for longer than half a millisecond."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, 5e-4))
    try:
        with realtime(priority) as allowed:
            yield allowed
    finally:
        sys.setswitchinterval(interval)


class ServoThread:
    """Ticks a servo at ``hz`` in a thread of its own, until ``close``."""

    def __init__(self, servo: Servo, clock: Clock, hz: float, on_fault: Callable[[RobotFault], None]) -> None:
        self._servo, self._clock, self._period, self._on_fault = servo, clock, 1.0 / hz, on_fault
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="servo", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with realtime(_PRIORITY):
                self._loop()
        except Exception as error:  # noqa: BLE001  a servo that dies silently is the worst there is
            self._on_fault(as_fault(error))

    def _loop(self) -> None:
        due = self._clock.now()
        while not self._end.is_set():
            due += self._period
            late = self._clock.now() - due
            if late > self._period:  # what was missed is missed: no volley of ticks afterwards
                due += late
            self._clock.sleep_until(due)
            self._servo.tick()

    def close(self) -> None:
        self._end.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=1.0)
