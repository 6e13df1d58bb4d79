"""Run directories as finished runs leave them, small, for what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from agent import checkpoint
from agent.agent import build
from agent.dataset.demos import save_demos
from agent.eval.statistics import bootstrap_interval, wilson_interval

A = [True, True, False, False, True, False, True]
B = [True, False, True, True, True, False, True]
LENGTHS = [13, 3, 17, 11]  # of demonstrations; with chunks of four, the second has none


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
    OmegaConf.save(OmegaConf.create({"logdir": str(folder), "wandb": None, **config}), folder / "config.yaml")
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
    """Four iterations of fine-tuning, evaluated at the second; of a task that knows success, or of one that knows none."""
    task = "can" if solvable else "hopper"
    config = {
        "stage": "finetune",
        "seed": seed,
        "env": {"name": task, "n_envs": 5},
        "env_name": task,
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


def trained(folder: Path, weight: float = 0.0, layer: str = "late", **config: Any) -> Path:
    """A pre-training run with a checkpoint and demonstrations: five numbers seen, a gripper last of three actions, closed in mid-trajectory."""
    rng = np.random.default_rng(5)
    actions = np.concatenate([np.clip(rng.normal(0, 0.3, (n, 3)), -1, 1) for n in LENGTHS]).astype(np.float32)
    actions[:, 2] = np.concatenate([np.where(np.arange(n) < n // 2, -1.0, 1.0) for n in LENGTHS])
    data = folder.parent / "demos" / "train.npz"
    data.parent.mkdir(exist_ok=True)
    save_demos(data, rng.uniform(-1, 1, (sum(LENGTHS), 5)).astype(np.float32), actions, np.array(LENGTHS))
    network = {
        "_target_": "model.diffusion.mlp_diffusion.DiffusionMLP",
        "mlp_dims": [19, 17, 23],
        "residual_style": False,
    }
    network |= {"cond_dim": 5, "horizon_steps": 4, "action_dim": 3, "time_dim": 8}
    model = {
        "_target_": "model.diffusion.diffusion.DiffusionModel",
        "network": network,
        "horizon_steps": 4,
        "obs_dim": 5,
    }
    model |= {"action_dim": 3, "denoising_steps": 3, "use_dispersive_loss": True, "dispersive_loss_weight": weight}
    dataset = {"dataset_path": str(data), "horizon_steps": 4, "cond_steps": 1}
    pretraining(folder, weight=weight, model=model, train_dataset=dataset, dispersive_loss_layer=layer, **config)
    torch.manual_seed(0)
    payload = {
        "kind": "pretrain",
        "epoch": 3,
        "model": build(model).state_dict(),
        "ema": None,
        "config": {"model": model},
    }
    checkpoint.save(folder / "checkpoint" / "state_3.pt", payload)
    return folder


def ten_runs(tmp_path: Path) -> list[Path]:
    """Runs of every stage, in seeds and settings, with a film."""
    paths = [trained(tmp_path / "plain"), trained(tmp_path / "spread", 0.5)]
    for k, flags in enumerate((A, B)):
        again = trained(tmp_path / f"again{k}", k * 0.5, seed=1)
        paths.append(evaluation(tmp_path / f"eval{k}_0", paths[k], flags))
        paths.append(evaluation(tmp_path / f"eval{k}_1", again, flags[1:] + flags[:1]))
    for seed in (0, 1):
        paths.append(finetuning(tmp_path / f"tuned{seed}", paths[0], A, B, seed))
        paths.append(finetuning(tmp_path / f"running{seed}", paths[0], A, B, seed, solvable=False))
    (tmp_path / "tuned0" / "render").mkdir()
    (tmp_path / "tuned0" / "render" / "final.mp4").write_bytes(b"film")
    return paths
