"""A robot, a gripper, a camera, a policy and a recorder that do as they are told, on any clock: for tests of the control core."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from env.franka import frames, kinematics
from env.franka.clock import VirtualClock
from env.franka.guards import SafetySettings
from env.franka.limits import PANDA
from env.franka.machine import SUITE_HOME
from env.franka.runner import EpisodeRunner, RunnerSettings
from env.franka.safety import SafetyMonitor
from env.franka.types import DeploymentError, Event, Frame, GripperState, Observation, RobotFault, RobotState, Tick

HOME = kinematics.grip_site(np.array(SUITE_HOME))
BOX = SafetySettings(low=(0.2, -0.4, 0.02), high=(0.8, 0.4, 0.7), table=None)


class Arm:
    """Drawn to its target as by impedance, a critically damped unit mass per axis; everything sent is kept in ``sent``.

    ``fail``: raised by ``check``; ``deaf``: its state grows old; ``dead``: every call raises; ``blocked``: it cannot move.
    """

    name, limits = "arm", PANDA

    def __init__(self, clock, stiffness: float = 600.0) -> None:
        self._clock, self._k = clock, stiffness
        self.x, self.v, self.q = HOME.position.copy(), np.zeros(3), HOME.quaternion.copy()
        self.joints = np.array(SUITE_HOME)
        self.sent: list[tuple[float, np.ndarray, np.ndarray, np.ndarray]] = []
        self.fail: RobotFault | None = None
        self.deaf = self.dead = self.running = self.blocked = False
        self.wrench, self.success = np.zeros(6), 1.0
        self.recoverable, self.starts, self.stops, self.recoveries = True, 0, 0, 0
        self._heard, self._until, self._target = clock.now(), clock.now(), None
        self._stuck: RobotState | None = None

    def connect(self) -> None: ...

    def configure(self, settings) -> None: ...

    def move_joints(self, q, speed: float = 0.2) -> None:
        self.x, self.q, self.v = HOME.position.copy(), HOME.quaternion.copy(), np.zeros(3)

    def start(self) -> None:
        self._alive()
        self.running, self._target = True, (self.x, self.q)
        self.starts += 1

    def set_target(self, position, quaternion, twist) -> None:
        self._alive()
        if not (np.isfinite(position).all() and np.isfinite(quaternion).all() and np.isfinite(twist).all()):
            raise ValueError("not finite")
        if not self.running:
            raise RobotFault("driver", "not in control", recoverable=False)
        self._advance()
        self.sent.append((self._clock.now(), position, quaternion, twist))
        self._target = (position, quaternion)

    def brake(self, position, quaternion) -> None:
        self.set_target(position, quaternion, np.zeros(6))

    def state(self) -> RobotState:
        self._alive()
        self._advance()
        if self.deaf:
            self._stuck = self._stuck or self._state()
            return self._stuck
        self._stuck = None
        return self._state()

    def _state(self) -> RobotState:
        now = self._clock.now()
        return RobotState(
            now, now, self.joints, np.zeros(7), self.x.copy(), self.q.copy(), self.wrench, self.success, self.running
        )

    def check(self) -> None:
        self._alive()
        if self.fail is not None:
            raise self.fail

    def stop(self) -> None:
        self.stops += 1
        self.running, self.v = False, np.zeros(3)

    def recover(self) -> bool:
        self.recoveries += 1
        self.fail = None if self.recoverable else self.fail
        return self.recoverable

    def close(self) -> None: ...

    def _alive(self) -> None:
        if self.dead:
            raise OSError("connection reset by peer")

    def _advance(self) -> None:
        now = self._clock.now()
        dt, self._until = min(now - self._until, 0.1), now
        if self.running and self._target is not None and dt > 0:
            n = max(1, math.ceil(dt / 0.004))
            for _ in range(n):
                force = self._k * (self._target[0] - self.x) - 2 * math.sqrt(self._k) * self.v
                self.v = self.v + dt / n * force
                self.v = np.zeros(3) if self.blocked else self.v
                self.x = self.x + dt / n * self.v
            self.q = frames.slerp(self.q, self._target[1], min(1.0, 20 * dt))


class Hand:
    max_width = 0.08

    def __init__(self, clock) -> None:
        self._clock, self.width, self.calls, self.fails = clock, 0.08, [], False

    def goto(self, width: float, speed: float) -> None:
        self._call("goto", width)

    def grasp(self, force: float, speed: float) -> bool:
        self._call("grasp", 0.0)
        return True

    def _call(self, name: str, width: float) -> None:
        self.calls.append((self._clock.now(), name))
        if self.fails:
            raise RuntimeError("the gripper is jammed")
        self.width = width

    def state(self) -> GripperState:
        return GripperState(self._clock.now(), self.width)

    def stop(self) -> None:
        self.calls.append((self._clock.now(), "stop"))


class Eye:
    """A camera of 30 images a second; ``frozen`` repeats itself, ``gone`` raises."""

    name = "eye"

    def __init__(self, clock) -> None:
        self._clock, self.frozen, self.gone = clock, False, False
        self._last: Frame | None = None

    def start(self) -> None: ...

    def latest(self) -> Frame:
        if self.gone:
            raise DeploymentError("the camera is gone")
        if not self.frozen or self._last is None:
            number = int(self._clock.now() * 30 + 1e-6)
            self._last = Frame(np.zeros((2, 2, 3), np.uint8), number / 30, number)
        return self._last

    def close(self) -> None: ...


class Says:
    """A policy that answers ``say(number of the call)``, an action (Da,) or a chunk (T, Da); ``latency`` (s) in lockstep."""

    def __init__(self, say: Callable[[int], np.ndarray], act_steps: int = 4, horizon_steps: int = 4) -> None:
        self._say, self.calls, self.latency = say, 0, 0.0
        self.act_steps, self.horizon_steps, self.action_dim = act_steps, horizon_steps, 7

    def __call__(self, observation) -> np.ndarray:
        self.calls += 1
        said = self._say(self.calls - 1)
        return np.tile(said, (self.horizon_steps, 1)) if np.ndim(said) == 1 else said

    def reset(self, seed=None) -> None: ...


class Plain:
    """An observation builder: the position."""

    def build(self, state, gripper, pictures) -> Observation:
        raw = {"robot0_eef_pos": np.asarray(state.position)}
        return Observation({"state": raw["robot0_eef_pos"][None]}, raw, state.t_host)

    def reset(self) -> None: ...


class Memory:
    """A recorder."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.ticks: list[Tick] = []
        self.events: list[Event] = []
        self.durations: dict[str, list[float]] = {}
        self.verdict: object = "not finished"

    def tick(self, tick: Tick) -> None:
        self.ticks.append(tick)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def measure(self, name: str, seconds: float) -> None:
        self.durations.setdefault(name, []).append(seconds)

    def finish(self, verdict) -> None:
        self.verdict = verdict

    def names(self) -> list[str]:
        return [e.name for e in self.events]

    def first(self, name: str) -> Event:
        return next(e for e in self.events if e.name == name)


class Stage:
    """All of it together on one clock; ``run()`` an episode."""

    def __init__(
        self, say, operator, clock=None, safety: SafetySettings = BOX, act_steps=4, horizon_steps=4, arm=Arm, **kwargs
    ):
        self.clock = clock or VirtualClock()
        self.arm, self.hand, self.eye = arm(self.clock), Hand(self.clock), Eye(self.clock)
        self.policy, self.memory = Says(say, act_steps, horizon_steps), Memory()
        self.monitor = SafetyMonitor(safety, self.clock)
        self.operator = operator(self.clock)
        kwargs.setdefault("settings", RunnerSettings(speed_scale=1.0, max_steps=60, hold_limit_s=0.8, confirm_s=0.5))
        self.runner = EpisodeRunner(
            self.arm,
            self.hand,
            {"eye": self.eye},
            kwargs.pop("builder", Plain()),
            self.policy,
            monitor=self.monitor,
            operator=self.operator,
            clock=self.clock,
            **kwargs,
        )

    def run(self):
        self.runner.connect()
        self.result = self.runner.run(self.memory)
        return self.result
