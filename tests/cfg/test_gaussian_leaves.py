"""Leaves of the Gaussian policies: the published numbers (DPPO; spec 3.1)."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent.config import register_resolvers, validate
from tests.smoke.runs import ROOT

GYM_FT = {
    "env.n_envs": 10, "env.reset_at_iteration": False, "train.n_train_itr": 1000, "train.n_critic_warmup_itr": 0,
    "train.n_steps": 1000, "train.gamma": 0.99, "train.actor_lr": 1e-4, "train.actor_lr_scheduler.min_lr": 1e-4,
    "train.critic_lr": 1e-3, "train.critic_lr_scheduler.first_cycle_steps": 10000, "train.batch_size": 1000,
    "train.update_epochs": 10, "model.clip_ploss_coef": 0.1, "model.randn_clip_value": 3, "horizon_steps": 1,
    "model.actor.mlp_dims": [512] * 3, "model.actor.activation_type": "ReLU", "model.actor.residual_style": False,
    "model.actor.fixed_std": None, "model.critic.mlp_dims": [256] * 3,
}  # fmt: skip
GYM_PRE = {
    "train.batch_size": 128,
    "train.learning_rate": 1e-4,
    "train.lr_scheduler.warmup_steps": 1,
    "horizon_steps": 1,
}
SMALL = {"train.n_epochs": 500, "model.network.mlp_dims": [256] * 3, "model.network.fixed_std": 0.1}
WALKER = {"train.n_epochs": 3000, "model.network.mlp_dims": [256] * 2, "model.network.fixed_std": None}
ROBOMIMIC_FT = {
    "env.n_envs": 50, "train.gamma": 0.999, "train.actor_lr": 1e-5, "train.n_critic_warmup_itr": 2,
    "model.clip_ploss_coef": 0.01, "model.actor.residual_style": True, "model.actor.learn_fixed_std": True,
    "model.actor.std_min": 0.01, "model.actor.std_max": 0.2,
}  # fmt: skip
CAN = {"train.n_train_itr": 300, "train.n_steps": 300, "train.batch_size": 7500, "model.actor.fixed_std": 0.1}
TRANSPORT = {
    "train.n_train_itr": 1000, "train.n_steps": 400, "train.batch_size": 10000, "train.update_epochs": 8,
    "train.actor_lr_scheduler.min_lr": 1e-6, "model.actor.fixed_std": 0.08, "model.actor.mlp_dims": [1024] * 3,
}  # fmt: skip
ROBOMIMIC_PRE = {"train.n_epochs": 5000, "train.batch_size": 256, "train.lr_scheduler.min_lr": 1e-5}
LEAVES = {
    "gym/finetune/hopper-v2/ppo_gaussian_mlp": GYM_FT | {"name": "hopper-medium-v2_nopre_ppo_gaussian_mlp_ta1"},
    "gym/finetune/walker2d-v2/ppo_gaussian_mlp": GYM_FT | {"obs_dim": 17},
    "gym/pretrain/halfcheetah-medium-v2/pre_gaussian_mlp": GYM_PRE | SMALL,
    "gym/pretrain/walker2d-medium-v2/pre_gaussian_mlp": GYM_PRE | WALKER,
    "robomimic/finetune/can/ft_ppo_gaussian_mlp": ROBOMIMIC_FT | CAN,
    "robomimic/finetune/transport/ft_ppo_gaussian_mlp": ROBOMIMIC_FT | TRANSPORT,
    "robomimic/pretrain/square/pre_gaussian_mlp": ROBOMIMIC_PRE | {"model.network.mlp_dims": [1024] * 3},
    "robomimic/pretrain/lift/pre_gaussian_mlp": ROBOMIMIC_PRE | {"name": "lift_pre_gaussian_mlp_ta4"},
}


@pytest.mark.parametrize("leaf", LEAVES)
def test_published_values(leaf):
    register_resolvers()
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        cfg = compose(leaf)
    validate(cfg)
    assert {key: OmegaConf.select(cfg, key) for key in LEAVES[leaf]} == LEAVES[leaf]
