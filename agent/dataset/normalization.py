"""The statistics that demonstrations were normalised with, wherever they come from: ``normalization.npz``, or DPPO's ``normalization.pth``
of Furniture-Bench.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from agent.download import ensure
from agent.download import find as find_published
from agent.errors import DatasetError
from agent.torch_file import read_torch_file
from env.errors import EnvError
from env.normalizer import Normalizer

_OTHER = {".npz": ".pth", ".pth": ".npz"}
_KEYS = {"obs": "observations", "action": "actions"}


def existing(path: str | os.PathLike[str]) -> Path:
    """``path``; where it is not, the file of the other kind beside it, if that is there or can be fetched."""
    path = Path(path).expanduser()
    if path.suffix not in _OTHER or path.is_file():
        return path
    other = path.with_suffix(_OTHER[path.suffix])
    return other if other.is_file() or (find_published(other) and not find_published(path)) else path


def load_normalizer(path: str | os.PathLike[str]) -> Normalizer:
    """Read ``path``, or what is there in its place (``existing``); a published file is fetched.

    Raises:
        DatasetError: a ``.pth`` without the statistics. CheckpointError: a damaged one, or one that could run code.
        EnvError: an ``.npz`` that is absent or damaged. DownloadError: see ``ensure``.
    """
    path = existing(path)
    ensure(path)
    if path.suffix != ".pth" or not path.is_file():
        return Normalizer.load(path)
    content = read_torch_file(path)
    if not isinstance(content, Mapping):
        raise DatasetError(
            f"{path}: expected stats.{{observations,actions}}.{{min,max}}, found {type(content).__name__}"
        )
    arrays = {}
    for ours, theirs in _KEYS.items():
        for end in ("min", "max"):
            value = content.get(f"stats.{theirs}.{end}")
            if not isinstance(value, torch.Tensor):
                raise DatasetError(
                    f"{path}: no stats.{theirs}.{end} in it (found {', '.join(map(str, content)) or 'nothing'})"
                )
            arrays[f"{ours}_{end}"] = value.float().numpy()
    try:
        return Normalizer(**arrays)
    except EnvError as error:
        raise DatasetError(f"{path}: {error}") from error
