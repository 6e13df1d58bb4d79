"""Every kind of policy through the same loops: pre-training, PPO, evaluation, and the files between them, on the point mass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from agent import checkpoint
from agent.agent import build
from agent.errors import CheckpointError
from agent.eval.eval_agent import EvalAgent
from agent.finetune import base_policy
from agent.finetune.finetune import FinetuneAgent
from agent.pretrain.pretrain import PretrainAgent
from tests.agent import vision_runs
from tests.agent.test_gaussian_ppo import SMALL, gaussian_config
from tests.smoke import runs

UNET = ["{}.dim=8", "{}.n_groups=4"]
MIXTURE = ["{}.mlp_dims=[31,31,31]", "{}.num_modes=3"]
TRANSFORMER = ["{}.transformer_embed_dim=16", "{}.transformer_num_heads=2", "{}.transformer_num_layers=3"]
POLICIES = {
    "diffusion_unet": UNET,
    "gmm_mlp": MIXTURE,
    "gaussian_transformer": TRANSFORMER,
    "gmm_transformer": [*TRANSFORMER, "{}.num_modes=3"],
    **{f"{kind}_mlp": ["{}.mlp_dims=[31,31,31]"] for kind in ("flow", "shortcut", "meanflow")},
}
LOSS = {"diffusion": "diffusion", "gmm": "nll", "gaussian": "nll"}
PRE = [
    "train.n_epochs=4",
    "train.learning_rate=2e-3",
    "ema.per=step",
    "train.lr_scheduler.first_cycle_steps=5",
    "train.lr_scheduler.warmup_steps=1",
]
TUNE = [
    key for key in runs.FINETUNE if not key.startswith(("ft_den", "model.actor", "model.clip", "train.n_train_itr"))
]


def settings(kind: str, where: str) -> list[str]:
    return [key.format(where) for key in POLICIES[kind]]


def config(leaf: str, *overrides: str):
    """A leaf turned to the point mass; who does not denoise has no ``denoising_steps``."""
    task = runs.TASK if "diffusion" in leaf else [key for key in runs.TASK if "denoising" not in key]
    with runs.initialize_config_dir(str(runs.ROOT / "cfg"), version_base="1.3"):
        cfg = runs.compose(f"robomimic/{leaf}", overrides=[*task, *overrides])
    runs.validate(cfg)
    return cfg


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    runs.write_demonstrations(folder / "data" / "robomimic" / "point_mass")
    return folder


@pytest.mark.parametrize("kind", POLICIES)
def test_pretraining_fine_tuning_and_evaluation(kind, folder):
    data = f"data_root={folder / 'data'}"
    pre = folder / "robomimic-pretrain" / f"point_mass_pre_{kind}" / "run"
    network = settings(kind, "model.network")
    PretrainAgent(
        config(f"pretrain/lift/pre_{kind}", data, *PRE, *network, "train.batch_size=64", f"logdir={pre}")
    ).run()
    key = f"train/{LOSS.get(kind.split('_')[0], 'flow')} loss"
    losses = [json.loads(line)[key] for line in (pre / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]

    tuned = [*TUNE, *settings(kind, "model.actor"), "train.n_train_itr=2", "train.update_epochs=2", "env.n_envs=7"]
    if "diffusion" in kind:
        tuned.append("ft_denoising_steps=3")
    cfg = config(f"finetune/lift/ft_ppo_{kind}", data, *tuned, f"log_root={folder}", f"logdir={folder / kind}")
    assert base_policy.find(cfg) == pre / "checkpoint" / "state_4.pt"  # its own kind, whatever else was trained since
    agent = FinetuneAgent(cfg)
    base = {key: value.clone() for key, value in agent.policy.network.state_dict().items()}  # as it starts
    result = agent.run()
    after = agent.policy.state_dict()
    rows = [json.loads(line) for line in (folder / kind / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("self_check/max_abs_log_ratio", 0) for row in rows) < 1e-4
    kept = agent.policy.actor.state_dict() if hasattr(agent.policy, "actor") else {}  # a mixture keeps none
    assert all(torch.equal(value, base[key]) for key, value in kept.items()) and bool(kept) is not kind.startswith(
        "gmm"
    )
    moved = [key for key, value in base.items() if not torch.equal(after[f"actor_ft.{key}"], value)]
    still = {key for key in base if key not in moved and ".norm2." not in key and "logvar_m" not in key}
    assert moved and not still

    evaluation = config(
        f"eval/lift/eval_{kind}", data, "env.n_envs=7", "n_episodes=23", f"base_policy_path={result['checkpoint']}",
        f"logdir={folder / kind / 'eval'}", "eval_seed=2000000",
    )  # fmt: skip
    assert EvalAgent(evaluation).run()["successes"] == result["after"]["successes"]


@pytest.mark.parametrize("leaf", ["finetune/lift/ft_ppo_gaussian_mlp", "eval/lift/eval_gaussian_mlp"])
def test_a_base_of_another_kind_is_not_taken(leaf, tmp_path):
    paths = {}
    for kind in POLICIES:
        cfg = config(f"pretrain/lift/pre_{kind}", *settings(kind, "model.network"), f"log_root={tmp_path}")
        paths[kind] = Path(cfg.logdir) / "checkpoint" / "state_7.pt"
        plain = OmegaConf.to_container(cfg, resolve=True)
        checkpoint.save(paths[kind], {"kind": "pretrain", "model": build(cfg.model).state_dict(), "config": plain})
    with pytest.raises(CheckpointError, match=rf"none of the {len(POLICIES)} .*\n.*--config-name=pre_gaussian_mlp "):
        base_policy.find(config(leaf, f"log_root={tmp_path}"))
    for kind in POLICIES:
        assert base_policy.find(config(f"eval/lift/eval_{kind}", f"log_root={tmp_path}")) == paths[kind]


@pytest.mark.parametrize("kind", ["gaussian_mlp", "diffusion_unet", "meanflow_mlp"])
def test_policies_that_see_are_cloned_and_tuned(kind, tmp_path):
    vision_runs.write_demonstrations(tmp_path / "data" / "robomimic" / "point_mass_img-img", episodes=40)
    diffusion, data = kind.startswith("diffusion"), f"data_root={tmp_path / 'data'}"
    task = [key for key in vision_runs.TASK if diffusion or "denoising" not in key]

    def image_config(leaf: str, *overrides: str):
        with runs.initialize_config_dir(str(runs.ROOT / "cfg"), version_base="1.3"):
            cfg = runs.compose(f"robomimic/{leaf}_{kind}_img", overrides=[*task, data, *overrides])
        runs.validate(cfg)
        return cfg

    def small(where: str) -> list[str]:
        found = vision_runs.net(where)
        return [*found[:-1], *(key.format(where) for key in UNET)] if diffusion else found

    logs = tmp_path / "robomimic-pretrain" / f"point_mass_img_pre_{kind}" / "run"
    pre = image_config("pretrain/lift/pre", *PRE, "train.batch_size=64", *small("model.network"), f"logdir={logs}")
    result = PretrainAgent(pre).run()
    key = f"train/{LOSS.get(kind.split('_')[0], 'flow')} loss"
    losses = [json.loads(line)[key] for line in (logs / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    tuned = [*TUNE, *small("model.actor"), *vision_runs.net("model.critic"), "train.n_train_itr=2", "env.n_envs=7"]
    tuned += ["train.update_epochs=2", f"log_root={tmp_path}", *(["ft_denoising_steps=3"] if diffusion else [])]
    cfg = image_config("finetune/lift/ft_ppo", *tuned, f"logdir={tmp_path / 'ft'}")
    assert str(base_policy.find(cfg)) == result["checkpoint"]
    agent = FinetuneAgent(cfg)
    before = agent.policy.actor.backbone.vit.pos_embed.clone()
    assert agent.run()["iterations"] == 2
    assert torch.equal(agent.policy.actor.backbone.vit.pos_embed, before)
    assert not torch.equal(agent.policy.actor_ft.backbone.vit.pos_embed, before)


def test_a_mixture_learns_from_nothing(tmp_path):
    """Its published PPO could not: every log-probability lay above the bound at which the gradient stops."""
    runs.UNIT.save(tmp_path / "normalization.npz")
    mixture = ["_target_=model.common.mlp_gmm.GMM_MLP", "num_modes=3"]
    overrides = [
        *(f"++model.actor.{key}" for key in mixture),
        "~model.actor.tanh_output",
        "model._target_=model.rl.gmm_ppo.PPO_GMM",
    ]
    paths = [f"normalization_path={tmp_path / 'normalization.npz'}", f"logdir={tmp_path / 'run'}"]
    result = FinetuneAgent(gaussian_config("gym/finetune/hopper-v2/medium", *SMALL, *paths, *overrides)).run()
    assert result["after"]["success_interval"][0] > 0.8 > result["before"]["success_interval"][1]


def test_a_flow_of_exact_likelihood_learns_from_nothing(tmp_path):
    runs.UNIT.save(tmp_path / "normalization.npz")
    overrides = ["model.actor.mlp_dims=[31,31,31]", "model.critic.mlp_dims=[29,29]", "train.val_freq=100"]
    paths = [f"normalization_path={tmp_path / 'normalization.npz'}", f"logdir={tmp_path / 'run'}"]
    result = FinetuneAgent(gaussian_config("gym/finetune/hopper-v2/ppo_genpo_mlp", *SMALL, *paths, *overrides)).run()
    assert result["after"]["success_interval"][0] > 0.6 > result["before"]["success_interval"][1]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("self_check/max_abs_log_ratio", 0) for row in rows) < 1e-4
