"""A Franka Research 3 through ``franky`` (PyPI: franky-control 2.x): its Cartesian impedance tracker, with feed-forward of velocity.

franky releases the interpreter in every call and refuses what is not finite. Its wheels on PyPI are for server version 10; for older FR3
systems, and for a Panda, its own index has others (installation/install_franka.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from env.franka import driver, frames
from env.franka.arm import Arm, Reading
from env.franka.limits import FR3, PANDA
from env.franka.types import ControlSettings, DeploymentError, GripperState, RobotFault

POSTURE_STIFFNESS = 10.0  # N m/rad, in the null space
REST = {"ramp_duration": 0.05, "max_duration": 0.5}  # s: how control is ended
ARRIVED, SETTLE = 0.005, 2.0  # rad; s that the arm may take to come to rest there
GRASP_TOLERANCE = 0.08  # m: anything between the fingers will do


def package() -> Any:
    """``franky``, imported.

    Raises:
        DeploymentError: it is not installed, or is too old to have a tracker.
    """
    try:
        import franky
    except ImportError as error:
        raise DeploymentError(
            f"robot=franky needs franky-control: pip install -c constraints.txt -e .[real,fr3] ({error}); see {driver.TABLE}."
        ) from error
    if not hasattr(franky, "CartesianImpedanceTracker"):
        raise DeploymentError(f"robot=franky needs franky-control 2 or later, found one without a tracker: {franky}")
    return franky


def _errors(franky: Any) -> tuple[type[Exception], ...]:
    """franky's exceptions have no common ancestor."""
    found = [e for e in vars(franky).values() if isinstance(e, type) and issubclass(e, Exception)]
    return (*found, RuntimeError)


class FrankyRobot(Arm):
    """See ``arm.py``."""

    name, limits, package = "franky", FR3, "franky-control"
    stop_patience = 3.0  # it waits for the arm to be at rest

    def __init__(self, ip: str, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(ip, now)
        self._franky = package()
        self.errors = _errors(self._franky)

    def _open(self) -> Any:
        robot = self._franky.Robot(self.ip, realtime_config=self._franky.RealtimeConfig.Ignore)
        try:
            self.limits = FR3 if "fr3" in robot.model_urdf.lower() else PANDA
        except (AttributeError, *self.errors):  # the Panda's control unit sends no model of itself
            self.limits = PANDA
        return robot

    def _read(self) -> Reading | None:
        if self.controller is not None and not self.vendor.is_in_control:
            return None  # it has ended by itself, and reading may mean waiting: check() says why
        raw = self.vendor.state
        return Reading(
            time=raw.time.to_msec() / 1e3,
            q=np.asarray(raw.q).ravel(),
            dq=np.asarray(raw.dq).ravel(),
            ee=np.asarray(raw.O_T_EE.matrix),
            flange_to_ee=np.asarray(raw.F_T_EE.matrix),
            wrench=np.asarray(raw.O_F_ext_hat_K).ravel(),
            success_rate=float(raw.control_command_success_rate),
            mode=str(raw.robot_mode).rsplit(".", 1)[-1],
            errors=str(raw.current_errors),
        )

    def _apply(self, settings: ControlSettings) -> None:
        self.vendor.set_collision_behavior(settings.collision_torque, settings.collision_force)
        if settings.load_mass > 0.0:
            center, inertia = driver.load(settings.load_mass)
            self.vendor.set_load(settings.load_mass, np.array(center), np.array(inertia).reshape(3, 3))

    def _begin(self) -> Any:
        (translation, rotation), rest = self.settings.stiffness, self.settings.nullspace_q
        options = (
            {} if rest is None else {"posture_task": self._franky.PostureTask(np.asarray(rest), POSTURE_STIFFNESS)}
        )
        return self._franky.CartesianImpedanceTracker(
            self.vendor,
            translational_stiffness=translation,
            rotational_stiffness=rotation,
            damping=np.repeat(self._damping(), 3),
            lower_joint_limits=self.limits.q_min,
            upper_joint_limits=self.limits.q_max,
            **options,
        )

    def _damping(self) -> tuple[float, float]:
        return tuple(2.0 * self.settings.damping_ratio * float(np.sqrt(k)) for k in self.settings.stiffness)

    def _send(self, ee: frames.Transform, twist: np.ndarray, posture: np.ndarray | None) -> None:
        # its posture is told once, at the start: the free joint is left to the task's own damping
        pose = self._franky.Affine(ee.position, ee.quaternion)
        self.controller.set_target(pose, self._franky.Twist(twist[:3], twist[3:]))

    def _complaint(self) -> None:
        if self.controller is not None and not self.vendor.is_in_control:
            self.vendor.join_motion(0.0)  # raises what ended it
            raise RuntimeError("control has ended by itself")

    def _end(self, dead: bool) -> None:
        if self.controller is None:  # joints are being moved
            self.vendor.stop()
        else:
            self.controller.stop(self._franky.TorqueStopMotion(**REST))

    def _mend(self) -> None:
        self.vendor.recover_from_errors()

    def _go(self, q: np.ndarray, speed: float) -> bool:
        franky = self._franky
        self.vendor.relative_dynamics_factor = speed
        self.vendor.move(franky.JointWaypointMotion([franky.JointWaypoint(franky.JointState(q))]))
        deadline = time.monotonic() + SETTLE
        while not (arrived := bool(np.abs(self._read().q - q).max() < ARRIVED)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return arrived


class FrankyGripper:
    """``env/franka/types.py: Gripper``; connects when it is made. ``ip``: the control unit's."""

    def __init__(self, ip: str, now: Callable[[], float] = time.monotonic) -> None:
        franky, self._now, self._moving = package(), now, False
        self._errors = _errors(franky)
        try:
            self._hand = driver.within(10.0, lambda: franky.Gripper(ip), "connecting to the gripper")
            self.max_width = float(self._hand.max_width)
        except (*self._errors, driver.Overdue) as error:
            raise driver.connection_error(ip, "franky-control (gripper)", error) from error

    def _do(self, call: Callable[[], bool]) -> bool:
        self._moving = True
        try:
            return bool(call())
        except self._errors as error:
            if "aborted" in str(error).lower():  # by the next command, or stop
                return False
            raise driver.fault(str(error)) from error
        finally:
            self._moving = False

    def goto(self, width: float, speed: float) -> None:
        """Returns when the fingers are there, or another command has ended the motion."""
        if not (width >= 0.0 and speed > 0.0):
            raise ValueError(f"gripper: expected a width and a speed, found {width!r} and {speed!r}")
        self._do(lambda: self._hand.move(min(width, self.max_width), speed))

    def grasp(self, force: float, speed: float) -> bool:
        """See ``types.Gripper``."""
        return self._do(lambda: self._hand.grasp(0.0, speed, force, GRASP_TOLERANCE, GRASP_TOLERANCE))

    def state(self) -> GripperState:
        """The next state: the hand sends about 30 a second."""
        try:
            raw = self._hand.state
        except self._errors as error:
            raise RobotFault("network", str(error), False) from error
        return GripperState(self._now(), float(raw.width), bool(raw.is_grasped), self._moving)

    def stop(self) -> None:
        """Let go of the present motion."""
        self._do(self._hand.stop)

    def close(self) -> None:
        """There is nothing to end."""
