"""A checkpoint's policy for other programs: ``model.safetensors`` with ``config.json``, or a file in the published layout.

``config.json`` holds what weights alone do not say: the configuration the network is built from, the normaliser, how images
were rendered. Both ways lead back: ``agent.checkpoint.load`` reads the folder, and a published file, like a checkpoint.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from agent.errors import CheckpointError
from agent.files import atomic_write
from model.diffusion.eta import LOGIT_LIMIT

WEIGHTS, CONFIG = "model.safetensors", "config.json"
STEPS = {"pretrain": "epoch", "finetune": "itr"}  # what a checkpoint of each kind is counted in
_STORED = ("format", "format_version", "kind", "epoch", "itr", "config", "versions")


def is_folder(path: Path) -> bool:
    """Whether ``path`` is (a file of) an exported folder."""
    return path.is_dir() or path.name in (WEIGHTS, CONFIG)


def write_folder(folder: str | os.PathLike[str], payload: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write ``weights`` and what ``payload`` (of ``agent.checkpoint.load``) knows of their policy.

    Raises:
        CheckpointError: the folder is not writable.
    """
    about = {key: payload[key] for key in _STORED if key in payload}
    normalizer = payload.get("normalizer")
    about["normalizer"] = normalizer and {key: torch.as_tensor(value).tolist() for key, value in normalizer.items()}
    about["images"] = (payload.get("extra") or {}).get("images")
    tensors = {key: value.detach().contiguous().clone() for key, value in weights.items()}  # safetensors shares nothing
    _write(Path(folder) / CONFIG, (json.dumps(about, indent=2) + "\n").encode())
    _write(Path(folder) / WEIGHTS, safetensors_bytes(tensors, metadata={"format": "pt"}))


def read_folder(path: Path) -> dict[str, Any]:
    """What ``write_folder`` wrote, as a checkpoint's payload; ``path`` is the folder or a file in it.

    Raises:
        CheckpointError: a file is absent or damaged; names it.
    """
    folder = path if path.is_dir() else path.parent
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model = parse_safetensors((folder / WEIGHTS).read_bytes())
    except FileNotFoundError as error:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"{error.filename}: expected {WEIGHTS} and {CONFIG} in the folder of an exported policy, found {found or 'nothing'}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG}: damaged ({error}). Export the checkpoint again") from error
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS}: damaged ({error}). Export the checkpoint again") from error
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict | None):
        raise CheckpointError(
            f"{folder / CONFIG}: expected an object with 'format', 'kind' and 'config' (an object), found {_brief(about)}"
        )
    payload = {"format": None, **{key: about[key] for key in _STORED if key in about}, "model": model}
    if about.get("normalizer") is not None:
        payload["normalizer"] = _statistics(about["normalizer"], folder / CONFIG)
    if about.get("images"):
        payload["extra"] = {"images": about["images"]}
    return payload


def published(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload as DPPO and D2PPO write it: ``epoch, model, ema`` of a pre-training run, ``itr, model`` of a fine-tuning one.

    ``ema`` is always there: without it their code takes a file for a fine-tuned one; of a fine-tuned one with averaged weights those
    are its ``model``. A noise level at its bound is stored as they store it, infinite.
    """
    if "epoch" in payload:
        ema = payload.get("ema") or payload["model"]
        return {"epoch": payload["epoch"], "model": _as_published(payload["model"]), "ema": _as_published(ema)}
    return {"itr": payload.get("itr", 0), "model": _as_published(payload.get("ema") or payload["model"])}


def write_published(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> None:
    """Write ``published(payload)``. Raises ``CheckpointError`` where that is not possible."""
    path = Path(path)
    try:
        with atomic_write(path) as file:
            torch.save(published(payload), file)
    except OSError as error:
        raise _not_written(path, error) from error


def _as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bounded = {
        key: torch.where(value.abs() >= LOGIT_LIMIT, value.sign() * math.inf, value)
        for key, value in state.items()
        if key == "eta.eta_logit"
    }
    return {**state, **bounded}


def _statistics(stored: Any, where: Path) -> dict[str, Tensor]:
    try:
        return {str(key): torch.tensor(value, dtype=torch.float32) for key, value in stored.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{where}: normalizer: expected lists of numbers ({error}), found {_brief(stored)}"
        ) from error


def _write(path: Path, content: bytes) -> None:
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: not written ({error.strerror or error})")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:120]} ..."
