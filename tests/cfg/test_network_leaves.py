"""Leaves of the U-Nets, mixtures, transformers and Gaussian image policies: the published networks and the published numbers (spec 3.1)."""

import functools

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent.agent import build
from agent.config import register_resolvers, validate
from tests.model.test_published_layouts import STRUCTURES, layout
from tests.smoke.runs import ROOT

LONG = {"train.n_train_itr": 1000, "train.n_steps": 400, "train.batch_size": 10000}
TRANSPORT = LONG | {"train.update_epochs": 8, "train.actor_lr_scheduler.min_lr": 1e-6, "train.actor_lr": 1e-5}
UNET = {
    "model.actor.dim": 64, "model.actor.dim_mults": [1, 2], "model.actor.n_groups": 8, "denoising_steps": 20, "ft_denoising_steps": 10,
}  # fmt: skip
LEARNED = {
    "model.actor.learn_fixed_std": True,
    "model.actor.std_min": 0.01,
    "model.actor.std_max": 0.2,
    "model.clip_ploss_coef": 0.01,
}
AVOID = {
    "train.n_train_itr": 51,
    "train.n_steps": 25,
    "train.batch_size": 625,
    "train.gamma": 0.99,
    "model.clip_ploss_coef": 0.1,
}
LEAVES = {
    "robomimic/finetune/transport/ft_ppo_diffusion_unet": UNET | TRANSPORT | {
        "horizon_steps": 16, "act_steps": 8, "model.reward_horizon": 8, "model.clip_ploss_coef": 0.001, "model.clip_ploss_coef_base": 0.0001,
        "model.min_sampling_denoising_std": 0.08, "name": "transport_ft_diffusion_unet_ta16_td20_tdf10",
    },
    "robomimic/finetune/square/ft_ppo_diffusion_unet": UNET | LONG | {"train.update_epochs": 10, "horizon_steps": 4},
    "robomimic/pretrain/lift/pre_diffusion_unet": {
        "train.n_epochs": 8000, "model.network.dim": 40, "train.batch_size": 256, "name": "lift_pre_diffusion_unet_ta4_td20",
    },
    "robomimic/pretrain/can/pre_diffusion_unet_dispersive": {
        "model.use_dispersive_loss": True, "train.n_epochs": 8000, "name": "can_pre_diffusion_unet_dispersive_ta4_td20_dw0.5_dlearly",
    },
    "robomimic/eval/transport/eval_diffusion_unet_img": {"horizon_steps": 16, "model.ddim_steps": 5, "denoising_steps": 100},
    "robomimic/finetune/transport/ft_ppo_gmm_mlp": LEARNED | TRANSPORT | {"model.actor.fixed_std": 0.08, "name": "transport_ft_gmm_mlp_ta8"},
    "robomimic/finetune/can/ft_ppo_gmm_transformer": LEARNED | {
        "model.actor.transformer_embed_dim": 96, "train.batch_size": 7500, "name": "can_ft_gmm_transformer_ta4", "model.actor.num_modes": 5,
    },
    "robomimic/finetune/square/ft_ppo_gaussian_transformer": LEARNED | LONG | {"model.actor.transformer_embed_dim": 160, "model.randn_clip_value": 3},
    "robomimic/pretrain/square/pre_gmm_transformer": {"train.n_epochs": 5000, "name": "square_pre_gmm_transformer_ta4"},
    "robomimic/pretrain/lift/pre_gaussian_mlp_img": {
        "train.n_epochs": 500, "train.lr_scheduler.first_cycle_steps": 3000, "model.network.augment": True, "train.save_model_freq": 500,
        "name": "lift_pre_gaussian_mlp_img_ta4", "train_dataset.use_img": True,
    },
    "robomimic/finetune/transport/ft_ppo_gaussian_mlp_img": LEARNED | {
        "train.n_train_itr": 500, "train.n_steps": 400, "train.batch_size": 1000, "train.grad_accumulate": 10, "train.logprob_batch_size": 1000,
        "train.augment": True, "train.update_epochs": 8, "train.actor_lr_scheduler.first_cycle_steps": 500, "model.actor.augment": False,
        "model.actor.num_img": 2, "model.actor.fixed_std": 0.08,
    },
    "d3il/eval/avoid_m2/eval_gmm_mlp": {"name": "avoiding-m5_m2_eval_gmm_mlp_ta4"},
    "d3il/finetune/avoid_m2/ft_ppo_gmm_mlp": AVOID | {"model.actor.learn_fixed_std": False, "name": "avoiding-m5_m2_gmm_mlp_ta4"},
    "d3il/finetune/avoid_m3/ft_ppo_gaussian_mlp": AVOID | {"model.randn_clip_value": 3, "name": "avoiding-m5_m3_gaussian_mlp_ta4"},
    "d3il/pretrain/avoid_m1/pre_gmm_mlp": {"train.n_epochs": 10000, "train.batch_size": 32, "name": "avoid_m1_pre_gmm_mlp_ta4"},
    "gym/finetune/hopper-v2/ft_ppo_shortcut_mlp": {
        "sampling_steps": 4, "model.average_velocity": True, "model.noise.min_std": 0.1, "model.noise.max_std": 0.24, "model.gamma_denoising": 1.0,
        "model.clip_ploss_coef": 0.01, "model.clip_ploss_coef_base": 0.01, "model.actor.activation_type": "ReLU", "train.gamma": 0.99,
        "train.n_train_itr": 1000, "train.update_epochs": 5, "name": "hopper-medium-v2_ft_shortcut_mlp_ta4_k4", "train.batch_size": 20000,
    },
    "robomimic/finetune/square/ft_ppo_flow_mlp_img": {
        "model.average_velocity": False, "model.noise.cond_dim": 9, "model.reward_horizon": 4, "train.batch_size": 500, "train.grad_accumulate": 20,
        "name": "square_ft_flow_mlp_img_ta4_k4", "train.augment": True, "model.actor.mlp_dims": [768] * 3,
    },
    "robomimic/pretrain/can/pre_meanflow_mlp": {
        "model.use_dispersive_loss": True, "model.sampling_steps": 1, "model.dispersive_loss_weight": 0.5, "name": "can_pre_meanflow_mlp_ta4",
    },
    "gym/eval/walker2d-v2/eval_meanflow_mlp": {"name": "walker2d-medium-v2_eval_meanflow_mlp_ta4", "model": {}},
    "d3il/pretrain/avoid_m1/pre_gaussian_mlp": {"train.batch_size": 16, "train.lr_scheduler.first_cycle_steps": 10000},
}  # fmt: skip
NEW = ("GMM_", "Gaussian_", "Unet1D")
HERE = {
    name: structure["config"].removeprefix("dppo/").removesuffix(".yaml")
    for name, structure in STRUCTURES.items()
    if name.startswith(NEW)
    and (ROOT / "cfg" / structure["config"].removeprefix("dppo/")).is_file()
    and "/eval/" not in structure["config"]
}


