"""Which pre-trained policy a run starts from, and the normaliser it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from agent import checkpoint, images
from agent.errors import CheckpointError
from env.normalizer import Normalizer

FITTING = ("obs_dim", "action_dim", "horizon_steps", "denoising_steps", "cond_steps", "img_cond_steps")


def find(cfg: DictConfig) -> Path:
    """``base_policy_path``, or the newest pre-trained checkpoint under ``log_root`` whose task, dimensions, steps and images fit.

    Raises:
        CheckpointError: nothing fits; names the command that makes one.
    """
    if cfg.base_policy_path is not None:
        return Path(cfg.base_policy_path).expanduser()
    folder = Path(cfg.log_root).expanduser() / f"{cfg.benchmark}-pretrain"
    candidates = sorted(
        folder.glob(f"{cfg.env_name}_pre_*/*/checkpoint/state_*.pt"), key=lambda p: p.stat().st_mtime, reverse=True
    )
    for path in candidates:
        payload = checkpoint.load(path)
        config = payload.get("config") or {}
        fits = all(config.get(key) == cfg.get(key) for key in FITTING if cfg.get(key) is not None)
        if fits and images.mismatch(images.of_checkpoint(payload), cfg) is None:
            return path
    method = "pre_diffusion_mlp_img" if images.wanted(cfg) else "pre_diffusion_mlp"
    raise CheckpointError(
        f"base_policy_path: not given, and none of the {len(candidates)} pre-trained checkpoints under {folder} fits "
        f"({', '.join(f'{key}={cfg.get(key)}' for key in FITTING)}). Pre-train one first:\n"
        f"  python script/run.py --config-name={method} --config-dir=cfg/{cfg.benchmark}/pretrain/{cfg.env_name}\n"
        "or pass base_policy_path=<.../checkpoint/state_<n>.pt>"
    )


def normalizer_of(payload: dict[str, Any], cfg: DictConfig) -> Normalizer:
    """The checkpoint's own normaliser; the file at ``normalization_path`` for checkpoints that carry none.

    Raises:
        CheckpointError: the checkpoint carries none, and no file is given.
        EnvError: the file is absent or damaged.
    """
    own = checkpoint.normalizer(payload)
    if own is not None:
        return own
    if cfg.normalization_path is None:
        raise CheckpointError(
            "normalization_path: the checkpoint carries no normaliser, so the file that it was trained with is needed"
        )
    return Normalizer.load(cfg.normalization_path)
