"""Checkpoints: complete, safe, never half written; and every way in which they can be wrong."""

from __future__ import annotations

import collections
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from agent import checkpoint
from agent.agent import build
from agent.errors import CheckpointError
from env.normalizer import Normalizer


def _payload(**more):
    weight = torch.arange(6.0).reshape(2, 3)
    return {
        "kind": "pretrain",
        "epoch": 3,
        "model": {"network.weight": weight},
        "ema": {"network.weight": weight + 1},
        **more,
    }


def _temporary_files(folder):
    return [name for name in os.listdir(folder) if name.endswith(".part")]


def test_round_trip(tmp_path):
    path = tmp_path / "checkpoint" / "state_3.pt"
    arrays = {"mask": np.array([True, False]), "seeds": np.arange(5, dtype=np.int64)}
    checkpoint.save(
        path, _payload(optimizer={"state": {0: {"step": torch.tensor(2.0)}}, "betas": (0.9, 0.999)}, extra=arrays)
    )
    loaded = checkpoint.load(path)
    assert (loaded["format"], loaded["format_version"], loaded["epoch"]) == ("d2ppo", 1, 3)
    assert torch.equal(loaded["extra"]["seeds"], torch.arange(5)) and loaded["extra"]["mask"].dtype == torch.bool
    assert loaded["optimizer"]["betas"] == (0.9, 0.999)
    assert loaded["versions"]["torch"] == torch.__version__
    assert torch.equal(
        checkpoint.weights(loaded)["network.weight"], checkpoint.weights(loaded, prefer_ema=False)["network.weight"] + 1
    )
    assert _temporary_files(path.parent) == []


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"a": [1, {"b": object()}]}, r"extra\.a\[1\]\.b"),
        ({"a": np.float64(1.0)}, r"extra\.a"),
        ({"a": np.array(["text"])}, r"extra\.a"),
        ({(1, 2): 3}, "extra"),
        ({"a": collections.Counter()}, r"extra\.a"),
    ],
)
def test_only_plain_content_is_stored(tmp_path, extra, named):
    with pytest.raises(TypeError, match=named):
        checkpoint.save(tmp_path / "state_1.pt", _payload(extra=extra))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("part", ["model", "ema"])
def test_weights_that_are_not_finite_are_refused_and_the_old_file_stays(tmp_path, part):
    path = tmp_path / "latest.pt"
    checkpoint.save(path, _payload())
    bad = _payload(epoch=4)
    bad[part]["network.weight"][1, 2] = float("nan")
    with pytest.raises(CheckpointError, match=f"{part}.*network.weight"):
        checkpoint.save(path, bad)
    assert checkpoint.load(path)["epoch"] == 3


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A real failing write: the process may not make files larger than 2 KiB."""
    path = tmp_path / "latest.pt"
    checkpoint.save(path, _payload())
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"latest\.pt: not written.*DPPO_LOG_DIR"):
            checkpoint.save(path, _payload(epoch=4, extra={"big": torch.zeros(1009)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert _temporary_files(tmp_path) == []


def test_no_space_left_is_named(tmp_path, monkeypatch):
    path = tmp_path / "latest.pt"
    checkpoint.save(path, _payload())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        checkpoint.save(path, _payload(epoch=4))
    assert checkpoint.load(path)["epoch"] == 3
    assert _temporary_files(tmp_path) == []


def test_a_crash_between_writing_and_replacing_is_never_read(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder / "latest.pt", _payload())

    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", killed)
        checkpoint.save(folder / "latest.pt", _payload(epoch=4))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(_temporary_files(folder)) == 1  # whole, but never renamed: it must not count
    assert checkpoint.load(folder / "latest.pt")["epoch"] == 3


_WRITER = """
import sys, torch
from agent import checkpoint
from agent.agent import build
n = 0
while True:
    n += 1
    checkpoint.save(sys.argv[1], {"kind": "pretrain", "epoch": n, "model": {"w": torch.full((300007,), float(n))}})
    if n == 1:
        sys.stdout.write("ready\\n"); sys.stdout.flush()
