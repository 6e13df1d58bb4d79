"""Chunks on the grid of ticks: punctual, late, early, missing, doubled and out of order, in each of the four modes."""

from __future__ import annotations

import numpy as np
import pytest
from stand_ins import Stage

from env.franka.operator import AlwaysHeld
from env.franka.reference import Caps, Reference, ReferenceSettings
from env.franka.runner import RunnerSettings
from env.franka.schedule import ChunkScheduler, ScheduleSettings
from env.franka.types import DeploymentError

DT = 0.05
FREE = ReferenceSettings(caps=Caps(), coupled=False)


def reference() -> Reference:
    return Reference(np.zeros(3), np.array([0, 0, 0, 1.0]), FREE)


def plan(ref, raw):
    return ref.goal_of(raw)


def chunk(value: float, n: int = 4) -> np.ndarray:
    """Actions value, value + 0.01, ... along x."""
    actions = np.zeros((n, 7))
    actions[:, 0] = value + 0.01 * np.arange(n)
    return actions


def x_of(step) -> float | None:
    return None if step is None else round(float(step.action[0]), 9)


class Desk:
    """A scheduler whose questions are answered by hand."""

    def __init__(self, act=4, horizon=4, **settings) -> None:
        self.s = ChunkScheduler(ScheduleSettings(**settings), act, horizon, DT)
        self.s.reset(0.0)
        self.ref = reference()

    def ask(self, tick):
        return self.s.ask(tick, self.ref, plan)

    def take(self, number, value, tick, now=None, n=None):
        return self.s.take(number, chunk(value, n or self.s.horizon), tick, tick * DT if now is None else now, plan)

    def step(self, tick):
        return x_of(self.s.step(tick))


def test_sync_starts_a_chunk_where_it_arrives_and_asks_when_it_is_used_up():
    d = Desk()
    assert d.ask(0).start == 0 and d.ask(0) is None  # asked once
    assert d.take(0, 0.1, 0) == "taken"
    assert [d.step(t) for t in range(4)] == [0.1, 0.11, 0.12, 0.13]
    r = d.ask(4)
    assert (
        r.number == 1 and d.step(4) is None and d.step(5) is None
    )  # the answer is late: nothing, and the reference coasts
    assert d.take(1, 0.5, 6) == "taken"
    assert [d.step(t) for t in range(6, 10)] == [0.5, 0.51, 0.52, 0.53]


def test_doubled_lost_and_reordered_answers_change_nothing():
    d = Desk()
    d.ask(0), d.take(0, 0.1, 0)
    assert d.take(0, 0.9, 1) == "duplicate" and d.take(7, 0.9, 1) == "not asked"
    assert d.step(1) == 0.11
    number = d.ask(4).number
    assert d.take(number, 0.3, 4) == "taken" and d.take(0, 0.9, 5) == "out of order"
    assert d.step(5) == 0.31
    d.s.reset(1.0)  # a HOLD: what was asked for is given up
    assert d.s.remaining(0) == 0 and d.ask(0).number == 2
    assert d.take(1, 0.9, 0) == "duplicate" and d.take(2, 0.7, 0) == "taken"


def test_a_tick_is_executed_once():
    d = Desk()
    d.ask(0), d.take(0, 0.1, 0), d.step(3)
    with pytest.raises(ValueError, match="tick 3 after tick 3"):
        d.step(3)


