"""Recorded Lift episodes, from the engine and from genuine robosuite, replayed in the engine (bar 6, small)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("robosuite")

from agent.dataset.robomimic_hdf5 import RobomimicFile
from env.engine.pool import Simulations
from env.errors import EnvError
from env.registry import family
from env.robomimic.replay import Recording, _columns, _place, replay
from script import process_robomimic_dataset as process
from tests.robomimic_files import engine_demos, env_args, model_with, robosuite_demos, suite_args, write_file

pytestmark = pytest.mark.robomimic


@pytest.fixture(scope="module")
def lift():
    return family("lift")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """HDF5 files of either source."""
    folder = tmp_path_factory.mktemp("recorded")
    return {
        "engine": write_file(folder / "engine.hdf5", engine_demos(7), env_args()),
        "robosuite": write_file(folder / "robosuite.hdf5", robosuite_demos(3), suite_args()),
    }


def recordings(path):
    with RobomimicFile(path) as file:
        for name in file.names():
            demo = file.read(name)
            states, xml = file.physics(name)
            yield Recording(name, states, demo.actions, demo.rewards, xml)


def test_the_engines_own_recordings_replay_to_the_bit(lift, files):
    results = replay(lift, list(recordings(files["engine"])), n_threads=1, every_step=True)
    assert [r.final for r in results] == [0.0] * 7 and all(r.same for r in results)
    assert [r.solved for r in results] == [r.recorded_solved for r in results]
    assert sum(r.solved for r in results) >= 5
    assert max(r.step for r in results) < 1e-12


def test_robosuites_recordings_end_in_the_same_state(lift, files):
    """Six digits of the model, as robosuite keeps it, are all that differs."""
    results = replay(lift, list(recordings(files["robosuite"])), n_threads=1, every_step=True)
    assert all(r.same or r.chaotic for r in results) and sum(r.same for r in results) >= 2
    assert max(r.step for r in results) < 1e-6
    assert all(r.solved and r.recorded_solved for r in results)


@pytest.mark.parametrize(("task", "steps"), [("can", 41), ("square", 37), ("transport", 31)])
def test_the_other_tasks_replay(task, steps, tmp_path):
    """Of robosuite's recordings the joints of objects that the engine leaves out are ignored."""
    own = write_file(tmp_path / "own.hdf5", engine_demos(2, task, steps), env_args(task))
    theirs = write_file(tmp_path / "theirs.hdf5", robosuite_demos(2, task, steps), suite_args(task))
    results = replay(family(task), list(recordings(own)), n_threads=1)
    assert [r.final for r in results] == [0.0, 0.0]
    assert first_observation_difference(theirs, task) < 1e-6
    results = replay(family(task), list(recordings(theirs)), n_threads=1, every_step=True)
    assert all(r.same or r.chaotic for r in results) and any(r.same for r in results), results


def test_observations_of_both_sources_are_in_the_same_arrangement(files):
    """1.5's sign is turned: the last three columns are gripper minus cube."""
    for path in files.values():
        with RobomimicFile(path) as file:
            states = file.read("demo_1").states
        np.testing.assert_allclose(states[:, 16:], states[:, :3] - states[:, 9:12], atol=2e-3)


def first_observation_difference(path, task):
    """Between what the engine observes in the first recorded state, and what the file says of it (all of it)."""
    recording = next(recordings(path))
    with RobomimicFile(path) as file:
        found = file.read(recording.name).states[0]
    simulations = Simulations(family(task), 1, n_threads=1)
    _place(simulations, 0, recording, _columns(simulations.family, recording))
    simulations.observe(0)
    difference = np.abs(simulations.history[0, 0] - found).max()
    simulations.close()
    return difference


def test_the_engine_sees_in_a_recorded_state_what_was_recorded(files):
    """Order, signs and frames of every observation, robosuite's own as the reader rearranges it."""
    assert first_observation_difference(files["engine"], "lift") == 0.0
    assert first_observation_difference(files["robosuite"], "lift") < 1e-9


def test_other_actions_or_another_cube_are_noticed(lift, files):
    first = next(recordings(files["engine"]))
    moved = dataclasses.replace(first, actions=first.actions * 0.9)
    bigger = model_with("lift", first.model_xml, np.full(3, 0.03))
    other, cube = replay(lift, [moved, dataclasses.replace(first, model_xml=bigger)], n_threads=1)
    assert not (other.same or other.chaotic or cube.same) and other.final > 1e-3 < cube.final
    assert other.step > 1e-5


def test_recordings_are_found_by_joint_name(lift, files):
    """Other orders, other objects, robosuite 1.4's names of the fingers."""
    first = next(recordings(files["engine"]))
    xml = first.model_xml.replace("gripper0_right_finger_joint", "gripper0_finger_joint")
    extra = '<body name="x"><freejoint name="milk"/><geom size="1"/></body><body name="y"><joint name="door"/></body>'
    xml = xml.replace("<worldbody>", "<worldbody>" + extra)
    nq = lift.model.nq
    time, qpos, qvel = first.states[:, :1], first.states[:, 1 : 1 + nq], first.states[:, 1 + nq :]
    rows = len(time)
    states = np.concatenate([time, np.full((rows, 8), 7.0), qpos, np.full((rows, 7), 9.0), qvel], axis=1)
    result = replay(lift, [dataclasses.replace(first, states=states, model_xml=xml)], n_threads=1)[0]
    assert result.final == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_xml": None}, "demo_0: no model_file"),
        ({"model_xml": "<mujoco"}, "demo_0: model_file: no XML"),
        ({"states": np.zeros((3, 31))}, r"demo_0: states: expected 1 \+ 16 \+ 15 columns .*found 31"),
    ],
)
def test_what_cannot_be_replayed_is_named(lift, files, change, message):
    first = dataclasses.replace(next(recordings(files["engine"])), **change)
    with pytest.raises(EnvError, match=message):
        replay(lift, [first], n_threads=1)


def test_a_joint_that_is_missing_is_named(lift, files):
    first = next(recordings(files["engine"]))
    xml = first.model_xml.replace('"cube_joint0"', '"block_joint0"')
    with pytest.raises(EnvError, match=r"model_file has no joint 'cube_joint0'; it has .*block_joint0"):
        replay(lift, [dataclasses.replace(first, model_xml=xml)], n_threads=1)


def test_the_command_converts_and_replays(files, tmp_path, capsys):
    arguments = ["--load_path", str(files["engine"]), "--save_dir", str(tmp_path), "--check-replay", "7"]
    process.main(arguments)
    assert "replayed 7 demonstrations: 7 end in the recorded state" in capsys.readouterr().out
    assert (tmp_path / "train.npz").exists()
