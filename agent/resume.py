"""Going on exactly where a killed run stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from agent import checkpoint
from agent.config import PPO
from agent.errors import CheckpointError, UsageError

log = logging.getLogger(__name__)

# What may differ between the run and its continuation without changing what is computed.
FREE = {
    "resume", "device", "logdir", "log_root", "data_root", "name", "wandb", "base_policy_path", "normalization_path", "train_dataset_path",
    "train_dataset.dataset_path", "train_dataset.device", "env.n_threads", "env.save_video", "env.render", "env.wrappers.robomimic_lowdim.normalization_path",
    "env.wrappers.robomimic_image.normalization_path", "env.wrappers.mujoco_locomotion_lowdim.normalization_path",
    "env.wrappers.d3il_lowdim.normalization_path", "robomimic_env_cfg_path", "env.simulator_python",
    "env.specific.normalization_path", "env.specific.headless", "env.specific.gpu_id",
    "train.n_epochs", "train.n_train_itr", "train.save_model_freq", "train.latest_every_s", "train.render", "train.val_freq", "train.eval_episodes",
    "train.stop_at_return", "train.final_eval_episodes", "train.log_freq", "train.diagnostics_freq", "train.gradient_signal",
}  # fmt: skip


OLDER = {  # settings that older runs had without writing them down
    "train.algorithm": PPO, "train.use_bc_loss": False, "train.bc_loss_coeff": 0, "train.kl_coef": 0, "train.dispersive_loss_weight": 0,
    "train.ft_denoising_steps_d": 0, "train.ft_denoising_steps_t": 0, "train.dispersive_loss_type": "infonce_l2",
    "train.dispersive_loss_temperature": 0.5, "train.dispersive_loss_layer": "late", "dispersive_queue": 0, "model.dispersive_queue": 0,
    "train.value_lambda": None, "ema.decay": None, "model.dispersive_balance": 0.1, "model.dispersive_auto_epochs": 3,
}  # fmt: skip


def resume_point(logdir: Path, cfg: DictConfig) -> dict[str, Any] | None:
    """The newest complete checkpoint of the run in ``logdir``, if its configuration is that of ``cfg``.

    None where the run was stopped before its first checkpoint: it begins again.

    Raises:
        UsageError: a setting that changes the result differs; names it with both values.
        CheckpointError: damaged, or without what a resume needs (a published checkpoint).
    """
    folder = logdir / "checkpoint"
    newest = folder / "latest.pt"
    if not newest.is_file():
        numbered = sorted(folder.glob("state_*.pt"), key=lambda path: int(path.stem.removeprefix("state_")))
        if not numbered:
            log.info("resume: %s holds no checkpoint; the run begins again", folder)
            return None
        newest = numbered[-1]
    payload = checkpoint.load(newest)
    if "rng" not in payload:
        raise CheckpointError(f"resume: {newest} holds weights only; pass it as base_policy_path instead")
    check_same(payload["config"], OmegaConf.to_container(cfg, resolve=True))
    return payload


def check_same(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` for the first setting that differs and is not in ``FREE``."""
    old, new = dict(_flatten(saved)), dict(_flatten(wanted))
    old = {key: value for key, value in OLDER.items() if key in new} | old
    for key in sorted(old.keys() | new.keys()):
        if not _is_free(key) and old.get(key) != new.get(key):
            raise UsageError(
                f"resume: {key} was {old.get(key)!r} in the run that should go on, and is {new.get(key)!r} now. Use the same settings, or start a new run"
            )


def _is_free(key: str) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:n]) in FREE for n in range(1, len(parts) + 1))


def _flatten(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