"""


def test_kill_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "latest.pt"
    for attempt in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(random.Random(attempt).uniform(0.0, 0.1))
        process.kill()
        process.communicate()
        loaded = checkpoint.load(path)
        assert bool((loaded["model"]["w"] == loaded["epoch"]).all())


def test_unwritable_folder(tmp_path):
    (tmp_path / "checkpoint").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="not written"):
        checkpoint.save(tmp_path / "checkpoint" / "state_1.pt", _payload())


def test_missing_file_says_what_is_there(tmp_path):
    checkpoint.save(tmp_path / "state_40.pt", _payload())
    with pytest.raises(CheckpointError, match=r"state_50\.pt: no such checkpoint.*state_40\.pt"):
        checkpoint.load(tmp_path / "state_50.pt")
    with pytest.raises(CheckpointError, match="no folder"):
        checkpoint.load(tmp_path / "nowhere" / "state_1.pt")


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "state_1.pt"
    checkpoint.save(path, _payload())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"state_1\.pt: damaged"):
        checkpoint.load(path)


def test_damaged_in_the_middle(tmp_path):
    path = tmp_path / "state_1.pt"
    checkpoint.save(path, _payload(extra={"big": torch.zeros(10_007)}))
    data = bytearray(path.read_bytes())
    data[20_000:20_100] = b"\xff" * 100
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


class _Evil:
    def __reduce__(self):
        return os.system, ("true",)


def test_code_in_a_file_is_refused(tmp_path):
    path = tmp_path / "state_1.pt"
    torch.save({"model": {"w": torch.zeros(1)}, "extra": _Evil()}, path)
    with pytest.raises(CheckpointError, match="could run code"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [[1, 2], {"weights": torch.zeros(1)}, {"model": 3}, {"model": {}}])
def test_not_a_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "state_1.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
        checkpoint.load(tmp_path / "state_1.pt")


def test_foreign_format_and_newer_version(tmp_path):
    path = tmp_path / "state_1.pt"
    checkpoint.save(path, _payload(format="other"))
    with pytest.raises(CheckpointError, match="format 'other'"):
        checkpoint.load(path)
    checkpoint.save(path, _payload(format_version=99))
    with pytest.raises(CheckpointError, match="version 99"):
        checkpoint.load(path)


def test_rng_state_repeats_every_generator(tmp_path):
    random.seed(3), np.random.seed(5), torch.manual_seed(7)
    np.random.normal(), random.gauss(0, 1)  # both leave a cached second number, which is state too
    checkpoint.save(tmp_path / "state_1.pt", _payload(rng=checkpoint.rng_state()))

    def draw():
        return random.gauss(0, 1), np.random.normal(size=3).tolist(), torch.randn(3).tolist()

    first = draw()
    assert draw() != first
    checkpoint.set_rng_state(checkpoint.load(tmp_path / "state_1.pt")["rng"])
    assert draw() == first


class TinyPolicy(nn.Module):
    """A policy that the tests configure by name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = nn.Linear(3, width)


def _config(target: str = f"{__name__}.TinyPolicy", **more):
    return {"model": {"_target_": target, "width": 2, **more}}


def _policy_payload(**more):
    state = TinyPolicy(2).state_dict()
    averaged = {key: value + 1 for key, value in state.items()}
    normalizer = Normalizer(np.zeros(3), np.ones(3), -np.ones(2), np.ones(2)).to_dict()
    return {
        "kind": "pretrain",
        "epoch": 1,
        "model": state,
        "ema": averaged,
        "normalizer": normalizer,
        "config": _config(),
        **more,
    }


def test_load_policy_takes_averaged_weights_normaliser_and_leaves_random_numbers_alone(tmp_path):
    payload = _policy_payload()
    checkpoint.save(tmp_path / "state_1.pt", payload)
    before = torch.get_rng_state()
    policy = checkpoint.load_policy(tmp_path / "state_1.pt", config=_config())
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(policy.network.weight, payload["ema"]["network.weight"])
    assert policy.normalizer == Normalizer(np.zeros(3), np.ones(3), -np.ones(2), np.ones(2))
    assert policy.config["model"]["width"] == 2 and not policy.training


