"""Every algorithm through the one loop, on the point mass: it runs, resumes exactly, and its checkpoint is evaluated like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agent import checkpoint
from agent.errors import CheckpointError
from agent.eval.eval_agent import EvalAgent
from agent.finetune.finetune import FinetuneAgent
from tests.smoke import runs
from tests.smoke.test_finetune_resume import assert_same, rows

DIFFUSION = ("rwr", "awr", "dipo", "dql", "idql", "qsm")
COMMON = [
    "env.n_envs=7", "train.n_steps=9", "train.n_train_itr=4", "train.val_freq=2", "train.eval_episodes=5", "train.final_eval_episodes=11",
    "train.latest_every_s=0", "train.save_model_freq=100", "train.batch_size=31",
]  # fmt: skip
REPLAY = ["train.n_critic_warmup_itr=1", "train.replay_ratio=2", "train.buffer_size=150"]


def settings(kind: str) -> list[str]:
    small = ["model.network.mlp_dims=[31,31,31]"] if kind == "rwr" else ["model.actor.mlp_dims=[31,31,31]"]
    return [*COMMON, *small, *([] if kind == "rwr" else REPLAY)]


def finetune(leaf: str, base: Path | str, logdir: Path, *overrides: str) -> dict:
    cfg = runs.config(f"robomimic/finetune/lift/{leaf}", f"base_policy_path={base}", f"logdir={logdir}", *overrides)
    return FinetuneAgent(cfg).run()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "state_0.pt"
    runs.save_untrained_base(path)
    return path


@pytest.mark.parametrize("kind", DIFFUSION)
def test_diffusion_reinforcement_learning(kind, base, tmp_path):
    leaf, more = f"ft_{kind}_diffusion_mlp", settings(kind)
    result = finetune(leaf, base, tmp_path / "whole", *more)
    finetune(leaf, base, tmp_path / "cut", *more, "train.n_train_itr=3")  # no evaluation is due then
    finetune(leaf, base, tmp_path / "cut", *more, "resume=true")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    losses = [row["loss/actor"] for row in rows(tmp_path / "whole") if "loss/actor" in row]
    assert len(losses) >= 3 and all(0 < abs(loss) < 100 for loss in losses)
    start = checkpoint.load(base)["model"]
    tuned = checkpoint.load(Path(result["checkpoint"]))["model"]
    assert any(not torch.equal(start[key], tuned[key]) for key in start)
    evaluation = runs.eval_config(
        f"base_policy_path={result['checkpoint']}", "n_episodes=11", "eval_seed=2000000", f"logdir={tmp_path / 'eval'}"
    )
    assert EvalAgent(evaluation).run()["returns"] == result["after"]["returns"]


SOFT = {  # leaf and what makes it small
    "sac": ("gym/finetune/hopper-v2/sac_mlp", ["train.n_explore_steps=10"]),
    "rlpd": ("robomimic/finetune/lift/rlpd_mlp", ["train.n_explore_steps=10", "train.critic_num_update=2"]),
    "ibrl": ("robomimic/finetune/can/ibrl_mlp", ["base_policy_path=scratch", "train.critic_num_update=2"]),
    "calql": ("robomimic/finetune/can/calql_mlp_online", []),
}
SMALL = [
    "model.actor.mlp_dims=[31,31]", "model.critic.mlp_dims=[29,29]", "train.buffer_size=500", "env.n_envs=3", "train.batch_size=32",
    "env.max_episode_steps=16",
]  # fmt: skip


def soft_config(kind: str, data: Path, logdir: Path, *overrides: str, leaf: str | None = None):
    gone = ("denoising", "horizon_steps", "act_steps") + (("task.low_dim",) if kind == "sac" else ())
    task = [key for key in runs.TASK if not key.startswith(gone)]
    every = [*task, f"data_root={data}", *COMMON, *SMALL, *SOFT[kind][1], f"logdir={logdir}", *overrides]
    with runs.initialize_config_dir(str(runs.ROOT / "cfg"), version_base="1.3"):
        cfg = runs.compose(leaf or SOFT[kind][0], overrides=every)
    runs.validate(cfg)
    return cfg


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Demonstrations of the point mass with rewards and terminals, for both suites."""
    folder = tmp_path_factory.mktemp("data")
    runs.write_demonstrations(folder / "plain")
    with np.load(folder / "plain" / "train.npz") as file:
        arrays = dict(file)
    solved = np.linalg.norm(arrays["states"][:, :2] - arrays["states"][:, 2:], axis=1) < 0.2
    for suite in ("gym", "robomimic"):
        home = folder / suite / "point_mass"
        home.mkdir(parents=True)
        np.savez(home / "train.npz", **arrays, rewards=solved.astype(np.float32), terminals=np.zeros(len(solved), bool))
        runs.UNIT.save(home / "normalization.npz")
    return folder


