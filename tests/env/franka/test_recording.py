"""Episodes as they are recorded: readable whatever happens, never in the way, and good for training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from agent.dataset.demos import read_demos
from env.franka.clock import VirtualClock
from env.franka.episode import collect, read_episode, row_at
from env.franka.recording import EpisodeRecorder, score_of
from env.franka.types import DeploymentError, Event
from env.normalizer import Normalizer
from script import process_robomimic_dataset
from tests.env.franka.recorded import CAMERA, CAPTURED, record, ticks

ROOT = Path(__file__).resolve().parents[3]


def film_frames(path) -> list[np.ndarray]:
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def wait_until(true, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


@pytest.mark.parametrize("camera", [False, True])
def test_recordings_feed_pre_training(tmp_path, camera):
    """Two good episodes and a bad one -> one robomimic file -> train.npz: states, actions, images and lengths of the good ones."""
    good = [record(tmp_path / f"e{n}", n, seed, camera, verdict) for n, seed, verdict in ((13, 1, "y"), (17, 2, 80))]
    record(tmp_path / "bad", 11, 3, camera, "failure")
    assert collect([tmp_path / "e13", tmp_path / "bad", tmp_path / "e17"], tmp_path / "lift.hdf5", "lift") == 2
    command = ["--load_path", str(tmp_path / "lift.hdf5"), "--save_dir", str(tmp_path / "data")]
    process_robomimic_dataset.main(command + (["--cameras", CAMERA] if camera else []))
    demos = read_demos(tmp_path / "data" / "train.npz", use_img=camera)
    keys = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"] + ([] if camera else ["object"])
    states = np.concatenate([[np.concatenate([t.raw[k] for k in keys]) for t in episode] for episode in good])
    actions = np.concatenate([[t.action for t in episode] for episode in good])
    scale = Normalizer.load(tmp_path / "data" / "normalization.npz")
    assert demos["traj_lengths"].tolist() == [13, 17]
    assert np.abs(demos["actions"] - scale.normalize_action(actions)).max() < 1e-6
    assert np.abs(demos["states"] - scale.normalize_obs(states)).max() < 2e-6
    assert demos["rewards"].tolist() == pytest.approx([0.0] * 12 + [1.0] + [0.0] * 16 + [0.8])
    if camera:
        shown = [t.raw[f"{CAMERA}_image"].transpose(2, 0, 1) for episode in good for t in episode]
        assert np.array_equal(demos["images"], np.stack(shown))


def test_what_was_not_followed_is_not_learned(tmp_path):
    """Ticks in HOLD, and episodes in which nothing was sent."""
    recorder, given = EpisodeRecorder(tmp_path / "e", "lift", VirtualClock()), ticks(13)
    for tick in given:
        recorder.tick(dataclasses.replace(tick, state="HOLD") if 4 <= tick.number < 7 else tick)
    recorder.finish("y")
    record(tmp_path / "shadow", 5, about={"configuration": {"mode": "shadow"}})
    assert collect([tmp_path / "e", tmp_path / "shadow"], tmp_path / "lift.hdf5", "lift") == 1
    with h5py.File(tmp_path / "lift.hdf5") as file:
        assert np.array_equal(file["data/demo_0/actions"], [t.action for t in given if not 4 <= t.number < 7])
        assert file["data/demo_0"].attrs["num_samples"] == 10 and file["data/demo_0/dones"][:].tolist() == [0] * 9 + [1]


def test_the_layout_and_what_is_beside_it(tmp_path):
    checkpoint = tmp_path / "state.pt"
    checkpoint.write_bytes(b"weights")
    about = {"checkpoint": str(checkpoint), "config": {"robot": "panda", "x": np.float32(2)}}
    given = record(tmp_path / "e", 13, 5, True, "success", about)
    with h5py.File(tmp_path / "e" / "episode.hdf5") as file:
        demo = file["data/demo_0"]
        assert (file["data"].attrs["total"], demo.attrs["num_samples"], demo.attrs["score"]) == (13, 13, 1.0)
        assert json.loads(file["data"].attrs["env_args"])["env_kwargs"]["camera_names"] == [CAMERA]
        assert demo["dones"][:].tolist() == [0] * 12 + [1]
        for key in ("reference_position", "reference_quaternion"):
            assert np.array_equal(demo[f"deploy/{key}"], [getattr(t, key) for t in given])
        for key, field in (
            ("measured_position", "position"),
            ("q", "q"),
            ("wrench", "wrench"),
            ("success_rate", "success_rate"),
        ):
            assert np.array_equal(demo[f"deploy/{key}"], [getattr(t.robot, field) for t in given])
        assert np.array_equal(demo["deploy/action_raw"], [t.raw_action for t in given])
        assert np.allclose(demo[f"deploy/t_cam/{CAMERA}"], [t.t_host - 0.034 for t in given], atol=1e-9)
    episode = read_episode(tmp_path / "e")
    asked = [t for t in given if t.observation is not None]
    assert episode.inputs["number"].tolist() == [0, 4, 8, 12]
    assert np.array_equal(episode.inputs["rgb"], [t.observation.values["rgb"] for t in asked]), (
        "what the policy was fed, to the bit"
    )
    assert np.array_equal(episode.inputs["state"], [t.observation.values["state"] for t in asked])
    assert [e["name"] for e in episode.events] == ["leash"] and episode.events[0]["limit"] == 0.033
    about = episode.about
    assert about["checkpoint_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert (about["verdict"], about["score"], about["problem"], about["lost"]) == ("success", 1.0, None, {})
    assert about["config"] == {"robot": "panda", "x": 2.0}
    film = film_frames(tmp_path / "e" / f"{CAMERA}.mp4")
    assert len(film) == 13 and film[0].shape == (CAPTURED[0] - 1, CAPTURED[1] - 1, 3)
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == sorted(
        ["about.json", "episode.hdf5", "events.jsonl", "latency.json", "latency.png", f"{CAMERA}.mp4"]
    ), "nothing half done is left"


def test_latencies_are_those_of_the_ticks(tmp_path):
    recorder = EpisodeRecorder(tmp_path / "e", "lift", VirtualClock())
    for tick in ticks(13, camera=True):
        recorder.tick(tick)
    for ms in (4, 4, 4, 9):
        recorder.measure("servo_dt", ms / 1e3)
    recorder.finish()
    found = json.loads((tmp_path / "e" / "latency.json").read_text())
    wanted = {
        "camera_age": (4, 20.0),
        "inference": (4, 11.0),
        "observation_to_motion": (4, 14.0),
        "tick_dt": (12, 50.0),
    }
    assert {name: (found[name]["n"], pytest.approx(found[name]["mean"])) for name in wanted} == wanted
    servo = found["servo_dt"]
    assert (servo["p50"], servo["max"], sum(servo["counts"])) == (pytest.approx(4.0), pytest.approx(9.0), 4)
    with Image.open(tmp_path / "e" / "latency.png") as picture:
        assert picture.height > 5 * 150


def test_what_was_recorded_before_a_crash_can_be_read(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.env.franka.recorded", str(tmp_path / "e"), "61"], cwd=ROOT, timeout=60
    )
    assert ended.returncode == -signal.SIGKILL
    episode, given = read_episode(tmp_path / "e"), ticks(61, camera=True)
    assert len(episode) == 61 and len(episode.inputs["number"]) == 16
    assert np.array_equal(episode.ticks["actions"], [t.action for t in given])
    assert np.array_equal(episode.ticks[f"obs/{CAMERA}_image"], [t.raw[f"{CAMERA}_image"] for t in given])
    assert [e["name"] for e in episode.events] == ["runner.RUNNING"]
    assert wait_until(lambda: len(film_frames(tmp_path / "e" / f"{CAMERA}.mp4")) >= 20), "whole seconds of it"
    assert row_at(episode.times(), 0.12) == 2 and row_at(episode.times(), -1) == 0 and row_at(episode.times(), 99) == 60
    with open(tmp_path / "e" / "ticks.bin", "rb+") as file:
        file.truncate(file.seek(0, 2) - 5)  # the last row half written
    assert len(read_episode(tmp_path / "e").ticks["actions"]) == 60


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_an_event(tmp_path):
    recorder, given = EpisodeRecorder(tmp_path / "e", "lift", VirtualClock()), ticks(13)
    (tmp_path / "e" / "ticks.bin").symlink_to("/dev/full")
    recorder.event(Event(1.0, "before", "log"))
    for tick in given:
        recorder.tick(tick)
    assert wait_until(lambda: recorder.problem is not None)
    assert "cannot be written" in recorder.problem and "No space" in recorder.problem
    recorder.tick(given[0])
    recorder.event(Event(2.0, "after", "hold"))
    recorder.finish("n")
    names = [json.loads(line)["name"] for line in (tmp_path / "e" / "events.jsonl").read_text().splitlines()]
    assert names[0] == "before" and "recorder.problem" in names and names[-1] == "after"
    about = json.loads((tmp_path / "e" / "about.json").read_text())
    assert "No space" in about["problem"] and about["lost"]["rows"] >= 1 and about["score"] == 0.0
    assert not (tmp_path / "e" / "episode.hdf5").exists()


def test_the_loop_never_waits_for_the_disk(tmp_path, monkeypatch):
    """The writer is stuck: ticks return at once all the same, and soon there is a problem to see."""
    recorder, stuck, given = EpisodeRecorder(tmp_path / "e", "lift", VirtualClock()), threading.Event(), ticks(7)
    monkeypatch.setattr(recorder._ticks, "append", lambda data: stuck.wait(30))
    took = []
    for k in range(500):
        start = time.thread_time()
        recorder.tick(dataclasses.replace(given[k % 7], observation=None))
        took.append(time.thread_time() - start)
    assert recorder.problem is not None and "does not keep up" in recorder.problem
    assert np.median(took) < 0.005
    stuck.set()
    recorder.finish()
    assert json.loads((tmp_path / "e" / "about.json").read_text())["lost"]["rows"] > 50


def test_a_camera_whose_film_fails_costs_only_the_film(tmp_path):
    recorder, given = EpisodeRecorder(tmp_path / "e", "lift", VirtualClock()), ticks(5, camera=True)
    (tmp_path / "e" / f"{CAMERA}.mp4").mkdir()  # ffmpeg cannot write there
    for tick in given:
        recorder.tick(tick)
    recorder.finish()
    assert recorder.problem is None and len(read_episode(tmp_path / "e")) == 5
    assert any(e["name"] == f"recorder.film.{CAMERA}" for e in read_episode(tmp_path / "e").events)


def test_what_does_not_fit_is_left_out_and_said(tmp_path):
    recorder, (first, second, third) = EpisodeRecorder(tmp_path / "e", "lift", VirtualClock()), ticks(3)
    recorder.tick(first)
    recorder.tick(dataclasses.replace(second, reference_position=np.zeros(4), gripper=None, action=np.full(7, np.nan)))
    recorder.tick(dataclasses.replace(third, raw={**third.raw, "extra": np.zeros(2)}))
    recorder.finish()
    episode = read_episode(tmp_path / "e")
    assert np.isnan(episode.ticks["deploy/reference_position"][1]).all() and np.isnan(
        episode.ticks["deploy/gripper_width"][1]
    )
    assert not episode.ticks["actions"][1].any() and np.isnan(episode.ticks["deploy/action_executed"][1]).all()
    assert np.array_equal(episode.ticks["deploy/reference_position"][2], third.reference_position)
    assert {e["name"] for e in episode.events} == {
        "recorder.column.deploy/reference_position",
        "recorder.column.obs/extra",
    }


def test_refusals(tmp_path):
    assert [score_of(v) for v in ("y", "N", 35, "100", None, "success")] == [1.0, 0.0, 0.35, 1.0, None, 1.0]
    for verdict in ("maybe", "101", "-3", "nan"):
        with pytest.raises(DeploymentError, match="expected y, n or a number from 0 to 100"):
            score_of(verdict)
    record(tmp_path / "e", 3, verdict="maybe")
    assert read_episode(tmp_path / "e").about["score"] is None
    with pytest.raises(DeploymentError, match="expected a new or empty folder"):
        EpisodeRecorder(tmp_path / "e", "lift", VirtualClock())
    with pytest.raises(DeploymentError, match="expected one of lift, can"):
        EpisodeRecorder(tmp_path / "f", "stack", VirtualClock())
    with pytest.raises(DeploymentError, match="none has a score"):
        collect([tmp_path / "e"], tmp_path / "out.hdf5", "lift")
    with pytest.raises(DeploymentError, match="found neither"):
        read_episode(tmp_path / "nothing")
    (tmp_path / "bad.hdf5").write_bytes(b"no")
    with pytest.raises(DeploymentError, match="expected a recorded episode"):
        read_episode(tmp_path / "bad.hdf5")
