"""HDF5 files that make HDF5's own library loop or crash: another process meets them first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from agent.dataset import hdf5, hdf5_probe
from agent.dataset.hdf5 import open_hdf5
from agent.errors import DatasetError

ROOT = Path(__file__).resolve().parent.parent.parent
ANSWERS = "import os, sys, time, signal\nprint('ready', flush=True)\nfor line in sys.stdin:\n    "
COUNTS = "open(sys.argv[0] + '.log', 'a').write('x'); print('done', flush=True)"


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["a"] = [1.0, 2.0]
    return tmp_path / "x.hdf5"


@pytest.fixture
def looks(tmp_path, monkeypatch):
    """Has the looking done by a program that does what it is given."""
    probes = []

    def replaced(does: str) -> Path:
        program = tmp_path / "program.py"
        program.write_text(ANSWERS + does)
        probes.append(hdf5._Probe(program))
        monkeypatch.setattr(hdf5, "_PROBE", probes[-1])
        return Path(f"{program}.log")

    yield replaced
    for probe in probes:
        probe.close()


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("os.abort()", r"crashes on it \(-6\)"),
        ("os._exit(0)", r"crashes on it \(0\)"),
        ("os.kill(os.getpid(), signal.SIGXCPU); time.sleep(60)", "does not come to an end"),
        ("time.sleep(3600)", "does not come to an end"),
    ],
)
def test_what_the_library_does_not_survive(file, looks, monkeypatch, does, message):
    monkeypatch.setattr(hdf5, "BUSY", 0.2)
    looks(does)
    for _ in range(2):  # the second time in a new process
        with pytest.raises(DatasetError, match=rf"x\.hdf5: damaged: HDF5's library {message}"):
            open_hdf5(file, "anybody")


def test_a_file_is_looked_at_once_and_again_when_it_changes(file, looks):
    log = looks(COUNTS)
    for _ in range(3):
        open_hdf5(file, "anybody").close()
    assert log.read_text() == "x"
    with h5py.File(file, "a") as opened:
        opened["b"] = [3.0] * 1000
    open_hdf5(file, "anybody").close()
    assert log.read_text() == "xx"


def test_an_endless_loop_is_ended_by_the_time_it_works(file):
    program = "import sys; from agent.dataset import hdf5_probe as p; p.SECONDS = 0.0; p.limit_time(sys.argv[1])\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", program, str(file)], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -24  # SIGXCPU


def test_the_program_itself(file):
    done = subprocess.run(
        [sys.executable, str(ROOT / "agent" / "dataset" / "hdf5_probe.py")],
        input=f"{file}\n{file}.absent\n", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["ready", "done", "done"])


def test_what_comes_after_a_damaged_member_is_looked_at_too(tmp_path):
    path = tmp_path / "y.hdf5"
    with h5py.File(path, "w") as file:
        file["group/a"], file["group/b"] = [1.0, 2.0], [3.0]
        file["group/again"] = h5py.SoftLink("/group/b")
        file["elsewhere"] = h5py.ExternalLink("absent.hdf5", "/a")
        place = h5py.h5o.get_info(file["group/a"].id).addr
    assert hdf5_probe.look(str(path))  # links that lead nowhere are nobody's data
    data = bytearray(path.read_bytes())
    data[place] ^= 255  # the version of the object's header
    path.write_bytes(data)
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5_probe, "_look_into", lambda source: seen.append(source.name))
        assert not hdf5_probe.look(str(path))
    assert seen == ["/group/b"]
    with pytest.raises(DatasetError, match=r"y\.hdf5: damaged: not all"):
        open_hdf5(path, "anybody")