@pytest.mark.parametrize("kind", SOFT)
def test_gaussian_actor_critics(kind, data, tmp_path):
    offline = []
    if kind == "calql":  # off line first; on line begins with what that left
        first = "robomimic/pretrain/can/calql_mlp_offline"
        logs = [f"log_root={tmp_path}", "train.num_update=3", "train.n_train_itr=2"]
        home = tmp_path / "robomimic-pretrain" / "point_mass_pre_calql_mlp_ta1" / "run"
        cfg = soft_config(kind, data, home, *logs, leaf=first)
        assert str(cfg.logdir) == str(home) and FinetuneAgent(cfg).run()["env_steps"] == 0
        offline = [f"log_root={tmp_path}"]
    agent = FinetuneAgent(soft_config(kind, data, tmp_path / "whole", *offline))
    if kind == "calql":
        assert agent.base_path == home / "checkpoint" / "state_2.pt"
    result = agent.run()
    for more in (["train.n_train_itr=3"], ["resume=true"]):
        FinetuneAgent(soft_config(kind, data, tmp_path / "cut", *offline, *more)).run()
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert result["env_steps"] == 4 * 9 * 3
    losses = [row["loss/critic"] for row in rows(tmp_path / "whole") if "loss/critic" in row]
    assert len(losses) >= 2 and all(0 < abs(loss) < 1000 for loss in losses)
    policy = checkpoint.load_policy(Path(result["checkpoint"]))
    assert all(torch.equal(value, agent.policy.state_dict()[key]) for key, value in policy.state_dict().items())


def test_self_imitation(base, data, tmp_path):
    """With returns that the untrained policy reaches by chance: the world here has no successes that end an episode."""
    leaf = "robomimic/finetune/lift/quickstart_self_imitation"
    more = [
        *runs.TASK, *COMMON, f"data_root={data}", f"base_policy_path={base}", "model.network.mlp_dims=[31,31,31]", "train.buffer_size=900",
        "model.start_std=0", "model.explore_start_std=1", "train.n_explore_itr=1", "train.n_learn_itr=1", "train.n_batches=3", "train.min_return=-1000",
        "env.max_episode_steps=16", "train.actor_lr_scheduler.warmup_steps=1",
    ]  # fmt: skip

    def run(name: str, *overrides: str) -> dict:
        with runs.initialize_config_dir(str(runs.ROOT / "cfg"), version_base="1.3"):
            cfg = runs.compose(leaf, overrides=[*more, f"logdir={tmp_path / name}", *overrides])
        runs.validate(cfg)
        return FinetuneAgent(cfg).run()

    result = run("whole")
    run("cut", "train.n_train_itr=3")
    run("cut", "resume=true")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    lines = rows(tmp_path / "whole")
    learned = ["loss/actor" in line for line in lines]  # the base's evaluation; two rounds
    assert learned == [False, False, True, False, True]
    assert ["train/episode_return" in line for line in lines[1:]] == [True, False, True, False]
    assert lines[-1]["imitated_chunks"] > 0
    evaluation = runs.eval_config(
        f"base_policy_path={result['checkpoint']}", "n_episodes=11", "eval_seed=2000000", f"logdir={tmp_path / 'eval'}",
        "+model.use_ddim=true", "+model.ddim_steps=5", "+model.start_std=0", "env.max_episode_steps=16",
    )  # fmt: skip
    assert EvalAgent(evaluation).run()["returns"] == result["after"]["returns"]


def test_a_steered_policy_is_distilled(base, data, tmp_path):
    """DSRL, and then self-imitation that collects nothing: all whole episodes of the two iterations, two of eight chunks in each world."""
    steered = [
        "model.ddim_steps=5",
        "model.actor.mlp_dims=[31,31,31]", "train.buffer_size=900", "train.n_explore_steps=3", "train.n_critic_warmup_updates=2", "train.n_train_itr=2",
        "train.critic_replay_ratio=31", "train.actor_replay_ratio=31", "env.max_episode_steps=16",
    ]  # fmt: skip
    finetune("quickstart_dsrl", base, tmp_path / "dsrl", *COMMON, *steered)
    latest = tmp_path / "dsrl" / "checkpoint" / "latest.pt"
    distil = [
        *COMMON, f"data_root={data}", "model.network.mlp_dims=[31,31,31]", "model.start_std=0", "train.n_explore_itr=0", "train.n_learn_itr=2",
        "train.n_batches=5", "train.min_return=-1000", "env.max_episode_steps=16", "train.actor_lr_scheduler.warmup_steps=1", "train.n_train_itr=2",
        f"train.experience_path={latest}",
    ]  # fmt: skip
    result = finetune("quickstart_self_imitation", base, tmp_path / "distilled", *distil)
    assert [line["imitated_chunks"] for line in rows(tmp_path / "distilled")[1:]] == [7 * 2 * 8] * 2
    assert result["env_steps"] == 0 and result["before"]["returns"] != result["after"]["returns"]


