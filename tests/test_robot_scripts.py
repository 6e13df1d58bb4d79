"""script/check_robot.py and script/measure_latency.py: against the fake Panda, on machines that lack this and that, and without a robot."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

from agent.errors import UsageError
from script import check_robot, measure_latency
from script.check_robot import BAD, NOTE, OK, WARN
from tests.fake_fci.process import FakeRobot


def only(findings, item):
    (found,) = [f for f in findings if f.item == item]
    return found


@pytest.fixture
def fake():
    pytest.importorskip("panda_py", reason="needs panda-python")
    if not any(map(shutil.which, ("cc", "gcc", "clang"))) or not sys.platform.startswith("linux"):
        pytest.skip("the fake robot needs a C compiler, and Linux")
    with FakeRobot() as robot:
        yield robot


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(check_robot, "CONTROL_SECONDS", 0.4)
    which = shutil.which
    monkeypatch.setattr(check_robot.shutil, "which", lambda name: None if name == "ping" else which(name))


# -------------------------------------------------------------------------------------------------------- check_robot


def test_without_a_robot_it_says_so(capsys):
    code = check_robot.main([])
    said = capsys.readouterr().out
    assert "No robot was looked at" in said and "robot.ip=172.16.0.2" in said
    assert code == (1 if "NO GO" in said else 0)


@pytest.mark.parametrize("word", ["robot.pi=1", "robot", "mode=shadow"])
def test_settings_it_does_not_know_are_named(word, capsys):
    assert check_robot.main([word]) == 2
    assert word in capsys.readouterr().err


def test_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(check_robot.platform, "version", lambda: "#1 SMP PREEMPT_DYNAMIC")
    assert only(check_robot.kernel(tmp_path), "real-time kernel").status == WARN
    flag = tmp_path / "sys/kernel/realtime"
    flag.parent.mkdir(parents=True)
    flag.write_text("1\n")
    assert only(check_robot.kernel(tmp_path), "real-time kernel").status == OK
    limits = {check_robot.resource.RLIMIT_RTPRIO: (0, 0), check_robot.resource.RLIMIT_MEMLOCK: (2**23, 2**23)}
    monkeypatch.setattr(check_robot.resource, "getrlimit", limits.get)
    assert [f.status for f in check_robot.kernel(tmp_path)] == [OK, WARN, WARN]
    limits[check_robot.resource.RLIMIT_RTPRIO], limits[check_robot.resource.RLIMIT_MEMLOCK] = (99, 99), (-1, -1)
    assert [f.status for f in check_robot.kernel(tmp_path)] == [OK, OK, OK]


@pytest.mark.parametrize(
    ("times", "lost", "status"),
    [("0.147/0.240/0.502/0.03", "0", OK), ("0.2/0.9/1.0/0.1", "0", WARN), ("0.1/0.2/4.0/0.1", "0", WARN), ("0.1/0.2/0.3/0.1", "5", WARN)],
)  # fmt: skip
def test_pings(times, lost, status):
    said = f"20 packets transmitted, 20 received, {lost}% packet loss, time 3800ms\nrtt min/avg/max/mdev = {times} ms\n"
    found = check_robot._ping(said, "172.16.0.2")
    assert found.status == status and ("in the mean" in found.found) == (status == WARN)
    silent = check_robot._ping("20 packets transmitted, 0 received, 100% packet loss, time 3800ms\n", "172.16.0.2")
    assert silent.status == BAD and "172.16.0.2" in silent.found


def test_a_robot_that_is_ready_is_a_go(fake, capsys):
    assert check_robot.main([f"robot.ip={fake.host}", "--json", "--control"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = {f["item"]: f for f in report["findings"]}
    assert report["go"]
    for item in ("connection", "condition", "joints", "pose", "force at rest", "hand", "panda-python"):
        assert found[item]["status"] == OK, found[item]
    assert found["control"]["status"] in (OK, WARN) and "moved 0." in found["control"]["found"]
    assert found["ping"]["status"] == NOTE
    assert fake.report()["mode"] == 1


def test_what_forbids_a_run(fake, capsys):
    def findings():
        return check_robot.examine({"robot": "panda", "robot.ip": fake.host}, control=True)

    fake.say("push", 0, 0, -9)
    assert only(findings(), "force at rest").status == WARN
    fake.say("push", 0, 0, 0)
    fake.say("place", *[0, 0.1963, 0, -2.618, 0, 3.7, 0.7854])
    assert only(findings(), "joints").status == WARN
    fake.say("user_stop")
    found = findings()
    assert only(found, "condition").status == BAD and "user_stop" in only(found, "condition").found
    assert not [f for f in found if f.item == "control"]  # nobody moves a robot that has been stopped
    assert check_robot.main([f"robot.ip={fake.host}"]) == 1 and "NO GO: condition" in capsys.readouterr().out
    fake.say("version", 10)
    found = only(findings(), "connection")
    assert found.status == BAD and "franky-control" in found.found


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(check_robot.importlib.util, "find_spec", lambda name: None)
    found = check_robot.examine({"robot": "franky", "robot.ip": "127.254.0.9"})
    assert only(found, "franky-control").status == BAD and "pip install" in only(found, "franky-control").mend
    assert not [f for f in found if f.item == "connection"]


def test_cameras(tmp_path):
    cv2 = pytest.importorskip("cv2")
    film = str(tmp_path / "film.avi")
    writer, rng = cv2.VideoWriter(film, cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 48)), np.random.default_rng(0)
    for _ in range(60):
        writer.write(rng.integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    given = {"camera": "opencv", "camera.source": film, "camera.width": "64", "camera.height": "48"}
    found = check_robot.camera(given, seconds=1.0)[0]
    assert found.status in (OK, WARN) and found.found.startswith("64x48, ")  # few pictures on a busy machine
    assert check_robot.camera(given | {"camera.source": film + "x"}, seconds=0.2)[0].status == BAD


# ---------------------------------------------------------------------------------------------------- measure_latency


@pytest.mark.parametrize("late", [0.0, 0.0371, 0.263, -0.05])
def test_a_delay_is_found_to_a_millisecond_in_noise(late):
    rng = np.random.default_rng(1)
    cause, effect = np.sort(rng.uniform(0, 8, 2000)), np.arange(0.3, 7.9, 1 / 30)
    wave = np.vectorize(lambda t: measure_latency.sway(min(max(t, 0.0), 8.0), 8.0)[0])
    noise = 2e-4 * rng.normal(size=len(effect))
    found, like = measure_latency.delay((cause, wave(cause)), (effect, wave(effect - late) + noise))
    assert found == pytest.approx(late, abs=2e-3) and like > 0.99


def test_signals_that_say_nothing_are_refused():
    t = np.arange(0, 8, 0.01)
    with pytest.raises(UsageError, match="does not change"):
        measure_latency.delay((t, np.sin(t)), (t, 0 * t))
    with pytest.raises(UsageError, match="too short"):
        measure_latency.delay((t, np.sin(t)), (t[:150], np.sin(t[:150])))


def test_swaying_begins_and_ends_at_rest_and_its_speed_is_its_derivative():
    t = np.linspace(0, 6, 6001)
    where, speed = np.array([measure_latency.sway(x, 6.0) for x in t]).T
    assert np.allclose(where[[0, -1]], 0) and np.abs(where).max() < 0.0151 and np.abs(speed).max() < 0.1
    assert np.allclose(np.gradient(where, t)[2:-2], speed[2:-2], atol=2e-3)


def test_the_whole_measurement_on_the_fake_robot(fake, tmp_path, capsys):
    files = tmp_path / "latency.json", tmp_path / "latency.png"
    words = [f"robot.ip={fake.host}", "--yes", "--seconds", "3", "--strokes", "2"]
    assert measure_latency.main([*words, "--json", str(files[0]), "--picture", str(files[1])]) == 0
    said, found = capsys.readouterr().out, json.loads(files[0].read_text())
    assert found["arm"]["correlation"] > 0.9 and -100 < found["arm"]["ms"] < 400  # a busy machine slows the fake down
    assert len(found["gripper"]["each"]) == 2 and 0 < found["gripper"]["ms"] < 2000
    assert said.startswith("arm ") and files[1].stat().st_size > 10_000
    assert fake.report()["mode"] == 1


def test_nobody_moves_an_arm_without_being_asked(fake, capsys):
    assert measure_latency.main([f"robot.ip={fake.host}"]) == 2
    assert "emergency stop" in capsys.readouterr().err
    assert fake.report()["commands"] == 0
