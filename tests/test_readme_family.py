"""README's "Add a task", to the letter: its files where it says, its commands as they stand, its test. Nothing else is touched.

The commands' runs are cut short by overrides at the end of their lines; all else is the README's.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent import checkpoint
from env.engine.library import kernel_folder

ROOT = Path(__file__).resolve().parent.parent
SECTION = re.search(r"^## Add a task\n(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[1]
FILES = dict(re.findall(r"`([\w.]+)`:\n\n```(?:python|yaml)\n(.*?)^```$", SECTION, re.M | re.S))
COMMANDS = re.findall(r"^```console\n(.*?)^```$", SECTION, re.M | re.S)
SHORT = {  # command line ending -> what keeps its run short
    "--config-name=pre wandb=null": " train.n_epochs=2 train.save_model_freq=2 train.batch_size=331",
    "--config-name=ft wandb=null": " train.n_train_itr=2 train.n_steps=5 env.n_envs=7 train.batch_size=97 train.update_epochs=1"
    " train.final_eval_episodes=11 train.val_freq=9",
}


def shortened(commands: str) -> str:
    for ending, overrides in SHORT.items():
        assert commands.count(ending + "\n") == 1, f"README: no command ends with {ending!r}"
        commands = commands.replace(ending + "\n", ending + overrides + "\n")
    return commands


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The folder that the section asks for, after its commands have run."""
    folder = tmp_path_factory.mktemp("mine")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DPPO_", "PYTHON"))}
    environment |= {
        "D2PPO": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    run = subprocess.run(
        ["bash", "-euxc", shortened(COMMANDS[0])],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    yield folder, run
    shutil.rmtree(kernel_folder(str(folder / "pendulum.py")), ignore_errors=True)  # of sources that no one else has


def test_the_section_is_complete_and_short():
    assert set(FILES) == {"pendulum.py", "pendulum.yaml", "pre.yaml", "ft.yaml", "demos.py", "test_pendulum.py"}
    assert len(COMMANDS) == 1
    assert all(len(FILES[name].splitlines()) <= 15 for name in FILES if name.endswith(".yaml"))
    used = {
        node.module.split(".")[0]
        for name in FILES
        if name.endswith(".py")
        for node in ast.walk(ast.parse(FILES[name]))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert used <= {"env", "agent", "pathlib", "pendulum"}


def test_its_commands_succeed(mine):
    _, run = mine
    assert run.returncode == 0, f"{run.stdout[-3000:]}\n{run.stderr[-6000:]}"
    assert "1 passed" in run.stdout
    assert "No video at" not in run.stdout + run.stderr  # where anything can be drawn here, this was


def test_demonstrations_policy_and_figures_are_there(mine):
    folder, _ = mine
    with np.load(folder / "data" / "mine" / "pendulum" / "train.npz", allow_pickle=False) as demos:
        assert demos["states"].shape == (demos["traj_lengths"].sum(), 3)
        assert np.ptp(demos["actions"]) > 1.9  # the controller acts, and its actions are normalised
    (before,), (after,) = (
        sorted(folder.glob(f"log/mine-{stage}/pendulum_*/*/checkpoint/state_2.pt"))
        for stage in ("pretrain", "finetune")
    )
    weights = [checkpoint.load(path)["model"] for path in (before, after)]
    assert all(value.isfinite().all() for tensors in weights for value in tensors.values() if value.is_floating_point())
    losses = [json.loads(line) for line in (before.parents[1] / "metrics.jsonl").read_text().splitlines()]
    assert losses and all(math.isfinite(value) for row in losses for key, value in row.items() if "loss" in key)
    result = json.loads((after.parents[1] / "result.json").read_text())
    assert result["base_policy_path"].endswith(str(before.relative_to(folder)))  # found, not given
    assert (result["iterations"], result["env_steps"]) == (2, 2 * 5 * 7 * 4)
    for when in ("before", "after"):
        assert len(result[when]["seeds"]) == 11
        assert 0 < result[when]["mean_return"] <= 60  # control steps upright: some, in any policy's episodes
    assert (after.parents[1] / "learning_curve.png").stat().st_size > 1000
