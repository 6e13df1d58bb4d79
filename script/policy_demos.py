"""Demonstrations of locomotion, for ``collect_demos.py``: a medium behaviour policy of this project's own, with its noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from agent.behaviour import load_behaviour
from agent.dataset.demos import save_demos
from agent.errors import UsageError
from agent.eval.statistics import bootstrap_interval
from agent.files import atomic_write
from agent.finetune.rollout import threads_for
from env.normalizer import Normalizer
from env.registry import Expert, make_vector_env

POLICIES = Path(__file__).resolve().parent.parent / "assets" / "gym_medium"


def _none(*_: object, **__: object) -> None:
    raise UsageError("locomotion has policies, not scripted experts: script/policy_demos.py")


# ``noise`` here is the share of the policy's own standard deviation that its actions are drawn with
MEDIUM = {
    task: Expert("gym", _none, steps=1000, noise=1.0, until_success=False)
    for task in ("hopper", "walker2d", "halfcheetah")
}


def folder_name(task: str) -> str:
    """D4RL's name of such data."""
    return f"{task}-medium-v2"


def roll_out(
    task: str, episodes: int, steps: int, noise: float, first_seed: int, seed: int, n_envs: int
) -> dict[str, Any]:
    """Episodes ``first_seed, first_seed + 1, ...`` of the task's medium policy, whole, good or bad.

    Args:
        steps: control steps an episode may take. noise: 1 acts as it was trained, 0 with the mean.
        seed: of the action noise. n_envs: simulations side by side; part of what ``seed`` means.

    Returns:
        ``states (T, Do)``, ``actions (T, Da)`` in [-1, 1], ``rewards (T,)``, ``terminals (T,)`` bool, ``lengths (E,)``, ``about`` the policy.

    Raises:
        CheckpointError: the policy's file is absent or damaged.
    """
    policy = load_behaviour(POLICIES / f"{task}.safetensors")
    env = {"name": folder_name(task), "n_envs": min(n_envs, episodes), "act_steps": 1, "max_episode_steps": steps}
    venv, generator = make_vector_env(env), torch.Generator().manual_seed(seed)
    obs = venv.reset([first_seed + k for k in range(episodes)])
    kept: dict[str, list[np.ndarray]] = {key: [] for key in ("number", "states", "actions", "rewards", "terminals")}
    broken: set[int] = set()
    bar = tqdm(total=episodes, desc=f"{task}: episodes of the medium policy", unit="episode")
    with torch.no_grad(), threads_for(venv.n_envs):
        while (active := venv.seeds() >= 0).any():
            state = obs["state"][:, -1].copy()
            mean, std = policy.network({"state": torch.from_numpy(policy.normalizer.normalize_obs(state)[:, None])})
            drawn = mean + noise * std * torch.randn(mean.shape, generator=generator)
            action = policy.normalizer.unnormalize_action(drawn.clamp(-1, 1)[:, 0].numpy())
            result = venv.step(action[:, None].astype(np.float32))
            moment = (result.info["seed"] - first_seed, state, action, result.reward, result.terminated)
            for key, value in zip(kept, moment, strict=True):
                kept[key].append(value[active])
            broken |= {int(k) - first_seed for k in result.info["seed"][result.info["invalid"]]}
            if ended := int((result.terminated | result.truncated)[active].sum()):
                bar.update(ended)
            obs = result.obs
    bar.close()
    venv.close()
    number, *columns = (np.concatenate(values) for values in kept.values())
    order = np.argsort(number, kind="stable")  # episode by episode, each in the order of time
    order = order[~np.isin(number[order], sorted(broken))]
    lengths = np.bincount(number[order], minlength=episodes)
    names = list(kept)[1:]
    return {**{k: v[order] for k, v in zip(names, columns)}, "lengths": lengths[lengths > 0], "about": policy.about}


def save_rollouts(folder: Path, demos: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Normalise and write ``train.npz``, ``normalization.npz`` and ``about.json``; returns what the last one says."""
    statistics = Normalizer.fit(demos["states"], demos["actions"])
    save_demos(
        folder / "train.npz",
        statistics.normalize_obs(demos["states"]).astype(np.float32),
        statistics.normalize_action(demos["actions"]).astype(np.float32),
        demos["lengths"],
        demos["rewards"],
        demos["terminals"],
    )
    statistics.save(folder / "normalization.npz")
    returns = np.add.reduceat(demos["rewards"].astype(np.float64), np.cumsum(demos["lengths"]) - demos["lengths"])
    about = {
        "made_by": "script/collect_demos.py: this project's own medium policy with its noise. Not D4RL's data",
        "arguments": arguments,
        "policy": demos["about"],
        "episodes": len(demos["lengths"]),
        "transitions": int(demos["lengths"].sum()),
        "mean_return": float(returns.mean()),
        "mean_return_interval": list(bootstrap_interval(returns)),
        "returns_smallest_median_largest": [float(x) for x in np.quantile(returns, [0, 0.5, 1])],
    }
    with atomic_write(folder / "about.json") as file:
        file.write((json.dumps(about, indent=2) + "\n").encode())
    return about
