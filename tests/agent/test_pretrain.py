"""Pre-training: exact resumption after a kill, determinism, what is learned and recorded, and what is refused.

The policy is a stand-in with everything that must survive a kill: parameters, a buffer, dropout (global random
numbers) and noise (the run's own generator).
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from agent import checkpoint
from agent.dataset.demos import save_demos
from agent.errors import CheckpointError, DatasetError, DownloadError, RunDirError, UsageError
from agent.pretrain import pretrain
from agent.pretrain import settings as settings_of_pretraining
from agent.pretrain.diagnostics import INERT
from agent.pretrain.plot import loss_curve
from agent.pretrain.pretrain import PretrainAgent
from agent.pretrain.settings import settle_precision
from env.normalizer import Normalizer
from model.types import Losses, NonFiniteError

OBS_DIM, ACTION_DIM, HORIZON = 3, 2, 4
LENGTHS = [11, 7, 3, 13, 5]  # 8 + 4 + 0 + 10 + 2 chunks


class ToyPolicy(nn.Module):
    """Regresses actions on noisy observations; ``spoil_at`` makes the loss NaN from that call on."""

    def __init__(self, obs_dim: int, action_dim: int, horizon_steps: int, spoil_at: int | None = None) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(obs_dim, 17), nn.Dropout(0.1), nn.Linear(17, horizon_steps * action_dim))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.spoil_at, self.sizes = spoil_at, []

    def loss(self, batch, generator=None):
        if self.training:
            self.calls += 1
            self.sizes.append(len(batch.actions))
        state = batch.conditions["state"].flatten(1)
        noisy = state + 0.1 * torch.randn(state.shape, generator=generator)
        error = self.network(noisy) - batch.actions.flatten(1)
        diffusion, extra = error.square().mean(), self.network[0].weight.square().mean()
        if self.spoil_at is not None and int(self.calls) >= self.spoil_at:
            diffusion = diffusion * math.nan
        parts = {"diffusion loss": diffusion.detach(), "extra loss": extra.detach()}
        return Losses(diffusion + 1e-3 * extra, parts)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Demonstrations in which actions follow from observations, and their normaliser."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (sum(LENGTHS), OBS_DIM))
    actions = np.tanh(states @ rng.normal(size=(OBS_DIM, ACTION_DIM)))
    save_demos(folder / "train.npz", states, actions, np.array(LENGTHS))
    Normalizer(-np.ones(OBS_DIM), np.full(OBS_DIM, 3.0), -np.ones(ACTION_DIM), np.ones(ACTION_DIM)).save(
        folder / "normalization.npz"
    )
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """One thread, and no picture (drawing takes longer than training)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(pretrain, "loss_curve", lambda *_: None)
    yield
    torch.set_num_threads(before)