def test_without_its_replay_buffer_a_run_is_not_resumed(base, tmp_path):
    leaf, more = "ft_dql_diffusion_mlp", settings("dql")
    result = finetune(leaf, base, tmp_path / "run", *more, "train.n_train_itr=2")
    assert "replay" not in checkpoint.load(Path(result["checkpoint"]))["algorithm"]
    (tmp_path / "run" / "checkpoint" / "latest.pt").unlink()
    with pytest.raises(CheckpointError, match="only checkpoint/latest.pt holds the replay buffer"):
        finetune(leaf, base, tmp_path / "run", *more, "resume=true")
    again = finetune(leaf, result["checkpoint"], tmp_path / "again", *more, "train.n_train_itr=1")
    assert again["before"]["returns"] == result["after"]["returns"]


NEW = '''
import torch
from agent.finetune.off_policy import Learner


class Cloning(Learner):
    """Regresses on whatever it did."""

    SETTINGS = {"actor_lr": (int, float), "patience": int}

    def __init__(self, *args):
        super().__init__(*args)
        self.optimize("actor", self.policy.actor_parameters())

    def learn(self, rollout, iteration):
        obs = {key: value.flatten(0, 1) for key, value in rollout.obs.items()}
        for _ in range(self.train["patience"]):
            self.step("actor", self.policy.regression_errors(obs, rollout.chains[:, :, -1].flatten(0, 1), self.generator).mean())
'''
METHOD = """# @package _global_
defaults:
  - /base/method/rl_diffusion
  - _self_
name: toy
model: {_target_: model.diffusion.diffusion_rwr.RWRDiffusion}
train: {algorithm: toy_cloning.Cloning, actor_lr: 1.0e-3, patience: 3}
"""
LEAF = """# @package _global_
defaults:
  - /base/stage: finetune
  - /base/benchmark: robomimic_env
  - /base/network@model.network: diffusion_mlp
  - toy_method
  - /base/task: robomimic/lift
  - _self_
"""


def test_a_new_algorithm_is_one_file_and_one_yaml(base, tmp_path, monkeypatch):
    """Outside the repository, even: its keys are validated, its losses logged, its checkpoints saved and resumed."""
    from hydra import compose, initialize_config_dir

    from agent.errors import UsageError

    (tmp_path / "toy_cloning.py").write_text(NEW)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "cfg"
    folder.mkdir()
    (folder / "toy_method.yaml").write_text(METHOD)
    (folder / "toy.yaml").write_text(LEAF)

    def config(*overrides: str):
        search = f"hydra.searchpath=[file://{runs.ROOT / 'cfg'}]"
        with initialize_config_dir(str(folder), version_base="1.3"):
            cfg = compose(
                "toy",
                overrides=[search, *runs.TASK, *settings("rwr")[:-2], "model.network.mlp_dims=[31,31,31]", *overrides],
            )
        runs.validate(cfg)
        return cfg

    run = [f"base_policy_path={base}", f"logdir={tmp_path / 'run'}"]
    FinetuneAgent(config(*run, "train.n_train_itr=2")).run()
    FinetuneAgent(config(*run, "resume=true")).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["itr"] for line in lines] == [0, 1, 2, 3, 4] and all(line["loss/actor"] > 0 for line in lines[1:])
    with pytest.raises(UsageError, match=r"train\.patiense: there is no such key; did you mean 'train\.patience'"):
        config("+train.patiense=3")
    with pytest.raises(UsageError, match=r"train\.patience: expected int, found 'much'"):
        config("train.patience=much")
    with pytest.raises(UsageError, match=r"train\.algorithm: cannot import 'toy_cloning\.Clone'"):
        config("train.algorithm=toy_cloning.Clone")


def test_ppo_that_tunes_fewer_and_fewer_steps(base, tmp_path):
    """It resumes exactly with the number it has come to, and its checkpoint is evaluated with that one."""
    path = f"base_policy_path={base}"
    more = [
        "train.n_train_itr=4",
        "train.ft_denoising_steps_d=1",
        "train.ft_denoising_steps_t=2",
        "train.kl_coef=0.1",
        "train.val_freq=50",
    ]
    whole = FinetuneAgent(runs.finetune_config(path, f"logdir={tmp_path / 'whole'}", *more)).run()
    for extra in ("train.n_train_itr=3", "resume=true"):
        FinetuneAgent(runs.finetune_config(path, f"logdir={tmp_path / 'cut'}", *more, extra)).run()
    assert_same(tmp_path / "whole", tmp_path / "cut")
    policy = checkpoint.load_policy(Path(whole["checkpoint"]))
    assert policy.ft_denoising_steps == 1
    evaluation = runs.eval_config(
        f"base_policy_path={whole['checkpoint']}", "n_episodes=23", "eval_seed=2000000", f"logdir={tmp_path / 'eval'}"
    )
    assert EvalAgent(evaluation).run()["returns"] == whole["after"]["returns"]


def test_nobody_runs_but_the_loop():
    folder = runs.ROOT / "agent" / "finetune"
    assert [file.name for file in sorted(folder.glob("*.py")) if "def run(" in file.read_text()] == ["finetune.py"]
