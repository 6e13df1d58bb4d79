"""What flows between the parts of a deployment, and the protocols a robot, a gripper, a camera and a clock keep.

Everything is in the robot's **base frame** (x forward, z up), metres, radians, seconds, newtons. Quaternions are (x, y, z, w). Times named
``t_host`` are of one monotonic clock, ``Clock.now()``, of the machine the deployment runs on; nothing else is compared. ``position`` and
``quaternion`` are those of the *grip site*, the point the policy was trained on (``env/franka/frames.py`` has the way to the flange).

Nothing here imports a vendor's package; an implementation does so when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from env.errors import EnvError


class DeploymentError(EnvError):
    """A deployment cannot be set up or go on as asked; the message says what was expected, found, and what to do."""


class RobotFault(RuntimeError):  # noqa: N818  the field's word: a fault is what a robot is in
    """The robot stopped by itself, or cannot be heard any more.

    ``kind`` is one of ``FAULT_KINDS``; ``recoverable`` says whether ``Robot.recover`` may help once a person has looked.
    """

    def __init__(self, kind: str, message: str, recoverable: bool) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.recoverable = kind, recoverable


FAULT_KINDS = ("reflex", "user_stop", "communication", "network", "driver", "limits")


@dataclass(frozen=True, slots=True)
class RobotState:
    """Where the arm is, as last heard."""

    t_host: float  # when it was received
    t_robot: float  # the robot's own clock
    q: np.ndarray  # (7,) joint positions
    dq: np.ndarray  # (7,)
    position: np.ndarray  # (3,) of the grip site
    quaternion: np.ndarray  # (4,) xyzw, as robosuite's robot0_eef_quat: continuous in sign
    wrench: np.ndarray  # (6,) external force and torque at the grip site, base frame
    success_rate: float = 1.0  # of commands that arrived in time, of the last 100
    moving: bool = True  # a controller is running


@dataclass(frozen=True, slots=True)
class GripperState:
    t_host: float
    width: float  # between the fingers
    grasped: bool = False
    moving: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image: ``image (H, W, 3)`` uint8 **RGB**, as captured."""

    image: np.ndarray
    t_host: float  # of exposure, as well as the driver knows
    number: int  # counts up with each new frame; a frozen camera repeats itself


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy was shown: ``values`` are ``{"state": (To, Do)[, "rgb": (To, C, H, W) uint8]}``, normalised; ``raw`` by published key."""

    values: Mapping[str, np.ndarray]
    raw: Mapping[str, np.ndarray]
    t_host: float
    camera_age: float = 0.0  # seconds, of the oldest image in it


@dataclass(frozen=True, slots=True)
class RobotLimits:
    """Hard limits of one arm: joints (7,) and Cartesian (translation, rotation)."""

    q_min: np.ndarray
    q_max: np.ndarray
    dq_max: np.ndarray
    ddq_max: np.ndarray
    torque_max: np.ndarray
    velocity: tuple[float, float]  # m/s, rad/s
    acceleration: tuple[float, float]
    jerk: tuple[float, float]


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """The impedance the robot is run with."""

    stiffness: tuple[float, float] = (600.0, 30.0)  # N/m, N m/rad
    damping_ratio: float = 1.0
    nullspace_q: np.ndarray | None = None  # (7,)
    collision_torque: float = 20.0  # N m, each joint
    collision_force: float = 20.0  # N, N m
    load_mass: float = 0.0  # kg, beyond the hand


class Clock(Protocol):
    """Time. The wall's in a deployment; a virtual one in tests and with the lockstep twin."""

    def now(self) -> float:
        """Monotonic seconds."""

    def sleep_until(self, t: float) -> None:
        """Return at ``t``, or at once where that has passed."""


@runtime_checkable
class Robot(Protocol):
    """An arm under Cartesian impedance control. No method blocks for longer than a servo tick except where said."""

    name: str
    limits: RobotLimits

    def connect(self) -> None:
        """Raises ``DeploymentError`` where the machine, the package or the robot's firmware do not fit. Blocks."""

    def configure(self, settings: ControlSettings) -> None: ...

    def move_joints(self, q: np.ndarray, speed: float = 0.2) -> None:
        """To the joint positions ``q (7,)`` at a fraction of the maximal speed. Blocks; for the start of an episode only."""

    def start(self) -> None:
        """Begin impedance control with the present pose as target."""

    def set_target(self, position: np.ndarray, quaternion: np.ndarray, twist: np.ndarray) -> None:
        """The pose to be drawn to and its velocity (6,), base frame. Only finite values may ever come here: raises ``ValueError`` else."""

    def brake(self, position: np.ndarray, quaternion: np.ndarray) -> None:
        """``set_target`` of a pose at rest, and oppose all motion of the arm as hard as is safe (``brake.py``); again at every tick."""

    def state(self) -> RobotState:
        """The last state heard; never waits."""

    def check(self) -> None:
        """Raise ``RobotFault`` where the robot has left control."""

    def stop(self) -> None:
        """End motion and control. Safe at any time, from any thread, repeatedly."""

    def recover(self) -> bool:
        """Clear a fault; True where the robot may be started again. A person must have agreed. Blocks."""

    def close(self) -> None: ...