def test_async_answers_are_rolled_through_the_reference_to_absolute_goals():
    d = Desk(mode="async", latency=0.09)
    first = d.ask(0)
    assert first.start == 2 and first.expected is not None
    assert d.take(0, 0.1, 0) == "taken" and d.step(0) is None  # early: it waits for its tick
    # asked again while two steps are left, for when they are used up, from where the reference will be then
    assert [d.ask(t) for t in (2, 3)] == [None, None]
    goals = [d.s.step(t).goal for t in (2, 3)]
    mirror = reference()
    for goal, action in zip(goals, chunk(0.1)):
        expected = mirror.goal_of(action)
        assert np.allclose(goal[0], expected[0])
        mirror.aim(*expected), mirror.advance(DT)
    d.ref = mirror.copy()
    second = d.ask(4)
    assert second.start == 6
    for action in chunk(0.1)[2:]:
        mirror.aim(*mirror.goal_of(action)), mirror.advance(DT)
    assert np.allclose(second.expected.position, mirror.position) and np.allclose(second.expected.twist, mirror.twist)
    # it comes so late that one step is past: dropped, but its motion is in the goals of those that follow
    assert d.take(1, 0.5, 7, now=7 * DT - 0.002) == "taken"
    step = d.s.step(7)
    assert x_of(step) == 0.51 and step.chunk == 1
    mirror.aim(*mirror.goal_of(chunk(0.5)[0])), mirror.advance(DT)
    assert np.allclose(step.goal[0], mirror.goal_of(chunk(0.5)[1])[0])


def test_async_drops_an_answer_that_is_past():
    d = Desk(mode="async", latency=0.05)
    d.ask(0)
    assert d.take(0, 0.1, 9) == "late" and d.step(9) is None and d.ask(10) is not None


def test_ensemble_weighs_the_oldest_most():
    d = Desk(act=2, horizon=4, mode="ensemble", decay=0.5)
    assert d.ask(0).start == 0 and d.take(0, 0.1, 0) == "taken"
    assert [d.step(t) for t in range(2)] == [0.1, 0.11]
    assert d.ask(2).start == 2 and d.take(1, 0.4, 2) == "taken"
    w = np.exp(-0.5 * np.arange(2))
    assert d.step(2) == pytest.approx((w @ [0.12, 0.4]) / w.sum(), abs=1e-8)
    assert d.step(3) == pytest.approx((w @ [0.13, 0.41]) / w.sum(), abs=1e-8)
    assert d.step(4) == pytest.approx(0.42)


def test_rtc_freezes_what_will_be_executed_and_blends_what_follows():
    d = Desk(act=3, horizon=8, mode="rtc", latency=0.1)
    assert d.ask(0).prefix is None and d.take(0, 0.1, 0) == "taken"
    assert [d.step(t) for t in range(3)] == [0.1, 0.11, 0.12]
    r = d.ask(3)
    assert r.start == 3 and np.allclose(r.prefix[:, 0], [0.13, 0.14, 0.15, 0.16, 0.17, 0, 0, 0])
    c = np.array([3, 2, 1]) / 4  # (H - s - i) / (H - s - d + 1) for i = 2, 3, 4
    assert np.allclose(r.weights, [1, 1, *(c * np.expm1(c) / np.expm1(1)), 0, 0, 0])
    assert [d.step(t) for t in (3, 4)] == [0.13, 0.14]  # the old one goes on
    assert d.take(1, 0.5, 5, now=4.8 * DT) == "taken"
    w = r.weights[2]
    assert d.step(5) == pytest.approx(w * 0.15 + (1 - w) * 0.52) and d.ask(5) is None
    assert d.ask(6) is not None


@pytest.mark.parametrize(
    ("settings", "act", "horizon", "words"),
    [
        ({"mode": "rtc"}, 4, 4, "horizon_steps = act_steps"),
        ({"mode": "ensemble"}, 4, 4, "sync or async"),
        ({"mode": "rtc", "latency": 0.3}, 5, 8, "d <= s <= H - d"),
        ({"mode": "async", "latency": 0.3}, 4, 4, "more than a chunk's 4"),
        ({}, 5, 4, "act_steps = 5"),
        ({"mode": "later"}, 4, 4, "one of sync, async"),
        ({"latency": -1.0}, 4, 4, "not negative"),
    ],
)
def test_what_does_not_fit_is_refused(settings, act, horizon, words):
    with pytest.raises(DeploymentError, match=words):
        ChunkScheduler(ScheduleSettings(**settings), act, horizon, DT)


# ----------------------------------------------------------------------------------------------- through the whole runner


