"""A recorded episode, done again and looked at: the arm that replays it, and script/replay_episode.py."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from env.franka.clock import VirtualClock
from env.franka.episode import read_episode
from env.franka.robot_replay import ReplayRobot
from env.franka.types import ControlSettings, Gripper, Robot
from script import replay_episode
from tests.env.franka.recorded import CHUNK, record


class Recorded:
    """A policy that says what the ticks of ``given`` say, shifted by ``off``, to the input it was for."""

    act_steps, horizon_steps, action_dim = CHUNK, CHUNK, 7

    def __init__(self, given, off=0.0):
        self.given, self.off, self.seeds = given, off, []

    def __call__(self, observation):
        first = next(
            t.number
            for t in self.given
            if t.observation and np.allclose(t.observation.values["state"], observation["state"])
        )
        actions = [t.raw_action for t in self.given[first : first + CHUNK]]
        return np.array(actions + [np.zeros(7)] * (CHUNK - len(actions))) + self.off * (len(self.seeds) % 2)

    def reset(self, seed=None):
        self.seeds.append(seed)


def test_the_arm_does_what_was_recorded(tmp_path):
    given, clock = record(tmp_path / "e", 13), VirtualClock(50.0)
    robot = ReplayRobot(read_episode(tmp_path / "e"), clock)
    assert isinstance(robot, Robot) and isinstance(robot.gripper, Gripper) and len(robot) == 13
    robot.connect()
    robot.configure(ControlSettings())
    clock.sleep_until(51.0)
    assert np.array_equal(robot.state().position, given[0].robot.position) and not robot.state().moving
    robot.start()
    for seconds, row in ((0.0, 0), (0.049, 0), (0.05, 1), (0.33, 6), (9.0, 12)):
        clock.sleep_until(51.0 + seconds)
        state, then = robot.state(), given[row].robot
        assert state.t_host == clock.now() and state.t_robot == then.t_robot and state.moving
        for name in ("q", "dq", "position", "quaternion", "wrench"):
            assert np.array_equal(getattr(state, name), getattr(then, name))
        assert robot.gripper.state().width == given[row].gripper.width
    robot.set_target(np.ones(3), np.array([0, 0, 0, 1.0]), np.zeros(6))
    robot.gripper.goto(0.03, 0.1)
    assert robot.targets[0][0] == pytest.approx(9.0) and robot.gripper.commands == [(pytest.approx(9.0), "goto 0.030")]
    with pytest.raises(ValueError, match="not finite"):
        robot.set_target(np.ones(3), np.array([0, np.nan, 0, 1.0]), np.zeros(6))
    robot.stop()
    assert robot.recover() and not robot.state().moving


def test_the_table(tmp_path, capsys):
    given = record(tmp_path / "e", 13, verdict=80)
    replay_episode.main([str(tmp_path / "e"), "--picture", str(tmp_path / "e.png")])
    said = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", capsys.readouterr().out, re.M))
    error = [1e3 * np.linalg.norm(t.reference_position - t.robot.position) for t in given]
    assert said["reference - measured"].startswith(f"mean {np.mean(error):.1f}, max {np.max(error):.1f} mm")
    assert said["verdict"] == "80 (score 0.8)" and said["ticks"] == "13 in 0.60 s, 13 of them running"
    assert (
        said["inference"].startswith("mean 11.0")
        and said["tick"].startswith("mean 50.00")
        and said["events"] == "leash x1"
    )
    with Image.open(tmp_path / "e.png") as picture:
        assert picture.width == 990


def test_what_a_policy_would_have_done(tmp_path, capsys):
    """The recorded policy agrees with itself; one that says 0.5 more is 0.5 away on every axis. The episode's own seed is used."""
    given = record(tmp_path / "e", 14, seed=2, camera=True)
    same, other = Recorded(given), Recorded(given, off=0.5)
    for policy, mean in ((same, "0.0000, 0.0000   0.0000"), (other, "0.5000, 0.5000   0.5000")):
        replay_episode.replay(
            replay_episode.parse([str(tmp_path / "e"), "--checkpoint", "x.pt"]), lambda *_, policy=policy: policy
        )
        shown = capsys.readouterr().out
        assert shown.count(mean) == 7 and "x.pt, its own noise" in shown
    seeded = Recorded(record(tmp_path / "seeded", 5, about={"seed": 23}))
    replay_episode.replay(replay_episode.parse([str(tmp_path / "seeded"), "--checkpoint", "x.pt"]), lambda *_: seeded)
    assert seeded.seeds == [23, None] and "seed 23" in capsys.readouterr().out


def test_mistakes_have_sentences(tmp_path, capsys):
    given = record(tmp_path / "e", 5, verdict=30)

    def fails(*argv, load=lambda *_: Recorded(given)):
        try:
            replay_episode.replay(replay_episode.parse([str(a) for a in argv]), load)
        except ValueError as error:
            return str(error)
        return ""

    class Other(Recorded):
        def __call__(self, observation):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    assert "none of this policy's" in fails(tmp_path / "e", "--checkpoint", "x", load=lambda *_: Other(given))
    assert "--collect needs --task" in fails(tmp_path / "e", "--collect", tmp_path / "out.hdf5")
    assert "none has a score of 0.5" in fails(tmp_path / "e", "--collect", tmp_path / "out.hdf5", "--task", "lift")
    assert not fails(tmp_path / "e", "--collect", tmp_path / "out.hdf5", "--task", "lift", "--least-score", "30")
    assert "1 of 1 episodes" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        replay_episode.main([str(tmp_path / "nothing")])
    assert "found neither" in capsys.readouterr().err
