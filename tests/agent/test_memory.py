"""How much memory is free, what a run keeps, and the end before it begins."""

from __future__ import annotations

import logging

import pytest
import torch

from agent import memory
from agent.errors import UsageError


def files(tmp_path, monkeypatch, available_kb, limit, used, cached):
    (tmp_path / "meminfo").write_text(f"MemTotal: 999999999 kB\nMemAvailable: {available_kb} kB\n")
    for name, value in (("max", limit), ("current", used), ("stat", f"anon 5\ninactive_file {cached}")):
        (tmp_path / name).write_text(f"{value}\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    group = tuple(str(tmp_path / name) for name in ("max", "current", "stat"))
    monkeypatch.setattr(memory, "_CGROUPS", (group, ("absent", "absent", "absent")))


def test_free_memory_is_the_machines_or_the_containers(tmp_path, monkeypatch):
    files(tmp_path, monkeypatch, 1000, "max", 7, 0)
    assert memory.free_bytes() == 1_024_000
    files(tmp_path, monkeypatch, 1000, 500_000, 300_000, 20_000)
    assert memory.free_bytes() == 220_000
    files(tmp_path, monkeypatch, 1000, 500_000, 600_000, 0)
    assert memory.free_bytes() == 0
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nothing")
    monkeypatch.setattr(memory, "_CGROUPS", ())
    assert memory.free_bytes() is None


def test_a_run_that_does_not_fit_names_the_keys(monkeypatch, caplog):
    monkeypatch.setattr(memory, "free_bytes", lambda device="cpu": 5 * 2**30)
    with caplog.at_level(logging.INFO):
        memory.preflight({"images": 3 * 2**30, "a minibatch": 2**29}, ["train.n_steps"])
    assert "memory: 3.50 GiB (images 3.00 GiB, a minibatch 0.50 GiB); free: 5.00 GiB" in caplog.text
    with pytest.raises(
        UsageError, match=r"needs 6.00 GiB.*images 6.00 GiB.*5.00 GiB are free.*train.n_steps or env.n_envs"
    ):
        memory.preflight({"images": 6 * 2**30}, ["train.n_steps", "env.n_envs"])
    monkeypatch.setattr(memory, "free_bytes", lambda device="cpu": None)
    memory.preflight({"images": 2**60}, ["train.n_steps"])  # nobody knows: go on


def test_what_a_backward_pass_keeps():
    w = torch.nn.Parameter(torch.ones(5, 3))
    x = torch.ones(7, 5)
    # x for the product; its result is kept twice (a square needs its argument) but exists once; w is a parameter
    assert memory.saved_bytes(lambda: (x @ w).square().sum(), [w]) == (7 * 5 + 7 * 3) * 4
    state = torch.get_rng_state()
    memory.saved_bytes(lambda: torch.dropout(x @ w, 0.5, True).sum(), [w])
    assert torch.equal(torch.get_rng_state(), state)


def test_training_takes_four_times_what_is_trained():
    module = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2).requires_grad_(False))
    module.append(module[0])  # shared weights count once
    assert memory.training_bytes(module) == 4 * (4 * 18 + 8)
