"""A fine-tuning run on the point mass, as a process of its own that can be killed: ``python -m tests.smoke.runs <base.pt> <logdir> [overrides]``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from agent import checkpoint
from agent.agent import build, seed_everything
from agent.config import register_resolvers, validate
from agent.dataset.demos import save_demos
from env import registry
from env.normalizer import Normalizer
from tests.point_mass import PointMass

ROOT = Path(__file__).resolve().parents[2]
TASK = [
    "env_name=point_mass", "obs_dim=4", "action_dim=2", "horizon_steps=2", "act_steps=2", "task.max_episode_steps=16", "denoising_steps=5", "wandb=null",
    "device=cpu", "task.low_dim_keys=[]",
]  # fmt: skip
PRETRAIN = ["model.network.mlp_dims=[31,31,31]", "train.batch_size=64"]
FINETUNE = [
    "ft_denoising_steps=3", "model.actor.mlp_dims=[31,31,31]", "model.critic.mlp_dims=[29,29,29]", "env.n_envs=13", "train.n_steps=8", "train.batch_size=150",
    "train.update_epochs=3", "train.n_train_itr=7", "train.val_freq=3", "train.eval_episodes=11", "train.final_eval_episodes=23", "train.latest_every_s=0",
    "train.actor_lr=1e-3", "train.actor_lr_scheduler.min_lr=1e-4", "model.clip_ploss_coef=0.1", "model.clip_ploss_coef_base=0.05",
    "train.n_critic_warmup_itr=1",
]  # fmt: skip


def point_mass(cfg) -> PointMass:
    """What ``make_vector_env`` builds under the name ``point_mass``."""
    return PointMass(cfg["n_envs"], cfg["wrappers"]["multi_step"]["n_action_steps"], cfg["max_episode_steps"])


registry.TASKS["point_mass"] = point_mass
register_resolvers()
UNIT = Normalizer(-np.ones(4), np.ones(4), -np.ones(2), np.ones(2))


def config(leaf: str, *overrides: str) -> DictConfig:
    """A leaf of Lift, turned to the point mass, validated."""
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        cfg = compose(leaf, overrides=[*TASK, *overrides])
    validate(cfg)
    return cfg


def pretrain_config(*overrides: str) -> DictConfig:
    return config("robomimic/pretrain/lift/pre_diffusion_mlp_dispersive", *PRETRAIN, *overrides)


def finetune_config(*overrides: str) -> DictConfig:
    return config("robomimic/finetune/lift/ft_ppo_diffusion_mlp", *FINETUNE, *overrides)


def eval_config(*overrides: str) -> DictConfig:
    return config("robomimic/eval/lift/eval_diffusion_mlp", "env.n_envs=13", *overrides)


def write_demonstrations(folder: Path, episodes: int = 40, sloppy: float = 0.6) -> None:
    """Sloppy walks to the goal: ``train.npz`` and ``normalization.npz`` as ``collect_demos`` writes them."""
    rng = np.random.default_rng(0)
    venv = PointMass(episodes, 1, 16)
    obs, states, actions = venv.reset(0)["state"][:, 0], [], []
    for _ in range(15):
        action = np.clip(4 * (obs[:, 2:] - obs[:, :2]) + sloppy * rng.standard_normal((episodes, 2)), -1, 1).astype(
            np.float32
        )
        states.append(obs)
        actions.append(action)
        obs = venv.step(action[:, None]).obs["state"][:, 0]
    flat = [np.stack(x, 1).reshape(-1, np.shape(x)[-1]) for x in (states, actions)]
    folder.mkdir(parents=True, exist_ok=True)
    save_demos(folder / "train.npz", *flat, np.full(episodes, 15))
    UNIT.save(folder / "normalization.npz")


def save_untrained_base(path: Path) -> None:
    """A pre-trained checkpoint without the training."""
    cfg = pretrain_config()
    seed_everything(3)
    state = build(cfg.model).state_dict()
    checkpoint.save(
        path,
        {
            "kind": "pretrain",
            "epoch": 0,
            "model": state,
            "normalizer": UNIT.to_dict(),
            "config": OmegaConf.to_container(cfg, resolve=True),
        },
    )


if __name__ == "__main__":
    from agent.finetune.finetune import FinetuneAgent

    torch.set_num_threads(1)
    FinetuneAgent(finetune_config(f"base_policy_path={sys.argv[1]}", f"logdir={sys.argv[2]}", *sys.argv[3:])).run()