def test_load_policy_without_averaged_weights_takes_the_trained_ones(tmp_path):
    payload = _policy_payload(ema=None, normalizer=None)
    checkpoint.save(tmp_path / "state_1.pt", payload)
    policy = checkpoint.load_policy(tmp_path / "state_1.pt", config=_config())
    assert torch.equal(policy.network.weight, payload["model"]["network.weight"]) and policy.normalizer is None


@pytest.mark.parametrize(
    "target",
    [
        f"{__name__}.TinyPolicy",
        "os.system",
        "model.common.modules.nn.Linear",
        "model.common.modules.strict_load",
        "model.nothing.There",
    ],
)
def test_a_stored_configuration_builds_only_our_models(tmp_path, target):
    checkpoint.save(tmp_path / "state_1.pt", _policy_payload(config=_config(target)))
    with pytest.raises(CheckpointError, match="_target_"):
        checkpoint.load_policy(tmp_path / "state_1.pt")
    checkpoint.save(
        tmp_path / "state_1.pt", _policy_payload(config=_config("model.common.mlp.MLP", network={"_target_": target}))
    )
    with pytest.raises(CheckpointError, match=r"network\._target_"):
        checkpoint.load_policy(tmp_path / "state_1.pt")


def test_a_stored_configuration_looks_nothing_up(tmp_path):
    checkpoint.save(
        tmp_path / "state_1.pt", _policy_payload(config=_config("model.common.mlp.MLP", width="${oc.env:HOME}"))
    )
    with pytest.raises(CheckpointError, match="interpolation"):
        checkpoint.load_policy(tmp_path / "state_1.pt")


def test_published_checkpoint_needs_a_configuration(tmp_path):
    path = tmp_path / "state_3000.pt"
    torch.save({"epoch": 3000, "model": TinyPolicy(2).state_dict(), "ema": TinyPolicy(2).state_dict()}, path)
    assert checkpoint.is_published(checkpoint.load(path))
    with pytest.raises(CheckpointError, match="config="):
        checkpoint.load_policy(path)
    assert checkpoint.load_policy(path, config=_config()).network.out_features == 2


def test_weights_of_another_network_name_the_key(tmp_path):
    checkpoint.save(tmp_path / "state_1.pt", _policy_payload())
    wider = {"model": {"_target_": f"{__name__}.TinyPolicy", "width": 5}}
    with pytest.raises(CheckpointError, match=r"network\.weight.*\(5, 3\).*\(2, 3\)"):
        checkpoint.load_policy(tmp_path / "state_1.pt", config=wider)


def test_a_fine_tuned_policy_comes_back_with_base_and_tuned_weights(tmp_path):
    actor = {
        "_target_": "model.diffusion.mlp_diffusion.DiffusionMLP",
        "action_dim": 2,
        "horizon_steps": 4,
        "cond_dim": 3,
    }
    actor |= {"mlp_dims": [17, 17], "time_dim": 8}
    shape = {"horizon_steps": 4, "obs_dim": 3, "action_dim": 2, "denoising_steps": 7}
    ppo = {"_target_": "model.diffusion.diffusion_ppo.PPODiffusion", "actor": actor, "ft_denoising_steps": 3, **shape}
    ppo["critic"] = {"_target_": "model.common.critic.CriticObs", "cond_dim": 3, "mlp_dims": [5, 5]}
    policy = build(ppo)
    with torch.no_grad():
        for parameter in policy.actor_ft.parameters():
            parameter.add_(0.25)  # tuned: no longer the base
    path = tmp_path / "state_1.pt"
    checkpoint.save(path, {"kind": "finetune", "itr": 1, "model": policy.state_dict(), "config": {"model": ppo}})
    loaded = checkpoint.load_policy(path)
    for key, value in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    obs, noise = {"state": torch.randn(5, 1, 3)}, torch.randn(5, *policy.noise_shape)
    expected = policy.eval().sample(obs, deterministic=True, noise=noise).trajectories
    assert torch.equal(loaded.sample(obs, deterministic=True, noise=noise).trajectories, expected)
