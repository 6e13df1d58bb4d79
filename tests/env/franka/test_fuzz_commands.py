"""A hundred thousand commands of every kind of nonsense: what is sent is finite, in the box, within every cap and on the leash.

Each robot has a scheduler of its own, a policy that says NaN, infinities, huge numbers, jumps, and a line that loses, delays, doubles and
reorders its chunks; guards and reference model run for all robots at once, through the very functions that serve one.
"""

from __future__ import annotations

import numpy as np
import pytest

from env.franka import dynamics, frames, guards, kinematics
from env.franka.limits import PANDA
from env.franka.machine import SUITE_HOME
from env.franka.reference import FIRST_RUN, Caps, Reference, ReferenceSettings
from env.franka.schedule import ChunkScheduler, ScheduleSettings

ROBOTS, TICKS, PERIOD, SERVO, STIFFNESS = 1000, 50, 0.05, 0.004, 600.0
HOME = kinematics.grip_site(np.array(SUITE_HOME))
SAFETY = guards.SafetySettings(low=(0.35, -0.1, 0.0), high=(0.55, 0.12, 0.3), table=0.08, tilt=0.5, yaw=(-0.6, 0.9))
MODES = (
    (ScheduleSettings("sync"), 4, 4),
    (ScheduleSettings("async", latency=0.09), 4, 4),
    (ScheduleSettings("ensemble"), 3, 8),
    (ScheduleSettings("rtc", latency=0.1), 5, 8),
)


class Line:
    """The policy of one robot and the way to it: chunks arrive late, twice, in the wrong order, or never."""

    def __init__(self, seed: int) -> None:
        settings, act, self.horizon = MODES[seed % len(MODES)]
        self.rng, self.scheduler = np.random.default_rng(seed), ChunkScheduler(settings, act, self.horizon, PERIOD)
        self.scheduler.reset(0.0)
        self.on_the_way: list[tuple[float, int, np.ndarray]] = []
        self.said, self.dropped, self.asked_at = 0, 0, 0
        self.counts: dict[str, int] = {}

    def chunk(self) -> np.ndarray:
        rng, kind = self.rng, self.rng.integers(8)
        chunk = rng.uniform(-1, 1, (self.horizon, 7))
        if kind == 0:
            chunk[rng.integers(self.horizon), rng.integers(7)] = rng.choice([np.nan, np.inf, -np.inf])
        elif kind == 1:
            chunk = chunk * 10.0 ** rng.uniform(0, 300)
        elif kind in (2, 3):
            chunk = np.sign(chunk)  # jumps from one end to the other
        elif kind in (4, 5):
            chunk = np.tile(np.sign(chunk[:1]), (self.horizon, 1))  # full speed into whatever is there
        return chunk

    def next(self, tick: int, reference: Reference) -> np.ndarray | None:
        now, rng, scheduler = tick * PERIOD, self.rng, self.scheduler
        plan = lambda ref, raw: ref.goal_of(np.clip(raw, -1, 1))  # noqa: E731
        if scheduler.waiting and tick - self.asked_at > 12:  # given up: the runner would HOLD and start over
            scheduler._asked = None
        request = scheduler.ask(tick, reference, plan)
        if request is not None:
            self.asked_at = tick
            copies = rng.choice([0, 1, 1, 1, 1, 2])
            self.on_the_way += [
                (now + rng.choice([0.0, 0.02, 0.12, 0.4]), request.number, self.chunk()) for _ in range(copies)
            ]
        if len(self.on_the_way) > 1 and rng.random() < 0.3:
            rng.shuffle(self.on_the_way)
        for item in [x for x in self.on_the_way if x[0] <= now]:
            self.on_the_way.remove(item)
            if guards.finite_chunk(item[2], 7) is not None:
                self.dropped += 1
                scheduler._asked = None  # as a HOLD would
                continue
            found = scheduler.take(item[1], item[2], tick, now, plan)
            self.counts[found] = self.counts.get(found, 0) + 1
        step = scheduler.step(tick)
        return None if step is None else step.action


