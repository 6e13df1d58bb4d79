"""Furniture-Bench from demonstrations to a fine-tuned policy, with the published files' names and layout, on the stand-in of the original simulator."""

from __future__ import annotations

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent.config import register_resolvers, validate
from agent.finetune.finetune import FinetuneAgent
from agent.pretrain.pretrain import PretrainAgent
from env.furniture.facts import FURNITURE
from tests.env.test_isaac import STAND_IN
from tests.smoke.runs import ROOT

LAMP = FURNITURE["lamp"]
SMALL = ["wandb=null", "device=cpu", "denoising_steps=9"]
NETWORK = "mlp_dims=[19,19,19]"


def composed(leaf, folder, *overrides):
    register_resolvers()
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        cfg = compose(leaf, overrides=[f"log_root={folder}/log", f"data_root={folder}/data", *SMALL, *overrides])
    validate(cfg)
    return cfg


def test_pretraining_and_fine_tuning_find_each_other(tmp_path, monkeypatch):
    """Data and statistics as DPPO's, named after the task; runs named after the environment; episodes simulated in another process."""
    rng, data = np.random.default_rng(0), tmp_path / "data" / "furniture" / "lamp_med"
    data.mkdir(parents=True)
    states, actions = (rng.uniform(-1, 1, (31, n)).astype(np.float32) for n in (LAMP.obs_dim, 10))
    np.savez(data / "train.npz", states=states, actions=actions, traj_lengths=np.array([13, 18]))
    bounds = {
        "observations": torch.full((LAMP.obs_dim,), 2.0),
        "actions": torch.full((10,), 0.8),
    }  # far from what hurts
    torch.save(
        {f"stats.{k}.{e}": s * x for k, x in bounds.items() for e, s in (("min", -1), ("max", 1))},
        data / "normalization.pth",
    )
    trained = PretrainAgent(
        composed(
            "furniture/pretrain/lamp_med/pre_diffusion_mlp",
            tmp_path,
            f"model.network.{NETWORK}",
            "train.n_epochs=1",
            "train.batch_size=7",
        )
    ).run()
    assert "furniture-pretrain/lamp_med_dim_pre_diffusion_mlp_ta8_td9/" in trained["checkpoint"]
    monkeypatch.syspath_prepend(str(STAND_IN))
    cfg = composed(
        "furniture/finetune/lamp_med/ft_ppo_diffusion_mlp", tmp_path, f"model.actor.{NETWORK}", f"model.critic.{NETWORK}",
        "env.simulator=isaacgym", "env.n_envs=5", "env.max_episode_steps=13", "train.n_steps=2", "train.batch_size=17", "train.n_train_itr=1",
        "train.update_epochs=1", "train.eval_episodes=3", "train.final_eval_episodes=3", "ft_denoising_steps=3",
    )  # fmt: skip
    agent = FinetuneAgent(cfg)
    assert str(agent.base_path) == trained["checkpoint"]
    np.testing.assert_allclose(agent.normalizer.action_max, 0.8)
    result = agent.run()
    assert (result["iterations"], result["env_steps"]) == (1, 5 * 2 * 8)
    assert OmegaConf.load(agent.logger.logdir / "config.yaml").env.simulator == "isaacgym"