@functools.cache
def composed(leaf: str):
    register_resolvers()
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        return compose(leaf)


@pytest.mark.parametrize("leaf", LEAVES)
def test_published_values(leaf):
    cfg = composed(leaf)
    validate(cfg)
    assert {key: OmegaConf.select(cfg, key) for key in LEAVES[leaf]} == LEAVES[leaf]


@pytest.mark.parametrize("name", HERE)
def test_the_leaf_builds_the_published_network(name):
    node = OmegaConf.select(composed(HERE[name]), STRUCTURES[name]["role"])
    with torch.device("meta"):
        network = build(node)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == dict(layout(name))


def test_none_of_the_policies_of_this_file_is_left_out():
    kinds = {name.rsplit("_", 1)[0] for name in HERE}
    assert kinds == {
        "GMM_MLP",
        "GMM_Transformer",
        "Gaussian_MLP",
        "Gaussian_Transformer",
        "Gaussian_VisionMLP",
        "Unet1D",
    }
    for task in ("can", "lift", "square", "transport"):
        for name in ("diffusion_unet", "gmm_mlp", "gaussian_transformer", "gmm_transformer", "gaussian_mlp_img"):
            assert (ROOT / f"cfg/robomimic/pretrain/{task}/pre_{name}.yaml").is_file()
            assert (ROOT / f"cfg/robomimic/finetune/{task}/ft_ppo_{name}.yaml").is_file()
            assert (ROOT / f"cfg/robomimic/eval/{task}/eval_{name}.yaml").is_file()
