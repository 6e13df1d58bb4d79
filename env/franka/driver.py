"""What the drivers of real arms share: words for what a control unit complains about, deadlines, and the way to the grip site."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from env.franka import frames
from env.franka.types import DeploymentError, RobotFault

Result = TypeVar("Result")

# server version of the control unit: (libfranka, robot and system version, what to install for it)
SERVERS = {
    3: (
        "0.5 to 0.7.1",
        "Panda, system 3.0",
        "the libfranka 0.7.1 wheel of panda-python's releases on GitHub (robot=panda)",
    ),
    4: ("0.8", "Panda, system 4.0", "the libfranka 0.8.0 wheel of panda-python's releases on GitHub (robot=panda)"),
    5: ("0.9", "Panda, system 4.2.1", "pip install 'panda-python>=0.8.1' (robot=panda)"),
    6: ("0.10", "FR3, system 5.2", "franky-control from its index for server version 6 (robot=franky)"),
    7: ("0.13", "FR3, system 5.5", "franky-control from its index for server version 7 (robot=franky)"),
    8: ("0.14.1", "FR3, system 5.7.0", "franky-control from its index for server version 8 (robot=franky)"),
    9: ("0.15 to 0.17", "FR3, system 5.7.2", "franky-control from its index for server version 9 (robot=franky)"),
    10: ("0.18 and later", "FR3, system 5.9", "pip install franky-control (robot=franky)"),
}
TABLE = "the table in installation/install_franka.md"
LIMITS = ("limits_violation", "velocity_violation", "limit_violation", "range_violation", "joint wall")
REFLEXES = ("reflex", "discontinuity", "instability", "wrong_direction")
NETWORK = ("udp", "tcp", "connection", "connect", "timeout", "network")


def advice(server: int, package: str) -> str:
    """What to install for a control unit of this server version."""
    if server not in SERVERS:
        return f"see {TABLE} for server version {server}."
    library, robot, install = SERVERS[server]
    return (
        f"Version {server} ({robot}, libfranka {library}) needs another package than {package}: {install}. See {TABLE}."
    )


def connection_error(ip: str, package: str, error: BaseException) -> DeploymentError:
    """A driver's failure to connect, in words that say what to do."""
    said = " ".join(str(error).split())
    low = said.lower()
    mismatch = re.search(
        r"(?:server|protocol) version:? (\d+).*? version:? (\d+)", said
    )  # libfranka's and panda_py 1.x's words
    if mismatch:
        server, library = int(mismatch[1]), int(mismatch[2])
        return DeploymentError(
            f"robot.ip={ip}: the robot's server version is {server}, {package} speaks {library}. {advice(server, package)}"
        )
    if "refused" in low:
        return DeploymentError(
            f"robot.ip={ip} refuses the connection: open the brakes and activate FCI in the robot's web page, "
            f"and close other programs that use the robot. ({said})"
        )
    if any(word in low for word in (*NETWORK, "host", "resolve")):
        return DeploymentError(
            f"robot.ip={ip} does not answer: is this the control unit's address (not the arm's), is the cable in the control unit, "
            f"is this machine's address in its network? python script/check_robot.py robot.ip={ip} looks. ({said})"
        )
    if "realtime" in low or "real-time" in low or "scheduling" in low:
        return DeploymentError(f"{package} asks for a real-time kernel and the right to use it; see {TABLE}. ({said})")
    return DeploymentError(f"robot.ip={ip}: {package} could not connect: {said}")


def fault(message: str) -> RobotFault:
    """What a driver complained about while the robot was in control, as one of ``FAULT_KINDS``."""
    said = " ".join(message.split())
    low = said.lower()
    if "communication_constraints" in low:
        return RobotFault("communication", said, True)
    if "user stop" in low or "user_stopped" in low or "userstopped" in low:
        return RobotFault("user_stop", f"{said} (release the button, then recover)", True)
    if any(word in low for word in LIMITS):
        return RobotFault("limits", said, True)
    if any(word in low for word in REFLEXES):
        return RobotFault("reflex", said, True)
    if any(word in low for word in NETWORK):
        return RobotFault("network", said, False)
    return RobotFault("driver", said, False)


