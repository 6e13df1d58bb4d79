"""Small checkpoints that a deployment can use: random weights, from real configurations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent import checkpoint
from agent.agent import build
from agent.config import register_resolvers
from env.normalizer import Normalizer

CFG = Path(__file__).resolve().parents[2] / "cfg"
# wide enough that a random policy's arm stays inside
SCALE = Normalizer(-1.5 * np.ones(19), 1.5 * np.ones(19), -0.3 * np.ones(7), np.array([0.3] * 6 + [0.2]))
register_resolvers()


def write(path: Path, leaf: str, *overrides: str, scale: Normalizer | None = SCALE, extra: dict | None = None) -> Path:
    """A checkpoint of pre-training with ``leaf``'s configuration."""
    with initialize_config_dir(str(CFG), version_base="1.3"):
        cfg = OmegaConf.to_container(compose(leaf, ["wandb=null", *overrides]), resolve=True)
    torch.manual_seed(11)
    policy = build(cfg["model"])
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    normalizer = None if scale is None else scale.to_dict()
    payload = {"kind": "pretrain", "epoch": 1, "model": policy.state_dict(), "ema": None, "normalizer": normalizer}
    checkpoint.save(path, {**payload, "config": cfg, "extra": extra or {}})
    return path


def lift(path: Path, *overrides: str, **options) -> Path:
    """Lift from states: seven actions, chunks of four."""
    small = ["denoising_steps=5", "model.network.mlp_dims=[31,31,31]"]
    return write(path, "robomimic/pretrain/lift/pre_diffusion_mlp", *small, *overrides, **options)
