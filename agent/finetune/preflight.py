"""What a fine-tuning run will need of memory, reckoned before anything big is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from agent.errors import UsageError
from agent.finetune.rollout import Rollout
from agent.memory import preflight, saved_bytes, training_bytes
from env.protocol import VectorEnv

KEYS = ("train.n_steps", "env.n_envs", "train.batch_size")


def check_memory(
    policy: nn.Module, venv: VectorEnv, n_steps: int, train: Mapping[str, Any], chain_shape: tuple[int, ...]
) -> None:
    """Log the sizes of the rollout, the network and (with images) one minibatch.

    Raises:
        UsageError: they do not fit into the free memory of this machine or of the GPU; names keys that make them smaller. Or there are images
            for an algorithm whose policy has no chain: as published, all but PPO learn from states.
    """
    device = next(policy.parameters()).device
    shapes, n_envs = venv.obs_shapes, venv.n_envs
    if "rgb" in shapes and chain_shape[0] == 1:
        raise UsageError(
            f"train.algorithm: {train['algorithm'].rpartition('.')[2]} learns from states, and this task's observations have images; take a "
            "configuration of the task without _img, or one of PPO's (ft_ppo_*_img)"
        )
    rollout = Rollout.bytes_for(n_steps, n_envs, shapes, chain_shape)
    episodes = math.ceil(n_steps * venv.act_steps / venv.max_episode_steps) + 1  # ends that may have to be kept
    if "rgb" in shapes:
        rollout["images"] += n_envs * episodes * math.prod(shapes["rgb"])
    host = {"images of a rollout": rollout["images"]} if "rgb" in shapes else {}
    learning = {"rest of the rollout": rollout["rest"], "networks and optimisers": training_bytes(policy)}
    if "rgb" in shapes:
        learning["a minibatch"] = _minibatch_bytes(policy, shapes, train, chain_shape, device)
    if device.type == "cpu":
        preflight({**host, **learning}, KEYS)
        return
    preflight(host, KEYS)
    preflight(learning, KEYS, device)


def _minibatch_bytes(
    policy: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    train: Mapping[str, Any],
    chain_shape: tuple[int, ...],
    device: torch.device,
) -> int:
    """What the backward pass of the larger of the actor's and the critic's minibatches keeps, measured on one observation."""
    kinds = {"state": torch.float32, "rgb": torch.uint8}
    obs = {key: torch.zeros(1, *shape, dtype=kinds[key], device=device) for key, shape in shapes.items()}
    chains, parameters = torch.zeros(1, *chain_shape, device=device), list(policy.parameters())
    per_chunk = -(-train["batch_size"] // (chain_shape[0] - 1))  # chunks in a minibatch, if every chain is whole
    whole = train.get("whole_chains")
    actor = saved_bytes(lambda: policy.chain_log_probs(obs, chains).sum(), parameters)
    critic = saved_bytes(lambda: policy.value(obs).sum(), parameters)
    return max(actor * (train["batch_size"] if whole is False else per_chunk), critic * per_chunk)
