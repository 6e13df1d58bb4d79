"""Configurations: the resolvers they may use, and their validation after composition.

Composition happens in ``script/run.py`` (Hydra); this module checks the result before anything is built. Every key must be known, from
whatever file or command line it came: sections with a ``_target_`` are checked against the signature of the class they name, all others
against ``SCHEMA``. Numbers live in ``cfg/`` only; here are only names and types.
"""

from __future__ import annotations

import difflib
import inspect
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from agent.errors import UsageError

NUMBER = (int, float)
PPO = "agent.finetune.ppo.PPO"  # the algorithm where train.algorithm says none, as in runs older than that key
Section = dict[str, Any]


def register_resolvers() -> None:
    """The resolvers of the project's own YAML: ``${product:a,b}`` and ``${sum:a,b}`` of integers, ``${length:list}``. There is no
    ``eval``.
    """
    OmegaConf.register_new_resolver("product", _product, replace=True)
    OmegaConf.register_new_resolver("sum", _sum, replace=True)
    OmegaConf.register_new_resolver("length", _length, replace=True)


def _product(*factors: int) -> int:
    return math.prod(_integers("product", factors))


def _sum(*terms: int) -> int:
    return sum(_integers("sum", terms))


def _integers(name: str, values: Sequence[int]) -> Sequence[int]:
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"${{{name}:...}} takes integers, found {value!r}")
    return values


def _length(items: object) -> int:
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise UsageError(f"${{length:...}} counts the entries of a list, found {items!r}")
    return len(items)


def optional(kind: type | tuple[type, ...]) -> tuple[type, ...]:
    """``kind`` or null."""
    return (*(kind if isinstance(kind, tuple) else (kind,)), type(None))


SCHEDULE: Section = {"first_cycle_steps": int, "warmup_steps": int, "min_lr": NUMBER}


def optimizer_settings(name: str) -> Section:
    """Keys of the optimiser of ``name`` (actor, critic) in ``train``, and their types."""
    return {f"{name}_lr": NUMBER, f"{name}_weight_decay": NUMBER, f"{name}_lr_scheduler": SCHEDULE}


