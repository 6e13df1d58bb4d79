"""The safety layer: every action passes its stages in their order, every servo tick its watch; whatever acts is an event.

What is found leads to a *verdict*: go on, HOLD (brake and stay until the cause is gone and a person presses anew) or STOP (end control).
Software is not a safety function: the emergency stop belongs in a hand.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from env.franka import guards
from env.franka.guards import Acted, JointVerdict, SafetySettings
from env.franka.limits import PANDA
from env.franka.types import Clock, Event, Operator, Recorder, RobotLimits, RobotState

__all__ = ["GO", "HOLD", "STOP", "SafetyMonitor", "SafetySettings", "Verdict"]

GO, HOLD, STOP = 0, 1, 2
_AGAIN = 1.0  # s after which a stage that keeps acting is logged again


class Verdict(NamedTuple):
    """``level`` is GO, HOLD or STOP; ``name`` the stage's that says so."""

    level: int
    name: str = ""


class SafetyMonitor:
    """Stages of the safety layer with their memory, and their log. One episode at a time; used from several threads."""

    def __init__(self, settings: SafetySettings, clock: Clock, limits: RobotLimits = PANDA) -> None:
        self.settings, self.limits, self._clock = settings, limits, clock
        self._lock = threading.Lock()
        self._recorder: Recorder | None = None
        self.begin(None)

    def begin(self, recorder: Recorder | None) -> None:
        """A new episode, logged to ``recorder``."""
        self._recorder = recorder
        self._logged: dict[str, float] = {}
        self._bad = 0
        self.recoveries = 0
        self.counts: dict[str, int] = {}

    # ------------------------------------------------------------------------------------------------------------ log

    def event(self, name: str, action: str, found: Any = None, limit: Any = None, detail: str = "") -> None:
        """Log one, now."""
        with self._lock:
            self.counts[name] = self.counts.get(name, 0) + 1
        if self._recorder is not None:
            found, limit = (float(x) if isinstance(x, (np.generic, np.ndarray)) else x for x in (found, limit))
            self._recorder.event(Event(self._clock.now(), name, action, found, limit, detail))

    def _acts(self, name: str, action: str, found: Any, limit: Any, detail: str = "") -> None:
        """Log a stage that acts: when it begins to, and once a second while it does."""
        now = self._clock.now()
        with self._lock:
            due = now - self._logged.get(name, -np.inf) >= _AGAIN
            if due:
                self._logged[name] = now
        if due:
            self.event(name, action, found, limit, detail)

    def _note(self, acted: list[Acted]) -> None:
        for stage in acted:
            if stage.where:
                self._acts(stage.name, "limit", stage.found, stage.limit)

    # --------------------------------------------------------------------------------------------- stages of an action

    def chunk(self, chunk: Any, action_dim: int) -> Verdict:
        """Stage 1. A chunk that is not finite is dropped: HOLD; two in a row: STOP."""
        problem = guards.finite_chunk(chunk, action_dim)
        if problem is None:
            self._bad = 0
            return Verdict(GO)
        self._bad += 1
        stop = self._bad >= self.settings.bad_chunks
        self.event("finite", "stop" if stop else "hold", self._bad, self.settings.bad_chunks, problem)
        return Verdict(STOP if stop else HOLD, "finite")

    def action(self, action: np.ndarray, scale: float) -> np.ndarray:
        """Stage 2: ``(Da,)`` clipped and scaled."""
        clipped, acted = guards.clip_action(action, scale)
        self._note(acted)
        return clipped

    def goal(self, position: np.ndarray, quaternion: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Stage 3: the goal's pose inside of what is allowed."""
        position, quaternion, acted = guards.clamp_goal(position, quaternion, width, self.settings)
        self._note(acted)
        return position, quaternion

    def leashed(self, reach: float) -> None:
        """Stage 5 acted."""
        self._acts("leash", "limit", None, reach)

    def joints(self, q: np.ndarray, step: np.ndarray) -> JointVerdict:
        """Stage 6, of a step (6,) of the grip site."""
        verdict = guards.joint_guard(q, step, self.settings, self.limits)
        for stage in verdict.acted:
            if stage.where:
                self._acts(stage.name, "hold" if verdict.refused else "limit", stage.found, stage.limit)
        return verdict

    # ---------------------------------------------------------------------------------------- watch, at each servo tick

    def watch_robot(self, now: float, state: RobotState, since_tick: float) -> Verdict:
        """Stages 7 and 8 of the robot: contact, age of its state, its success rate; and the servo's own punctuality."""
        s, force = self.settings, float(np.sqrt(np.dot(state.wrench[:3], state.wrench[:3])))
        found = (
            ("state_age", now - state.t_host, None, s.state_age),
            ("contact", force, s.force_hold, s.force_stop),
            ("servo_overrun", since_tick, s.servo_hold, None),
            ("success_rate", -state.success_rate, None, -s.success_stop),
        )
        # beside True and False there is NaN, of which no comparison may say that all is well
        if state.success_rate < s.success_warn:
            self._acts("success_rate", "warn", state.success_rate, s.success_warn)
        return self._worst(found)

    def watch_inputs(self, now: float, seen: Mapping[str, float], chunk_due: float) -> Verdict:
        """Stage 8 of what the policy sees and says: by camera when its last *new* image was taken; when the next chunk was due."""
        s = self.settings
        found = [(f"camera_age.{name}", now - t, s.camera_hold, s.camera_stop) for name, t in seen.items()]
        return self._worst([*found, ("no_chunk", now - chunk_due, 1e-9, None)])

    def watch_operator(self, operator: Operator) -> Verdict:
        """Stage 9: the dead-man switch."""
        if operator.held():
            return Verdict(GO)
        return Verdict(HOLD, "dead_man")

    def _worst(self, found: Any) -> Verdict:
        worst = Verdict(GO)
        for name, value, hold, stop in found:
            if stop is not None and not value <= stop:
                level, limit = STOP, stop
            elif hold is not None and not value <= hold:
                level, limit = HOLD, hold
            else:
                continue
            self._acts(f"{name}", "stop" if level == STOP else "hold", abs(value), abs(limit))
            if level > worst.level:
                worst = Verdict(level, name)
        return worst

    # ------------------------------------------------------------------------------------------------------ stage 10

    def may_recover(self) -> bool:
        """Whether one more recovery is allowed in this episode; it is counted."""
        if self.recoveries >= self.settings.recoveries:
            self.event("recoveries", "stop", self.recoveries, self.settings.recoveries)
            return False
        self.recoveries += 1
        return True
