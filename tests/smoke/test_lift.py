"""The whole main job on the real Lift, in a tiny size, through the commands' own functions."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from agent.dataset.demos import read_demos
from env.normalizer import Normalizer
from env.registry import make_vector_env
from script import collect_demos

pytest.importorskip("robosuite")
ROOT = Path(__file__).resolve().parents[2]
TINY_PRETRAIN = ["train.n_epochs=2", "train.batch_size=64"]
TINY_FINETUNE = [
    "env.n_envs=5", "task.max_episode_steps=12", "train.n_steps=3", "train.n_train_itr=3", "train.batch_size=50", "train.final_eval_episodes=7",
    "train.latest_every_s=0", "train.update_epochs=2", "env.n_threads=2",
]  # fmt: skip


def run(stage: str, logdir: Path, *overrides: str) -> list[str]:
    """The command that the quickstart would type."""
    return [
        sys.executable, "script/run.py", f"--config-dir=cfg/robomimic/{stage}/lift", "--config-name=quickstart", "wandb=null", f"logdir={logdir}", *overrides,
    ]  # fmt: skip


def call(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def metrics(logdir: Path) -> list[dict]:
    lines = (logdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lift")
    collect_demos.main(["--task=lift", "--episodes=5", "--n-envs=7", f"--out={folder / 'data'}"])
    call(run("pretrain", folder / "pre", f"data_root={folder / 'data'}", *TINY_PRETRAIN))
    return folder


def test_demonstrations_are_successes_and_their_statistics_fit(pretrained):
    folder = pretrained / "data" / "robomimic" / "lift"
    demos, about = read_demos(folder / "train.npz"), json.loads((folder / "about.json").read_text())
    assert list(demos["traj_lengths"]) == [100] * 5
    assert about["episodes"] == 5
    assert 0 < about["expert_success_rate"] <= 1
    rewards = np.load(folder / "train.npz", allow_pickle=False)["rewards"].reshape(5, 100)
    assert (rewards[:, -1] == 1).all()
    statistics = Normalizer.load(folder / "normalization.npz")
    states = statistics.unnormalize_obs(demos["states"]).reshape(5, 100, 19)
    assert (states[:, -1, 11] > 0.84).all()  # the cube, in metres, at the end of every demonstration
    assert np.ptp(states[:, 0, 9]) > 0.003  # and not the same start


def test_a_second_collection_never_replaces_the_first_unasked(pretrained):
    with pytest.raises(SystemExit):
        collect_demos.main(["--task=lift", "--episodes=5", f"--out={pretrained / 'data'}"])


def test_killed_on_the_real_simulator_and_resumed(pretrained):
    base = f"base_policy_path={pretrained / 'pre' / 'checkpoint' / 'state_2.pt'}"
    whole, cut = pretrained / "whole", pretrained / "cut"
    call(run("finetune", whole, base, *TINY_FINETUNE))
    process = subprocess.Popen(
        run("finetune", cut, base, *TINY_FINETUNE), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (cut / "metrics.jsonl").exists() and len((cut / "metrics.jsonl").read_text().splitlines()) >= 2:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    call(run("finetune", cut, base, *TINY_FINETUNE, "resume=true"))
    assert metrics(whole) == metrics(cut)
    results = [json.loads((x / "result.json").read_text()) for x in (whole, cut)]
    assert results[0]["after"]["returns"] == results[1]["after"]["returns"]
    assert (whole / "learning_curve.png").exists()
    assert results[0]["video"]  # with OpenGL or without


def test_an_environment_as_a_door_for_others():
    """``make_vector_env(cfg).step(chunk (N, Te, Da))`` without anything of the agents."""
    venv = make_vector_env({"name": "lift", "n_envs": 2, "max_episode_steps": 8, "act_steps": 4})
    assert venv.reset(3)["state"].shape == (2, 1, 19)
    result = venv.step(np.zeros((2, 4, 7), np.float32))
    assert result.reward.shape == (2,)
    assert not result.truncated.any()
    assert venv.step(np.zeros((2, 4, 7), np.float32)).truncated.all()
    venv.close()
