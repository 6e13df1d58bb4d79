"""Checkpoints: complete, safe to read, and never half written.

A file holds tensors, numbers, strings, lists and dicts only, so ``torch.load(weights_only=True)`` reads it and
nothing in it can run. Layout (version 1)::

    format "d2ppo" | format_version | kind "pretrain" or "finetune" | epoch or itr
    model, ema            state dicts in the published layout (DPPO)
    optimizer, scheduler, rng, extra    everything exact resumption needs
    normalizer            {obs_min, obs_max, action_min, action_max} or None
    config                the resolved configuration, plain
    versions              of Python, the packages and the source

Published files (``{"epoch", "model", "ema"}`` and ``{"itr", "model"}``) are read too; they carry no configuration.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import os
import platform
import random
import subprocess
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from torch import nn

from agent import policy_weights as policy_weights_of
from agent import portable
from agent.agent import build
from agent.errors import CheckpointError
from agent.files import atomic_write
from agent.images import of_checkpoint
from agent.torch_file import read_torch_file
from env.errors import EnvError
from env.normalizer import Normalizer
from model.common.modules import strict_load
from model.types import StateDictError

FORMAT = "d2ppo"
FORMAT_VERSION = 1
KINDS = ("pretrain", "finetune")
_PLAIN = (str, int, float, bool, type(None))
_PACKAGES = ("torch", "numpy", "mujoco", "robosuite", "gymnasium")


def save(path: str | os.PathLike[str], payload: dict[str, Any]) -> None:
    """Write ``payload`` to ``path`` in one step: a reader sees the old file or the new one.

    ``format``, ``format_version`` and ``versions`` are filled in where absent; numpy arrays are stored as tensors.

    Raises:
        TypeError: something in the payload is neither tensor, array, str, int, float, bool, None, list, tuple nor
            dict; names where.
        CheckpointError: weights that are not finite, or a disk that is full or not writable; the old file is intact.
    """
    payload = _storable({"format": FORMAT, "format_version": FORMAT_VERSION, "versions": versions(), **payload}, "")
    for part in ("model", "ema"):
        for key, value in (payload.get(part) or {}).items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise CheckpointError(
                    f"{path}: not written, because {part}[{key!r}] holds NaN or infinity. The last good checkpoint is "
                    "intact"
                )
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    try:
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise CheckpointError(
            f"{path}: not written ({error.strerror or error}). An older file of that name is intact; free space or "
            "choose another "
            "logdir (environment variable DPPO_LOG_DIR)"
        ) from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint, ours or a published one, onto the CPU. Nothing in the file is executed.

    Raises:
        CheckpointError: absent (says what the folder holds), damaged, not a checkpoint, or of a newer version than
            this code.
    """
    path = Path(path).expanduser()
    if portable.is_folder(path):
        payload = portable.read_folder(path)
    elif path.is_file():
        payload = read_torch_file(path)
    else:
        raise CheckpointError(f"{path}: no such checkpoint. {_folder_content(path)}")
    if not isinstance(payload, dict) or not _is_state_dict(payload.get("model")):
        found = sorted(map(str, payload)) if isinstance(payload, dict) else type(payload).__name__
        raise CheckpointError(
            f"{path}: not a checkpoint of this project: expected a dict with 'model' (weights by name), found {found}"
        )
    if payload.get("ema") is not None and not _is_state_dict(payload["ema"]):
        raise CheckpointError(f"{path}: 'ema': expected weights by name, found {type(payload['ema']).__name__}")
    if is_published(payload):
        return {**payload, "kind": "pretrain" if is_network(payload["model"]) else "finetune"}
    version = payload.get("format_version", 0)
    if payload["format"] != FORMAT or payload.get("kind") not in KINDS or not isinstance(version, int):
        raise CheckpointError(
            f"{path}: format {payload['format']!r}, kind {payload.get('kind')!r}, version {version!r}; expected "
            f"{FORMAT!r}, one of {KINDS} and a whole number"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, but this code knows versions up to {FORMAT_VERSION}. Update the code"
        )
    return payload


def is_published(payload: Mapping[str, Any]) -> bool:
    """Whether the checkpoint comes from the ancestors' code: weights only, no configuration, no normaliser."""
    return "format" not in payload


def weights(payload: Mapping[str, Any], prefer_ema: bool = True) -> dict[str, torch.Tensor]:
    """The state dict to use: the averaged weights where there are any (and they are wanted), else the trained ones."""
    return payload["ema"] if prefer_ema and payload.get("ema") else payload["model"]


