"""A Franka Panda (FER) through ``panda_py`` (PyPI: panda-python), 0.8.1 or 1.x: its 1 kHz impedance controller is a C++ thread.

What was measured or read, and is worked around here (installation/install_franka.md has the story):

* a target that is not finite aborts the process: ``set_target`` refuses it;
* ``start_controller`` and ``move_to_joint_position`` recover from errors unasked: both are refused while there is a fault;
* ``stop_controller`` joins the control thread with the interpreter locked, and that thread locks the interpreter to report its end: a stop
  while the network dies would never return. ``teaching_mode(False)`` does the same unlocked;
* the controller damps absolute velocity: it lags 2 v / sqrt(K) behind. The target is put that far ahead, which is a feed-forward of v;
* its rotational error is the vector part of a quaternion, half of the angle: stiffness is doubled to be what it says, N m/rad;
* the destructor of 1.x reads the robot, and aborts the process where that fails: it is run only while the robot answers;
* 0.8.1 remembers the last state in control for ever; 1.x believes a controller that died to be running.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from env.franka import driver, frames
from env.franka.limits import PANDA
from env.franka.types import ControlSettings, DeploymentError, RobotFault, RobotState

CONNECT_PATIENCE, STOP_PATIENCE, RECOVER_PATIENCE, CLOSE_PATIENCE = 10.0, 1.0, 20.0, 5.0  # s
LEAD_MAX = 0.5  # of a quaternion's vector part, ahead: what feed-forward of a rotation may ask for
HALT = np.zeros(6)


def package() -> Any:
    """``panda_py``, imported.

    Raises:
        DeploymentError: it is not installed, or does not fit this Python or numpy.
    """
    try:
        import panda_py
        import panda_py.controllers
        import panda_py.libfranka
    except ImportError as error:
        raise DeploymentError(
            f"robot=panda needs panda-python: pip install -c constraints.txt 'd2ppo[real]' ({error}); see {driver.TABLE}."
        ) from error
    return panda_py


class PandaRobot:
    """``env/franka/types.py: Robot``. ``ip``: the control unit's; ``now``: the deployment's clock."""

    name = "panda"
    limits = PANDA

    def __init__(self, ip: str, now: Callable[[], float] = time.monotonic) -> None:
        self.ip, self._now = ip, now
        self._panda: Any = None
        self._controller: Any = None  # the one that was started last, until it has been ended
        self._lock = threading.RLock()  # one call at a time into the driver; never held while the arm moves
        self._fault: RobotFault | None = None
        self._hung: threading.Thread | None = None  # a call that has not come back: leave the driver alone
        self._moving = False  # move_joints is at work
        self._settings = ControlSettings()
        self._lead = (0.0, 0.0)
        self._last: RobotState | None = None
        self._site: driver.Site | None = None

    # -------------------------------------------------------------------------------------------------- connection

    def connect(self) -> None:
        """Connect, and see that this is a Panda."""
        panda_py = package()
        try:
            panda = driver.within(CONNECT_PATIENCE, lambda: panda_py.Panda(self.ip), "connecting to the robot")
        except (RuntimeError, driver.Overdue) as error:
            raise driver.connection_error(self.ip, "panda-python", error) from error
        self._panda, self._hung, self._fault = panda, None, None
        driver.keep(panda)
        raw = panda.get_robot().read_once()
        self._site = driver.Site.of(_matrix(raw.F_T_EE))
        self._hear(raw)
        self.configure(self._settings)

    def configure(self, settings: ControlSettings) -> None:
        """Collision thresholds and load go to the robot now, stiffness with the next ``start``."""
        with self._lock:
            if self._controller is not None:
                raise DeploymentError("configure(): the robot is in control; stop() it first")
            self._settings = settings
            translation, rotation = settings.stiffness
            ratio = settings.damping_ratio
            # damping over stiffness, in panda_py's own terms: seconds by which the target must be ahead
            self._lead = (2.0 * ratio / np.sqrt(translation), 2.0 * ratio / np.sqrt(2.0 * rotation))
            robot = self._robot()
            torque, force = [settings.collision_torque] * 7, [settings.collision_force] * 6
            try:
                robot.set_collision_behavior(torque, torque, force, force)
                if settings.load_mass > 0.0:
                    inertia = np.eye(3) * 0.4 * settings.load_mass * 0.03**2  # a ball of 3 cm between the fingers
                    robot.set_load(settings.load_mass, [0.0, 0.0, 0.0965], inertia.ravel().tolist())
            except RuntimeError as error:
                raise DeploymentError(f"robot.ip={self.ip} refused its settings: {error}") from error

    def close(self) -> None:
        """End control and the connection, if there still is one. Waits for a call that hangs, 5 s at most."""
        self.stop()
        panda, self._panda = self._panda, None
        if panda is None:
            return
        if self._hung is not None:
            self._hung.join(CLOSE_PATIENCE)
            if self._hung.is_alive():
                return
        try:
            panda.get_robot().read_once()  # as the destructor does
        except RuntimeError:
            return
        driver.release(panda)

    def _robot(self) -> Any:
        if self._panda is None:
            raise DeploymentError("the robot is not connected: connect() first")
        if self._hung is not None:
            raise RobotFault("network", "the driver no longer answers; connect anew", False)
        return self._panda.get_robot()

    # --------------------------------------------------------------------------------------------------- listening

    def state(self) -> RobotState:
        """The last state heard. Outside control it is read now, which takes the millisecond until the next one comes."""
        if self._panda is None:
            raise DeploymentError("the robot is not connected: connect() first")
        if self._controller is not None or self._moving:
            self._hear(self._panda.get_state())
        elif not self._silent() and self._lock.acquire(blocking=False):
            try:
                self._hear(self._panda.get_robot().read_once())
            except RuntimeError as error:
                self._note(driver.fault(str(error)))
            finally:
                self._lock.release()
        assert self._last is not None
        return self._last

    def _silent(self) -> bool:
        """Whether asking would only mean waiting."""
        return self._hung is not None or (self._fault is not None and self._fault.kind == "network")

    def _hear(self, raw: Any) -> None:
        last = self._last
        t_robot = raw.time.to_sec()
        if last is not None and t_robot == last.t_robot:
            return  # nothing new: its age tells
        site = self._site.pose(_matrix(raw.O_T_EE))
        self._last = RobotState(
            t_host=self._now(),
            t_robot=t_robot,
            q=np.array(raw.q),
            dq=np.array(raw.dq),
            position=site.position,
            quaternion=frames.same_sign(site.quaternion, None if last is None else last.quaternion),
            wrench=self._site.wrench(site, np.array(raw.O_F_ext_hat_K)),
            success_rate=float(raw.control_command_success_rate) if self._controller is not None else 1.0,
            moving=self._controller is not None,
        )
        mode = str(raw.robot_mode).rsplit(".", 1)[-1]
        if mode == "kUserStopped":
            self._note(driver.fault("User Stop pressed"))
        elif mode == "kReflex":
            self._note(driver.fault(f"the robot is in a reflex: {raw.current_errors}"))

    def _note(self, found: RobotFault) -> None:
        """The first fault counts; those that follow are its consequences."""
        self._fault = self._fault or found

    def check(self) -> None:
        """Raise what has happened, again and again until ``recover``."""
        if self._fault is None and self._panda is not None:
            self._listen()
        if self._fault is not None:
            raise self._fault.with_traceback(None)

    def _failed(self, error: Exception) -> None:
        """Note what a call into the driver came to, and whether it is still there."""
        self._hung = error.thread if isinstance(error, driver.Overdue) else self._hung
        self._note(driver.fault(str(error)))

    def _listen(self) -> bool:
        """Whether the control thread has died since it was last asked."""
        try:
            self._panda.raise_error()
        except RuntimeError as error:
            self._note(driver.fault(str(error)))
            return True
        return False

    # ----------------------------------------------------------------------------------------------------- control

    def start(self) -> None:
        """Begin impedance control where the arm is."""
        with self._lock:
            self.stop()
            self.state()
            self.check()
            translation, rotation = self._settings.stiffness
            controller = package().controllers.CartesianImpedance(
                impedance=np.diag([translation] * 3 + [2.0 * rotation] * 3), damping_ratio=self._settings.damping_ratio
            )
            try:
                driver.within(
                    STOP_PATIENCE, lambda: self._panda.start_controller(controller), "starting the controller"
                )
            except (RuntimeError, driver.Overdue) as error:
                self._failed(error)
                self.check()
            self._controller = controller

    def set_target(self, position: np.ndarray, quaternion: np.ndarray, twist: np.ndarray) -> None:
        """Of the grip site; see ``types.Robot``."""
        position, quaternion, twist = driver.target(position, quaternion, twist)
        controller = self._controller
        if controller is None:
            if self._fault is not None:
                return  # it has stopped by itself; check() says why
            raise DeploymentError("set_target(): the robot is not in control; start() first")
        ee, velocity = self._site.command(position, quaternion, twist)
        ahead = ee.position + self._lead[0] * velocity[:3]
        part = self._lead[1] * velocity[3:]  # the vector part of the quaternion that leads
        part = part * min(1.0, LEAD_MAX / max(float(np.linalg.norm(part)), 1e-9))
        turn = np.append(part, np.sqrt(1.0 - float(part @ part)))
        nullspace = self._settings.nullspace_q
        rest = () if nullspace is None else (np.asarray(nullspace, np.float64),)
        controller.set_control(ahead, frames.quat_multiply(turn, ee.quaternion), *rest)

    def move_joints(self, q: np.ndarray, speed: float = 0.2) -> None:
        """See ``types.Robot``. Refused while there is a fault, and beyond the limits."""
        q = np.asarray(q, np.float64)
        if (
            q.shape != (7,)
            or not np.isfinite(q).all()
            or (q < self.limits.q_min).any()
            or (q > self.limits.q_max).any()
        ):
            raise ValueError(f"move_joints: expected 7 joint positions within the Panda's limits, found {q!r}")
        if not 0.0 < speed <= 1.0:
            raise ValueError(f"move_joints: expected a speed in (0, 1], found {speed!r}")
        with self._lock:
            self.stop()
            self.state()
            self.check()
            self._moving = True
        try:
            reached = self._panda.move_to_joint_position(q, speed_factor=speed)
        except RuntimeError as error:
            self._note(driver.fault(str(error)))
        finally:
            self._moving = False
        self.check()
        if not reached:
            raise RobotFault("driver", "the arm did not come to the joint positions it was sent to", True)

    def stop(self) -> None:
        """See ``types.Robot``. Waits for the end of control, 1 s at most: a network that has gone silent is not waited for."""
        with self._lock:
            if self._panda is None or self._hung is not None or (self._controller is None and not self._moving):
                return
            # a thread that has died by itself has reported it and may be joined; another one needs the way described above
            dead = self._fault is not None and self._controller is not None
            end = self._panda.stop_controller if dead else lambda: self._panda.teaching_mode(False)
            try:
                driver.within(STOP_PATIENCE, end, "ending control")
            except (RuntimeError, driver.Overdue) as error:
                if not self._moving:  # then reading is refused, and the motion ends all the same
                    self._failed(error)
            else:
                self._listen()
            self._controller = None

    def recover(self) -> bool:
        """See ``types.Robot``; a robot that cannot be heard must be connected to anew."""
        with self._lock:
            self.stop()
            if self._panda is None or self._hung is not None:
                return False
            try:
                driver.within(RECOVER_PATIENCE, lambda: self._panda.teaching_mode(False), "recovering")
                self._listen()  # what is still reported is of the past
                raw = self._panda.get_robot().read_once()
            except (RuntimeError, driver.Overdue) as error:
                self._fault = None
                self._failed(error)
                return False
            self._fault = None
            self._hear(raw)
            return self._fault is None and str(raw.robot_mode).endswith("kIdle")


def _matrix(column_major: list[float]) -> np.ndarray:
    return np.array(column_major).reshape(4, 4).T