@runtime_checkable
class Gripper(Protocol):
    """A parallel gripper. Its calls may take as long as the motion does: ``env/franka/gripper.py`` keeps them off the servo's thread."""

    max_width: float

    def goto(self, width: float, speed: float) -> None: ...

    def grasp(self, force: float, speed: float) -> bool:
        """Close until something is held, of whatever size; whether it is."""

    def state(self) -> GripperState: ...

    def stop(self) -> None: ...


@runtime_checkable
class Camera(Protocol):
    """A colour camera that keeps only its newest frame."""

    name: str

    def start(self) -> None:
        """Raises ``DeploymentError`` where there is no such camera, or it gives another size or format than asked."""

    def latest(self) -> Frame | None:
        """The newest frame, None before the first; never waits. Raises ``DeploymentError`` once the camera is gone."""

    def close(self) -> None: ...


class Policy(Protocol):
    """Observation -> action chunk. Local (a checkpoint in this process) or remote (``env/franka/remote.py``)."""

    act_steps: int
    horizon_steps: int
    action_dim: int

    def __call__(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """``{"state": (To, Do)[, "rgb": (To, C, H, W) uint8]}`` -> (Ta, Da) in [-1, 1], the checkpoint's normalised action units."""

    def reset(self, seed: int | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened beside the stream of actions: a stage of the safety layer acted, the runner changed state, a person pressed a key."""

    t_host: float
    name: str  # dotted: "finite", "clip", "workspace", "leash", "state_age", "runner.HOLD", "operator.stop", ...
    action: str  # what came of it: one of ``EVENT_ACTIONS``
    found: float | str | None = None  # what was found, in the unit of the limit
    limit: float | str | None = None
    detail: str = ""


EVENT_ACTIONS = ("log", "warn", "limit", "hold", "stop", "fault")


@dataclass(frozen=True, slots=True)
class Tick:
    """One action tick (20 Hz) of an episode, as it is recorded. Arrays are copies: a recorder may keep them."""

    number: int  # counts from 0 in each episode
    t_host: float  # when its action was handed on
    state: str  # of the runner: RUNNING or HOLD
    robot: RobotState
    gripper: GripperState | None
    frames: Mapping[str, Frame]  # by camera
    observation: Observation | None  # what the policy was shown, at the ticks where it was asked
    raw_action: np.ndarray  # (Da,) as the policy said it, normalised; NaN where it said nothing
    action: np.ndarray  # (Da,) what was executed: the task's own units after the safety layer; zeros where nothing was
    reference_position: np.ndarray  # (3,) of the reference model
    reference_quaternion: np.ndarray  # (4,)
    t_infer_start: float = float("nan")  # of the inference whose chunk the action is from
    t_infer_end: float = float("nan")
    # by published key, at **every** tick: what demonstrations are made of; (D,), images (H, W, 3) uint8 RGB as the policy gets them.
    # Empty: those of ``observation``, where there is one
    raw: Mapping[str, np.ndarray] = field(default_factory=dict)


class Recorder(Protocol):
    """Keeps an episode. Called from the control loop: no method blocks, none raises (a full disk is an event, not an exception)."""

    problem: str | None  # a sentence once ticks or events are being lost: then the robot holds

    def tick(self, tick: Tick) -> None: ...

    def event(self, event: Event) -> None: ...

    def measure(self, name: str, seconds: float) -> None:
        """A duration for the histograms, from any thread and at any rate: "servo_dt", "tick_jitter", ..."""

    def finish(self, verdict: str | float | None) -> None:
        """The episode is over: ``verdict`` is the operator's ("success", "failure", 0..100) or the task's own; blocks until all is kept."""


class Operator(Protocol):
    """The person at the machine, or a stand-in (``env/franka/operator.py``)."""

    def held(self) -> bool:
        """Whether the dead-man switch is held now; never waits."""

    def pressed_since(self, t: float) -> bool:
        """Whether it was let go and pressed anew after ``t`` (of the clock): what is asked for before a HOLD is left."""

    def command(self) -> str | None:
        """The next command not yet taken: "stop", "quit", "recover"; None when there is none. Never waits."""
