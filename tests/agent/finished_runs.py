"""Run directories as finished runs leave them, small, for what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from agent.eval.statistics import bootstrap_interval, wilson_interval


def episodes(successes: list[bool], first_seed: int = 2_000_000, solvable: bool = True) -> dict[str, Any]:
    """An evaluation, as ``result.json`` has it: return 1 for a success (7, where nothing can be solved), length 13 and more."""
    n, k = len(successes), sum(successes)
    returns = [float(x) if solvable else 7.0 + x for x in successes]
    return {
        "success_rate": k / n if solvable else 0.0,
        "success_interval": wilson_interval(k if solvable else 0, n),
        "mean_return": float(np.mean(returns)),
        "return_interval": bootstrap_interval(returns),
        "seeds": list(range(first_seed, first_seed + n)),
        "successes": [bool(x) and solvable for x in successes],
        "returns": returns,
        "lengths": [13 + i for i in range(n)],
        "n_invalid": 0,
        "seconds": 2.0,
        "env_steps": 13 * n,
        "solvable": solvable,
    }


def write(folder: Path, config: dict[str, Any], result: dict[str, Any] | None, rows: list[dict[str, Any]] = ()) -> Path:
    """A run directory with these contents."""
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"logdir": str(folder), "wandb": None, **config}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def pretraining(folder: Path, seed: int = 0, weight: float = 0.0, **config: Any) -> Path:
    """Three epochs of pre-training."""
    settings = {"stage": "pretrain", "env_name": "can", "seed": seed, "dispersive_loss_weight": weight, **config}
    settings["model"] = {"dispersive_loss_weight": weight, **config.get("model", {})}
    rows = [
        {"epoch": e, "train/diffusion loss": 0.5 / e + 0.01 * seed, "time/epoch": 1.5, "time/wall": 1.5 * e}
        for e in (1, 2, 3)
    ]
    result = {"epochs": 3, "checkpoint": str(folder / "checkpoint" / "state_3.pt"), "wall_seconds": 4.5}
    return write(folder, settings, result, rows)


def evaluation(folder: Path, of: Path, successes: list[bool], task: str = "can", **more: Any) -> Path:
    """An evaluation of the checkpoint of the run ``of``."""
    checkpoint = str(of / "checkpoint" / "state_3.pt")
    config = {
        "stage": "eval",
        "seed": 42,
        "env": {"name": task, "n_envs": 5},
        "base_policy_path": checkpoint,
        "model": {},
    }
    return write(folder, config, {**episodes(successes, **more), "checkpoint": checkpoint, "video": None})


def finetuning(
    folder: Path, base: Path, before: list[bool], after: list[bool], seed: int = 0, solvable: bool = True
) -> Path:
    """Four iterations of fine-tuning, evaluated at the second."""
    config = {
        "stage": "finetune",
        "seed": seed,
        "env": {"name": "can", "n_envs": 5},
        "env_name": "can",
        "base_policy_path": str(base / "checkpoint" / "state_3.pt"),
        "train": {"n_train_itr": 4, "actor_lr": 1e-4},
        "model": {"ft_denoising_steps": 3},
    }
    result = {name: episodes(flags, solvable=solvable) for name, flags in (("before", before), ("after", after))}
    what = "success_rate" if solvable else "episode_return"
    short = "success" if solvable else "return"
    rows = [{"itr": 0, "env_steps": 0, f"eval/{what}": 0.2, f"eval/{short}_ci_low": 0.1, f"eval/{short}_ci_high": 0.3}]
    spent = {"time/iteration": 11.0, "time/collect": 7.0, "time/update": 3.0, "time/env_steps_per_s": 100.0}
    for i in (1, 2, 3, 4):
        row = {"itr": i, "env_steps": 700 * i, f"train/{what}": 0.2 * i, "time/wall": 11.0 * i, **spent}
        rows.append(row)
    rows[2] |= {f"eval/{what}": 0.5 + 0.1 * seed, f"eval/{short}_ci_low": 0.4, f"eval/{short}_ci_high": 0.6}
    about = {
        "env_steps": 2800,
        "wall_seconds": 44.0,
        "iterations": 4,
        "checkpoint": str(folder / "checkpoint" / "state_4.pt"),
    }
    return write(folder, config, result | about, rows)
