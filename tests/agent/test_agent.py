"""Devices, seeds, configuration values, and objects built from the configuration."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from agent.agent import build, read, resolve_device, seed_everything
from agent.errors import UsageError
from env.errors import EnvError


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [resolve_device(name) for name in ("auto", None, "cpu")] == ["cpu"] * 3
    with pytest.raises(UsageError, match="device: cuda:0 .*no CUDA GPU.*device=cpu"):
        resolve_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    with pytest.raises(UsageError, match="cuda:0 to cuda:1"):
        resolve_device("cuda:2")
    for name in ("gpu", "cuda:", "cuda:x", "cuda1", "mps"):
        with pytest.raises(UsageError, match="device: expected auto"):
            resolve_device(name)


def test_seed():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first
    seed_everything(6)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
    for seed in (-1, 2**32, 1.0, True, None):
        with pytest.raises(UsageError, match="seed"):
            seed_everything(seed)


def test_read():
    cfg = OmegaConf.create(
        {"a": {"b": [1, {"c": "${d}"}], "missing": "???", "broken": "${nowhere}"}, "d": 3, "none": None}
    )
    assert read(cfg, "a.b") == [1, {"c": 3}] and type(read(cfg, "a.b")) is list
    assert read(cfg, "none", 5) is None and read(cfg, "a.x", 5) == 5 and read({"a": {"b": 2}}, "a.b") == 2
    for key in ("a.x", "a.missing", "a.broken"):
        with pytest.raises(UsageError, match=key.replace(".", r"\.")):
            read(cfg, key)


class Thing:
    """Something to build, with every way of failing."""

    def __init__(self, size, inner=None, fail: str = "") -> None:
        self.size, self.inner = size, inner
        if fail:
            raise {
                "value": ValueError("size: too small"),
                "env": EnvError("no such task"),
                "bug": ZeroDivisionError("oops"),
            }[fail]


THING = f"{__name__}.Thing"


def test_build_gives_plain_containers_and_takes_more_arguments():
    cfg = OmegaConf.create(
        {"n": [3, 5], "thing": {"_target_": THING, "size": "${n}", "inner": {"_target_": THING, "size": {"a": 1}}}}
    )
    thing = build(cfg.thing)
    assert type(thing.size) is list and thing.size == [3, 5] and type(thing.inner.size) is dict
    assert build({"_target_": THING, "size": 1}, inner=7).inner == 7


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        ({"size": 1}, UsageError, "_target_"),
        (None, UsageError, "_target_"),
        ({"_target_": "model.nothing.There"}, UsageError, r"model\.nothing\.There"),
        ({"_target_": THING}, UsageError, "cannot build.*size"),
        ({"_target_": THING, "size": 1, "fail": "value"}, UsageError, "size: too small"),
        (
            {"_target_": THING, "size": 1, "inner": {"_target_": THING, "size": 1, "fail": "value"}},
            UsageError,
            "inner: .*size: too small",
        ),
        (
            {"_target_": THING, "size": 1, "inner": {"_target_": THING, "size": 1, "fail": "env"}},
            EnvError,
            "^no such task$",
        ),
        ({"_target_": THING, "size": 1, "fail": "bug"}, ZeroDivisionError, "oops"),
    ],
)
def test_build_errors_speak_to_a_person_and_bugs_stay_bugs(node, error, message):
    with pytest.raises(error, match=message) as caught:
        build(node)
    assert type(caught.value) is error
