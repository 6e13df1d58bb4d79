"""What the drivers of real arms have in common: hearing, faults, the order of things, and the grip site.

A driver fills in what its vendor's package does (``Arm``'s methods that raise ``NotImplementedError``). Everything else is here once: a
target that is no number goes no further; a fault stays until somebody recovers from it; nothing waits for a robot that has gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from env.franka import brake, driver, frames
from env.franka.types import ControlSettings, DeploymentError, RobotFault, RobotLimits, RobotState

CONNECT_PATIENCE, RECOVER_PATIENCE, CLOSE_PATIENCE = 10.0, 20.0, 5.0  # s


@dataclass(frozen=True)
class Reading:
    """A state as libfranka has it, in plain numbers. Poses are (4, 4)."""

    time: float  # s
    q: np.ndarray
    dq: np.ndarray
    ee: np.ndarray  # O_T_EE
    flange_to_ee: np.ndarray  # F_T_EE
    wrench: np.ndarray  # O_F_ext_hat_K: of the arm on its environment
    success_rate: float
    mode: str  # RobotMode's member, without a leading k: "Idle", "Reflex", ...
    errors: str


class Arm:
    """``env/franka/types.py: Robot``, but for the vendor's part. ``ip``: the control unit's; ``now``: the deployment's clock."""

    name: str
    limits: RobotLimits
    package: str  # on PyPI
    errors: tuple[type[Exception], ...] = (RuntimeError,)  # the vendor's
    stop_patience = 1.0  # s; the end of control is a matter of milliseconds, unless nobody answers

    def __init__(self, ip: str, now: Callable[[], float] = time.monotonic) -> None:
        self.ip, self.now = ip, now
        self.settings = ControlSettings()
        self.vendor: Any = None  # the connection
        self.controller: Any = None  # the one that was started last, until it has been ended
        self._lock = threading.RLock()  # one call at a time into the driver; never held while joints are moved
        self._fault: RobotFault | None = None
        self._hung: threading.Thread | None = None  # a call that has not come back: leave the driver alone
        self._moving = False  # move_joints is at work
        self._last: RobotState | None = None
        self._site: driver.Site | None = None

    # ------------------------------------------------------------------------------------------ the vendor's part

    def _open(self) -> Any:
        """Connect; returns the connection."""
        raise NotImplementedError

    def _dispose(self) -> None:
        """Give up the connection, which may have been lost."""

    def _read(self) -> Reading | None:
        """The last state in control, the next one outside; None where there is nothing but waiting."""
        raise NotImplementedError

    def _apply(self, settings: ControlSettings) -> None:
        """Collision thresholds and load, of a robot at rest."""
        raise NotImplementedError

    def _begin(self) -> Any:
        """Start impedance control at the present pose; returns the controller."""
        raise NotImplementedError

    def _damping(self) -> tuple[float, float]:
        """N s/m and N m s/rad, by which the controller opposes the arm's velocity being another than the target's."""
        raise NotImplementedError

    def _send(self, ee: frames.Transform, twist: np.ndarray, posture: np.ndarray | None) -> None:
        """Of the end effector, base frame; finite. ``posture (7,)``: what the null space is drawn to, None: as ever."""
        raise NotImplementedError

    def _complaint(self) -> None:
        """Raise one of ``errors`` where control has ended by itself."""
        raise NotImplementedError

    def _end(self, dead: bool) -> None:
        """End control or a motion of the joints; ``dead``: it is known to have ended by itself."""
        raise NotImplementedError

    def _mend(self) -> None:
        """Automatic error recovery."""
        raise NotImplementedError

    def _go(self, q: np.ndarray, speed: float) -> bool:
        """Move the joints; whether they have arrived."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------- connection

    def connect(self) -> None:
        """See ``types.Robot``; also says which package a robot with another server version needs."""
        try:
            self.vendor = driver.within(CONNECT_PATIENCE, self._open, "connecting to the robot")
        except (*self.errors, driver.Overdue) as error:
            raise driver.connection_error(self.ip, self.package, error) from error
        self._hung = self._fault = self._last = None
        reading = self._read()
        self._site = driver.Site.of(reading.flange_to_ee)
        self._hear(reading)
        self.configure(self.settings)

    def configure(self, settings: ControlSettings) -> None:
        """Collision thresholds and load go to the robot now, stiffness with the next ``start``."""
        with self._lock:
            self._connected()
            if self.controller is not None:
                raise DeploymentError("configure(): the robot is in control; stop() it first")
            self.settings = settings
            try:
                self._apply(settings)
            except self.errors as error:
                raise DeploymentError(f"robot.ip={self.ip} refused its settings: {error}") from error

    def close(self) -> None:
        """End control and the connection, if there still is one. Waits for a call that hangs, 5 s at most."""
        self.stop()
        if self.vendor is None:
            return
        if self._hung is not None:
            self._hung.join(CLOSE_PATIENCE)
        if self._hung is None or not self._hung.is_alive():
            self._dispose()
        self.vendor = None

    def _connected(self) -> None:
        if self.vendor is None:
            raise DeploymentError("the robot is not connected: connect() first")
        if self._hung is not None:
            raise RobotFault("network", "the driver no longer answers; connect anew", False)

    # -------------------------------------------------------------------------------------------------- listening

    def state(self) -> RobotState:
        """The last state heard. Outside control it is read now, which takes the millisecond until the next one comes."""
        if self.vendor is None or self._last is None:
            raise DeploymentError("the robot is not connected: connect() first")
        controlled = self.controller is not None or self._moving
        if controlled or (not self._silent() and self._lock.acquire(blocking=False)):
            try:
                self._hear(self._read())
            except self.errors as error:
                self._failed(error)
            finally:
                if not controlled:
                    self._lock.release()
        return self._last

    def _silent(self) -> bool:
        """Whether asking would only mean waiting."""
        return self._hung is not None or (self._fault is not None and self._fault.kind == "network")

    def _hear(self, reading: Reading | None) -> None:
        last = self._last
        if reading is None or (last is not None and reading.time == last.t_robot):
            return  # nothing new: its age tells
        site = self._site.pose(reading.ee)
        controlled = self.controller is not None
        self._last = RobotState(
            t_host=self.now(),
            t_robot=reading.time,
            q=reading.q,
            dq=reading.dq,
            position=site.position,
            quaternion=frames.same_sign(site.quaternion, None if last is None else last.quaternion),
            wrench=self._site.wrench(site, reading.wrench),
            success_rate=reading.success_rate if controlled else 1.0,
            moving=controlled,
        )
        if reading.mode == "UserStopped":
            self._note(driver.fault("User Stop pressed"))
        elif reading.mode == "Reflex":
            self._note(driver.fault(f"the robot is in a reflex: {reading.errors}"))

    def _note(self, found: RobotFault) -> None:
        """The first fault counts; those that follow are its consequences."""
        self._fault = self._fault or found

    def _failed(self, error: Exception) -> None:
        """Note what a call into the driver came to, and whether it is still there."""
        self._hung = error.thread if isinstance(error, driver.Overdue) else self._hung
        self._note(driver.fault(str(error)))

    def _listen(self) -> None:
        try:
            self._complaint()
        except self.errors as error:
            self._note(driver.fault(str(error)))

    def check(self) -> None:
        """Raise what has happened, again and again until ``recover``."""
        if self._fault is None and self.controller is not None:
            self._listen()
        if self._fault is not None:
            raise self._fault.with_traceback(None)

    # ---------------------------------------------------------------------------------------------------- control

    def _prepare(self) -> None:
        """At rest, heard, within the limits, and without a fault: the vendors' packages would recover from one unasked."""
        self._connected()
        self.stop()
        q = self.state().q
        self.check()
        beyond = np.flatnonzero((q <= self.limits.q_min) | (q >= self.limits.q_max))
        if beyond.size:  # panda_py would abort the process
            said = f"joint {beyond[0] + 1} is at {q[beyond[0]]:.3f} rad, beyond its limit: guide the arm back by hand"
            raise RobotFault("limits", said, True)

    def start(self) -> None:
        """See ``types.Robot``. Refused while there is a fault."""
        with self._lock:
            self._prepare()
            try:
                self.controller = driver.within(CONNECT_PATIENCE, self._begin, "starting the controller")
            except (*self.errors, driver.Overdue) as error:
                self._failed(error)
                self.check()

    def set_target(self, position: np.ndarray, quaternion: np.ndarray, twist: np.ndarray) -> None:
        """Of the grip site; see ``types.Robot``."""
        self._aim(position, quaternion, twist, None)

    def brake(self, position: np.ndarray, quaternion: np.ndarray) -> None:
        """See ``types.Robot``."""
        state = self.state()
        self._aim(position, quaternion, *brake.opposing(state.q, state.dq, self._damping()))

    def _aim(self, position: np.ndarray, quaternion: np.ndarray, twist: np.ndarray, posture: np.ndarray | None) -> None:
        position, quaternion, twist = driver.target(position, quaternion, twist)
        if self._fault is not None:
            return  # it has stopped by itself; check() says why
        if self.controller is None:
            raise DeploymentError("set_target(): the robot is not in control; start() first")
        self._send(*self._site.command(position, quaternion, twist), posture)

    def move_joints(self, q: np.ndarray, speed: float = 0.2) -> None:
        """See ``types.Robot``. Refused while there is a fault, and beyond the limits."""
        q, limits = np.asarray(q, np.float64), self.limits
        if q.shape != (7,) or not ((q >= limits.q_min) & (q <= limits.q_max)).all():  # no number is within limits
            raise ValueError(f"move_joints: expected 7 joint positions within the limits of a {self.name}, found {q!r}")
        if not 0.0 < speed <= 1.0:
            raise ValueError(f"move_joints: expected a speed in (0, 1], found {speed!r}")
        with self._lock:
            self._prepare()
            self._moving = True
        reached = False
        try:
            # In a thread of its own: libfranka gives the calling one real-time priority, where it may, and never takes it back.
            with ThreadPoolExecutor(1, "move_joints") as thread:
                reached = thread.submit(self._go, q, speed).result()
        except self.errors as error:
            self._note(driver.fault(str(error)))
        finally:
            self._moving = False
        if self._fault is None:
            self._listen()
        self.check()
        if not reached:
            raise RobotFault("driver", "the arm did not come to the joint positions it was sent to", True)

    def stop(self) -> None:
        """See ``types.Robot``. Waits for the end of control, ``stop_patience`` at most: not for a network that has gone silent."""
        with self._lock:
            if self.vendor is None or self._hung is not None or (self.controller is None and not self._moving):
                return
            dead = self._fault is not None and self.controller is not None
            try:
                driver.within(self.stop_patience, lambda: self._end(dead), "ending control")
            except (*self.errors, driver.Overdue) as error:
                if not self._moving and not dead:  # else reading was refused, and the motion ends all the same
                    self._failed(error)
            self.controller = None
            if self._hung is None:
                self._listen()

    def recover(self) -> bool:
        """See ``types.Robot``; a robot that cannot be heard must be connected to anew."""
        with self._lock:
            self.stop()
            if self.vendor is None or self._hung is not None:
                return False
            self._fault = None
            try:
                driver.within(RECOVER_PATIENCE, self._mend, "recovering")
                reading = self._read()
            except (*self.errors, driver.Overdue) as error:
                self._failed(error)
                return False
            self._hear(reading)
            return self._fault is None and reading.mode == "Idle"
