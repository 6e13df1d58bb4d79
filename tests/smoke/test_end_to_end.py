"""Demonstrations -> dispersive pre-training -> PPO -> evaluation, on the point mass, through the real agents and files."""

import json

import pytest

from agent import checkpoint
from agent.errors import CheckpointError
from agent.eval.eval_agent import EvalAgent
from agent.finetune.finetune import FinetuneAgent
from agent.pretrain.pretrain import PretrainAgent
from tests.smoke import runs


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    runs.write_demonstrations(folder / "data" / "robomimic" / "point_mass")
    overrides = [
        "train.n_epochs=30",
        "train.learning_rate=2e-3",
        "ema.per=step",
        "train.lr_scheduler.first_cycle_steps=31",
        "train.lr_scheduler.warmup_steps=1",
    ]
    PretrainAgent(runs.pretrain_config(f"data_root={folder / 'data'}", f"logdir={folder / 'pre'}", *overrides)).run()
    return folder


def test_success_rises_and_everything_is_left_behind(pretrained):
    base = pretrained / "pre" / "checkpoint" / "state_30.pt"
    assert (pretrained / "pre" / "result.json").exists()
    overrides = [
        "env.max_episode_steps=10",
        "env.n_envs=40",
        "train.n_steps=10",
        "train.n_train_itr=25",
        "train.batch_size=400",
        "train.update_epochs=5",
    ]
    overrides += [
        "train.gamma=0.95",
        "train.critic_lr=3e-3",
        "train.critic_lr_scheduler.min_lr=1e-3",
        "train.actor_lr=2e-3",
        "train.latest_every_s=60",
    ]
    overrides += ["train.final_eval_episodes=200", "model.gamma_denoising=0.9"]
    result = FinetuneAgent(
        runs.finetune_config(f"base_policy_path={base}", f"logdir={pretrained / 'ft'}", *overrides)
    ).run()
    assert result["before"]["seeds"] == result["after"]["seeds"]
    assert result["after"]["success_interval"][0] > result["before"]["success_interval"][1], (
        result["before"]["success_rate"],
        result["after"]["success_rate"],
    )
    assert (pretrained / "ft" / "learning_curve.png").stat().st_size > 10_000

    # the evaluation command, on the same seeds, finds the same number: base and tuned weights, normaliser and settings travel in the file
    path = pretrained / "ft" / "checkpoint" / "state_25.pt"
    again = EvalAgent(
        runs.eval_config(
            f"base_policy_path={path}", "env.max_episode_steps=10", "n_episodes=200", f"logdir={pretrained / 'eval'}"
        )
    ).run()
    assert again["successes"] == result["after"]["successes"]
    assert json.loads((pretrained / "eval" / "result.json").read_text())["success_rate"] == again["success_rate"]


def test_an_evaluation_without_a_checkpoint_names_the_way(tmp_path):
    with pytest.raises(CheckpointError, match="Pre-train one first"):
        EvalAgent(runs.eval_config(f"log_root={tmp_path}"))


def test_the_pretrained_policy_prefers_averaged_weights(pretrained):
    payload = checkpoint.load(pretrained / "pre" / "checkpoint" / "state_30.pt")
    policy = checkpoint.load_policy(pretrained / "pre" / "checkpoint" / "state_30.pt")
    assert all((value == payload["ema"][key]).all() for key, value in policy.state_dict().items())
    assert any((value != payload["model"][key]).any() for key, value in policy.state_dict().items())


