"""What a person meets first: the requirements, the tested pins, the two commands' set-up, the path script."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12")
tomllib = pytest.importorskip("tomllib") if sys.version_info >= (3, 11) else pytest.importorskip("tomli")
bash_only = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> list[Requirement]:
    lines = (s.split("#")[0].strip() for s in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    return [Requirement(s) for s in lines if s]


def applies(pin: Requirement, python: str) -> bool:
    marks = {"python_version": python, "python_full_version": f"{python}.9"}
    return pin.marker is None or pin.marker.evaluate(marks)


def bash(command: str, env: dict[str, str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("D2PPO_", "DPPO_"))} | (env or {})
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=settings, timeout=timeout, cwd=ROOT, check=False
    )


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_pin_within_its_range(python):
    found: dict[str, list[Requirement]] = {}
    for pin in pins():
        if applies(pin, python):
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    twice = [name for name, several in found.items() if len(several) > 1]
    assert not twice, f"pinned twice for Python {python}: {twice}"
    wanted = [Requirement(r) for r in project()["dependencies"]]
    wanted += [
        Requirement(r)
        for extra in ("dev", "data", "bench", "sweep", "real", "fr3", "export")
        for r in project()["optional-dependencies"][extra]
    ]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        assert name in found, f"{name} has no pin for Python {python}"
        (pin,) = found[name][0].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), f"{requirement} against {pin}"


def test_pins_hold_what_robosuite_needs():
    version = {canonicalize_name(p.name): next(iter(p.specifier)).version for p in pins()}
    assert version["robosuite"] == "1.5.2" and version["torch"] == "2.13.0"
    assert tuple(map(int, version["mujoco"].split("."))) < (3, 10) and version["numpy"].startswith("1.26")
    (mujoco,) = [Requirement(r) for r in project()["dependencies"] if r.startswith("mujoco")]
    assert not mujoco.specifier.contains("3.10.0") and mujoco.specifier.contains("3.9.0")


def test_the_extras_of_everybodys_notes_exist_and_need_no_build():
    extras = project()["optional-dependencies"]
    for name in ("robomimic", "gym", "d3il", "furniture", "all", "data", "sweep", "exact", "real", "dev"):
        assert name in extras
    assert all(
        "robomimic" not in Requirement(r).name for r in extras["robomimic"]
    )  # pulls egl_probe: fails with cmake 4
    forbidden = {"gym", "d4rl", "mujoco-py", "deoxys", "polymetis", "egl-probe"}
    everything = project()["dependencies"] + [r for e in extras.values() for r in e]
    assert not forbidden & {canonicalize_name(Requirement(r).name) for r in everything}


def test_installed_packages_are_found():
    """Packages and package data, from the settings: every room, and every YAML and env_meta JSON of cfg/."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    include = tool["packages"]["find"]["include"]
    assert {"agent", "cfg", "env", "model", "script"} <= set(include)
    assert {*ROOT.glob("cfg/**/*.yaml"), *ROOT.glob("cfg/**/*.json")} == {
        f for g in tool["package-data"]["cfg"] for f in (ROOT / "cfg").glob(g)
    } - set(ROOT.glob("cfg/**/*.md"))


def run_requirements(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "script" / "requirements.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_requirements_of_this_interpreter_are_met():
    done = run_requirements("missing")
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_requirements_on_a_bare_server_leave_out_what_must_be_compiled():
    lines = run_requirements("light", "all", "dev").stdout.split("\n")
    names = {canonicalize_name(Requirement(s).name) for s in lines if s}
    assert {"torch", "mujoco", "mink", "opencv-python-headless", "pytest", "ruff"} <= names
    assert not names & {"robosuite", "pynput", "evdev", "opencv-python", "d2ppo"}


def test_an_unknown_extra_is_named():
    done = run_requirements("missing", "gymm")
    assert done.returncode != 0 and "gymm" in done.stderr and "robomimic" in done.stderr


@bash_only
@pytest.mark.parametrize("script", ["setup.sh", "quickstart.sh", "test.sh", "check.sh", "set_path.sh"])
def test_shell_scripts_parse(script):
    assert bash(f"bash -n script/{script}").returncode == 0


def ready_environment(folder: Path) -> Path:
    """A virtual environment in which nothing is missing, made of this interpreter and what it has installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    return folder


@bash_only
def test_setup_reuses_what_is_there_without_a_network_and_then_is_instant(tmp_path):
    venv = ready_environment(tmp_path / "venv")
    offline = {"D2PPO_VENV": str(venv), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    first = bash('source script/setup.sh && echo "$D2PPO_PYTHON"', offline)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == str(venv / "bin" / "python")
    assert "ready in" in first.stderr and "installing" not in first.stderr
    second = bash('source script/setup.sh && echo "$D2PPO_PYTHON"', offline)
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    (stamp,) = venv.glob(".d2ppo-setup*")
    stamp.write_text("of other requirements")
    assert "ready in" in bash("source script/setup.sh", offline).stderr


@bash_only
def test_setup_says_which_python_it_wants(tmp_path):
    fake = tmp_path / "python3.11"
    fake.write_text("#!/bin/sh\nexit 127\n")  # a shim whose interpreter is gone
    fake.chmod(0o755)
    done = bash("bash script/quickstart.sh", {"D2PPO_VENV": str(tmp_path / "venv"), "D2PPO_PYTHON_BIN": str(fake)})
    assert done.returncode != 0 and "3.10, 3.11 or 3.12" in done.stderr and "D2PPO_PYTHON_BIN" in done.stderr
    assert not (tmp_path / "venv").exists()


@bash_only
def test_set_path_has_defaults_keeps_what_is_set_and_asks_nothing():
    echo = 'echo "$DPPO_DATA_DIR|$DPPO_LOG_DIR|${DPPO_WANDB_ENTITY-none}"'
    plain = bash(f"source script/set_path.sh >/dev/null </dev/null && {echo}")
    assert plain.stdout.strip() == f"{ROOT / 'data'}|{ROOT / 'log'}|none"
    kept = bash(
        f"source script/set_path.sh >/dev/null && {echo}", {"DPPO_LOG_DIR": "/else where", "DPPO_WANDB_ENTITY": "us"}
    )
    assert kept.stdout.strip() == f"{ROOT / 'data'}|/else where|us"
    asked = bash(f"source script/set_path.sh --ask >/dev/null 2>&1 <<< $'\\n/answer\\nme' && {echo}")
    assert asked.stdout.strip() == f"{ROOT / 'data'}|/answer|me"
    assert "DPPO_WANDB_ENTITY" in bash("source script/set_path.sh --help").stdout
    assert bash("source script/set_path.sh --nonsense").returncode == 2
    assert ".bashrc" not in (ROOT / "script" / "set_path.sh").read_text(encoding="utf-8")


def test_train_is_run():
    """Same composed configuration, to the last byte, from the repository's root and from elsewhere."""
    arguments = ["--config-name=pre_diffusion_mlp", f"--config-dir={ROOT}/cfg/robomimic/pretrain/lift", "--cfg", "job"]
    outputs = [
        subprocess.run(
            [sys.executable, str(ROOT / "script" / name), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=cwd,
            check=True,
        ).stdout
        for name, cwd in (("run.py", ROOT), ("train.py", ROOT.parent))
    ]
    assert outputs[0] == outputs[1] and re.search(r"^seed:", outputs[0], re.MULTILINE)


def test_ci_runs_the_tests_that_a_person_runs():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "script/test.sh" in text and os.access(ROOT / ".ci" / "run", os.X_OK)
