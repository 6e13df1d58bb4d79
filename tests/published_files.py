"""Checkpoints in the published layout, made here: prime sizes, so that no two dimensions are mistaken for each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DO, DA, TA, TIME, WIDTH, K, TUNED = 11, 3, 5, 14, 13, 7, 3  # time_dim is even by nature
FLAT = DA * TA
SHAPE = {"horizon_steps": TA, "obs_dim": DO, "action_dim": DA, "denoising_steps": K}
NETWORK = {
    "_target_": "model.diffusion.mlp_diffusion.DiffusionMLP",
    **{"action_dim": DA, "horizon_steps": TA, "cond_dim": DO, "time_dim": TIME, "mlp_dims": [WIDTH] * 3},
    **{"activation_type": "ReLU", "residual_style": True},
}
PRETRAINED = {"_target_": "model.diffusion.diffusion.DiffusionModel", "network": NETWORK, **SHAPE}
CRITIC = {"_target_": "model.common.critic.CriticObs", "cond_dim": DO, "mlp_dims": [17, 17, 17], "residual_style": True}
FINETUNED = {
    "_target_": "model.diffusion.diffusion_ppo.PPODiffusion",
    **{"actor": NETWORK, "critic": CRITIC, "ft_denoising_steps": TUNED, **SHAPE},
}
DDIM = {"use_ddim": True, "ddim_steps": 5}

NETWORK_SHAPES = {
    "time_embedding.1.weight": (2 * TIME, TIME),
    "time_embedding.1.bias": (2 * TIME,),
    "time_embedding.3.weight": (TIME, 2 * TIME),
    "time_embedding.3.bias": (TIME,),
    "mlp_mean.layers.0.weight": (WIDTH, FLAT + TIME + DO),
    "mlp_mean.layers.0.bias": (WIDTH,),
    "mlp_mean.layers.1.l1.weight": (WIDTH, WIDTH),
    "mlp_mean.layers.1.l1.bias": (WIDTH,),
    "mlp_mean.layers.1.l2.weight": (WIDTH, WIDTH),
    "mlp_mean.layers.1.l2.bias": (WIDTH,),
    "mlp_mean.layers.2.weight": (FLAT, WIDTH),
    "mlp_mean.layers.2.bias": (FLAT,),
}
CRITIC_SHAPES = {
    "Q1.layers.0.weight": (17, DO),
    "Q1.layers.0.bias": (17,),
    **{f"Q1.layers.1.l{i}.{part}": (17, 17)[: 2 - (part == "bias")] for i in (1, 2) for part in ("weight", "bias")},
    "Q1.layers.2.weight": (1, 17),
    "Q1.layers.2.bias": (1,),
}


def weights(shapes: dict[str, tuple[int, ...]], seed: int, prefix: str = "") -> dict[str, Tensor]:
    """Random weights of a size at which every layer counts."""
    g = torch.Generator().manual_seed(seed)
    return {prefix + key: torch.randn(shape, generator=g) * 0.3 for key, shape in shapes.items()}


def pretrained() -> dict[str, Any]:
    """What pre-training of the published code saves."""
    parts = {part: weights(NETWORK_SHAPES, seed, "network.") for seed, part in ((1, "model"), (2, "ema"))}
    return {"epoch": 3001, **parts}


def finetuned(ddim: bool = False) -> dict[str, Any]:
    """What PPO fine-tuning of the published code saves; ``network`` and ``actor`` are one module under two names."""
    base = weights(NETWORK_SHAPES, 3)
    state = {f"network.{key}": value for key, value in base.items()}
    state |= {f"actor.{key}": value for key, value in base.items()}
    state |= weights(NETWORK_SHAPES, 4, "actor_ft.") | weights(CRITIC_SHAPES, 5, "critic.")
    return {"itr": 211, "model": state | ({"eta.eta_logit": torch.tensor(float("inf"))} if ddim else {})}


def put(folder: Path, content: dict[str, Any]) -> Path:
    """``content`` as a published run leaves it."""
    path = folder / "checkpoint" / f"state_{content.get('epoch', content.get('itr'))}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path
