"""Which of a checkpoint's weights a policy gets, and the configuration of a published file, which does not carry its own.

A fine-tuned checkpoint holds two policies: the pre-trained one it started from (``actor.*``) and the tuned one (``actor_ft.*``,
for diffusion together with the first: its last ``K`` denoising steps only). ``policy_weights`` says which one is meant.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from agent.compat import is_published
from agent.compat.arithmetic import register
from agent.compat.notes import Notes
from agent.compat.policy import translate_policy
from agent.errors import CheckpointError
from model.diffusion.diffusion_ppo import PPODiffusion
from model.diffusion.process import DiffusionProcess

CHOICES = ("base", "finetuned", "ema", "model")
_BESIDE = (".hydra/config.yaml", "config.yaml")  # of a run directory: as Hydra leaves it, as we do
_TOP = (  # keys of a whole configuration that a policy's user needs
    *("_target_", "env_name", "obs_dim", "action_dim", "cond_steps", "img_cond_steps", "horizon_steps", "act_steps"),
    *("denoising_steps", "ft_denoising_steps", "normalization_path"),
)


def fit(
    node: Mapping[str, Any], config: Mapping[str, Any], payload: Mapping[str, Any], choice: str | None, where: str
) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """The ``model`` section to build and the weights to fill it with.

    A pre-training class may be given for a fine-tuned checkpoint: it then gets the base's weights, or becomes a policy of
    base and tuned weights.

    Args:
        node: ``config["model"]``.
        config: the whole configuration, for ``ft_denoising_steps``.
        choice: one of ``CHOICES``; None: averaged weights where there are any, everything of a fine-tuning run.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: the checkpoint has no such weights, or the configuration does not say how many steps are tuned.
    """
    if choice not in (None, *CHOICES):
        raise CheckpointError(f"policy_weights: expected one of {', '.join(CHOICES)} or null, found {choice!r}")
    if choice == "ema" and not payload.get("ema"):
        raise CheckpointError(f"policy_weights=ema: {where} holds no averaged weights")
    state = payload["model"] if choice == "model" else payload.get("ema") or payload["model"]
    if payload["kind"] == "pretrain":
        if choice == "finetuned":
            raise CheckpointError(
                f"policy_weights=finetuned: {where} is a pre-trained checkpoint and has no such weights"
            )
        return node, state
    tuned, base = (any(key.startswith(prefix) for key in state) for prefix in ("actor_ft.", "actor."))
    if choice == "base" and not (tuned and base):
        raise CheckpointError(f"policy_weights=base: {where} does not keep the policy that it started from")
    chosen = get_class(node["_target_"])
    fewer = (payload.get("algorithm") or {}).get("n_chain_steps")  # than at the beginning: train.ft_denoising_steps_d
    if fewer and "ft_denoising_steps" in node:
        node = {**node, "ft_denoising_steps": fewer}
    if hasattr(chosen, "load_base"):  # a policy that is fine-tuned: it takes everything
        return node, state
    if choice == "base":
        return node, _renamed(state, "actor.")
    if not tuned or not issubclass(chosen, DiffusionProcess):
        return node, _renamed(state, "actor_ft." if tuned else "network.")
    steps = node.get("ft_denoising_steps") or fewer or config.get("ft_denoising_steps")
    steps = steps or (payload.get("config") or {}).get("ft_denoising_steps")
    unused = ("critic.",) if node.get("use_ddim") else ("critic.", "eta.")
    kept = {key: value for key, value in state.items() if not key.startswith(unused)}
    if node.get("use_ddim"):  # tuned as DDPM: it has no noise level, and an evaluation asks for none
        kept.setdefault("eta.eta_logit", torch.tensor(math.inf))
    return _two_networks(node, steps, where), kept


def base_everywhere(policy: nn.Module) -> None:
    """Let the tuned copy of a fine-tuned ``policy`` be its base again, in place."""
    if hasattr(policy, "actor_ft"):  # else it was built from the base alone
        policy.actor_ft.load_state_dict(policy.actor.state_dict())


def _renamed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One network of a fine-tuned checkpoint under the names of a pre-trained one."""
    return {f"network.{key.removeprefix(prefix)}": value for key, value in state.items() if key.startswith(prefix)}


def _two_networks(node: Mapping[str, Any], steps: int | None, where: str) -> dict[str, Any]:
    """``node``, of a pre-training class, as the policy of base and tuned weights, without a critic."""
    if not steps:
        raise CheckpointError(
            f"ft_denoising_steps: {where} is a fine-tuned checkpoint; how many of its last denoising steps are tuned? Set "
            "ft_denoising_steps=<K> as in its fine-tuning (10 or 5 in most published files), or policy_weights=base for "
            "the policy it started from"
        )
    known = inspect.signature(PPODiffusion).parameters
    kept = {key: value for key, value in node.items() if key in known}
    target = f"{PPODiffusion.__module__}.{PPODiffusion.__qualname__}"
    return {**kept, "_target_": target, "actor": node["network"], "critic": None, "ft_denoising_steps": steps}


def config_beside(path: Path) -> dict[str, Any] | None:
    """The configuration that the run of checkpoint ``path`` left in its directory; None where there is none.

    Raises:
        CheckpointError: as ``read_config``.
    """
    run = path.parent.parent if path.parent.name == "checkpoint" else path.parent
    found = (*(run / name for name in _BESIDE), path.with_suffix(".yaml"))
    return next((read_config(file) for file in found if file.is_file()), None)


def read_config(path: Path) -> dict[str, Any]:
    """``plain_config`` of a YAML file.

    Raises:
        CheckpointError: it is no YAML, or no configuration; names it.
    """
    try:
        return plain_config(OmegaConf.load(path))
    except Exception as error:  # PyYAML and OmegaConf raise many kinds
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: expected the configuration of a policy, but: {reason}") from error


def plain_config(config: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """``config`` as plain Python; what is left of a published one is its policy, translated, and what belongs to it.

    Raises:
        CheckpointError, UsageError: it does not resolve, or cannot be built here.
    """
    if not is_published(config):
        return OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    register()
    whole = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    tree = {key: _value(whole, key) for key in _TOP if _value(whole, key) is not None}
    if "model" in whole:
        tree["model"] = OmegaConf.to_container(whole.model, resolve=True)
    translate_policy(tree, Notes(set()))
    return tree


def _value(config: DictConfig, key: str) -> Any:
    """A value at the top of ``config``; None where it is absent or asks for something that is not here (a folder)."""
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None