def episode(mode: str, latency: float, act=4, horizon=4, say=None, **schedule):
    stage = Stage(
        say or (lambda k: np.r_[0.2 * np.sin(0.9 * k), 0.15, 0.1, 0, 0, 0.1, -1.0]),
        lambda c: AlwaysHeld(),
        act_steps=act,
        horizon_steps=horizon,
        settings=RunnerSettings(speed_scale=1.0, max_steps=48, ramp_s=0.0),
        schedule=ScheduleSettings(mode, latency=schedule.pop("expected", latency), **schedule),
        reference=ReferenceSettings(caps=Caps()),
    )
    stage.policy.latency = latency
    stage.run()
    return stage


def jerkiness(stage) -> float:
    """The largest change of velocity between two targets, m/s."""
    return float(np.abs(np.diff([t[3][:3] for t in stage.arm.sent], axis=0)).max())


def test_async_hides_the_latency_and_sync_waits_for_it():
    fast, slow, hidden = episode("sync", 0.0), episode("sync", 0.09), episode("async", 0.09)
    assert [s.result.steps for s in (fast, slow, hidden)] == [48, 48, 48]
    seconds = [len(s.memory.ticks) * DT for s in (fast, slow, hidden)]
    assert seconds[0] == pytest.approx(2.4) and seconds[1] >= 2.4 + 11 * 0.1 - 0.01  # two ticks of each chunk
    assert seconds[2] <= 2.4 + 0.15  # only the first is waited for
    assert jerkiness(hidden) < 1.3 * jerkiness(fast)


def test_a_latency_that_was_underestimated_costs_steps_and_no_jump():
    late = episode("async", 0.14, expected=0.06)
    assert late.result.state == "IDLE" and jerkiness(late) < 2 * jerkiness(episode("sync", 0.0))
    assert any(np.isnan(t.raw_action).all() for t in late.memory.ticks[4:])


@pytest.mark.parametrize("mode", ["ensemble", "rtc"])
def test_overlapping_chunks_run_without_a_gap(mode):
    stage = episode(mode, 0.09, act=3, horizon=8)
    gaps = [np.isnan(t.raw_action).all() for t in stage.memory.ticks]
    assert not any(gaps[3:]) and stage.result.steps == 48


def test_a_policy_that_minds_prefix_and_weights_is_given_them_and_not_blended_again():
    class Minds:
        act_steps, horizon_steps, action_dim, latency = 3, 8, 7, 0.0

        def __init__(self):
            self.given = []

        def reset(self, seed=None): ...

        def __call__(self, observation, prefix=None, weights=None):
            self.given.append((prefix, weights))
            return chunk(0.1 * len(self.given), 8)

    policy = Minds()
    stage = Stage(lambda k: 0, lambda c: AlwaysHeld(), settings=RunnerSettings(max_steps=9))
    stage.policy = policy
    from stand_ins import Plain

    from env.franka.runner import EpisodeRunner

    stage.runner = EpisodeRunner(
        stage.arm, None, {}, Plain(), policy, monitor=stage.monitor, operator=stage.operator, clock=stage.clock,
        settings=RunnerSettings(max_steps=9), schedule=ScheduleSettings("rtc"),
    )  # fmt: skip
    stage.run()
    assert policy.given[0] == (None, None) and policy.given[1][0].shape == (8, 7) and policy.given[1][1].shape == (8,)
    # the answer is there at the tick itself, too late for it by the execution latency; then as it said, whatever the weights
    assert [t.raw_action[0] for t in stage.memory.ticks[3:5]] == pytest.approx([0.13, 0.21])


def test_raw_and_executed_actions_are_recorded_with_the_inference_they_came_from():
    stage = episode("sync", 0.02, say=lambda k: np.r_[2.0, 0.1, 0, 0, 0, 0, -1.0])
    tick = next(t for t in stage.memory.ticks if np.isfinite(t.raw_action).all())
    assert tick.raw_action[0] == 2.0 and tick.action[0] == pytest.approx(1.0) and tick.action[1] == pytest.approx(0.1)
    assert tick.t_infer_end - tick.t_infer_start == pytest.approx(0.02)
    assert "clip" in stage.memory.names()
