"""From an ablation's configuration (``cfg/base/ablation.yaml``) to its cells.

A grid is a section of axes; its cells are all combinations of their values, each with every seed. An axis is named by the setting of
pre-training that it varies, and lists values; or it is a section of labels, each with the settings it stands for. A cell that occurs in
several grids is one cell. ``task``, ``pretrain``, ``evaluate`` and ``finetune`` may be varied, too, and a label may say more for the latter
two (``evaluate_settings``, ``finetune_settings``).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.config import NUMBER, check_section, optional
from agent.errors import UsageError

STAGES = ("pretrain", "evaluate", "finetune")
_NAMES = ("task", *STAGES)  # of what a cell runs, not settings of it
_LATER = tuple(f"{stage}_settings" for stage in STAGES[1:])
SCHEMA = {
    "name": str,
    "out": str,
    "data_root": str,
    "log_root": str,
    "jobs": optional(int),
    "threads": int,
    "part": optional(int),
    "parts": int,
    "seeds": list,
    "task": str,
    "pretrain": optional(str),
    "evaluate": optional(str),
    "finetune": optional(str),
    "settings": dict,
    "evaluate_settings": dict,
    "finetune_settings": dict,
    "grids": dict,
    "reference": dict,
    "threshold": optional(NUMBER),
}


@dataclass(frozen=True)
class Cell:
    """One run of everything: what to do, stage by stage, and a seed."""

    task: str
    seed: int
    stages: tuple[tuple[str, str, dict[str, Any]], ...]  # name, leaf under cfg/, settings
    labels: dict[str, dict[str, str]]  # by grid: axis to value, as shown

    @property
    def settings(self) -> dict[str, Any]:
        """Those of its first stage, and which leaves its stages run, by stage."""
        return {stage: leaf for stage, leaf, _ in self.stages} | self.stages[0][2]

    @property
    def setting(self) -> str:
        """Short name of what is done, whatever the seed and the grid."""
        return hashlib.sha256(json.dumps(self.stages, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def folder(self) -> str:
        """Under the ablation's ``cells/``."""
        return f"{self.task}_{self.setting}_seed{self.seed}"


def cells_of(config: Mapping[str, Any]) -> list[Cell]:
    """Every cell of the plain configuration ``config`` once, in the order of its grids.

    Raises:
        UsageError: a key that is not known, no grids, an empty axis, or a leaf that the task's name does not complete.
    """
    check_section(config, SCHEMA, "")
    if not config["grids"] or not config["seeds"]:
        raise UsageError("grids, seeds: expected at least one grid and one seed; see cfg/ablation for examples")
    found: dict[str, Cell] = {}
    for name, axes in config["grids"].items():
        if not isinstance(axes, Mapping):
            raise UsageError(f"grids.{name}: expected a section of axes, found {axes!r}")
        for labels, given in _combinations(name, axes):
            task, stages = given.get("task", config["task"]), _stages(config, given)
            for seed in config["seeds"]:
                cell = Cell(task, seed, stages, {})
                found.setdefault(cell.folder, cell).labels.setdefault(name, labels)
    return list(found.values())


def _combinations(name: str, axes: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Labels and settings of each combination of the axes' values."""
    choices = []
    for axis, values in axes.items():
        if isinstance(values, Mapping):
            choice = [(axis, str(label), dict(settings)) for label, settings in values.items()]
        else:
            values = values if isinstance(values, list) else [values]
            choice = [(axis, _shown(value), {axis: value}) for value in values]
        if not choice:
            raise UsageError(f"grids.{name}.{axis}: expected at least one value")
        choices.append(choice)
    for combination in itertools.product(*choices):
        yield (
            {axis: label for axis, label, _ in combination},
            {k: v for _, _, given in combination for k, v in given.items()},
        )


def _stages(config: Mapping[str, Any], given: Mapping[str, Any]) -> tuple:
    """What a cell with the settings ``given`` runs."""
    names = {key: given.get(key, config.get(key)) for key in _NAMES}
    settings = {**config["settings"], **{key: value for key, value in given.items() if key not in (*_NAMES, *_LATER)}}
    more = {
        "pretrain": settings,
        **{key.removesuffix("_settings"): {**config[key], **given.get(key, {})} for key in _LATER},
    }
    stages = []
    for stage in STAGES:
        if names[stage] is not None:
            try:
                leaf = names[stage].format(task=names["task"])
            except (KeyError, IndexError, ValueError) as error:
                raise UsageError(f"{stage}: {names[stage]!r}: expected no placeholder but {{task}}") from error
            stages.append((stage, leaf, more[stage]))
    return tuple(stages)


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