class Robots:
    """What is measured of all robots: impedance, and now and then something in the way."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self.x, self.v = np.tile(HOME.position, (n, 1)), np.zeros((n, 3))
        self.q, self.stuck, self._rng = np.tile(HOME.quaternion, (n, 1)), np.zeros(n, bool), rng

    def follow(self, x: np.ndarray, q: np.ndarray) -> None:
        self.before = self.x
        self.v = self.v + SERVO * (STIFFNESS * (x - self.x) - 2 * np.sqrt(STIFFNESS) * self.v)
        self.v[self.stuck] = 0
        self.x = self.x + SERVO * self.v
        turn = np.where(self.stuck[:, None], 0.0, 0.09) * frames.rotation_between(self.q, q)
        self.q = frames.quat_multiply(frames.exp_quat(turn), self.q)


def length(v: np.ndarray) -> np.ndarray:
    return np.linalg.norm(v, axis=-1)


@pytest.mark.parametrize("caps", [FIRST_RUN, Caps((0.5, 1.5), (6.0, 15.0), (300.0, 800.0))], ids=["first run", "fast"])
def test_all_that_is_sent_is_finite_in_the_box_within_the_caps_and_on_the_leash(caps):
    rng, settings = np.random.default_rng(11), ReferenceSettings(caps=caps)
    lines, robots = [Line(i) for i in range(ROBOTS)], Robots(ROBOTS, rng)
    ref = Reference(robots.x, robots.q, settings)
    one = Reference(
        HOME.position, HOME.quaternion, settings
    )  # async plans with one; its goals are not what is tested here
    ref.couple(*dynamics.coupling(np.array(SUITE_HOME), np.array([0.1, -0.1, 0.1, 0.3, 0.2, -0.2]))[:2])
    goal, width = (ref.position, ref.quaternion), rng.uniform(0, 0.08, ROBOTS)
    sent, worst, leashed_ever, clamped, commands = None, np.zeros(6), 0, 0, 0
    since = np.full(ROBOTS, 1000)  # servo ticks since the leash acted, which stands above the caps
    for tick in range(TICKS):
        said = [line.next(tick, one) for line in lines]
        there = np.array([a is not None for a in said])
        raw = np.array([np.zeros(7) if a is None else a for a in said])
        commands += len(raw)
        action, _ = guards.clip_action(raw, 1.0)
        x, q, acted = guards.clamp_goal(*ref.goal_of(action), width, SAFETY)
        clamped += sum(int(np.sum(a.where & there)) for a in acted)
        goal = np.where(there[:, None], x, goal[0]), np.where(there[:, None], q, goal[1])
        ref.aim(*goal)
        robots.stuck = rng.random(ROBOTS) < 0.1 if tick % 7 == 0 else robots.stuck
        for _ in range(round(PERIOD / SERVO)):
            low, high, ahead = guards.walls_ahead(ref.quaternion, ref.goal_quaternion, width, SAFETY)
            ref.advance(SERVO, caps.within(PANDA), low, high, ahead)
            on_leash = ref.leash(robots.x, robots.q, STIFFNESS)
            leashed_ever += int(on_leash.sum())
            since = np.where(on_leash, 0, since + 1)
            now = (ref.position, ref.quaternion, ref.twist, ref.acceleration, since)
            check(now, sent, robots, low, high, caps, settings, worst)
            sent = now
            robots.follow(now[0], now[1])
    counts = {
        k: sum(line.counts.get(k, 0) for line in lines)
        for k in ("taken", "duplicate", "out of order", "not asked", "late")
    }
    assert commands == ROBOTS * TICKS and clamped > 1000 and leashed_ever > 1000 and all(counts.values()), counts
    assert sum(line.dropped for line in lines) > 300
    print(caps, counts, "worst, of what is allowed:", worst.round(4), "leashed", leashed_ever, "clamped", clamped)
    assert worst.max() <= 1 + 1e-9, worst


def check(now, before, robots, low, high, caps, settings, worst) -> None:
    """Finite, in the box, on the leash at once; of velocity, acceleration and jerk the worst so far, as shares of the caps."""
    x, q, twist, a, since = now
    assert np.isfinite(x).all() and np.isfinite(q).all() and np.isfinite(twist).all()
    assert (x >= np.minimum(low, robots.x) - 1e-12).all() and (x <= np.maximum(high, robots.x) + 1e-12).all()
    assert length(x - robots.x).max() <= 20.0 / STIFFNESS and frames.angle_between(robots.q, q).max() <= 0.15
    if before is None:
        return
    # what the leash itself does, it does at once: it takes speed away from the robot off the model, and never adds any
    step = length(x - before[0]) - length(robots.x - robots.before)
    assert (step <= 2 * caps.velocity[0] * SERVO + 1e-12).all()
    at_wall = ((x <= low + 1e-6) | (x >= high - 1e-6)).any(
        1
    )  # where the leash has drawn the model to in front of a wall, too late to brake
    free = np.ones(ROBOTS, bool), *2 * [(since > 0) & ~(at_wall & (since <= 25))]
    for k, part in enumerate((slice(0, 3), slice(3, 6))):
        shares = (
            length(twist[:, part]) / caps.velocity[k],
            length(twist[:, part] - before[2][:, part]) / SERVO / caps.acceleration[k],
            length(a[:, part] - before[3][:, part]) / SERVO / caps.jerk[k],
        )
        for i, share in enumerate(shares):
            worst[2 * i + k] = max(worst[2 * i + k], share[free[i]].max(initial=0.0))