class Overdue(TimeoutError):  # noqa: N818  like the built-in ones
    """A call has not come back; ``thread`` is where it still waits."""

    def __init__(self, what: str, seconds: float, thread: threading.Thread) -> None:
        super().__init__(f"{what} has not ended within {seconds:g} s (connection timeout)")
        self.thread = thread


def within(seconds: float, call: Callable[[], Result], what: str) -> Result:
    """``call()``, in a thread of its own: a vendor's package may wait for ever.

    Raises:
        Overdue: it has not ended within ``seconds``; it goes on in its thread.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = call()
        except BaseException as error:  # whatever it is, it belongs to the caller
            outcome["error"] = error

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Overdue(what, seconds, thread)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def keep(thing: object) -> None:
    """Never run ``thing``'s destructor, at the program's end neither: it may wait for a robot that has gone, or abort the process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def release(thing: object) -> None:
    """Undo ``keep``."""
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(thing))


def target(
    position: np.ndarray, quaternion: np.ndarray, twist: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(3,), (4,) of unit length and (6,), checked. A number that is none kills panda_py's process: it never passes here.

    Raises:
        ValueError: another shape, a number that is not finite, or a quaternion that is no rotation.
    """
    given = []
    for name, value, shape in (("position", position, (3,)), ("quaternion", quaternion, (4,)), ("twist", twist, (6,))):
        array = np.asarray(value, np.float64)
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{name}: expected {shape[0]} finite numbers, found {value!r}")
        given.append(array)
    norm = float(np.linalg.norm(given[1]))
    if abs(norm - 1.0) > 1e-3:
        raise ValueError(f"quaternion: expected unit length, found {norm:.6g}")
    return given[0], given[1] / norm, given[2]


def load(mass: float) -> tuple[list[float], list[float]]:
    """Centre (3,) in the flange's frame and inertia (9,) of a load between the fingers: a ball of 3 cm."""
    centre = frames.GRIP_SITE_IN_FLANGE[:3, 3]
    return centre.tolist(), (np.eye(3) * 0.4 * mass * 0.03**2).ravel().tolist()


@dataclass(frozen=True)
class Site:
    """The grip site in the frame that the robot calls its end effector, whatever has been set there in the robot's web page."""

    in_ee: frames.Transform

    @classmethod
    def of(cls, flange_to_ee: np.ndarray) -> Site:
        """``flange_to_ee (4, 4)``: F_T_EE, as the robot reports it."""
        inverse = frames.Transform.from_matrix(flange_to_ee).inverse()
        return cls(inverse @ frames.Transform.from_matrix(frames.GRIP_SITE_IN_FLANGE))

    def pose(self, ee: np.ndarray) -> frames.Transform:
        """Of the grip site, where the end effector's is ``ee (4, 4)``; both in the base frame."""
        return frames.Transform.from_matrix(ee) @ self.in_ee

    def wrench(self, site: frames.Transform, on_environment: np.ndarray) -> np.ndarray:
        """(6,) that acts on the arm at the grip site, from libfranka's O_F_ext_hat_K: at the end effector, on the environment."""
        force, torque = -np.asarray(on_environment[:3]), -np.asarray(on_environment[3:])
        lever = frames.quat_rotate(
            site.quaternion, frames.quat_rotate(frames.quat_inverse(self.in_ee.quaternion), self.in_ee.position)
        )
        return np.concatenate([force, torque - np.cross(lever, force)])

    def command(
        self, position: np.ndarray, quaternion: np.ndarray, twist: np.ndarray
    ) -> tuple[frames.Transform, np.ndarray]:
        """The end effector's pose and twist (6,) that put the grip site where it shall be, as fast as it shall be there."""
        ee = frames.Transform(position, quaternion) @ self.in_ee.inverse()
        return ee, np.concatenate([twist[:3] + np.cross(twist[3:], ee.position - position), twist[3:]])
