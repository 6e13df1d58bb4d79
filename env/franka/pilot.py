"""The policy's side of a deployment: asks it, judges its answers, and turns the action of each tick into a goal for the reference."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from env.franka import frames
from env.franka.inference import LockstepInference, ThreadedInference
from env.franka.reference import Reference
from env.franka.safety import GO, HOLD, SafetyMonitor, Verdict
from env.franka.schedule import ChunkScheduler, Goal, Request
from env.franka.types import Clock, Policy

Values = Mapping[str, np.ndarray]


class Pilot:
    """Policy, schedule and the stages of the safety layer that an action meets.

    ``unnormalise`` takes the policy's units to the task's; ``world`` is the frame the task's deltas are meant in. In lockstep a policy's
    attribute ``latency`` (s), where it has one, is how long its answers take.
    """

    def __init__(
        self,
        policy: Policy,
        scheduler: ChunkScheduler,
        monitor: SafetyMonitor,
        clock: Clock,
        world: frames.Transform,
        unnormalise: Callable[[np.ndarray], np.ndarray] | None,
    ) -> None:
        self._policy, self.scheduler, self._monitor, self._clock = policy, scheduler, monitor, clock
        self._world, self._to_base, self._unnormalise = world, world.inverse(), unnormalise
        lockstep = getattr(clock, "lockstep", False)
        latency = lambda: float(getattr(policy, "latency", 0.0))  # noqa: E731
        self.inference = LockstepInference(clock, latency) if lockstep else ThreadedInference(clock)
        parameters = inspect.signature(policy.__call__).parameters
        self._minds = {"prefix", "weights"} <= set(parameters)
        self.scale, self.width, self._q = 1.0, 0.08, np.zeros(7)  # until ``see``; a new start does not forget them
        self.begin(0.0)

    def begin(self, t0: float) -> None:
        """Start anew: no plan, tick 0 at ``t0``."""
        self.scheduler.reset(t0)
        self.spans: dict[int, tuple[float, float]] = {}  # of inferences, by chunk
        self._limit = self._monitor.settings.chunk_times * self.scheduler.act_steps * self.scheduler.period
        self.due = self._clock.now() + self._limit  # when the next chunk must have come

    def reset(self, seed: int | None) -> None:
        """A new episode. Not while the policy is busy."""
        self._policy.reset(seed)

    @property
    def busy(self) -> bool:
        return self.inference.busy

    # ------------------------------------------------------------------------------------------------------------ asking

    def ask(self, tick: int, reference: Reference) -> Request | None:
        """The question that is due at ``tick``, not yet put."""
        return None if self.inference.busy else self.scheduler.ask(tick, reference, self.plan)

    def put(self, request: Request, values: Values) -> None:
        """Put it, for what the policy is to see."""
        extra: dict[str, Any] = {}
        if self._minds and request.prefix is not None:
            extra = {"prefix": request.prefix, "weights": request.weights}
        self.inference.submit(request.number, lambda: self._policy(values, **extra))

    def collect(self, tick: int, wait_until: float | None = None) -> Verdict:
        """Take the answers that are there; HOLD or STOP where one is no chunk."""
        verdict = Verdict(GO)
        for answer in self.inference.poll(wait_until if self.scheduler.waiting else None):
            if answer.error is not None:
                self._monitor.event(
                    "policy", "hold", repr(answer.error)[:200], None, "the policy raised; its chunk is missing"
                )
                verdict = max(verdict, Verdict(HOLD, "policy"))
                continue
            found = self._monitor.chunk(answer.result, self._policy.action_dim)
            if found.level > GO:
                verdict = max(verdict, found)
                continue
            taken = self.scheduler.take(
                answer.number, answer.result, tick, self._clock.now(), self.plan, blended=self._minds
            )
            if taken == "taken":
                self.due = self._clock.now() + self._limit
                self.spans[answer.number] = (answer.t_start, answer.t_end)
            else:
                self._monitor.event("chunk", "log", answer.number, None, f"not taken: {taken}")
        return verdict

    # ------------------------------------------------------------------------------------------------------------ acting

    def see(self, q: np.ndarray, width: float, scale: float) -> None:
        """How the arm stands, how wide the hand is open, and how much of the policy's motion is wanted: for the plans to come."""
        self._q, self.width, self.scale = q, width, scale

    def plan(self, reference: Reference, raw: np.ndarray) -> Goal:
        """Stages 2 and 3: where the reference would go with a policy's action ``(Da,)``."""
        action = self._monitor.action(raw, 1.0)
        if self._unnormalise is not None:
            action = np.asarray(self._unnormalise(action), np.float64)
        action = self._monitor.action(action, self.scale)
        base = np.concatenate([self._to_base.vector(action[:3]), self._to_base.vector(action[3:6])])
        return self._monitor.goal(*reference.goal_of(base), self.width)

    def gripper(self, raw: np.ndarray) -> float:
        """The gripper's column in the task's units; +1 closes."""
        action = np.clip(raw, -1.0, 1.0)
        return float(action[-1] if self._unnormalise is None else self._unnormalise(action)[-1])

    def goal(self, reference: Reference, raw: np.ndarray, planned: Goal | None) -> tuple[Goal | None, np.ndarray]:
        """The goal of an action whose turn it is, after stage 6, and the action that really is; None where a joint refuses it."""
        position, quaternion = planned or self.plan(reference, raw)
        at, heading = reference.position, reference.quaternion
        step = np.concatenate([position - at, frames.rotation_between(heading, quaternion)])
        verdict = self._monitor.joints(self._q, step)
        executed = np.zeros(len(raw))
        executed[-1] = self.gripper(raw)
        if verdict.refused:
            return None, executed
        if verdict.scale < 1:
            step = verdict.scale * step
            position, quaternion = at + step[:3], frames.quat_multiply(frames.exp_quat(step[3:]), heading)
        shift, turn = reference.settings.scale
        executed[:3] = self._world.vector(step[:3]) / shift
        executed[3:6] = self._world.vector(step[3:]) / turn
        return (position, quaternion), executed
