"""When the policy is asked, and which of its actions is whose turn: chunks on the 20 Hz grid of ticks.

* ``sync`` (the default): asked when the chunk is used up; the answer starts at the tick at which it is there. Until then the reference
  coasts to its last goal: a slow inference makes the robot slow, never wrong.
* ``async``: asked ``d = ceil(latency / tick)`` ticks before the chunk is used up, with the pose that the reference will have by then. The
  answer is rolled through a copy of the reference into *absolute* goals for absolute ticks. What comes too late is dropped afterwards,
  so its motion is not lost, and the rest replaces what was planned; the reference itself is never reset, so the stream stays smooth.
* ``ensemble``: asked every ``act_steps``; where chunks overlap, the weighted mean with exp(-decay * i), i = 0 the oldest.
* ``rtc``, real-time chunking (arXiv:2506.07339): asked every ``act_steps`` ticks while the old chunk goes on. What will have been executed
  by the time the answer is there (``d`` steps) is frozen, what follows is blended in. The paper does so inside of every denoising step,
  by guidance; outside of the network we can only hand the frozen steps and the mask to a policy that takes them (keyword arguments
  ``prefix (Ta, Da)`` and ``weights (Ta,)``), and blend the answers of one that does not: smooth at the seam, but its later steps do not
  know of the frozen ones.

The last two need ``horizon_steps > act_steps``, which networks of chunks of 4 do not have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from env.franka.reference import Reference
from env.franka.types import DeploymentError

MODES = ("sync", "async", "ensemble", "rtc")
Goal = tuple[np.ndarray, np.ndarray]
Plan = Callable[[Reference, np.ndarray], Goal]  # where the reference would go with an action of the policy's


@dataclass(frozen=True)
class ScheduleSettings:
    """How chunks follow each other; ``latency`` (s) from the observation to the answer: the 95th percentile of what was measured."""

    mode: str = "sync"
    latency: float = 0.0
    exec_latency: float = 0.01  # s: a step due sooner than this is too late
    decay: float = 0.01  # of the ensemble's weights

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise DeploymentError(f"schedule.mode: one of {', '.join(MODES)}; found {self.mode!r}.")
        if not (self.latency >= 0 and self.exec_latency >= 0 and self.decay >= 0):
            raise DeploymentError(f"schedule: latencies and decay are not negative; found {self}.")


@dataclass(frozen=True)
class Request:
    """A question to the policy: for the steps from tick ``start`` on; with ``rtc``, what is already decided of them."""

    number: int
    start: int
    expected: Reference | None = None  # where the reference will be at ``start``
    prefix: np.ndarray | None = None  # (Ta, Da)
    weights: np.ndarray | None = None  # (Ta,): 1 frozen, 0 free


@dataclass(frozen=True)
class Step:
    """An action whose turn it is: as the policy said it, and, in ``async``, the goal it was planned to have."""

    action: np.ndarray
    goal: Goal | None = None
    chunk: int = -1


@dataclass
class _Chunk:
    number: int
    start: int
    actions: np.ndarray
    goals: list[Goal] = field(default_factory=list)


class ChunkScheduler:
    """The plan of an episode. ``tick`` counts from 0 at ``reset(t0)``; its time is ``t0 + tick * period``."""

    def __init__(self, settings: ScheduleSettings, act_steps: int, horizon_steps: int, period: float) -> None:
        s, H, self.delay = act_steps, horizon_steps, math.ceil(settings.latency / period - 1e-9)
        if not 1 <= s <= H:
            raise DeploymentError(
                f"a policy executes 1 to horizon_steps = {H} steps of a chunk, found act_steps = {s}."
            )
        if settings.mode in ("ensemble", "rtc") and s == H:
            raise DeploymentError(
                f"schedule.mode={settings.mode} mixes chunks that overlap; this policy's do not (horizon_steps = act_steps = {H}). "
                f"Use sync or async."
            )
        if settings.mode == "rtc" and not self.delay <= s <= H - self.delay:
            raise DeploymentError(
                f"schedule.mode=rtc needs d <= s <= H - d for d = {self.delay} ticks of latency ({settings.latency} s), s = act_steps = {s} "
                f"and H = horizon_steps = {H}. Make the policy faster, or change act_steps."
            )
        if settings.mode == "async" and self.delay > s:
            raise DeploymentError(
                f"schedule.mode=async: a latency of {settings.latency} s is {self.delay} ticks, more than a chunk's {s}. Use sync."
            )
        self.settings, self.act_steps, self.horizon, self.period = settings, s, H, period
        self._numbers = itertools.count()
        self._seen = -1  # the last chunk that was taken
        self.reset(0.0)

    def reset(self, t0: float) -> None:
        """Forget all chunks, planned and asked for; tick 0 is at ``t0``."""
        self._t0 = t0
        self._chunks: list[_Chunk] = []
        self._asked: Request | None = None
        self._last_tick, self._asked_at = -1, 0

    def shift(self, seconds: float) -> None:
        """All ticks from now on come so much later."""
        self._t0 += seconds

    def time_of(self, tick: int) -> float:
        return self._t0 + tick * self.period

    @property
    def waiting(self) -> bool:
        """Whether an answer is due."""
        return self._asked is not None

    def remaining(self, tick: int) -> int:
        """How many ticks from ``tick`` on have an action."""
        return max([c.start + len(c.actions) - tick for c in self._chunks] + [0])

    def ask(self, tick: int, reference: Reference, plan: Plan) -> Request | None:
        """The question to put to the policy at ``tick``, where it is time for one."""
        if self._asked is not None or not self._due(tick):
            return None
        number, mode, self._asked_at = next(self._numbers), self.settings.mode, tick
        if mode == "async":
            expected, ahead = reference.copy(), min(self.delay, self.remaining(tick))
            for k in range(tick, tick + ahead):
                step = self._at(k)
                if step is not None:
                    expected.aim(*(step.goal or plan(expected, step.action)))
                expected.advance(self.period)
            self._asked = Request(number, tick + self.delay, expected)
        elif mode == "rtc" and self._chunks:
            self._asked = Request(number, tick, None, *self._frozen(tick))
        else:
            self._asked = Request(number, tick)
        return self._asked

    def _due(self, tick: int) -> bool:
        mode = self.settings.mode
        if not self._chunks:
            return True
        if mode in ("sync", "async"):
            return self.remaining(tick) <= (self.delay if mode == "async" else 0)
        return tick >= self._asked_at + self.act_steps

    def _frozen(self, tick: int) -> tuple[np.ndarray, np.ndarray]:
        """What the newest chunk says for the ticks from ``tick`` on (Ta, Da), zeros beyond its end; and how binding that is (Ta,)."""
        d, s, H, old = self.delay, self.act_steps, self.horizon, self._chunks[-1]
        known = old.actions[max(tick - old.start, 0) :]
        prefix = np.zeros((H, old.actions.shape[1]))
        prefix[: len(known)] = known
        i = np.arange(H)
        c = np.clip((H - s - i) / (H - s - d + 1), 0.0, 1.0)
        weights = np.where(i < d, 1.0, c * np.expm1(c) / np.expm1(1.0))
        weights[len(known) :] = 0.0
        return prefix, weights

    def take(self, number: int, chunk: np.ndarray, tick: int, now: float, plan: Plan, blended: bool = False) -> str:
        """The policy's answer to question ``number``, there at ``now``, tick ``tick`` being the next to be executed.

        ``chunk (Ta, Da)`` is finite; ``blended``: the policy minded prefix and weights itself. Returns "taken", or why it was not:
        "duplicate", "out of order" (a later one has been taken), "not asked" (given up, or never put), "late" (all of it is past).
        """
        asked = self._asked
        if asked is None or number != asked.number:
            return "duplicate" if number == self._seen else "out of order" if number < self._seen else "not asked"
        self._asked, self._seen, mode = None, number, self.settings.mode
        chunk = np.array(chunk[: self.horizon], np.float64)
        if asked.prefix is not None and asked.weights is not None and not blended:
            n = len(chunk)
            w = asked.weights[:n, None]
            chunk = w * asked.prefix[:n] + (1 - w) * chunk
        if mode == "sync":
            self._chunks = [_Chunk(number, tick, chunk[: self.act_steps])]
            return "taken"
        new = _Chunk(number, asked.start, chunk if mode != "async" else chunk[: self.act_steps])
        if asked.expected is not None:
            expected = asked.expected.copy()
            for action in new.actions:
                new.goals.append(plan(expected, action))
                expected.aim(*new.goals[-1])
                expected.advance(self.period)
        first = max(tick, math.ceil((now + self.settings.exec_latency - self._t0) / self.period - 1e-9))
        if mode in ("async", "rtc") and first > tick and self.time_of(tick) >= now - 1e-9 and not self._at(tick):
            first = tick  # nothing else is planned for this tick: late by less than the execution latency is better than nothing
        if new.start + len(new.actions) <= first:
            return "late"
        if mode == "ensemble":
            self._chunks.append(new)
            return "taken"
        dropped = max(first - new.start, 0)
        self._chunks = [self._until(c, new.start + dropped) for c in self._chunks]
        new = _Chunk(number, new.start + dropped, new.actions[dropped:], new.goals[dropped:])
        self._chunks = [c for c in self._chunks if len(c.actions) and c.start + len(c.actions) > tick] + [new]
        return "taken"

    @staticmethod
    def _until(chunk: _Chunk, tick: int) -> _Chunk:
        n = max(tick - chunk.start, 0)
        return _Chunk(chunk.number, chunk.start, chunk.actions[:n], chunk.goals[:n])

    def _at(self, tick: int) -> Step | None:
        covering = [c for c in self._chunks if c.start <= tick < c.start + len(c.actions)]
        if not covering:
            return None
        if self.settings.mode == "ensemble":
            weights = np.exp(-self.settings.decay * np.arange(len(covering)))
            actions = np.stack([c.actions[tick - c.start] for c in covering])
            return Step(weights @ actions / weights.sum(), None, covering[-1].number)
        newest = covering[-1]
        i = tick - newest.start
        return Step(newest.actions[i], newest.goals[i] if newest.goals else None, newest.number)

    def step(self, tick: int) -> Step | None:
        """The action of ``tick``, None where there is none. A tick is only ever executed once: the same or an earlier one raises."""
        if tick <= self._last_tick:
            raise ValueError(f"tick {tick} after tick {self._last_tick}")
        self._last_tick = tick
        found = self._at(tick)
        if self.settings.mode == "ensemble":
            self._chunks = [c for c in self._chunks if c.start + len(c.actions) > tick + 1] or self._chunks[-1:]
        return found
