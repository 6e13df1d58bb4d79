"""Whatever goes wrong, the robot holds or stops: at once, with the motion gone a tenth of a second after the cause can be seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from stand_ins import HOME, Stage

from env.franka import frames
from env.franka.clock import VirtualClock, WallClock
from env.franka.operator import AlwaysHeld, ScriptedOperator
from env.franka.recording import EpisodeRecorder
from env.franka.runner import RunnerSettings
from env.franka.safety import SafetySettings
from env.franka.types import ControlSettings, DeploymentError, RobotFault

GO = np.array([0.35, 0.2, 0.3, 0.05, 0.0, 0.1, -1.0])  # a good speed, in the box for as long as a test lasts
WHEN = 0.6  # s: when it happens, in full motion
FOREVER = 1e9
STILL = np.array([0.01, 0.02, 0.02])  # m/s and rad/s of the hand, rad/s of the fastest joint: what counts as standing


@dataclass
class Scene:
    """``cause(stage)`` is planned for ``WHEN``; it can be seen ``seen`` seconds later, by the event ``name``; then ``state``."""

    cause: Callable[[Stage], object]
    name: str
    state: str  # first of HOLD and STOPPED after it
    seen: float = 0.0
    say: Callable[[int], np.ndarray] = lambda k: GO
    held: tuple[tuple[float, float], ...] = ((0.0, FOREVER),)
    commands: tuple[tuple[float, str], ...] = ()


def put(**changes) -> Callable[[Stage], object]:
    """Sets attributes, ``part__name=value``."""

    def cause(stage: Stage) -> None:
        for key, value in changes.items():
            part, name = key.split("__")
            setattr(getattr(stage, part), name, value)

    return cause


def fault(kind: str, recoverable: bool = True) -> Callable[[Stage], object]:
    return put(arm__fail=RobotFault(kind, "as told", recoverable))


def force(newton: float) -> Callable[[Stage], object]:
    return put(arm__wrench=np.array([0, 0, newton, 0, 0, 0.0]))


def after(k: int, then) -> Callable[[int], object]:
    """GO for the first ``k`` calls; then what ``then`` gives."""
    return lambda call: GO if call < k else then(call)


def broken_reference(stage: Stage) -> None:
    stage.runner._servo.reference._v = (float("nan"), 0.0, 0.0)


def refuse(stage: Stage) -> None:
    def set_target(*args):
        raise ValueError("refused by the driver")

    stage.arm.set_target = set_target


def raises(error: Exception):
    def call(*args):
        raise error

    return call


def blind(stage: Stage) -> None:
    stage.runner._builder.build = raises(DeploymentError("no observation"))


def near_limit(stage: Stage) -> None:
    """Joint 4 at its end; and motion that would push it on, whichever it is: both ends of all joints are near."""
    stage.monitor.limits = type(stage.arm.limits)(
        stage.arm.joints - 0.05, stage.arm.joints + 0.05, *(getattr(stage.arm.limits, k) for k in REST)
    )


REST = ("dq_max", "ddq_max", "torque_max", "velocity", "acceleration", "jerk")
NOTHING = put()
CHUNK = 0.2  # s
SCENES = {
    "inference hangs for a second": Scene(put(policy__latency=1.0), "no_chunk", "HOLD", 0.6),
    "inference hangs for good": Scene(put(policy__latency=FOREVER), "no_chunk", "HOLD", 0.6),
    "camera freezes": Scene(put(eye__frozen=True), "camera_age.eye", "HOLD", 0.15),
    "camera is unplugged": Scene(put(eye__gone=True), "observation", "HOLD", 0.05),
    "policy says NaN": Scene(NOTHING, "finite", "HOLD", say=after(3, lambda k: GO * np.nan)),
    "policy says infinity": Scene(NOTHING, "finite", "HOLD", say=after(3, lambda k: np.full(7, -np.inf))),
    "policy says nonsense": Scene(NOTHING, "finite", "HOLD", say=after(3, lambda k: np.zeros((4, 3)))),
    "policy raises": Scene(NOTHING, "policy", "HOLD", say=after(3, raises(OSError("connection lost")))),
    "the interpreter is held up": Scene(lambda s: setattr(s.clock, "stall", 0.3), "servo_overrun", "HOLD", 0.31),
    "the disk is full": Scene(put(memory__problem="disk full"), "runner.HOLD", "HOLD"),
    "driver is killed": Scene(put(arm__dead=True), "fault.driver", "STOPPED"),
    "robot is heard no more": Scene(put(arm__deaf=True), "state_age", "STOPPED", 0.05),
    "user stop": Scene(fault("user_stop"), "fault.user_stop", "STOPPED"),
    "reflex": Scene(fault("reflex"), "fault.reflex", "STOPPED"),
    "communication breaks": Scene(fault("communication"), "fault.communication", "STOPPED"),
    "network is gone": Scene(fault("network", recoverable=False), "fault.network", "STOPPED"),
    "dead-man switch is let go": Scene(NOTHING, "runner.HOLD", "HOLD", held=((0.0, WHEN),)),
    "ESC": Scene(NOTHING, "operator.stop", "STOPPED", commands=((WHEN, "stop"),)),
    "SIGTERM": Scene(lambda s: s.runner.stop("SIGTERM"), "operator.stop", "STOPPED"),
    "contact": Scene(force(30.0), "contact", "HOLD"),
    "hard contact": Scene(force(-50.0), "contact", "STOPPED"),
    "force sensor says NaN": Scene(force(float("nan")), "contact", "STOPPED"),
    "commands are lost": Scene(put(arm__success=0.7), "success_rate", "STOPPED"),
    "reference model is not finite": Scene(broken_reference, "finite_target", "STOPPED"),
    "driver refuses": Scene(refuse, "fault.driver", "STOPPED"),
    "no observation": Scene(blind, "observation", "HOLD", 0.05),
    "joint near its end": Scene(near_limit, "joint_limit", "HOLD", 0.05),
}


class Stalling(VirtualClock):
    """Once ``stall`` is set, the next sleep takes so much longer."""

    stall = 0.0

    def sleep_until(self, t: float) -> None:
        longer, self.stall = self.stall, 0.0
        super().sleep_until(t + longer)


def play(scene: Scene, **kwargs) -> Stage:
    stage = Stage(
        scene.say, lambda c: ScriptedOperator(c, list(scene.held), list(scene.commands)), Stalling(), **kwargs
    )
    stage.clock.at(WHEN - 1e-6, lambda: scene.cause(stage))
    stage.run()
    return stage


def speed(stage: Stage, t: float) -> float:
    """Of the target that is streamed, at ``t``; 0 where nothing is."""
    return next(
        (float(np.linalg.norm(twist[:3])) for at, *_, twist in reversed(stage.arm.sent) if at <= t <= at + 0.01), 0.0
    )


@pytest.mark.parametrize("name", SCENES)
def test_the_robot_holds_or_stops(name):
    scene = SCENES[name]
    stage = play(scene)
    seen = next(e for e in stage.memory.events if e.name in ("runner.HOLD", "runner.STOPPED", "runner.FAULT"))
    assert stage.result.state == "STOPPED"  # a HOLD that nobody ends, in the end
    reached = next(e.name for e in stage.memory.events if e.name in ("runner.HOLD", "runner.STOPPED"))
    assert reached == f"runner.{scene.state}"
    # in time: the event is there as soon as the cause can be seen, and the target at rest a tenth of a second later
    assert stage.memory.first(scene.name).t_host <= WHEN + scene.seen + 0.01
    assert seen.t_host <= WHEN + scene.seen + 0.01
    if scene.seen < 0.3 and name != "no observation":
        assert speed(stage, WHEN - 0.01) > 0.05, "it was not even moving"
    assert speed(stage, seen.t_host + 0.1) < 2e-3
    late = [p for t, p, *_ in stage.arm.sent if t >= seen.t_host + 0.1]
    assert not late or np.ptp(late, 0).max() < 1e-3
    # and nothing that is not finite, on the way
    assert all(np.isfinite(np.concatenate([p, q, t])).all() for _, p, q, t in stage.arm.sent)
    # the log is whole
    assert stage.memory.verdict is None and len(stage.memory.ticks) >= WHEN / 0.05
    assert [t.number for t in stage.memory.ticks] == list(range(len(stage.memory.ticks)))
    assert not stage.arm.running and stage.arm.stops


@pytest.mark.robomimic
@pytest.mark.parametrize("name", SCENES)
def test_the_whole_arm_of_the_twin_stands_a_tenth_of_a_second_after_the_cause_can_be_seen(name):
    """Not what is commanded: what its hand and its joints do, from in full motion, in HOLD and STOPPED, and that it stays so."""
    pytest.importorskip("robosuite")
    from twin_arm import TwinArm

    scene = SCENES[name]
    stage = play(scene, arm=TwinArm, control=ControlSettings(collision_force=100.0, collision_torque=100.0))
    seen = WHEN + scene.seen
    stage.clock.sleep_until(max(stage.clock.now(), seen + 0.6))
    moving, still = stage.arm.motion(WHEN - 0.01, WHEN), stage.arm.motion(seen + 0.1, stage.clock.now())
    if scene.seen < 0.3 and name != "no observation":
        assert moving[0] > 0.1, "it was not even moving"
    assert (still <= STILL).all(), f"m/s, rad/s, fastest joint: {moving.round(3)}, then {still.round(4)}"


def test_two_chunks_of_nonsense_in_a_row_stop():
    scene = Scene(NOTHING, "finite", "HOLD", say=after(3, lambda k: GO * np.nan), held=((0.0, 0.9), (1.0, FOREVER)))
    stage = play(scene)
    assert [e.action for e in stage.memory.events if e.name == "finite"] == ["hold", "stop"]
    assert stage.result.reason == "finite" and stage.clock.now() < 1.2


def test_a_hold_is_left_by_a_new_press_when_its_cause_is_gone():
    """And motion fades in from where the robot is."""
    stage = Stage(lambda k: GO, lambda c: ScriptedOperator(c, [(0.0, 0.7), (0.8, 0.9), (1.2, FOREVER)]), Stalling())
    stage.clock.at(WHEN, lambda: force(30.0)(stage))
    stage.clock.at(1.0, lambda: force(0.0)(stage))  # the press at 0.8 came too early
    stage.run()
    names = [n for n in stage.memory.names() if n.startswith("runner.")]
    assert names[-4:] == ["runner.RUNNING", "runner.HOLD", "runner.RUNNING", "runner.IDLE"]
    again = [e.t_host for e in stage.memory.events if e.name == "runner.RUNNING"][1]
    assert 1.2 <= again <= 1.26
    assert speed(stage, again + 0.05) < 0.3 * speed(stage, again + 0.6)
    assert stage.result.steps == 60 and stage.result.state == "IDLE"


def test_a_fault_is_recovered_from_with_a_persons_word_three_times():
    presses = [(0.0, 1.0)] + [(k + 0.4, k + 1.0) for k in range(1, 6)]
    words = [(k + 0.2, "recover") for k in range(1, 6)]
    stage = Stage(
        lambda k: GO,
        lambda c: ScriptedOperator(c, presses, words),
        settings=RunnerSettings(speed_scale=1.0, max_steps=400, confirm_s=0.5),
    )
    for k in range(1, 6):
        stage.clock.at(k + 0.0, lambda: fault("reflex")(stage))
    stage.run()
    assert stage.arm.recoveries == 3 == stage.result.recoveries and stage.arm.starts == 4
    assert stage.result.state == "STOPPED" and "too often" in stage.result.reason
    states = [n.split(".")[1] for n in stage.memory.names() if n.startswith("runner.")]
    assert states[:7] == ["HOMING", "READY", "RUNNING", "FAULT", "RECOVERING", "IDLE", "READY"]
    # the target begins where the robot is, and fades in
    restart = next(i for i, (t, *_) in enumerate(stage.arm.sent) if t > 1.4)
    assert np.linalg.norm(stage.arm.sent[restart][3][:3]) < 0.01


def test_what_the_whole_stack_sends_is_in_the_box_on_the_leash_and_within_the_caps():
    """Full speed this way and that, and something in the way now and then."""
    rng = np.random.default_rng(3)
    table = HOME.position[2] - 0.05
    safety = SafetySettings(low=(0.35, -0.06, 0.0), high=(0.6, 0.05, 0.7), table=table, tilt=0.3, yaw=(-0.3, 0.3))
    say = lambda k: np.r_[rng.choice([-1e9, -1, 1, 3], 6), -1.0]  # noqa: E731
    stage = Stage(say, lambda c: AlwaysHeld(), safety=safety, settings=RunnerSettings(speed_scale=1.0, max_steps=160))
    near, inside = [], []
    state = stage.arm.state
    send = stage.arm.set_target

    def watch(x, q, twist):
        measured = state()
        near.append((np.linalg.norm(x - measured.position), frames.angle_between(q, measured.quaternion)))
        inside.append(x[2] + frames.lowest_fingertip(q, stage.hand.width))
        send(x, q, twist)

    stage.arm.set_target = watch
    for k in range(8):
        stage.clock.at(0.9 * k + 0.5, lambda: put(arm__blocked=True)(stage))
        stage.clock.at(0.9 * k + 0.8, lambda: put(arm__blocked=False)(stage))
    assert stage.run().steps == 160
    x, twist = (np.array([s[k] for s in stage.arm.sent]) for k in (1, 3))
    assert (x >= np.array(safety.low) - 1e-9).all() and (x <= np.array(safety.high) + 1e-9).all()
    assert min(inside) >= table - 1e-9
    assert np.max(near, 0)[0] <= 20 / 600 and np.max(near, 0)[1] <= 0.15
    assert np.linalg.norm(twist[:, :3], axis=1).max() <= 0.25 + 1e-9
    assert np.linalg.norm(twist[:, 3:], axis=1).max() <= 0.6 + 1e-9
    # each stage had its part, and says so
    assert {"clip", "workspace", "table", "tilt", "yaw", "leash"} <= set(stage.memory.names())
    assert np.ptp(x, 0).min() > 0.05


def test_a_gripper_that_is_jammed_is_an_event_and_no_fall():
    stage = Stage(lambda k: np.r_[GO[:6], 1.0 if k > 3 else -1.0], lambda c: AlwaysHeld())
    stage.clock.at(WHEN, lambda: put(hand__fails=True)(stage))
    assert stage.run().state == "IDLE" and "gripper" in stage.memory.names()


def test_shadow_sends_nothing():
    stage = Stage(lambda k: GO, lambda c: AlwaysHeld(), settings=RunnerSettings(mode="shadow", max_steps=20))
    assert stage.run().steps == 20
    assert not stage.arm.sent and not stage.arm.starts and not stage.hand.calls
    assert np.abs(stage.memory.ticks[-1].action[:3]).max() > 0.01  # but all is computed


# --------------------------------------------------------------------------------------------------- threads, wall clock


def real(say=lambda k: GO, seconds: float = 60.0, **kwargs) -> Stage:
    settings = RunnerSettings(speed_scale=0.3, max_steps=int(seconds * 20), hold_limit_s=0.3, confirm_s=0.1)
    return Stage(say, lambda c: AlwaysHeld(), WallClock(), settings=settings, **kwargs)


def moment(stage: Stage, name: str) -> float:
    return stage.memory.first(name).t_host


def test_a_servo_that_is_stuck_in_the_driver_is_seen_by_the_main_thread():
    stage, release = real(), threading.Event()
    send = stage.arm.set_target

    def stuck(*args):
        if len(stage.arm.sent) > 60:
            release.wait(5.0)
        send(*args)

    stage.arm.set_target = stuck
    stage.run()
    release.set()
    assert stage.result.state == "STOPPED" and {"servo_silent", "runner.HOLD"} <= set(stage.memory.names())
    held = moment(stage, "runner.HOLD") - stage.arm.sent[-2][0]
    assert held < 0.05 + 0.06, held


def test_an_interpreter_lock_that_is_held_for_long_ends_in_a_hold():
    import ctypes

    stage = real()
    sleeps = ctypes.PyDLL(None).usleep  # PyDLL keeps the interpreter's lock while it sleeps
    hog = threading.Timer(0.4, lambda: sleeps(300_000))
    stage.operator.pressed_since = lambda t: t < stage.clock.now() - 5 or "runner.RUNNING" not in stage.memory.names()
    hog.start()
    stage.run()
    assert stage.result.state == "STOPPED" and "held too long" in stage.result.reason
    assert {"servo_overrun", "servo_silent"} & {stage.memory.first("runner.HOLD").detail}


def test_a_policy_that_hangs_in_its_thread_holds_the_robot_and_nothing_else():
    release = threading.Event()
    stage = real(after(3, lambda k: (release.wait(5.0), GO)[1]))
    start = time.monotonic()
    stage.run()
    release.set()
    assert stage.memory.first("runner.HOLD").detail == "no_chunk" and time.monotonic() - start < 3.0
    assert stage.result.timing["servo_dt"]["p50"] < 8.0


def test_a_full_disk_holds_the_robot(tmp_path, monkeypatch):
    """With the real recorder, whose writes fail from some tick on."""
    monkeypatch.setattr("env.franka.recording._PATIENCE", 0.3)
    stage = real()
    recorder = EpisodeRecorder(tmp_path / "episode", "lift", stage.clock)
    inner = recorder._ticks.append

    def full(*args):
        if recorder._last is not None and recorder._last.number > 8:
            raise OSError(28, "No space left on device")
        return inner(*args)

    recorder._ticks.append = full
    stage.runner.connect()
    result = stage.runner.run(recorder)
    assert result.state == "STOPPED" and "recorder" in result.reason
    assert (tmp_path / "episode" / "events.jsonl").exists()