_LATEST: Section = {"save_model_freq": int, "latest_every_s": NUMBER, "val_freq": int, "diagnostics_freq": int}
_SHAPE_META: Section = {"obs": {"rgb": {"shape": list}, "state": {"shape": list}}, "action": {"shape": list}}
COMMON: Section = {
    "_target_": str,
    "stage": str,
    "benchmark": str,
    "name": str,
    "network_name": str,
    "seed": int,
    "device": str,
    "resume": optional((bool, str)),
    "log_root": str,
    "data_root": str,
    "logdir": str,
    "wandb": optional(dict),
    "env_name": str,
    "obs_dim": int,
    "action_dim": int,
    "cond_steps": int,
    "horizon_steps": int,
    "act_steps": int,
    "denoising_steps": int,
    "ft_denoising_steps": int,
    "sampling_steps": int,
    "img_cond_steps": int,
    "shape_meta": _SHAPE_META,
    "normalization_path": optional(str),
    "robomimic_env_cfg_path": optional(str),
    "task": {
        "max_episode_steps": int,
        "family": str,
        "low_dim_keys": list,
        "image_keys": list,
        "subset": str,
        "dataset": str,
        "furniture": str,
        "randomness": str,
        "chunks": int,
        "pairs": int,
    },
    "model": dict,
}
_WANDB: Section = {"entity": optional(str), "project": str, "run": str, "mode": str}
_ENV: Section = {
    "n_envs": int,
    "name": str,
    "family": optional(str),
    "version": str,
    "simulator": str,
    "simulator_python": optional(str),
    "observation_delay": str,
    "env_type": str,
    "max_episode_steps": int,
    "best_reward_threshold_for_success": NUMBER,
    "reset_at_iteration": bool,
    "save_video": bool,
    "render": bool,
    "n_threads": optional(int),
    "leave_out_unused": bool,
    "end_on_success": bool,
    "img_cond_steps": int,
    "render_quality": str,
    "renderer": str,
    "specific": {
        "furniture": str,
        "randomness": str,
        "headless": bool,
        "sparse_reward": bool,
        "gpu_id": int,
        "obs_steps": int,
        "act_steps": int,
        "normalization_path": optional(str),
    },
    "wrappers": {
        "robomimic_lowdim": {"normalization_path": optional(str), "low_dim_keys": list},
        "mujoco_locomotion_lowdim": {"normalization_path": optional(str)},
        "d3il_lowdim": {"normalization_path": optional(str)},
        "robomimic_image": {
            "normalization_path": optional(str),
            "low_dim_keys": list,
            "image_keys": list,
            "shape_meta": _SHAPE_META,
        },
        "multi_step": {
            "n_obs_steps": int,
            "n_action_steps": int,
            "max_episode_steps": int,
            "reset_within_step": bool,
        },
    },
}
STAGES: dict[str, Section] = {
    "pretrain": {
        "train_dataset_path": str,
        "train_dataset": dict,
        "ema": {"decay": NUMBER, "per": str},
        "dispersive_loss_weight": (*NUMBER, str),
        "dispersive_loss_temperature": NUMBER,
        "dispersive_loss_type": str,
        "dispersive_loss_layer": str,
        "dispersive_queue": int,
        "train": {
            **_LATEST,
            "n_epochs": int,
            "batch_size": int,
            "learning_rate": NUMBER,
            "weight_decay": NUMBER,
            "lr_scheduler": {**SCHEDULE, "per": str},
            "epoch_start_ema": int,
            "update_ema_freq": int,
            "precision": str,
            "train_split": NUMBER,
            "log_freq": int,
        },
    },
    "finetune": {
        "env": _ENV,
        "ema": {"decay": optional(NUMBER)},
        "base_policy_path": optional(str),
        "offline_dataset": dict,
        "offline_dataset_path": str,
        "train": {
            **_LATEST,
            "n_train_itr": int,
            "stop_at_return": optional(NUMBER),
            "n_steps": int,
            "gamma": NUMBER,
            "algorithm": str,
            "eval_episodes": int,
            "eval_seed": int,
            "final_eval_episodes": int,
            "final_eval_seed": int,
            "render": {"freq": int, "num": int},
        },  # and the SETTINGS of the algorithm
    },
    "eval": {
        "env": _ENV,
        "base_policy_path": optional(str),
        "policy_weights": optional(str),
        "n_episodes": int,
        "eval_seed": int,
        "deterministic": bool,
        "render_num": int,
    },
}
POSITIVE = {
    "env.n_envs",
    "env.max_episode_steps",
    "obs_dim",
    "action_dim",
    "cond_steps",
    "img_cond_steps",
    "horizon_steps",
    "act_steps",
    "denoising_steps",
    "ft_denoising_steps",
    "sampling_steps",
    "n_episodes",
    "train.render.freq",
    *(
        f"train.{key}"
        for key in (
            "n_epochs",
            "batch_size",
            "grad_accumulate",
            "logprob_batch_size",
            "n_train_itr",
            "n_steps",
            "update_epochs",
            "save_model_freq",
            "val_freq",
            "diagnostics_freq",
        )
    ),
}


