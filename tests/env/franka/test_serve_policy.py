"""script/serve_policy.py with a real checkpoint: a robot gets the actions that the policy has at home."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent import checkpoint
from agent.agent import build
from agent.deployment import LocalPolicy
from env.franka.recording import checksum
from env.franka.remote import RemotePolicy
from env.normalizer import Normalizer
from script import serve_policy
from tests.published_files import DDIM, PRETRAINED

ROOT = Path(__file__).resolve().parents[3]
KEYS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
DO, DA, TA = sum(KEYS.values()), 7, 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A small diffusion policy of Lift, untrained."""
    sizes = {"action_dim": DA, "horizon_steps": TA}
    node = {**PRETRAINED, **DDIM, **sizes, "obs_dim": DO, "network": {**PRETRAINED["network"], **sizes, "cond_dim": DO}}
    config = {"model": node, "env_name": "lift", "act_steps": 3, "obs_dim": DO, **sizes}
    config["env"] = {"wrappers": {"robomimic_lowdim": {"low_dim_keys": list(KEYS)}}, "max_episode_steps": 211}
    scale = Normalizer(np.full(DO, -2.0), np.full(DO, 3.0), np.full(DA, -1.0), np.full(DA, 1.0))
    path = tmp_path_factory.mktemp("policy") / "state_3.pt"
    payload = {"kind": "pretrain", "epoch": 3, "model": build(node).state_dict(), "normalizer": scale.to_dict()}
    checkpoint.save(path, {**payload, "config": config})
    return path


def test_the_actions_of_home(saved):
    command = [sys.executable, str(ROOT / "script" / "serve_policy.py"), str(saved), "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(
        [*command, "--act-steps", "2"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        home = LocalPolicy(saved, device="cpu", act_steps=2)
        said = server.stdout.readline()
        remote = RemotePolicy(re.search(r"ws://127\.0\.0\.1:\d+", said)[0], timeout=30)
        for name in ("act_steps", "horizon_steps", "action_dim", "max_episode_steps", "spec", "normalizer"):
            assert getattr(remote, name) == getattr(home, name), name
        assert remote.act_steps == 2 and remote.checkpoint_sha256 == checksum(saved)
        for seed in (3, 5):
            home.reset(seed)
            remote.reset(seed)
            for k in range(2):  # the noise goes on as at home
                observation = {"state": np.random.default_rng(k).uniform(-1, 1, (1, DO)).astype(np.float32)}
                assert np.array_equal(remote(observation), home(observation))
        server.terminate()
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_mistakes_have_sentences(saved, tmp_path, capsys):
    for argv, message in (
        ([str(tmp_path / "none.pt")], "none.pt"),
        ([str(saved), "--act-steps", "6"], "act_steps: expected 1 to"),
    ):
        with pytest.raises(SystemExit, match="2"):
            serve_policy.main(argv)
        assert message in capsys.readouterr().err