def _cfg(data: Path, logdir: Path, **overrides):
    """A configuration; overrides are dotted keys with ``__`` for the dots."""
    cfg = OmegaConf.create(
        {
            "seed": 3, "device": "cpu", "logdir": str(logdir), "name": "toy", "resume": None, "wandb": None,
            "obs_dim": OBS_DIM, "action_dim": ACTION_DIM, "horizon_steps": HORIZON, "cond_steps": 1,
            "normalization_path": str(data / "normalization.npz"),
            "train_dataset": {
                "_target_": "agent.dataset.sequence.StitchedSequenceDataset", "dataset_path": str(data / "train.npz"),
                "horizon_steps": HORIZON, "cond_steps": 1, "device": "${device}",
            },
            "train": {
                "n_epochs": 6, "batch_size": 5, "learning_rate": 1e-2, "weight_decay": 1e-4,
                "lr_scheduler": {"first_cycle_steps": 200, "warmup_steps": 2, "min_lr": 1e-3, "per": "epoch"},
                "epoch_start_ema": 3, "update_ema_freq": 2, "save_model_freq": 100, "latest_every_s": 1e9,
                "train_split": 0.8, "val_freq": 2, "log_freq": 1, "diagnostics_freq": 100,
            },
            "ema": {"decay": 0.9, "per": "epoch"},
            "model": {
                "_target_": f"{__name__}.ToyPolicy", "obs_dim": "${obs_dim}", "action_dim": "${action_dim}",
                "horizon_steps": HORIZON,
            },
        }
    )  # fmt: skip
    for key, value in overrides.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def _rows(logdir: Path):
    """Metrics without wall-clock figures."""
    rows = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def _assert_same(first, second):
    """Bit for bit, all the way down."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - {"wall_seconds"}:
            _assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            _assert_same(a, b)
    else:
        assert first == second


def _assert_same_run(first: Path, second: Path, epochs: int):
    a, b = (checkpoint.load(run / "checkpoint" / f"state_{epochs}.pt") for run in (first, second))
    for part in ("epoch", "model", "ema", "optimizer", "scheduler", "rng", "extra"):
        _assert_same(a[part], b[part])
    assert _rows(first) == _rows(second)


_STEPWISE = {"ema__per": "step", "train__lr_scheduler__per": "step"}


@pytest.mark.parametrize("settings", [{}, _STEPWISE], ids=["by epoch", "by step"])
def test_a_killed_run_resumed_is_the_uninterrupted_run(data, tmp_path, settings):
    n = 120
    settings = {"train__n_epochs": n, "train__save_model_freq": 7, **settings}
    cfg = _cfg(data, tmp_path / "killed", train__latest_every_s=0.0, **settings)
    module = sys.modules[__name__]
    code = (
        f"import sys, torch; torch.set_num_threads(1); import {__name__} as t\n"
        "t.PretrainAgent(t.OmegaConf.create(sys.argv[1])).run()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(module.__file__).parent), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, OmegaConf.to_yaml(cfg)], env=environment, stderr=subprocess.PIPE
    )
    metrics, deadline = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read().decode()
        time.sleep(0.005)
    time.sleep(random.uniform(0.0, 0.2))
    process.kill()
    assert process.wait() == -signal.SIGKILL  # it was still running
    process.stderr.close()
    PretrainAgent(_cfg(data, tmp_path / "killed", resume=True, **settings)).run()
    PretrainAgent(_cfg(data, tmp_path / "whole", **settings)).run()
    _assert_same_run(tmp_path / "killed", tmp_path / "whole", n)
    assert [row["epoch"] for row in _rows(tmp_path / "killed")] == list(range(1, n + 1))


def test_rows_beyond_the_last_checkpoint_are_cut(data, tmp_path):
    PretrainAgent(_cfg(data, tmp_path / "a", train__save_model_freq=4, train__n_epochs=6)).run()
    for name in ("latest.pt", "state_6.pt"):
        (tmp_path / "a" / "checkpoint" / name).unlink()  # as if killed after the row of epoch 6, before its checkpoint
    PretrainAgent(_cfg(data, tmp_path / "b", resume=str(tmp_path / "a"), train__save_model_freq=4)).run()
    assert not (tmp_path / "b").exists()  # it went on where the run lives
    PretrainAgent(_cfg(data, tmp_path / "whole", train__save_model_freq=4)).run()
    _assert_same_run(tmp_path / "a", tmp_path / "whole", 6)


def test_a_run_killed_before_its_first_checkpoint_begins_again(data, tmp_path):
    PretrainAgent(_cfg(data, tmp_path / "a")).run()
    for file in (tmp_path / "a" / "checkpoint").glob("*.pt"):
        file.unlink()
    PretrainAgent(_cfg(data, tmp_path / "a", resume=True)).run()
    assert [row["epoch"] for row in _rows(tmp_path / "a")] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_can_be_prolonged(data, tmp_path):
    PretrainAgent(_cfg(data, tmp_path / "a")).run()
    PretrainAgent(_cfg(data, tmp_path / "a", resume=True)).run()  # nothing left to do is no error
    PretrainAgent(_cfg(data, tmp_path / "a", resume=True, train__n_epochs=9)).run()
    PretrainAgent(_cfg(data, tmp_path / "whole", train__n_epochs=9)).run()
    a, b = (checkpoint.load(tmp_path / run / "checkpoint" / "state_9.pt") for run in ("a", "whole"))
    for part in ("model", "ema", "optimizer", "rng"):
        _assert_same(a[part], b[part])


def test_same_seed_same_run_other_seed_other_run(data, tmp_path):
    starts = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.rand(random.randrange(1, 9))  # what happened before must not matter
        agent = PretrainAgent(_cfg(data, tmp_path / name, seed=seed))
        starts[name] = agent.policy.network[0].weight.detach().clone()
        agent.run()
    assert torch.equal(starts["a"], starts["b"]) and not torch.equal(starts["a"], starts["c"])
    _assert_same_run(tmp_path / "a", tmp_path / "b", 6)
    a, c = (checkpoint.load(tmp_path / run / "checkpoint" / "state_6.pt")["model"] for run in ("a", "c"))
    assert not torch.equal(a["network.0.weight"], c["network.0.weight"])
    assert _rows(tmp_path / "a") != _rows(tmp_path / "c")


def test_how_often_is_logged_validated_and_saved_changes_no_weights(data, tmp_path):
    PretrainAgent(_cfg(data, tmp_path / "a")).run()
    often = {"train__val_freq": 1, "train__log_freq": 3, "train__save_model_freq": 1, "train__latest_every_s": 0.0}
    PretrainAgent(_cfg(data, tmp_path / "b", **often)).run()
    a, b = (checkpoint.load(tmp_path / run / "checkpoint" / "state_6.pt") for run in ("a", "b"))
    for part in ("model", "ema", "optimizer", "rng"):
        _assert_same(a[part], b[part])
    assert [row["epoch"] for row in _rows(tmp_path / "b")] == [3, 6]
    assert sorted(path.name for path in (tmp_path / "b" / "checkpoint").iterdir()) == [
        "latest.pt",
        *(f"state_{n}.pt" for n in range(1, 7)),
    ]


def test_one_epoch_is_plain_adamw_over_every_chunk(data, tmp_path):
    """Against a hand-written loop from the same start, with the agent's own order and noise."""
    agent = PretrainAgent(
        _cfg(data, tmp_path / "a", train__n_epochs=1, train__train_split=1.0, train__lr_scheduler__warmup_steps=0)
    )
    policy, order, noise = copy.deepcopy(agent.policy), torch.Generator(), torch.Generator()
    order.set_state(agent.order.get_state()), noise.set_state(agent.noise.get_state())
    state = torch.get_rng_state()
    agent.run()
    torch.set_rng_state(state)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=1e-4)
    policy.train()
    for rows in torch.randperm(24, generator=order).split(5):
        optimizer.zero_grad()
        policy.loss(agent.dataset.batch(rows), noise).total.backward()
        optimizer.step()
    assert agent.policy.sizes == [5, 5, 5, 5, 4]  # the last partial batch is kept
    for key, value in policy.state_dict().items():
        torch.testing.assert_close(agent.policy.state_dict()[key], value, rtol=1e-6, atol=1e-7)


