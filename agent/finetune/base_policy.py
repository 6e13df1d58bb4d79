"""Which pre-trained policy a run starts from, if any, and the normaliser it was trained with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from agent import checkpoint, images
from agent.dataset.normalization import existing, load_normalizer
from agent.download import ensure, recorded
from agent.download import find as find_published
from agent.errors import CheckpointError
from env.normalizer import Normalizer

log = logging.getLogger(__name__)

SCRATCH = "scratch"  # base_policy_path of a run that starts from random weights
FITTING = ("obs_dim", "action_dim", "horizon_steps", "denoising_steps", "cond_steps", "img_cond_steps")


def find(cfg: DictConfig) -> Path:
    """``base_policy_path`` (fetched if it is a published one), or the newest pre-trained checkpoint under ``log_root`` whose task,
    dimensions, steps and images fit.

    Raises:
        CheckpointError: nothing fits; names the command that makes one.
        DownloadError: a published checkpoint that cannot be fetched.
    """
    if cfg.base_policy_path is not None:
        ensure(cfg.base_policy_path)
        return Path(cfg.base_policy_path).expanduser()
    folder = Path(cfg.log_root).expanduser() / f"{cfg.benchmark}-pretrain"
    trained = (cfg.get("task") or {}).get("dataset") or cfg.env_name  # D3IL: several data sets of one environment
    names = {trained, cfg.env_name}  # Furniture-Bench: runs are named after the environment, data after the task
    found = [path for name in names for path in folder.glob(f"{name}_pre_*/*/checkpoint/state_*.pt")]
    candidates = sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)
    for path in candidates:
        payload = checkpoint.load(path)
        if _fits(payload.get("config") or {}, cfg) and images.mismatch(images.of_checkpoint(payload), cfg) is None:
            return path
    kind, network = _kind(cfg), cfg.get("network_name") or "mlp"
    method = f"calql_{network}_offline" if kind == "calql" else f"pre_{kind}_{network}"
    raise CheckpointError(
        f"base_policy_path: not given, and none of the {len(candidates)} pre-trained checkpoints under {folder} fits "
        f"({', '.join(f'{key}={cfg.get(key)}' for key in FITTING)}). Pre-train one first:\n"
        f"  python script/run.py --config-name={method} --config-dir=cfg/{cfg.benchmark}/pretrain/{trained}\n"
        f"or pass base_policy_path=<.../checkpoint/state_<n>.pt> ({SCRATCH}: start from random weights)"
    )


def _fits(config: Mapping[str, Any], cfg: DictConfig) -> bool:
    """Whether the policy that ``config`` trained is of the kind, with the network and of the sizes that ``cfg`` asks for."""
    actor, trained = cfg.model.get("actor"), config.get("model") or {}
    trained = trained.get("network") or trained.get("actor") or {}
    return (
        all(config.get(key) == cfg.get(key) for key in FITTING if cfg.get(key) is not None)
        and config.get("network_name") in (None, cfg.get("network_name"))
        and _kind(config) == _kind(cfg)
        and (actor is None or actor["_target_"] == trained.get("_target_"))
    )


def _kind(cfg: Mapping[str, Any]) -> str:
    """What the names of configurations say of the policy: who denoises does diffusion, the others say in the run's name who they are."""
    if "denoising_steps" in cfg:
        return "diffusion"
    words = str(cfg.get("name")).split("_")
    return next((kind for kind in ("gmm", "flow", "shortcut", "meanflow", "calql") if kind in words), "gaussian")


def read_base(path: Path) -> dict[str, Any]:
    """The checkpoint at ``path``; nothing at all for a start from random weights."""
    return {} if str(path) == SCRATCH else checkpoint.load(path)


def normalizer_of(payload: dict[str, Any], cfg: DictConfig) -> Normalizer:
    """The checkpoint's own normaliser; the file at ``normalization_path`` where there is no checkpoint or it carries none.

    Raises:
        CheckpointError: there is none, and no file is given.
        DownloadError: it is a published file that is not there and cannot be fetched.
        EnvError: the file is absent or damaged.
    """
    own = checkpoint.normalizer(payload)
    if own is not None:
        return own
    if cfg.normalization_path is None:
        raise CheckpointError(
            "normalization_path: no checkpoint brings a normaliser, so a file of the demonstrations' (or of measured) bounds is needed"
        )
    normalizer, path = load_normalizer(cfg.normalization_path), existing(cfg.normalization_path)
    if cfg.base_policy_path and find_published(cfg.base_policy_path) and recorded(path) is None:
        log.warning(
            "%s was not downloaded by this project: a published checkpoint works with the published statistics only, not with those "
            "of other demonstrations",
            path,
        )
    return normalizer
