"""script/doctor.py on machines where things are missing, broken, slow or full."""

from __future__ import annotations

import collections
import importlib.metadata
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from agent.dataset.demos import save_demos
from env.normalizer import Normalizer
from script import doctor
from script import doctor_checks as checks
from script import doctor_trials as trials
from script.doctor_checks import BAD, NOTE, OK, WARN, Finding

Disk = collections.namedtuple("Disk", "total used free")


def only(findings, item):
    (found,) = [f for f in findings if f.item == item]
    return found


# ------------------------------------------------------------------------------------------------------- software


@pytest.mark.parametrize(
    ("version", "status"), [((3, 9, 7), BAD), ((3, 10, 0), OK), ((3, 12, 9), OK), ((3, 13, 0), BAD)]
)
def test_python(version, status, monkeypatch):
    monkeypatch.setattr(sys, "base_prefix", "/elsewhere")  # as in a virtual environment
    (found,) = checks.python(version)
    assert found.status == status and (found.mend == checks.SET_UP) == (status == BAD)


def test_packages_that_are_absent_too_new_or_untested(monkeypatch):
    real = importlib.metadata.version
    taken = {"h5py": None, "mujoco": "3.10.0", "numba": "0.99.0"}

    def version(name):
        if taken.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return taken.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    findings = checks.packages()
    absent, new, untested = (only(findings, name) for name in ("h5py", "mujoco", "numba"))
    assert (absent.status, absent.found, absent.mend) == (BAD, "not installed; expected >=3.8", checks.SET_UP)
    assert new.status == BAD and new.found.startswith("3.10.0; expected ") and "<3.10" in new.found
    assert untested.status == NOTE and "tested with" in untested.found
    assert only(findings, "torch").status in (OK, NOTE)


