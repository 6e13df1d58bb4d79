"""Fine-tuning: a kill at any moment, then resume, equals the run that was left alone, bit for bit; one seed, one result."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from agent import checkpoint, portable
from agent.errors import CheckpointError, RunDirError, UsageError
from agent.eval.eval_agent import EvalAgent
from agent.finetune.finetune import FinetuneAgent
from env.errors import EnvError
from tests.smoke import runs

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "state_0.pt"
    runs.save_untrained_base(path)
    return path


def finetune(base: Path, logdir: Path, *overrides: str) -> Path:
    FinetuneAgent(runs.finetune_config(f"base_policy_path={base}", f"logdir={logdir}", *overrides)).run()
    return logdir


def start(base: Path, logdir: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.smoke.runs", str(base), str(logdir), *overrides]
    return subprocess.Popen(command, cwd=runs.ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def rows(logdir: Path) -> list[dict]:
    """Metrics without wall-clock figures."""
    lines = (logdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def assert_same(a: Path, b: Path) -> None:
    """Weights, optimisers, schedules, random numbers and metrics, bit for bit."""
    assert rows(a) == rows(b)
    one, two = (dict(_tensors(checkpoint.load(x / "checkpoint" / "latest.pt"))) for x in (a, b))
    ignored = ("config.", "extra.wall_seconds", "extra.before.seconds", "versions")
    one, two = ({k: v for k, v in x.items() if not k.startswith(ignored)} for x in (one, two))
    assert one.keys() == two.keys()
    different = [
        k for k in one if not (torch.equal(one[k], two[k]) if isinstance(one[k], torch.Tensor) else one[k] == two[k])
    ]
    assert not different


def _tensors(node, path=""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _tensors(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _tensors(value, f"{path}.{i}")
    else:
        yield path, node


@pytest.mark.parametrize(("reset", "n_kills"), [("true", 2), ("false", 1)])
def test_killed_and_resumed_equals_uninterrupted(base, tmp_path, reset, n_kills):
    overrides = [
        f"env.reset_at_iteration={reset}",
        "train.n_steps=7",
        "train.n_train_itr=20",
        "train.save_model_freq=10",
    ]  # 14 of 16 steps: mid-episode
    whole = finetune(base, tmp_path / "whole", *overrides)
    cut, rng, kills = tmp_path / "cut", random.Random(7), 0
    while not (cut / "result.json").exists():
        process = start(
            base, cut, *overrides, "resume=true"
        )  # also the first time, and where it died before its first checkpoint
        if kills < n_kills:
            before = len(rows(cut)) if (cut / "metrics.jsonl").exists() else 0
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if (cut / "metrics.jsonl").exists() and len(
                    (cut / "metrics.jsonl").read_bytes().splitlines()
                ) > before + 4:
                    break
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            process.stderr.close()
        else:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error.decode()
    assert kills == n_kills
    assert_same(whole, cut)


def test_one_seed_one_result_another_seed_another(base, tmp_path):
    a, b = (finetune(base, tmp_path / name, "seed=5") for name in "ab")
    assert_same(a, b)
    c = finetune(base, tmp_path / "c", "seed=6")
    assert rows(a)[1:] != rows(c)[1:]


def test_resume_refuses_other_settings_and_empty_directories(base, tmp_path):
    done = finetune(base, tmp_path / "run", "train.n_train_itr=1")
    with pytest.raises(UsageError, match=r"train\.gamma was 0\.999 .* is 0\.9 now"):
        finetune(base, done, "resume=true", "train.gamma=0.9")
    with pytest.raises(RunDirError, match="already holds a run"):
        finetune(base, done)
    finetune(base, done, "resume=true", "train.n_train_itr=2")
    assert [row["itr"] for row in rows(done)] == [0, 1, 2]


def test_a_base_of_another_architecture_names_the_first_weight(base, tmp_path):
    with pytest.raises(CheckpointError, match=r"network\.mlp_mean.*expected shape \(37, .*found \(31, "):
        finetune(base, tmp_path / "run", "model.actor.mlp_dims=[37,37,37]")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        finetune(tmp_path / "nowhere.pt", tmp_path / "run")


def test_without_a_base_the_newest_that_fits_is_taken_or_the_command_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="pre_diffusion_mlp --config-dir=cfg/robomimic/pretrain/point_mass"):
        FinetuneAgent(runs.finetune_config(f"log_root={tmp_path}"))
    folder = tmp_path / "robomimic-pretrain" / "point_mass_pre_diffusion_mlp" / "2026" / "checkpoint"
    folder.mkdir(parents=True)
    runs.save_untrained_base(folder / "state_3.pt")
    agent = FinetuneAgent(runs.finetune_config(f"log_root={tmp_path}", "train.n_train_itr=1"))
    assert agent.base_path == folder / "state_3.pt"


def test_a_fine_tuned_policy_can_be_fine_tuned_further(base, tmp_path):
    first = finetune(base, tmp_path / "first", "train.n_train_itr=2")
    again = finetune(first / "checkpoint" / "state_2.pt", tmp_path / "again", "train.n_train_itr=1")
    assert (
        rows(again)[0]["eval/success_rate"] == json.loads((first / "result.json").read_text())["after"]["success_rate"]
    )


def test_an_unknown_task_is_named_before_anything_else(base, tmp_path):
    with pytest.raises(EnvError, match="unknown task 'point_mas'; did you mean 'point_mass'"):
        finetune(base, tmp_path / "run", "env_name=point_mas")


def test_averaged_weights_are_what_is_judged_and_what_is_loaded(base, tmp_path):
    """``ema.decay``: the average over the iterations, by hand from the weights of each; it changes nothing of what is learned."""
    more = ["train.n_train_itr=3", "train.save_model_freq=1", "train.actor_lr=0.01"]
    plain = finetune(base, tmp_path / "plain", *more)
    whole = finetune(base, tmp_path / "whole", *more, "ema.decay=0.75")
    for extra in ("train.n_train_itr=2", "resume=true"):
        finetune(base, tmp_path / "cut", *more, "ema.decay=0.75", extra)
    assert_same(whole, tmp_path / "cut")

    folder = whole / "checkpoint"
    saved = [checkpoint.load(folder / f"state_{k}.pt") for k in (1, 2, 3)]
    assert checkpoint.load(plain / "checkpoint" / "state_3.pt")["ema"] is None
    for key, weight in checkpoint.load(plain / "checkpoint" / "state_3.pt")["model"].items():
        assert torch.equal(weight, saved[-1]["model"][key]), key
    key = "actor_ft.mlp_mean.layers.0.weight"
    first = saved[0]["model"]["actor.mlp_mean.layers.0.weight"]  # the base's: tuned weights begin there
    one, two, three = (payload["model"][key] for payload in saved)
    expected = 0.75**3 * first + 0.25 * (0.75**2 * one + 0.75 * two + three)
    assert (expected - three).abs().max() > 1e-3
    torch.testing.assert_close(saved[-1]["ema"][key], expected)

    path = folder / "state_3.pt"
    for choice, part in ((None, "ema"), ("ema", "ema"), ("finetuned", "ema"), ("model", "model")):
        policy = checkpoint.load_policy(path, policy_weights=choice)
        assert all(torch.equal(value, saved[-1][part][name]) for name, value in policy.state_dict().items()), choice
    theirs = portable.published(saved[-1])["model"][key]  # their layout has room for one
    assert torch.equal(theirs, saved[-1]["ema"][key])
    results = {}
    for choice in ("null", "model"):
        evaluation = runs.eval_config(
            f"base_policy_path={path}",
            f"policy_weights={choice}",
            f"logdir={tmp_path / choice}",
            "n_episodes=23",
            "eval_seed=2000000",
        )
        results[choice] = EvalAgent(evaluation).run()["returns"]
    after = json.loads((whole / "result.json").read_text())["after"]["returns"]
    assert results["null"] == after != results["model"]

    again = runs.finetune_config(f"base_policy_path={path}", f"logdir={tmp_path / 'again'}", "ema.decay=0.5")
    agent = FinetuneAgent(again)  # goes on from the policy that was judged
    assert torch.equal(agent.policy.state_dict()[key], saved[-1]["ema"][key])
    agent.logger.close()