def test_bfloat16_is_of_the_products_alone(data, tmp_path):
    """Hidden layers compute in bfloat16, weights and moments stay float32, and what is learned is what float32 learns, roughly."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        agent = PretrainAgent(
            _cfg(data, tmp_path / precision, train__n_epochs=60, train__train_split=1.0, train__precision=precision)
        )
        seen = set()
        agent.policy.network[0].register_forward_hook(lambda _m, _i, out, seen=seen: seen.add(out.dtype))
        agent.run()
        assert seen == {getattr(torch, precision)}
        assert {p.dtype for p in agent.policy.parameters()} == {torch.float32}
        assert {s["exp_avg"].dtype for s in agent.optimizer.state.values()} == {torch.float32}
        rows = _rows(tmp_path / precision)
        losses[precision] = [row["train/loss"] for row in rows]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"][-1] == pytest.approx(losses["float32"][-1], rel=0.1)


def test_auto_precision_is_bfloat16_where_the_processor_has_it(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(settings_of_pretraining, "_has_bfloat16", lambda device: True)
    assert settle_precision("auto", "cpu") == "bfloat16" and settle_precision("float32", "cpu") == "float32"
    settle_precision("bfloat16", "cpu")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    monkeypatch.setattr(settings_of_pretraining, "_has_bfloat16", lambda device: False)
    agent = PretrainAgent(
        _cfg(data, tmp_path / "a", train__n_epochs=1, train__train_split=1.0, train__precision="auto")
    )
    assert agent.run()["precision"] == "float32"
    assert settle_precision("bfloat16", "cpu") == "bfloat16"  # as asked, but not silently
    assert "no bfloat16 instructions" in caplog.text and "train.precision=auto" in caplog.text


def test_a_single_left_over_sample_joins_the_last_batch(data, tmp_path):
    agent = PretrainAgent(_cfg(data, tmp_path / "a", train__n_epochs=1, train__train_split=1.0, train__batch_size=23))
    agent.run()
    assert agent.policy.sizes == [24]


def test_it_learns_and_reports(data, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "loss_curve", loss_curve)
    result = PretrainAgent(_cfg(data, tmp_path / "a", train__n_epochs=60, train__train_split=0.6)).run()
    rows = _rows(tmp_path / "a")
    assert rows[-1]["train/loss"] < 0.6 * rows[0]["train/loss"]
    assert rows[-1]["train/loss"] == pytest.approx(
        rows[-1]["train/diffusion loss"] + 1e-3 * rows[-1]["train/extra loss"]
    )
    assert {"val/diffusion loss", "val_ema/diffusion loss"} <= rows[-1].keys() and "val/loss" not in rows[-2]
    assert rows[-1]["val/diffusion loss"] != rows[-1]["val_ema/diffusion loss"]
    assert (rows[0]["train/lr"], rows[2]["train/lr"]) == pytest.approx((1e-3, 1e-2))
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["n_train_chunks"] + result["n_val_chunks"] == 24 and result["n_trajectories"] == 5
    assert Path(result["loss_curve"]).read_bytes().startswith(b"\x89PNG")


def test_validation_is_repeatable_and_without_dropout(data, tmp_path):
    agent = PretrainAgent(_cfg(data, tmp_path / "a", train__n_epochs=2))
    agent.run()
    first = agent._validate()
    assert first == agent._validate()
    row = _rows(tmp_path / "a")[-1]
    assert row["val/loss"] == first["val/loss"] and not agent.policy.training


def test_the_average_by_epoch_follows_the_published_rule(data, tmp_path):
    agent = PretrainAgent(_cfg(data, tmp_path / "a", train__n_epochs=6, train__save_model_freq=1))
    agent.run()
    model, ema = {}, {}
    for epoch in range(1, 7):
        payload = checkpoint.load(tmp_path / "a" / "checkpoint" / f"state_{epoch}.pt")
        model[epoch], ema[epoch] = (payload[part]["network.0.weight"] for part in ("model", "ema"))
    for epoch in (1, 2):  # before epoch_start_ema = 3: a copy
        assert torch.equal(ema[epoch], model[epoch])
    assert torch.equal(ema[3], ema[2]) and torch.equal(ema[5], ema[4])  # update_ema_freq = 2
    torch.testing.assert_close(ema[4], 0.9 * ema[3] + 0.1 * model[4])
    torch.testing.assert_close(ema[6], 0.9 * ema[5] + 0.1 * model[6])


def test_checkpoint_is_complete_and_loads_as_a_policy(data, tmp_path):
    cfg = _cfg(data, tmp_path / "a")
    result = PretrainAgent(cfg).run()
    payload = checkpoint.load(result["checkpoint"])
    assert (payload["kind"], payload["epoch"], payload["config"]["model"]["obs_dim"]) == ("pretrain", 6, OBS_DIM)
    policy = checkpoint.load_policy(result["checkpoint"], config=OmegaConf.to_container(cfg, resolve=True))
    assert torch.equal(policy.network[0].weight, payload["ema"]["network.0.weight"])
    assert policy.normalizer == Normalizer.load(data / "normalization.npz")


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(data, tmp_path):
    cfg = _cfg(
        data, tmp_path / "a", model__spoil_at=13, train__train_split=1.0, train__latest_every_s=0.0
    )  # the third call of epoch 3
    with pytest.raises(NonFiniteError, match=r"is nan in epoch 3.*checkpoint.*train\.learning_rate"):
        PretrainAgent(cfg).run()
    payload = checkpoint.load(tmp_path / "a" / "checkpoint" / "latest.pt")
    assert payload["epoch"] == 2 and all(value.isfinite().all() for value in payload["model"].values())
    assert [row["epoch"] for row in _rows(tmp_path / "a")] == [1, 2]


def test_a_disk_that_fills_up_stops_the_run_and_spares_the_checkpoint(data, tmp_path, monkeypatch):
    agent = PretrainAgent(_cfg(data, tmp_path / "a", train__save_model_freq=2))
    replace, calls = os.replace, []

    def full_at_epoch_4(source, target):
        calls.append(target)
        if Path(target).name == "state_4.pt":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_at_epoch_4)
    with pytest.raises(CheckpointError, match=r"state_4\.pt: not written \(No space left"):
        agent.run()
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "a" / "checkpoint" / "latest.pt")["epoch"] == 2
    PretrainAgent(
        _cfg(data, tmp_path / "a", resume=True, train__save_model_freq=2)
    ).run()  # the directory is free again
    PretrainAgent(_cfg(data, tmp_path / "whole", train__save_model_freq=2)).run()
    _assert_same_run(tmp_path / "a", tmp_path / "whole", 6)


def test_a_run_directory_is_not_overwritten(data, tmp_path):
    PretrainAgent(_cfg(data, tmp_path / "a")).run()
    with pytest.raises(RunDirError, match="already holds a run"):
        PretrainAgent(_cfg(data, tmp_path / "a"))
    with pytest.raises(UsageError, match=r"resume: train\.batch_size was 5.*is 4"):
        PretrainAgent(_cfg(data, tmp_path / "a", resume=True, train__batch_size=4))
    PretrainAgent(_cfg(data, tmp_path / "a", resume=True))  # a refused attempt holds nothing


class DiagnosedPolicy(ToyPolicy):
    """Reports a regulariser that does nothing, and draws from every generator while at it."""

    def diagnostics(self, batch, generator=None):
        torch.rand(3)
        ratio = torch.rand((), generator=generator) * 1e-6
        return {"gradient_norm_ratio": ratio, "effective_rank": torch.tensor(float(len(batch.actions)))}


def test_diagnostics_are_logged_warned_about_and_change_nothing(data, tmp_path, caplog):
    target = f"{__name__}.DiagnosedPolicy"
    with caplog.at_level(logging.WARNING):
        PretrainAgent(_cfg(data, tmp_path / "a", model___target_=target, train__diagnostics_freq=2)).run()
    assert caplog.text.count("no longer acts") == 1
    rows = _rows(tmp_path / "a")
    assert [row["epoch"] for row in rows if "dispersive/effective_rank" in row] == [1, 2, 4, 6]
    assert rows[0]["dispersive/effective_rank"] == 5
    PretrainAgent(_cfg(data, tmp_path / "b")).run()
    a, b = (checkpoint.load(tmp_path / run / "checkpoint" / "state_6.pt") for run in ("a", "b"))
    for part in ("model", "ema", "rng", "extra"):
        _assert_same(a[part], b[part])


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"train__batch_size": 999}, UsageError, r"train\.batch_size: 999 is more than the \d+ chunks"),
        ({"train__batch_size": 0}, UsageError, r"train\.batch_size"),
        ({"train__n_epochs": 0}, UsageError, r"train\.n_epochs"),
        ({"train__n_epochs": 2.5}, UsageError, r"train\.n_epochs.*2\.5"),
        ({"train__learning_rate": "fast"}, UsageError, r"train\.learning_rate.*'fast'"),
        ({"train__learning_rate": math.nan}, UsageError, r"train\.learning_rate.*nan"),
        ({"train__lr_scheduler__warmup_steps": 200}, UsageError, "warmup_steps"),
        ({"train__lr_scheduler__min_lr": 1.0}, UsageError, "min_lr"),
        ({"train__lr_scheduler__per": "batch"}, UsageError, r"train\.lr_scheduler\.per.*'batch'"),
        ({"train__precision": "half"}, UsageError, r"train\.precision: expected float32 or bfloat16 or auto, found 'half'"),
        ({"train__train_split": 0.0}, DatasetError, r"train\.train_split"),
        ({"ema__decay": 1.0}, UsageError, r"ema\.decay"),
        ({"ema__per": "week"}, UsageError, r"ema\.per"),
        ({"seed": -1}, UsageError, "seed"),
        ({"device": "tpu"}, UsageError, "device: expected auto, cpu, cuda"),
        ({"device": "cuda:99"}, UsageError, "device: cuda:99"),
        ({"obs_dim": 5}, DatasetError, r"train\.npz: expected obs_dim=5.*found 3"),
        ({"normalization_path": "nowhere.npz"}, DatasetError, r"normalization_path: nowhere\.npz.*collect_demos"),
        ({"train_dataset__dataset_path": "nowhere.npz"}, DatasetError, r"nowhere\.npz.*collect_demos"),
        ({"normalization_path": "no/gym/hopper-medium-v2/normalization.npz"}, DownloadError, r"(?s)OFFLINE.*--task hopper"),
        ({"train_dataset__dataset_path": "no/robomimic/lift/train.npz"}, DownloadError, r"(?s)OFFLINE.*1lbXgM.*--task lift"),
        ({"train_dataset__colour": "red"}, UsageError, r"train_dataset.*colour"),
        ({"model___target_": "model.nothing.There"}, UsageError, r"model\.nothing\.There"),
        ({"model__wings": 2}, UsageError, "wings"),
        ({"resume": "nowhere"}, RunDirError, "resume: 'nowhere' does not exist"),
    ],
)  # fmt: skip
def test_bad_configurations_are_named_and_leave_nothing_behind(data, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        PretrainAgent(_cfg(data, tmp_path / "a", **overrides))
    assert not list(tmp_path.rglob("*.pt"))
    PretrainAgent(_cfg(data, tmp_path / "a", train__n_epochs=1)).run()  # mended, the same directory does


def test_missing_keys_are_named(data, tmp_path):
    for key in ("train.n_epochs", "train.batch_size", "obs_dim", "logdir"):
        cfg = _cfg(data, tmp_path / "a")
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        del node[leaf]
        with pytest.raises(UsageError, match=key.replace(".", r"\.")):
            PretrainAgent(cfg)


def _diffusion_cfg(data: Path, logdir: Path, **overrides):
    """The real policy: a small residual denoiser with a dispersive loss on its hidden features."""
    network = {
        "_target_": "model.diffusion.mlp_diffusion.DiffusionMLP", "action_dim": ACTION_DIM, "horizon_steps": HORIZON,
        "cond_dim": OBS_DIM,
        "time_dim": 8, "mlp_dims": [31, 31, 31], "residual_style": True,
    }  # fmt: skip
    model = {
        "_target_": "model.diffusion.diffusion.DiffusionModel", "network": network, "horizon_steps": HORIZON,
        "obs_dim": OBS_DIM,
        "action_dim": ACTION_DIM, "denoising_steps": 7, "use_dispersive_loss": True,
    }  # fmt: skip
    cfg = _cfg(data, logdir, **overrides)
    cfg.model = model
    return cfg


def test_the_diffusion_policy_trains_resumes_and_loads(data, tmp_path):
    settings = {"train__diagnostics_freq": 3, "train__save_model_freq": 4, "train__n_epochs": 8}
    result = PretrainAgent(_diffusion_cfg(data, tmp_path / "a", **settings)).run()
    for name in ("latest.pt", "state_8.pt"):
        (tmp_path / "a" / "checkpoint" / name).unlink()
    PretrainAgent(_diffusion_cfg(data, tmp_path / "a", resume=True, **settings)).run()
    PretrainAgent(_diffusion_cfg(data, tmp_path / "whole", **settings)).run()
    _assert_same_run(tmp_path / "a", tmp_path / "whole", 8)
    rows = _rows(tmp_path / "a")
    last = rows[-1]
    assert last["train/loss"] == pytest.approx(
        last["train/diffusion loss"] + 0.5 * last["train/dispersive loss"], rel=1e-5
    )
    assert last["val/diffusion loss"] > 0 and rows[0]["dispersive/gradient_norm_ratio"] > INERT
    policy = checkpoint.load_policy(result["checkpoint"])  # its own configuration suffices
    assert all(key.startswith("network.") for key in policy.state_dict())
    sample = policy.sample({"state": torch.zeros(5, 1, OBS_DIM)}, generator=torch.Generator().manual_seed(0))
    assert sample.trajectories.shape == (5, HORIZON, ACTION_DIM)
    assert policy.normalizer == Normalizer.load(data / "normalization.npz")


@pytest.mark.parametrize("killed_after", [1, 4])
def test_what_the_regulariser_learned_survives_a_kill(data, tmp_path, killed_after, caplog):
    """The layer chosen (or not yet), the adapted weight and the queue."""
    settings = {
        "train__n_epochs": 6, "train__save_model_freq": killed_after, "model__dispersive_loss_layer": "auto",
        "model__dispersive_auto_epochs": 3, "model__dispersive_loss_weight": "adaptive", "model__dispersive_queue": 7,
    }  # fmt: skip

    def cfg(logdir: Path, **more):
        cfg = _diffusion_cfg(data, logdir, **more)
        for key, value in settings.items():
            OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
        return cfg

    PretrainAgent(cfg(tmp_path / "a")).run()
    for epoch in ("latest", *(f"state_{n}" for n in range(killed_after + 1, 7))):
        (tmp_path / "a" / "checkpoint" / f"{epoch}.pt").unlink(missing_ok=True)
    with caplog.at_level(logging.INFO):
        PretrainAgent(cfg(tmp_path / "a", resume=True)).run()
        PretrainAgent(cfg(tmp_path / "whole")).run()
    _assert_same_run(tmp_path / "a", tmp_path / "whole", 6)
    rows = _rows(tmp_path / "whole")
    assert ["train/dispersive loss" in row for row in rows] == [False] * 3 + [True] * 3
    state = checkpoint.load(tmp_path / "whole" / "checkpoint" / "state_6.pt")["extra"]["dispersion"]
    ranks = {
        layer: sum(row[f"features/{layer}/effective_rank"] for row in rows[:3]) for layer in ("early", "mid", "late")
    }
    assert state["layer"] == max(ranks, key=ranks.get)
    assert f"auto chose {state['layer']}" in caplog.text
    assert tuple(state["queues"][0].shape) == (7, 31)
    assert state["ranks"] == {key: rows[-1][f"dispersive/{key}"] for key in ("feature_rank", "state_rank")}
    assert (state["weight"] > 0) == (state["ranks"]["feature_rank"] < state["ranks"]["state_rank"])
    assert (
        rows[-1]["train/dispersive weight"] == state["weight"]
        and rows[-1]["features/late/neighbour_agreement"] is not None
    )
