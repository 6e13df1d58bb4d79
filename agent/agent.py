"""What every agent needs before it starts: a device, seeds, and objects built from the configuration."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import hydra
import numpy as np
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agent.errors import UsageError
from env.errors import EnvError
from model.types import ShapeError, StateDictError

_REQUIRED = object()
# What a person's configuration can cause while an object is being built; anything else is a bug and keeps its
# traceback.
_MENDABLE = (ValueError, TypeError, ImportError, AttributeError, KeyError, OSError, InstantiationException)


def resolve_device(name: str | None = "auto") -> str:
    """Turn the configuration's ``device`` into a torch device string.

    ``auto`` (or null) is the first GPU if there is one, else the CPU; ``cpu``, ``cuda`` and ``cuda:<i>`` are taken
    literally.

    Raises:
        UsageError: unknown name, or a GPU that this machine does not have.
    """
    wanted = "auto" if name is None else str(name).strip().lower()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "cuda:0" if count else "cpu"
    if wanted == "cpu":
        return wanted
    kind, _, index = wanted.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()) or wanted.endswith(":"):
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:<number>, found {name!r}")
    if not count:
        raise UsageError(
            f"device: {wanted} was asked for, but torch sees no CUDA GPU here. Use device=auto or device=cpu"
        )
    if int(index or 0) >= count:
        raise UsageError(f"device: {wanted} was asked for, but there are only cuda:0 to cuda:{count - 1}")
    return f"cuda:{int(index or 0)}"


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global random numbers (all devices).

    Raises:
        UsageError: ``seed`` is no integer in [0, 2**32).
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UsageError(f"seed: expected an integer from 0 to 2**32 - 1, found {seed!r}")
    random.seed(seed)
    np.random.seed(seed)  # the global state on purpose: third-party simulators draw from it
    torch.manual_seed(seed)


def read(cfg: Mapping[str, Any] | DictConfig, key: str, default: Any = _REQUIRED) -> Any:
    """Value of the dotted ``key`` as plain Python (lists and dicts instead of OmegaConf's); ``default`` where it is
    absent.

    Raises:
        UsageError: the key is absent and has no default, or its interpolation fails.
    """
    node = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    try:
        value = OmegaConf.select(node, key, default=_REQUIRED, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UsageError(f"{key}: {str(error).splitlines()[0]}") from error
    if value is _REQUIRED:
        if default is _REQUIRED:
            raise UsageError(f"{key}: this key is needed and not in the configuration")
        return default
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def build(node: Mapping[str, Any] | DictConfig, **extra: Any) -> Any:
    """Build the object that ``node`` describes (``_target_`` and its arguments, nested ones first).

    ``extra`` are further arguments by name. OmegaConf containers reach the constructor as plain lists and dicts.

    Raises:
        UsageError: no ``_target_``, no such class, or its constructor refuses the arguments; says which key and why.
            Errors that already speak to a person (``UsageError``, ``EnvError``) pass as they are.
    """
    target = node.get("_target_") if isinstance(node, Mapping | DictConfig) else None
    if not target:
        raise UsageError(f"cannot build an object: expected a section with a _target_, found {node!r}")
    try:
        return hydra.utils.instantiate(node, **extra, _convert_="all")
    except InstantiationException as error:
        cause = _innermost(error)
        if isinstance(cause, UsageError | EnvError | ShapeError | StateDictError):
            raise cause from None
        if not isinstance(cause, _MENDABLE):
            raise cause from error
        where = next(
            (line.split(":", 1)[1].strip() for line in str(error).splitlines() if line.startswith("full_key:")), ""
        )
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise UsageError(f"{where or 'configuration'}: cannot build {target}: {reason}") from error


def _innermost(error: BaseException) -> BaseException:
    """The exception that hydra's wrappers (one per nesting level) hide."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error
