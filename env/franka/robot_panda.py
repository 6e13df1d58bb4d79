"""A Franka Panda (FER) through ``panda_py`` (PyPI: panda-python), 0.8.1 or 1.x: its 1 kHz impedance controller is a C++ thread.

What was measured or read, and is worked around here and in ``arm.py`` (installation/install_franka.md has the story):

* a target that is not finite aborts the process, and so does starting control beyond a joint's limit;
* ``start_controller`` and ``move_to_joint_position`` recover from errors unasked;
* ``stop_controller`` joins the control thread with the interpreter locked, and that thread locks the interpreter to report its end: a stop
  while the network dies would never return. ``teaching_mode(False)`` does the same unlocked;
* the destructor of 1.x reads the robot, and aborts the process where that fails: it is run only while the robot answers;
* the controller damps absolute velocity: it lags 2 v / sqrt(K) behind. The target is put that far ahead, which is a feed-forward of v;
* its rotational error is the vector part of a quaternion, half of the angle: stiffness is doubled to be what it says, N m/rad;
* 1.x draws the null space to a posture of its own unless it is told one; 0.8.1 ignores what it is told (and ``brake`` leaves it the
  motion that does not move the hand);
* 0.8.1 remembers the last state in control for ever; 1.x believes a controller that died to be running.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from env.franka import brake, driver, frames
from env.franka.arm import Arm, Reading
from env.franka.limits import PANDA
from env.franka.types import ControlSettings, DeploymentError

LEAD_MAX = 0.5  # of a quaternion's vector part, ahead: what feed-forward of a rotation may ask for


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
            f"robot=panda needs panda-python: pip install -c constraints.txt -e .[real] ({error}); see {driver.TABLE}."
        ) from error
    return panda_py


class PandaRobot(Arm):
    """See ``arm.py``."""

    name, limits, package = "panda", PANDA, "panda-python"

    def _open(self) -> Any:
        panda = package().Panda(self.ip)
        driver.keep(panda)
        return panda

    def _dispose(self) -> None:
        try:
            self.vendor.get_robot().read_once()  # as the destructor does
        except RuntimeError:
            return
        driver.release(self.vendor)

    def _read(self) -> Reading:
        controlled = self.controller is not None or self._moving
        raw = self.vendor.get_state() if controlled else self.vendor.get_robot().read_once()
        return Reading(
            time=raw.time.to_sec(),
            q=np.array(raw.q),
            dq=np.array(raw.dq),
            ee=np.array(raw.O_T_EE).reshape(4, 4).T,
            flange_to_ee=np.array(raw.F_T_EE).reshape(4, 4).T,
            wrench=np.array(raw.O_F_ext_hat_K),
            success_rate=float(raw.control_command_success_rate),
            mode=str(raw.robot_mode).rsplit(".k", 1)[-1],
            errors=str(raw.current_errors),
        )

    def _apply(self, settings: ControlSettings) -> None:
        robot = self.vendor.get_robot()
        torque, force = [settings.collision_torque] * 7, [settings.collision_force] * 6
        robot.set_collision_behavior(torque, torque, force, force)
        if settings.load_mass > 0.0:
            robot.set_load(settings.load_mass, *driver.load(settings.load_mass))

    def _begin(self) -> Any:
        (translation, rotation), ratio = self.settings.stiffness, self.settings.damping_ratio
        stiffness = np.array([translation] * 3 + [2.0 * rotation] * 3)
        # damping over stiffness in panda_py's own terms: seconds by which the target must be ahead
        self._lead = 2.0 * ratio / np.sqrt(stiffness)
        nullspace = self.settings.nullspace_q
        self._rest = np.array(self._read().q if nullspace is None else nullspace, np.float64)
        impedance = package().controllers.CartesianImpedance(
            impedance=np.diag(stiffness), damping_ratio=ratio, nullspace_stiffness=brake.POSTURE_STIFFNESS
        )
        self.vendor.start_controller(impedance)
        return impedance

    def _damping(self) -> tuple[float, float]:
        translation, rotation = self.settings.stiffness
        return tuple(2.0 * self.settings.damping_ratio * float(np.sqrt(k)) for k in (translation, 2.0 * rotation))

    def _send(self, ee: frames.Transform, twist: np.ndarray, posture: np.ndarray | None) -> None:
        lead = self._lead * twist
        part = lead[3:]  # the vector part of the quaternion that leads
        part = part * min(1.0, LEAD_MAX / max(float(np.linalg.norm(part)), 1e-9))
        turn = np.append(part, np.sqrt(1.0 - float(part @ part)))
        self.controller.set_control(
            ee.position + lead[:3],
            frames.quat_multiply(turn, ee.quaternion),
            self._rest if posture is None else posture,
        )

    def _complaint(self) -> None:
        self.vendor.raise_error()

    def _end(self, dead: bool) -> None:
        # a thread that has ended by itself has reported it already: joining it is safe, and recovers from nothing
        self.vendor.stop_controller() if dead else self.vendor.teaching_mode(False)

    def _mend(self) -> None:
        self.vendor.teaching_mode(False)
        self._discard()

    def _discard(self) -> None:
        """What is still reported is of the past."""
        try:
            self.vendor.raise_error()
        except RuntimeError:
            return

    def _go(self, q: np.ndarray, speed: float) -> bool:
        return self.vendor.move_to_joint_position(q, speed_factor=speed)
