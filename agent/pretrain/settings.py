"""The numbers of a pre-training run, read once from the configuration and checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from agent.agent import read
from agent.errors import UsageError

log = logging.getLogger(__name__)

PER = ("epoch", "step")
PRECISIONS = ("float32", "bfloat16", "auto")


@dataclass(frozen=True)
class PretrainSettings:
    """See ``cfg/base/stage/pretrain.yaml`` for what each key means; ``from_config`` reads and checks them."""

    seed: int
    n_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    first_cycle_steps: int
    warmup_steps: int
    min_lr: float
    schedule_per: str
    ema_decay: float
    ema_per: str
    epoch_start_ema: int
    update_ema_freq: int
    precision: str
    train_split: float
    val_freq: int
    log_freq: int
    diagnostics_freq: int
    save_model_freq: int
    latest_every_s: float

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any] | DictConfig) -> PretrainSettings:
        """Read ``seed``, ``train.*`` and ``ema.*``.

        Raises:
            UsageError: naming the key that is absent, of the wrong type or out of range.
        """
        schedule = "train.lr_scheduler"
        n_epochs = _integer(cfg, "train.n_epochs", 1)
        return cls(
            seed=_integer(cfg, "seed", 0, 42),
            n_epochs=n_epochs,
            batch_size=_integer(cfg, "train.batch_size", 1),
            learning_rate=_number(cfg, "train.learning_rate"),
            weight_decay=_number(cfg, "train.weight_decay", 0.0),
            first_cycle_steps=_integer(cfg, f"{schedule}.first_cycle_steps", 1, n_epochs),
            warmup_steps=_integer(cfg, f"{schedule}.warmup_steps", 0, 0),
            min_lr=_number(cfg, f"{schedule}.min_lr", 0.0),
            schedule_per=_choice(cfg, f"{schedule}.per", PER),
            ema_decay=_number(cfg, "ema.decay", 0.995),
            ema_per=_choice(cfg, "ema.per", PER),
            epoch_start_ema=_integer(cfg, "train.epoch_start_ema", 0, 20),
            update_ema_freq=_integer(cfg, "train.update_ema_freq", 1, 10),
            precision=_choice(cfg, "train.precision", PRECISIONS),
            train_split=_number(cfg, "train.train_split", 1.0),
            val_freq=_integer(cfg, "train.val_freq", 1, 10),
            log_freq=_integer(cfg, "train.log_freq", 1, 1),
            diagnostics_freq=_integer(cfg, "train.diagnostics_freq", 1, 20),
            save_model_freq=_integer(cfg, "train.save_model_freq", 1, n_epochs),
            latest_every_s=_number(cfg, "train.latest_every_s", 60.0),
        )


def _integer(cfg: Any, key: str, smallest: int, *default: int) -> int:
    value = read(cfg, key, *default)
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise UsageError(f"{key}: expected an integer of at least {smallest}, found {value!r}")
    return value


def _number(cfg: Any, key: str, *default: float) -> float:
    value = read(cfg, key, *default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise UsageError(f"{key}: expected a number of at least 0, found {value!r}")
    return float(value)


def _choice(cfg: Any, key: str, choices: tuple[str, ...]) -> str:
    """One of ``choices``; the first where the key is absent."""
    value = read(cfg, key, choices[0])
    if value not in choices:
        raise UsageError(f"{key}: expected {' or '.join(choices)}, found {value!r}")
    return value


def settle_precision(precision: str, device: str) -> str:
    """``float32`` or ``bfloat16``: what ``train.precision`` means on this device. ``auto`` is bfloat16 where the processor has the
    instructions; asked for where it has not, it is done, slowly, and a warning says so."""
    fast = _has_bfloat16(device)
    if precision == "auto":
        precision = "bfloat16" if fast else "float32"
        log.info("train.precision=auto: %s (bfloat16 instructions: %s)", precision, "yes" if fast else "no")
    elif precision == "bfloat16" and not fast:
        log.warning(
            "train.precision=bfloat16: this processor has no bfloat16 instructions, and imitates them (seen: 13 times slower than "
            "float32). Set train.precision=auto or float32"
        )
    return precision


def _has_bfloat16(device: str) -> bool:
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # nothing public tells