def load_policy(
    path: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    device: str = "cpu",
    policy_weights: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Rebuild the policy of a checkpoint: averaged weights where it has any; base and tuned weights of a fine-tuning run.

    Args:
        path: our checkpoint, an exported folder, or a published checkpoint.
        config: configuration with a ``model`` section, ours or a published one; None takes the checkpoint's own, or the
            one that a published run left beside it (``.hydra/config.yaml``), from which only the project's own ``model``
            classes are built (a file from elsewhere must not choose what runs).
        device: where the policy goes.
        policy_weights: which weights, of ``agent.policy_weights.CHOICES``: ``base`` is the policy that a fine-tuning run
            started from, ``model`` those of a run without averaging.
        overrides: settings that replace those of the configuration's ``model`` section.

    Returns:
        The policy in evaluation mode, with three more attributes: ``normalizer`` (``env.normalizer.Normalizer`` or
            None), ``config`` and ``images`` (how its training images were rendered; see ``agent.images``).

    Raises:
        CheckpointError: as ``load``; no configuration; or weights that do not fit it, with the first key that differs.
    """
    payload = load(path)
    if config is not None:
        config = policy_weights_of.plain_config(config)
    else:
        config = payload.get("config") or policy_weights_of.config_beside(Path(path).expanduser())
        if not config:
            raise CheckpointError(
                f"{path}: a published checkpoint carries no configuration; give the one it was trained with "
                "(config=...), or put it beside, as .hydra/config.yaml of its run directory"
            )
        _check_trusted(config.get("model"), f"{path}: config.model")
    if "model" not in config:
        raise CheckpointError(f"{path}: expected a configuration with a section 'model', found {sorted(config)}")
    if overrides:
        config = {**config, "model": {**config["model"], **overrides}}
    node, state = policy_weights_of.fit(config["model"], config, payload, policy_weights, str(path))
    with torch.random.fork_rng(
        devices=[]
    ):  # the initial weights are thrown away: loading must not shift anybody's random numbers
        policy = build(node)
    try:
        strict_load(policy, state, str(path))
    except StateDictError as error:
        raise CheckpointError(str(error)) from error
    if policy_weights == "base":
        policy_weights_of.base_everywhere(policy)
    try:
        policy.normalizer = normalizer(payload)
    except EnvError as error:
        raise CheckpointError(f"{path}: normalizer: {error}") from error
    policy.config, policy.images = config, of_checkpoint(payload)
    return policy.to(device).eval()


def normalizer(payload: Mapping[str, Any]) -> Normalizer | None:
    """The normalisation statistics that the policy was trained with; None where the checkpoint has none."""
    stored = payload.get("normalizer")
    return Normalizer.from_dict(stored) if stored else None


def rng_state() -> dict[str, Any]:
    """State of every global random number generator (Python, numpy, torch, each GPU), fit for a payload."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": {"version": version, "state": list(internal), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "state": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Go on where ``rng_state`` was taken. GPUs are restored as far as this machine has them."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["state"]), python["gauss"]))
    keys = numpy["state"].numpy().astype(np.uint32)
    np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(generator.cpu(), index)


@functools.lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """What the checkpoint was made with: Python, packages that matter, and the source's commit where git knows it."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    try:
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        source = subprocess.run(
            describe, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
        found["source"] = source.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found["source"] = "unknown"
    return found


def _storable(value: Any, where: str) -> Any:
    """``value`` with arrays as tensors. Exact types: a numpy float is a float to Python, but not to a reader that
    refuses arbitrary objects."""
    if type(value) in _PLAIN or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value))  # a copy: contiguous, writable, and of its own
    if type(value) in (list, tuple):
        return type(value)(_storable(item, f"{where}[{index}]") for index, item in enumerate(value))
    if type(value) in (dict, OrderedDict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(
                    f"{where or 'payload'}: a key is {key!r} ({type(key).__name__}); a checkpoint's keys are str or int"
                )
        return {key: _storable(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
    raise TypeError(
        f"{where or 'payload'}: a {type(value).__module__}.{type(value).__qualname__} cannot go into a checkpoint; "
        "expected tensor, array, str, "
        "int, float, bool, None, list, tuple or dict"
    )


def _check_trusted(node: Any, where: str) -> None:
    """A configuration that came inside a file may name only classes defined under ``model``, and may not look
    anything up."""
    if isinstance(node, str) and "${" in node:
        raise CheckpointError(
            f"{where}: holds the interpolation {node!r}; a stored configuration is resolved. Give config=... if you "
            "trust it"
        )
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            _check_trusted(item, f"{where}[{index}]")
    if not isinstance(node, Mapping):
        return
    for key, item in node.items():
        _check_trusted(item, f"{where}.{key}")
    target = node.get("_target_")
    if target is None:
        return
    try:
        found = hydra.utils.get_object(target) if str(target).startswith("model.") else None
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{where}._target_: {target!r} does not exist in this version of the code") from error
    if not isinstance(found, type) or not found.__module__.startswith("model."):
        raise CheckpointError(
            f"{where}._target_: {target!r} is no class of this project's models. Give config=... if you trust it"
        )


def _is_state_dict(value: Any) -> bool:
    """Names and ordinary (dense) tensors, at least one."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(
            isinstance(key, str) and isinstance(item, torch.Tensor) and item.layout is torch.strided
            for key, item in value.items()
        )
    )


def is_network(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether these are the weights of a network alone: a pre-trained policy's, or one's that was tuned as a whole without a critic."""
    return all(key.startswith("network.") for key in state)


def _folder_content(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either"
    names = sorted(entry.name for entry in path.parent.glob("*.pt"))
    return f"The folder holds {', '.join(names)}" if names else f"The folder {path.parent} holds no .pt file"
