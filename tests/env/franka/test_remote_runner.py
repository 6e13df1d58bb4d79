"""A robot whose policy is elsewhere, in real time: the server dies, hangs or is slow, and the robot holds or goes on, smoothly."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading

import numpy as np
import pytest
from stand_ins import BOX, Stage

from env.franka.clock import WallClock
from env.franka.operator import AlwaysHeld
from env.franka.remote import RemotePolicy
from env.franka.runner import RunnerSettings
from tests.env.franka.policy_process import observation, served_elsewhere

CHUNK = 0.2  # s: 4 ticks
# this machine may be busy with other things: only the policy is judged here
PATIENT = dataclasses.replace(BOX, state_age=2.0, servo_hold=2.0, servo_stop=4.0, camera_hold=2.0, camera_stop=4.0)


def episode(remote: RemotePolicy, seconds: float = 60.0, **safety) -> Stage:
    """A stage whose policy asks ``remote``, always the same. The dead-man switch is held from the start, and not pressed anew."""
    settings = RunnerSettings(speed_scale=0.3, max_steps=int(seconds * 20), hold_limit_s=0.3)
    safety, seen = dataclasses.replace(PATIENT, **safety), observation(3)
    say = lambda call: np.repeat(remote(seen), 2, axis=0)[:4]  # noqa: E731
    stage = Stage(say, lambda clock: AlwaysHeld(), WallClock(), safety, settings=settings)
    stage.operator.pressed_since = lambda t: "runner.RUNNING" not in stage.memory.names()
    return stage


@pytest.mark.parametrize(("blow", "cause"), [(signal.SIGKILL, "policy"), (signal.SIGSTOP, "no_chunk")])
def test_a_server_that_dies_in_mid_episode_holds_the_robot(blow, cause):
    """At the latest when the chunk is used up and the next one cannot be had; and at rest 100 ms later."""
    with served_elsewhere() as (child, port):
        stage = episode(RemotePolicy(f"ws://127.0.0.1:{port}", timeout=0.3))
        struck = []
        threading.Timer(0.7, lambda: (struck.append(stage.clock.now()), os.kill(child.pid, blow))).start()
        stage.run()
    held = stage.memory.first("runner.HOLD")
    late = held.t_host - struck[0]
    assert held.detail == cause and 0 <= late < 2 * CHUNK + 0.3, (held, late)
    assert stage.result.state == "STOPPED" and "held too long" in stage.result.reason
    speeds = [(t - held.t_host, np.linalg.norm(twist[:3])) for t, *_, twist in stage.arm.sent]
    assert max(v for t, v in speeds if t < 0) > 0.02, "it was not even moving"
    assert all(v < 2e-3 for t, v in speeds if t > 0.1)


def test_three_hundred_milliseconds_are_too_many_for_a_chunk_of_two_hundred():
    """Nothing to do for longer than the safety layer bears: HOLD, from which a person lets it go on."""
    with served_elsewhere("0.3") as (_, port):
        stage = episode(RemotePolicy(f"ws://127.0.0.1:{port}", timeout=5.0))
        stage.run()
    assert stage.memory.first("runner.HOLD").detail == "no_chunk" and stage.result.state == "STOPPED"


def test_where_they_are_allowed_they_make_it_slow_and_nothing_else():
    with served_elsewhere("0.3") as (_, port):
        remote = RemotePolicy(f"ws://127.0.0.1:{port}", timeout=5.0)
        stage = episode(remote, seconds=0.8, chunk_times=9.0)
        result = stage.run()
    assert result.state == "IDLE" and result.steps == 16 and "runner.HOLD" not in stage.memory.names()
    assert result.seconds > 4 * (CHUNK + 0.25) and remote.infer_ms >= 300
    velocity = np.array([twist[:3] for *_, twist in stage.arm.sent])
    assert 0.02 < np.linalg.norm(velocity, axis=1).max() < 0.25
