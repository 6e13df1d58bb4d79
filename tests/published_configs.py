"""The 463 published configurations of DPPO (213) and D2PPO (250): resolved values from ``cfg/published_<suite>.json``, and their YAML text
with the interpolations that such files have."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import yaml

SUITES = ("robomimic", "gym", "d3il", "furniture")
ABSENT = "<absent>"  # of a key that a row does not share with the one it is like

# How published files say a value that follows from others: the last name of the key -> expression, where the value agrees.
_SAME = (
    *(
        "horizon_steps",
        "action_dim",
        "obs_dim",
        "denoising_steps",
        "ft_denoising_steps",
        "cond_steps",
        "img_cond_steps",
        "num_modes",
    ),
    *("device", "normalization_path", "dispersive_loss_weight", "dispersive_loss_layer", "use_ddim", "shape_meta"),
)
_NAMED = {
    "action_steps": "act_steps",
    "n_action_steps": "act_steps",
    "n_obs_steps": "cond_steps",
    "network_path": "base_policy_path",
    "dataset_path": "train_dataset_path",
    "name": "env_name",
}
_ARITHMETIC = {
    "cond_dim": "${eval:'${obs_dim} * ${cond_steps}'}",
    "num_channel": "${eval:'3 * ${img_cond_steps}'}",
    "target_entropy": "${eval:'- ${action_dim} * ${act_steps}'}",
}
_EPISODE = "${eval:'round(${env.max_episode_steps} / ${act_steps})'}"
_VARIABLES = {
    "$LOG": "${oc.env:DPPO_LOG_DIR}",
    "$DATA": "${oc.env:DPPO_DATA_DIR}",
    "$WANDB": "${oc.env:DPPO_WANDB_ENTITY}",
}


@functools.cache
def published() -> dict[str, dict[str, Any]]:
    """``repository/suite/stage/task/config`` to the flat, resolved configuration."""
    found = {}
    for suite in SUITES:
        groups = json.loads(Path(__file__).with_name("cfg").joinpath(f"published_{suite}.json").read_text())["rows"]
        for name, rows in groups.items():
            stage, _, config = name.partition("/")
            for row, own in rows.items():
                if row == "all":
                    continue
                repo, task = row.split("/")
                shared = groups.get(stage, {}).get("all", {}) | rows.get("all", {})
                flat = shared | rows.get(own.get("like"), {}) | own
                found[f"{repo}/{suite}/{stage}/{task}/{config}"] = {
                    key: value for key, value in flat.items() if key != "like" and value != ABSENT
                }
    return found


def text(row: str) -> str:
    """The YAML file of a row, as its authors wrote such files: self-contained, with interpolations."""
    whole = {"defaults": ["_self_"], "hydra": {"run": {"dir": "${logdir}"}}, **tree(row)}
    return yaml.safe_dump(whole, sort_keys=False, width=1000)


def tree(row: str) -> dict[str, Any]:
    """What Hydra makes of that file, not resolved."""
    flat, root = published()[row], {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        node = root
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = _expression(key, value, flat)
    return root


def _expression(key: str, value: Any, flat: dict[str, Any]) -> Any:
    last = key.rpartition(".")[2]
    if "." in key:
        source = last if last in _SAME else _NAMED.get(last)
        if source in flat and flat[source] == value:
            return f"${{{source}}}"
        if last in _ARITHMETIC and value == _computed(last, flat):
            return _ARITHMETIC[last]
    if last == "n_steps" and "act_steps" in flat and value == round(flat["env.max_episode_steps"] / flat["act_steps"]):
        return _EPISODE
    if not isinstance(value, str):
        return value
    for short, variable in _VARIABLES.items():
        value = value.replace(short, variable)
    if key in ("logdir", "wandb.run"):
        value = value.replace(flat["name"], "${name}")
    return re.sub(r"<(now:[^>]*)>", r"${\1}", value)


def _computed(last: str, flat: dict[str, Any]) -> int:
    if last == "cond_dim":
        return flat["obs_dim"] * flat["cond_steps"]
    if last == "num_channel":
        return 3 * flat.get("img_cond_steps", 1)
    return -flat["action_dim"] * flat["act_steps"]