def test_likelihoods_of_whole_chunks_learn_too(pretrained):
    """PPO-exact: the importance ratio begins at 1, success rises, and its checkpoint is one of base and tuned weights like any other."""
    pytest.importorskip("torchdiffeq")
    base = pretrained / "pre" / "checkpoint" / "state_30.pt"
    shared = [key for key in runs.FINETUNE if "clip_ploss_coef_base" not in key]
    overrides = [
        *(
            "env.max_episode_steps=10",
            "env.n_envs=80",
            "train.n_steps=10",
            "train.n_train_itr=15",
            "train.batch_size=200",
        ),
        *("train.gamma=0.95", "train.critic_lr=3e-3", "train.critic_lr_scheduler.min_lr=1e-3", "train.actor_lr=2e-3"),
        *(f"train.{key}_lr_scheduler.warmup_steps=0" for key in ("actor", "critic")),
        *("train.update_epochs=4", "train.target_kl=0.05", "train.max_grad_norm=1", "train.final_eval_episodes=400"),
        *("model.sde_step_size=0.4", "model.sde_num_epsilon=4", "model.clip_ploss_coef=0.2"),
        *(f"base_policy_path={base}", f"logdir={pretrained / 'exact'}"),
    ]
    result = FinetuneAgent(runs.config("robomimic/finetune/can/ft_ppo_exact_diffusion_mlp", *shared, *overrides)).run()
    before, after = (result[key]["success_rate"] for key in ("before", "after"))
    assert result["after"]["success_interval"][0] > result["before"]["success_interval"][1], (before, after)
    rows = [json.loads(line) for line in (pretrained / "exact" / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("self_check/max_abs_log_ratio", 0) for row in rows) < 1e-4
    path = pretrained / "exact" / "checkpoint" / "state_15.pt"
    assert checkpoint.load_policy(path).ft_denoising_steps == 3
    again = ["eval_seed=2000000", "n_episodes=400", "env.max_episode_steps=10"]
    cfg = runs.eval_config(f"base_policy_path={path}", f"logdir={pretrained / 'exact_eval'}", *again)
    assert EvalAgent(cfg).run()["success_rate"] == after


def test_the_start_is_learned_and_the_comparison_begins_with_the_base_as_it_was(pretrained):
    """PPO over the start: "before" is what the base does, success rises above that and above the middle start, the file is like any other."""
    base = pretrained / "pre" / "checkpoint" / "state_30.pt"
    shared = [key for key in runs.FINETUNE if not key.startswith(("ft_denoising", "model.clip", "train.actor_lr_s"))]
    overrides = [
        *("env.max_episode_steps=16", "env.n_envs=80", "train.n_steps=16", "train.n_train_itr=15"),
        *("train.batch_size=90", "train.gamma=0.95", "train.update_epochs=10", "train.final_eval_episodes=400"),
        *(f"train.{key}_lr_scheduler.warmup_steps=0" for key in ("actor", "critic")),
        *("model.ddim_steps=5", "train.target_kl=0.05", f"base_policy_path={base}", f"logdir={pretrained / 'steer'}"),
    ]
    result = FinetuneAgent(runs.config("robomimic/finetune/lift/ft_ppo_steer_mlp", *shared, *overrides)).run()
    seeds = ["eval_seed=2000000", "n_episodes=400", "env.max_episode_steps=16"]

    def evaluated(name, path, *more):
        return EvalAgent(
            runs.eval_config(f"base_policy_path={path}", f"logdir={pretrained / name}", *seeds, *more)
        ).run()

    ddim = ["+model.use_ddim=true", "+model.ddim_steps=5"]
    assert evaluated("steer_0", base, *ddim)["successes"] == result["before"]["successes"]
    middle = evaluated("steer_1", base, *ddim, "+model.start_std=0")
    after = result["after"]
    assert after["success_interval"][0] > result["before"]["success_interval"][1]
    assert after["success_rate"] > middle["success_rate"]
    path = pretrained / "steer" / "checkpoint" / "state_15.pt"
    assert evaluated("steer_2", path)["successes"] == after["successes"]
    frozen, trained = (
        checkpoint.load_policy(path).network.state_dict(),
        checkpoint.load_policy(base).network.state_dict(),
    )
    assert all((value == trained[key]).all() for key, value in frozen.items())