def test_an_interpreter_without_anything_is_told_what_to_do():
    """-S: no installed packages at all, pip included; every check still answers."""
    code = (
        "import sys; sys.path.insert(0, '.'); from script import doctor, doctor_checks as c, doctor_trials as t; "
        "t.imports = lambda: []; t.render_backend = lambda b: c.Finding('rendering', b, c.NOTE, 'x'); "
        "sys.exit(doctor.main(['--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=checks.ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["ok"] is False
    bad = [f for f in report["findings"] if f["status"] == BAD]
    assert [(f["item"], f["mend"]) for f in bad] == [("packages", checks.SET_UP)]
    assert not [f for f in report["findings"] if f["section"] == "doctor"]  # no check failed


# -------------------------------------------------------------------------------------------------------- machine


def test_memory_of_a_container(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable:  4194304 kB\n")
    assert checks.memory(tmp_path) == (8 * checks.GIB, 4 * checks.GIB)
    cgroup = tmp_path / "sys" / "fs" / "cgroup"
    cgroup.mkdir(parents=True)
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("5\n")
    assert checks.memory(tmp_path) == (8 * checks.GIB, 4 * checks.GIB)
    (cgroup / "memory.max").write_text(f"{2 * checks.GIB}\n")
    (cgroup / "memory.current").write_text(f"{checks.GIB}\n")
    assert checks.memory(tmp_path) == (2 * checks.GIB, checks.GIB)
    assert checks.memory(tmp_path / "nothing") == (None, None)


def test_little_memory_and_none_told(monkeypatch):
    monkeypatch.setattr(checks, "memory", lambda: (8 * checks.GIB, checks.GIB))
    assert only(checks.machine(), "memory").status == WARN
    monkeypatch.setattr(checks, "memory", lambda: (None, None))
    assert only(checks.machine(), "memory").status == NOTE


def test_a_gpu_that_torch_does_not_see(monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda name: f"/usr/bin/{name}")
    (found,) = trials._gpus({"gpus": [], "built_for_cuda": None})
    assert found.status == WARN and "built for the CPU" in found.found and found.mend
    (found,) = trials._gpus({"gpus": [{"name": "X1", "memory": 7 * checks.GIB}], "built_for_cuda": "12.6"})
    assert found.status == OK and found.found == "X1 (7 GiB)"
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    assert trials._gpus({"gpus": [], "built_for_cuda": None})[0].status == OK
    assert trials._gpus(None) == trials._gpus({"error": "x"}) == []


def test_kernels(tmp_path, monkeypatch):
    fact = {"folder": str(tmp_path / "d2ppo"), "compiled": False}
    assert trials._kernels(fact)[0].status == NOTE
    assert trials._kernels(fact | {"compiled": True})[0].status == OK
    monkeypatch.setattr(trials, "writable", lambda folder: False)
    assert "NUMBA_CACHE_DIR" in trials._kernels(fact)[0].mend


# -------------------------------------------------------------------------------------------------------- folders


def test_folders(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    environment = {"DPPO_DATA_DIR": str(tmp_path / "new" / "data"), "DPPO_LOG_DIR": str(tmp_path / "file" / "log")}
    findings = checks.folders(environment)
    assert only(findings, "DPPO_DATA_DIR").status != BAD and not (tmp_path / "new").exists()  # nothing is made
    log = only(findings, "DPPO_LOG_DIR")
    assert log.status == BAD and "is no folder" in log.found and log.mend.startswith("export DPPO_LOG_DIR=")
    monkeypatch.setattr(checks, "writable", lambda folder: False)
    assert "not writable" in only(checks.folders(environment), "DPPO_DATA_DIR").found


@pytest.mark.parametrize(("gib", "status"), [(0.1, BAD), (3, WARN), (7, OK)])
def test_disk_space(tmp_path, monkeypatch, gib, status):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: Disk(0, 0, int(gib * checks.GIB)))
    found = only(checks.folders({"DPPO_DATA_DIR": str(tmp_path)}), "DPPO_DATA_DIR")
    assert found.status == status and bool(found.mend) == (status != OK)


def test_wandb(tmp_path):
    nobody = {"HOME": str(tmp_path)}
    assert checks.wandb(nobody)[0].status == NOTE and checks.wandb(nobody)[0].mend == "wandb login"
    with_key = checks.wandb(nobody | {"WANDB_API_KEY": "verysecret"})[0]
    assert with_key.status == OK and "verysecret" not in str(with_key)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n login user\n password verysecret\n")
    (tmp_path / ".netrc").chmod(0o600)
    logged_in = checks.wandb(nobody)[0]
    assert logged_in.status == OK and "api.wandb.ai" in logged_in.found and "verysecret" not in str(logged_in)
    assert checks.wandb(nobody | {"WANDB_BASE_URL": "https://own.example/api"})[0].status == NOTE
    (tmp_path / ".netrc").write_text("machine\n")
    assert checks.wandb(nobody)[0].status == NOTE
    assert "offline" in checks.wandb(nobody | {"WANDB_MODE": "offline"})[0].found


# ----------------------------------------------------------------------------------------------------------- work


def test_demonstrations(tmp_path):
    environment = {"DPPO_DATA_DIR": str(tmp_path)}
    none = checks.demonstrations(environment)
    assert [f.item for f in none] == ["no demonstrations"] and "--task lift" in none[0].mend
    rng = np.random.default_rng(0)
    for task in ("lift", "can", "square-img"):
        images = rng.integers(0, 256, (12, 3, 5, 7), np.uint8) if "img" in task else None
        folder = tmp_path / "robomimic" / task
        save_demos(
            folder / "train.npz",
            rng.uniform(-1, 1, (12, 19)),
            rng.uniform(-1, 1, (12, 7)),
            np.array([5, 7]),
            images=images,
        )
        Normalizer.fit(rng.uniform(-1, 1, (12, 19)), rng.uniform(-1, 1, (12, 7))).save(folder / "normalization.npz")
    whole = (tmp_path / "robomimic" / "can" / "train.npz").read_bytes()
    (tmp_path / "robomimic" / "can" / "train.npz").write_bytes(whole[:200])
    (tmp_path / "gym" / "hopper").mkdir(parents=True)
    (tmp_path / "gym" / "hopper" / "normalization.npz").write_bytes(b"")
    findings = checks.demonstrations(environment)
    good, damaged, images = (only(findings, f"robomimic/{task}") for task in ("lift", "can", "square-img"))
    assert good.status == OK and good.found.startswith("2 demonstrations, 12 steps, states 19, actions 7 (")
    assert images.status == OK and "images" in images.found
    assert damaged.status == BAD and damaged.mend == "python script/collect_demos.py --task can --overwrite"
    hopper = only(findings, "gym/hopper")
    assert (hopper.status, hopper.found) == (WARN, "train.npz is missing")
    assert "square, transport" in only(findings, "no demonstrations").found


def test_checkpoints(tmp_path):
    environment = {"DPPO_LOG_DIR": str(tmp_path)}
    assert checks.checkpoints(environment)[0].mend == "bash script/quickstart.sh"
    for run in ("robomimic-pretrain/lift_pre/a", "robomimic-pretrain/lift_pre/b", "quickstart/seed_0/finetune"):
        folder = tmp_path / run / "checkpoint"
        folder.mkdir(parents=True)
        for k in (7, 13):
            (folder / f"state_{k}.pt").write_bytes(b"")
            os.utime(folder / f"state_{k}.pt", (1000 + k, 1000 + k + 100 * run.endswith("b")))
    (tmp_path / "empty" / "checkpoint").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path)
    findings = checks.checkpoints(environment)
    assert [f.item for f in findings] == ["quickstart", "robomimic-pretrain"]
    assert findings[1].found.startswith("2 runs") and findings[1].found.endswith("lift_pre/b/checkpoint/state_13.pt")


# ---------------------------------------------------------------------------------------------- children and drawing


def probe(tmp_path, monkeypatch, code):
    (tmp_path / "script").mkdir(exist_ok=True)
    (tmp_path / "script" / "doctor_probe.py").write_text(code)
    monkeypatch.setattr(trials, "ROOT", tmp_path)


def test_a_probe_that_hangs_is_stopped(tmp_path, monkeypatch):
    probe(
        tmp_path, monkeypatch, 'import time\nprint(\'{"package": "numpy", "seconds": 1}\', flush=True)\ntime.sleep(60)'
    )
    started = time.monotonic()
    findings = trials.imports(deadline=1.0)
    assert time.monotonic() - started < 20
    found = only(findings, "imports")
    assert found.status == WARN and "no answer within 1 s after numpy" in found.found and "less busy" in found.mend


def test_a_probe_that_crashes_or_chatters(tmp_path, monkeypatch):
    probe(tmp_path, monkeypatch, "import os\nprint('hello')\nprint('[1]')\nprint('{\"pack')\nos.abort()")
    found = only(trials.imports(deadline=20.0), "imports")
    assert found.status == BAD and "ended with code -6" in found.found
    assert trials.render_backend("egl", 20.0).status == NOTE


def test_a_package_that_does_not_import(tmp_path, monkeypatch):
    line = {"package": "robosuite", "error": "ImportError: libGL.so.1: cannot open shared object file"}
    probe(tmp_path, monkeypatch, f"print({json.dumps(json.dumps(line))})")
    found = only(trials.imports(20.0), "import robosuite")
    assert found.status == BAD and found.mend == "apt-get install libgl1"


def test_the_real_probe_names_what_is_missing(monkeypatch, capsys):
    from script import doctor_probe

    monkeypatch.setattr(doctor_probe, "IMPORTS", ("json", "no_such_package"))
    monkeypatch.setattr(sys, "__stdout__", sys.stdout)
    monkeypatch.setattr(doctor_probe, "gpus", lambda: 1 / 0)
    monkeypatch.setattr(doctor_probe, "kernels", lambda: None)
    doctor_probe.imports()
    facts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert facts[0]["package"] == "json" and "No module named" in facts[1]["error"]
    assert facts[2] == {"part": "<lambda>", "error": "ZeroDivisionError: division by zero"}


def test_render_verdicts(monkeypatch):
    works, fails = Finding("rendering", "osmesa", OK, "3 ms"), Finding("rendering", "egl", NOTE, "does not work: x")
    monkeypatch.setattr(checks.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    native = Finding("rendering", trials.NATIVE, OK, "1 ms")
    verdict = trials.rendering([native, fails, works], {})[-1]
    assert (verdict.status, verdict.found) == (OK, "videos are drawn with osmesa")
    verdict = trials.rendering([native, fails], {})[-1]
    assert verdict.status == OK and verdict.found.startswith("videos are drawn with native; policies that were trained")
    verdict = trials.rendering([fails], {})[-1]
    assert verdict.status == WARN and verdict.mend == f"sudo apt-get install -y {trials.RENDERERS}"
    verdict = trials.rendering([works], {"MUJOCO_GL": "glfw"})[-1]
    assert verdict.status == NOTE and verdict.mend == "unset MUJOCO_GL"
    late = Finding("rendering", "egl", NOTE, "does not work: no answer within 12 s")
    assert "less busy" in trials.rendering([late], {})[-1].mend


def test_the_users_own_choice_is_tried_first():
    if sys.platform.startswith("linux"):
        from env import video

        for chosen in ({}, {"MUJOCO_GL": "osmesa"}, {"MUJOCO_GL": "EGL"}, {"MUJOCO_GL": "glfw"}):
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("MUJOCO_GL", raising=False)
                for key, value in chosen.items():
                    patch.setenv(key, value)
                assert trials.backends(chosen) == video._backends()


# ------------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def quick(monkeypatch):
    """No child processes."""
    monkeypatch.setattr(trials, "imports", lambda: [])
    monkeypatch.setattr(trials, "render_backend", lambda backend: Finding("rendering", backend, OK, "1 ms"))


def test_no_failing_check_stops_the_doctor(monkeypatch, quick, capsys):
    own = ["python", "packages", "machine", "folders", "wandb", "demonstrations", "checkpoints"]
    tried = ["imports", "render_backend", "rendering"]
    for name in own + tried:

        def fails(*_, name=name):
            raise RuntimeError(f"{name} is beyond me\nsecond line")

        monkeypatch.setattr(checks if name in own else trials, name, fails)
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    said = {f["found"] for f in report["findings"]}
    assert said == {
        f"this check failed: RuntimeError: {name} is beyond me" for name in own + tried if name != "render_backend"
    }


def test_exit_code_and_json(monkeypatch, quick, capsys):
    monkeypatch.setattr(checks, "packages", lambda: [Finding("software", "torch", BAD, "not installed", checks.SET_UP)])
    assert doctor.main(["--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False and report["seconds"] >= 0
    torch = next(f for f in report["findings"] if f["item"] == "torch")
    assert torch == {
        "section": "software",
        "item": "torch",
        "status": BAD,
        "found": "not installed",
        "mend": checks.SET_UP,
    }
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert (
        "BAD   torch" in text
        and f"-> {checks.SET_UP}" in text
        and text.rstrip().endswith(f"Start with: {checks.SET_UP}")
    )
    assert "\033" not in text  # not a terminal


def test_colour_only_where_wanted(monkeypatch, quick):
    findings = [Finding("software", "torch", WARN, "word " * 60, "mend it"), Finding("work", "x", OK, "")]
    plain, coloured = doctor.table(findings, False), doctor.table(findings, True)
    assert "\033[33m" in coloured and "\033" not in plain
    assert max(len(line) for line in plain.splitlines()) <= doctor.LINE_WIDTH
    assert doctor.summary(findings) == "Ready, with 1 limitation (see 'warn')."
    assert doctor.summary(findings[1:]) == "Ready: bash script/quickstart.sh"


def test_it_really_runs(tmp_path):
    environment = dict(os.environ, HOME=str(tmp_path), DPPO_DATA_DIR=str(tmp_path), DPPO_LOG_DIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, str(checks.ROOT / "script" / "doctor.py"), "--json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["ok"], [f for f in report["findings"] if f["status"] == BAD]
    assert {f["section"] for f in report["findings"]} == {"software", "machine", "rendering", "folders", "work"}
    assert report["seconds"] < trials.DEADLINE + 10
