"""Small behaviour policies in safetensors files: weights, normaliser, network and how they came about. Nothing in such a file can run.

Metadata: ``format``, ``network`` (JSON: the arguments of ``Gaussian_MLP``) and ``about`` (JSON: whatever is to be known).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from agent.errors import CheckpointError
from agent.files import atomic_write
from env.normalizer import Normalizer
from model.common.gaussian import GaussianModel
from model.common.mlp_gaussian import Gaussian_MLP
from model.common.modules import strict_load

FORMAT = "d2ppo-gaussian-1"
_NORMALIZER = "normalizer."


def save_behaviour(
    path: str | os.PathLike[str],
    policy: GaussianModel,
    network: Mapping[str, Any],
    normalizer: Normalizer,
    about: Mapping[str, Any],
) -> None:
    """Write the acting network of ``policy`` (a pre-trained or a PPO-trained one).

    Args:
        network: the arguments that its ``Gaussian_MLP`` was made with.
        about: plain data, for people; ``load_behaviour`` returns it.
    """
    tensors = {
        f"network.{key}": value.detach().cpu().contiguous() for key, value in policy.network.state_dict().items()
    }
    tensors |= {f"{_NORMALIZER}{key}": torch.as_tensor(value) for key, value in normalizer.to_dict().items()}
    metadata = {"format": FORMAT, "network": json.dumps(dict(network)), "about": json.dumps(dict(about))}
    with atomic_write(path) as file:
        file.write(save(tensors, metadata))


def load_behaviour(path: str | os.PathLike[str]) -> GaussianModel:
    """The policy of a file by ``save_behaviour``, in evaluation mode, with attributes ``normalizer`` and ``about``.

    Raises:
        CheckpointError: absent, damaged, of another format, or weights that do not fit the network it names.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path}: no such policy. script/train_medium.py trains one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT!r}, found {metadata.get('format')!r}")
    try:
        arguments, about = json.loads(metadata["network"]), json.loads(metadata["about"])
        with torch.random.fork_rng(devices=[]):  # the initial weights are thrown away
            policy = GaussianModel(Gaussian_MLP(**arguments), arguments["horizon_steps"])
        stored = {k.removeprefix(_NORMALIZER): v for k, v in tensors.items() if k.startswith(_NORMALIZER)}
        policy.normalizer = Normalizer.from_dict(stored)
        strict_load(policy, {k: v for k, v in tensors.items() if not k.startswith(_NORMALIZER)}, str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or written by another version: {error}") from error
    policy.about = about
    return policy.eval()
