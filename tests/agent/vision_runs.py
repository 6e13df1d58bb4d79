"""Runs on the point mass from pixels, through the image configurations of Lift."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from agent.config import register_resolvers, validate
from agent.dataset.demos import save_demos
from env import registry
from env.normalizer import Normalizer
from tests.point_mass import PointMass

ROOT = Path(__file__).resolve().parents[2]
SIZE = (19, 23)
UNIT = Normalizer(-np.ones(2), np.ones(2), -np.ones(2), np.ones(2))
TASK = [
    "env_name=point_mass_img", "obs_dim=2", "action_dim=2", "horizon_steps=2", "act_steps=2", "task.max_episode_steps=16",
    "denoising_steps=7", "wandb=null", "device=cpu", "task.low_dim_keys=[]", f"shape_meta.obs.rgb.shape=[3,{SIZE[0]},{SIZE[1]}]",
]  # fmt: skip


def net(path: str) -> list[str]:
    small = ["patch_size=4", "embed_dim=16", "num_heads=2"]
    return [f"{path}.backbone.cfg.{x}" for x in small] + [f"{path}.spatial_emb=16", f"{path}.mlp_dims=[31,31,31]"]


def point_mass(cfg) -> PointMass:
    """What ``make_vector_env`` builds under the name ``point_mass_img``."""
    steps = cfg["wrappers"]["multi_step"]["n_action_steps"]
    return PointMass(cfg["n_envs"], steps, cfg["max_episode_steps"], image_size=SIZE)


registry.TASKS["point_mass_img"] = point_mass
register_resolvers()


def config(leaf: str, *overrides: str) -> DictConfig:
    """A leaf of Lift from images, turned to the point mass, validated."""
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        cfg = compose(f"robomimic/{leaf}", overrides=[*TASK, *overrides])
    validate(cfg)
    return cfg


def pretrain_config(*overrides: str) -> DictConfig:
    settings = [
        "train.batch_size=64", "train.n_epochs=20", "train.learning_rate=3e-3", "ema.per=step", "ema.decay=0.98", "model.network.time_dim=8",
        "train.lr_scheduler.first_cycle_steps=21", "train.lr_scheduler.warmup_steps=1", "dispersive_loss_weight=0.01",
    ]  # fmt: skip
    return config("pretrain/lift/pre_diffusion_mlp_dispersive_img", *net("model.network"), *settings, *overrides)


def finetune_config(*overrides: str) -> DictConfig:
    settings = [
        "ft_denoising_steps=3", "env.n_envs=13", "train.n_steps=8", "train.batch_size=60", "train.grad_accumulate=2", "train.update_epochs=2",
        "train.n_train_itr=4", "train.val_freq=2", "train.eval_episodes=11", "train.final_eval_episodes=23", "train.latest_every_s=0",
        "train.n_critic_warmup_itr=1", "model.actor.time_dim=8", "train.actor_lr_scheduler.first_cycle_steps=50",
        "train.critic_lr_scheduler.first_cycle_steps=50", "train.actor_lr=1e-3", "train.actor_lr_scheduler.min_lr=1e-4",
        "model.clip_ploss_coef=0.1", "model.clip_ploss_coef_base=0.05",
    ]  # fmt: skip
    return config(
        "finetune/lift/ft_ppo_diffusion_mlp_img", *net("model.actor"), *net("model.critic"), *settings, *overrides
    )


def eval_config(*overrides: str) -> DictConfig:
    return config("eval/lift/eval_diffusion_mlp_img", "env.n_envs=13", "model.ddim_steps=3", *overrides)


def write_demonstrations(folder: Path, episodes: int = 60, quality: str | None = "balanced") -> Path:
    """Straight walks to the goal, as seen: ``train.npz``, ``normalization.npz``, ``about.json``."""
    rng, venv = np.random.default_rng(0), PointMass(episodes, 1, 16, image_size=SIZE)
    obs, kept = venv.reset(0), {"states": [], "actions": [], "images": []}
    for _ in range(13):
        aim = 4 * (venv.state[:, 2:] - venv.state[:, :2]) + 0.2 * rng.standard_normal((episodes, 2))
        action = np.clip(aim, -1, 1).astype(np.float32)
        for key, value in (("states", obs["state"][:, 0]), ("actions", action), ("images", obs["rgb"][:, 0])):
            kept[key].append(value)
        obs = venv.step(action[:, None]).obs
    flat = {key: np.stack(x, 1).reshape(-1, *x[0].shape[1:]) for key, x in kept.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_demos(folder / "train.npz", traj_lengths=np.full(episodes, 13), **flat)
    UNIT.save(folder / "normalization.npz")
    if quality is not None:
        about = {
            "task": "point_mass",
            "render_quality": quality,
            "cameras": ["robot0_eye_in_hand"],
            "image_size": list(SIZE),
        }
        (folder / "about.json").write_text(json.dumps(about))
    return folder
