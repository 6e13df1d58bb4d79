"""The pure stages of the safety layer, the gripper's worker and the operator's switch."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from stand_ins import HOME, Hand, Memory, Stage

from env.franka import frames, guards, kinematics
from env.franka.clock import VirtualClock, WallClock
from env.franka.gripper import GripperSettings, GripperWorker
from env.franka.limits import PANDA
from env.franka.machine import SUITE_HOME
from env.franka.operator import AlwaysHeld, KeyboardOperator, ScriptedOperator, stop_on_signals
from env.franka.runner import RunnerSettings
from env.franka.safety import SafetyMonitor, SafetySettings
from env.franka.types import DeploymentError

SAFE = SafetySettings(low=(0.3, -0.2, 0.0), high=(0.6, 0.3, 0.5), table=0.1, clearance=0.01, tilt=0.5, yaw=(-0.4, 1.0))
DOWN = Rotation.from_euler("x", np.pi)


def acted(found) -> set[str]:
    return {a.name for a in found if a.where}


def clamp(x, turn, width=0.04):
    return guards.clamp_goal(np.array(x, float), turn.as_quat(), width, SAFE)


@pytest.mark.parametrize(
    ("chunk", "problem"),
    [
        (np.zeros((4, 7)), None),
        (np.full((4, 7), np.nan), "28 of 28"),
        (np.r_[np.zeros(27), np.inf].reshape(4, 7), "1 of 28"),
        (np.zeros((4, 6)), r"shape \(4, 6\) instead of \(T, 7\)"),
        (np.zeros(7), "shape"),
        (np.zeros((0, 7)), "shape"),
        (None, "instead of"),
        ("nonsense", "str instead of numbers"),
    ],
)
def test_a_chunk_must_be_finite_numbers(chunk, problem):
    found = guards.finite_chunk(chunk, 7)
    assert found is None if problem is None else re.search(problem, found)


def test_actions_are_clipped_and_scaled_but_for_the_gripper():
    action, found = guards.clip_action(np.array([2.0, -0.5, 0, 0, 0, -3.0, -1.5]), 0.3)
    assert np.allclose(action, [0.3, -0.15, 0, 0, 0, -0.3, -1.0]) and acted(found) == {"clip"}
    assert not acted(guards.clip_action(np.array([1.0, -1.0, 0.5]), 1.0)[1])


def test_goals_stay_in_the_box_and_over_the_table():
    x, q, found = clamp([0.9, -0.5, 0.3], DOWN)
    assert (
        np.allclose(x, [0.6, -0.2, 0.3])
        and acted(found) == {"workspace"}
        and np.allclose(np.abs(q), np.abs(DOWN.as_quat()))
    )
    x, _, found = clamp([0.4, 0.0, 0.05], DOWN)
    assert np.isclose(x[2], 0.1 + 0.01 + frames.FINGERTIP_DEPTH) and acted(found) == {"table"}
    # a hand that leans over one finger reaches deeper with it, the deeper the wider it is open
    lean = Rotation.from_euler("x", 0.3) * DOWN
    narrow, wide = (clamp([0.4, 0.0, 0.0], lean, w)[0][2] for w in (0.0, 0.08))
    assert wide - narrow == pytest.approx(0.04 * np.sin(0.3))
    lowest = frames.lowest_fingertip(lean.as_quat(), 0.08)
    assert wide + lowest == pytest.approx(0.11)
    assert not acted(clamp([0.4, 0.1, 0.2], DOWN)[2])


def test_goals_stay_in_the_cone_and_within_the_yaw():
    for axis in ([1, 0, 0], [0.6, -0.8, 0]):
        _, q, found = clamp([0.4, 0, 0.3], Rotation.from_rotvec(0.9 * np.array(axis)) * DOWN)
        assert acted(found) >= {"tilt"}
        tilt = np.arccos(-frames.quat_rotate(q, np.array([0, 0, 1.0]))[2])
        assert tilt == pytest.approx(0.5, abs=1e-9)
    for angle, kept in ((1.5, 1.0), (-1.0, -0.4), (0.7, 0.7), (-2.6, -0.4)):
        _, q, found = clamp([0.4, 0, 0.3], Rotation.from_euler("z", angle) * DOWN)
        x_axis = frames.quat_rotate(q, np.array([1.0, 0, 0]))
        assert np.arctan2(x_axis[1], x_axis[0]) == pytest.approx(kept) and acted(found) == (
            {"yaw"} if angle != kept else set()
        )
    _, q, found = clamp([0.4, 0, 0.3], Rotation.identity())  # straight up: every way down is as long
    assert "tilt" in acted(found) and np.arccos(-frames.quat_rotate(q, np.array([0, 0, 1.0]))[2]) == pytest.approx(0.5)


def test_many_goals_are_clamped_as_one_by_one():
    rng = np.random.default_rng(5)
    x, turns, width = (
        rng.uniform(-1, 1, (41, 3)),
        Rotation.random(41, random_state=2).as_quat(),
        rng.uniform(0, 0.08, 41),
    )
    many = guards.clamp_goal(x, turns, width, SAFE)
    for i in range(41):
        one = guards.clamp_goal(x[i], turns[i], width[i], SAFE)
        assert np.allclose(many[0][i], one[0]) and np.allclose(many[1][i], one[1])
        assert [bool(a.where[i]) for a in many[2]] == [bool(a.where) for a in one[2]]


def test_joints_slow_down_refuse_and_let_back():
    q = np.array(SUITE_HOME)
    J = kinematics.jacobian(q)
    towards = J @ np.eye(7)[5] * 0.02  # joint 6 up
    at = lambda distance: dataclasses.replace(PANDA, q_max=np.where(np.arange(7) == 5, q + distance, PANDA.q_max))  # noqa: E731
    judge = lambda step, distance: guards.joint_guard(q, step, SAFE, at(distance)).scale  # noqa: E731
    assert [judge(towards, d) for d in (0.5, 0.15, 0.05)] == [1.0, SAFE.slow, 0.0]
    assert judge(-towards, 0.05) == 1.0 and judge(np.zeros(6), 0.05) == 1.0


def test_an_outstretched_arm_goes_back_and_no_further():
    q = np.array([0.0, 0.6, 0.0, -0.38, 0.0, 1.2, 0.785])
    out = kinematics.grip_site(q).position - np.array([0, 0, 0.333])
    step = np.r_[0.01 * out / np.linalg.norm(out), 0, 0, 0]
    limits = dataclasses.replace(PANDA, q_max=PANDA.q_max + 1)
    refused = guards.joint_guard(q, step, SAFE, limits)
    assert refused.refused and {a.name for a in refused.acted if a.where} == {"singular"}
    assert not guards.joint_guard(q, -step, SAFE, limits).refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low": (1, 0, 0)}, "low below high"),
        ({"joint_hard": 0.3}, "joint_hard must be positive and at most safety.joint_soft"),
        ({"force_hold": 90.0}, "force_hold"),
        ({"success_stop": 0.95}, "success_stop"),
        ({"yaw": (1.0, -1.0)}, "safety.yaw"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(change, words):
    with pytest.raises(DeploymentError, match=words):
        SafetySettings(**change)


def test_a_stage_that_keeps_acting_is_logged_once_a_second():
    clock, memory = VirtualClock(), Memory()
    monitor = SafetyMonitor(SAFE, clock)
    monitor.begin(memory)
    for k in range(45):
        clock.sleep_until(0.05 * k)
        monitor.action(np.full(7, 2.0), 1.0)
    assert [round(e.t_host, 2) for e in memory.events] == [0.0, 1.0, 2.0] and memory.events[0].found == 2.0


# ------------------------------------------------------------------------------------------------------------- gripper


def test_the_gripper_has_hysteresis_and_a_dwell():
    clock = VirtualClock()
    hand = Hand(clock)
    worker = GripperWorker(hand, clock)
    for k, value in enumerate([-1, -0.3, 0.4, 0.6, -0.9, 0.9, np.nan, *[0.2] * 6, *[0.9] * 2, *[-0.7] * 15]):
        clock.sleep_until(0.05 * k)
        worker.wish(value)
        worker.tick(clock.now())
    # two changes of mind are 0.6 s apart, and what is between the thresholds changes nothing
    assert [(round(t, 2), name) for t, name in hand.calls] == [(0.0, "goto"), (0.65, "grasp"), (1.25, "goto")]
    assert worker.closed is False and worker.state.width == 0.08
    hand.calls.clear()
    clock.sleep_until(3.0)
    assert worker.wish(0.51) and not worker.wish(-1.0)
    worker.tick(3.0)
    assert [name for _, name in hand.calls] == ["grasp"] and worker.closed


def test_a_grasp_that_takes_long_is_interrupted_and_keeps_nobody_waiting():
    clock = WallClock()
    hand = Hand(clock)
    let_go = threading.Event()
    hand.grasp = lambda force, speed: let_go.wait(5.0)
    stop = hand.stop
    hand.stop = lambda: (stop(), let_go.set())
    worker = GripperWorker(hand, clock, GripperSettings(dwell=0.15, poll=0.02))
    worker.start()
    start = time.monotonic()
    assert worker.wish(1.0)
    time.sleep(0.2)
    assert worker.state is not None and time.monotonic() - worker.state.t_host < 0.15  # looked at while it moves
    assert worker.wish(-1.0) and time.monotonic() - start < 1.0
    deadline = time.monotonic() + 3.0
    while not any(name == "goto" for _, name in hand.calls) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [name for _, name in hand.calls] == ["stop", "goto"]
    worker.close()


# ------------------------------------------------------------------------------------------------------------ operator


def test_the_space_bar_is_held_while_it_repeats_and_let_go_within_a_tenth_of_a_second():
    clock = VirtualClock()
    keyboard = KeyboardOperator(clock)
    seen = []
    for t in (0.0, 0.4, 0.45, 0.5, 0.55):  # pressed; after the terminal's delay it repeats
        clock.sleep_until(t)
        keyboard.keys(" ")
        seen.append(keyboard.held())
    assert seen == [False, False, True, True, True] and keyboard.pressed_since(0.4) and not keyboard.pressed_since(0.46)
    clock.sleep_until(0.64)
    assert keyboard.held()
    clock.sleep_until(0.66)
    assert not keyboard.held()
    keyboard.keys("\x1bqrx")
    assert [keyboard.command() for _ in range(4)] == ["stop", "quit", "recover", None]


def test_a_terminal_is_needed():
    with pytest.raises(DeploymentError, match="terminal"), KeyboardOperator(VirtualClock()):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_deferred(number):
    seen = []
    before = signal.getsignal(number)
    with stop_on_signals(seen.append):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert seen == [number.name]
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                time.sleep(0.5)
    assert signal.getsignal(number) is before


def test_the_way_to_the_start_needs_the_switch_and_running_a_new_press():
    stage = Stage(lambda k: np.zeros(7), lambda c: ScriptedOperator(c, [(0.5, 0.8), (1.0, 9.0)]))
    moved = []

    def move(q, speed):
        moved.append(stage.clock.now())
        stage.clock.sleep_until(stage.clock.now() + 0.2)

    stage.arm.move_joints = move
    stage.run()
    assert moved[0] == pytest.approx(0.5, abs=0.03)
    # pressed at 0.5 for the way there; READY came after that press, so it takes the next
    assert stage.memory.first("runner.RUNNING").t_host == pytest.approx(1.0, abs=0.03)


def test_letting_go_on_the_way_to_the_start_stops_it():
    clock = WallClock()
    start = clock.now()
    stage = Stage(lambda k: np.zeros(7), lambda c: ScriptedOperator(c, [(start, start + 0.3)]), clock)
    stopped = threading.Event()
    stage.arm.move_joints = lambda q, speed: stopped.wait(5.0)
    stage.arm.stop = stopped.set
    result = stage.run()
    assert result.state == "STOPPED" and "let go" in result.reason and clock.now() - start < 2.0


def test_an_episode_ends_where_the_task_is_solved_and_another_may_follow():
    stage = Stage(lambda k: np.r_[0, 0, 0.4, 0, 0, 0, 0], lambda c: AlwaysHeld(), finished=None)
    stage.runner._finished = lambda: stage.arm.x[2] > HOME.position[2] + 0.03
    first = stage.run()
    assert first.success and first.state == "IDLE" and first.reason == "solved" and 5 < first.steps < 30
    assert stage.memory.verdict is None and not stage.arm.running
    again = stage.runner.run(stage.memory, verdict=lambda result: "success" if result.success else "failure")
    assert again.steps == first.steps and stage.memory.verdict == "success"
    assert again.timing["servo_dt"]["n"] > 50
    stage.runner.close(), stage.runner.close()
    assert stage.runner.state == "DISCONNECTED"
    with pytest.raises(DeploymentError, match="connect"):
        stage.runner.run(stage.memory)


def test_an_episode_does_not_begin_outside_of_the_workspace():
    stage = Stage(
        lambda k: np.zeros(7),
        lambda c: AlwaysHeld(),
        safety=dataclasses.replace(SAFE, table=None, high=(0.4, 0.3, 0.5)),
    )
    with pytest.raises(DeploymentError, match="outside of the workspace"):
        stage.run()
    assert not stage.arm.sent and not stage.arm.running


def test_what_is_wrong_in_our_own_code_stops_the_robot_and_is_raised():
    stage = Stage(lambda k: np.zeros(7), lambda c: AlwaysHeld(), settings=RunnerSettings(max_steps=9))
    stage.runner._builder.build = lambda *a: 1 / 0
    with pytest.raises(ZeroDivisionError):
        stage.run()
    assert stage.runner.state == "STOPPED" and not stage.arm.running and stage.memory.verdict is None