def validate(cfg: DictConfig) -> None:
    """Check a composed configuration: every key known, every value of its type, every interpolation resolvable.

    Raises:
        UsageError: naming the key, what was expected and found, and the nearest valid key.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except Exception as error:  # OmegaConf raises many kinds; all of them name the key
        raise UsageError(f"the configuration does not resolve: {error}") from error
    stage = plain.get("stage")
    if stage not in STAGES:
        raise UsageError(f"stage: expected one of {sorted(STAGES)}, found {stage!r}")
    check_section(plain, schema(plain), "")
    if plain.get("wandb") is not None:
        check_section(plain["wandb"], _WANDB, "wandb")
    for path, node in _targets(plain, ""):
        _check_origin(node["_target_"], f"{path}._target_".lstrip("."))
        if path:
            _check_signature(node, path)
    for key in sorted(POSITIVE):
        value = OmegaConf.select(cfg, key)
        if value is not None and value < 1:
            raise UsageError(f"{key}: expected at least 1, found {value}")
    if "act_steps" in plain and plain["act_steps"] > plain["horizon_steps"]:
        raise UsageError(
            f"act_steps: cannot execute more actions ({plain['act_steps']}) than horizon_steps predicts ({plain['horizon_steps']})"
        )


def schema(plain: Mapping[str, Any]) -> Section:
    """Every key that a plain configuration of its stage may have, those of its algorithm included, with its type.

    Raises:
        UsageError: ``train.algorithm`` names no algorithm.
    """
    known = {**COMMON, **STAGES[plain["stage"]]}
    if plain["stage"] == "finetune":
        train = plain.get("train")
        settings = _algorithm(train.get("algorithm", PPO) if isinstance(train, Mapping) else PPO).SETTINGS
        known["train"] = {**known["train"], **settings}
    return known


def _algorithm(path: object) -> type:
    """The class that ``train.algorithm`` names."""
    _check_origin(path, "train.algorithm")
    try:
        found = get_class(str(path))
    except Exception as error:  # hydra wraps whatever the import raised
        raise UsageError(f"train.algorithm: cannot import {path!r}: {error}") from error
    if not hasattr(found, "SETTINGS"):
        raise UsageError(f"train.algorithm: expected a class like agent.finetune.ppo.PPO, found {path!r}")
    return found


def check_section(node: Mapping[str, Any], schema: Section, path: str) -> None:
    """Raise ``UsageError`` unless every key of ``node`` is in ``schema``, and every value of the type it has there."""
    for key, value in node.items():
        here = f"{path}.{key}" if path else key
        if key not in schema:
            raise UsageError(unknown_key(here, [f"{path}.{k}" if path else k for k in schema]))
        expected = schema[key]
        if isinstance(expected, dict):
            if not isinstance(value, dict):
                raise UsageError(f"{here}: expected a section with {', '.join(expected)}, found {value!r}")
            check_section(value, expected, here)
        elif not _is(value, expected):
            raise UsageError(f"{here}: expected {_type_names(expected)}, found {value!r}")


def _is(value: object, expected: type | tuple[type, ...]) -> bool:
    kinds = expected if isinstance(expected, tuple) else (expected,)
    return (bool in kinds) if isinstance(value, bool) else isinstance(value, kinds)


def _type_names(expected: type | tuple[type, ...]) -> str:
    kinds = expected if isinstance(expected, tuple) else (expected,)
    return " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)


def _targets(node: object, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else key)


def _check_origin(target: object, where: str) -> None:
    """Python's own library and Hydra's have no part of a policy, but ``subprocess.Popen``: a file must not run what it likes."""
    if str(target).split(".")[0] in sys.stdlib_module_names | {"hydra", "omegaconf"}:
        raise UsageError(f"{where}: expected a class of this project or of a package of yours, found {target!r}")


def _check_signature(node: dict[str, Any], path: str) -> None:
    """Keys of a section with a ``_target_`` are the arguments of the class that it names."""
    try:
        target = get_class(node["_target_"])
    except Exception as error:  # hydra wraps whatever the import raised
        raise UsageError(f"{path}._target_: cannot import {node['_target_']!r}: {error}") from error
    parameters = inspect.signature(target).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in node:
        if key not in parameters and key not in {"_target_", "_partial_", "_recursive_", "_convert_"}:
            raise UsageError(unknown_key(f"{path}.{key}", [f"{path}.{name}" for name in parameters]))
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in node:
            raise UsageError(f"{path}.{name}: missing; {target.__name__} needs it")


def unknown_key(key: str, known: list[str]) -> str:
    """A sentence that names ``key`` and the nearest of the ``known`` ones."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{key}: there is no such key{hint}"


def all_keys(cfg: DictConfig) -> list[str]:
    """Every dotted key of a configuration, sections included."""

    def walk(node: object, path: str) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                here = f"{path}.{key}" if path else str(key)
                yield here
                yield from walk(value, here)

    return list(walk(OmegaConf.to_container(cfg, resolve=False), ""))
