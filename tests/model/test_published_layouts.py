"""Every network of the published work: from the arguments of its published configuration, exactly the published keys and shapes.

``published_layouts.json`` holds DPPO's 105 distinct networks and critics: ``class``, ``arguments`` and where they come from (``config``,
``role``), the name of a list of ``keys``, and their ``shapes`` in that order (``-``: 0-d). ``mended`` names arguments that the published file
lacks (the task's own are meant) or that the published code never honours (``residual_style`` of a state-action critic).
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

DATA = json.loads(Path(__file__).with_name("published_layouts.json").read_text())
STRUCTURES = DATA["structures"]


def build(target: str, arguments: dict) -> nn.Module:
    """The class of that name, with its ``backbone`` built, too."""
    room, name = target.rsplit(".", 1)
    made = {key: build(**_split(value)) if key == "backbone" else value for key, value in arguments.items()}
    return getattr(importlib.import_module(room), name)(**made)


def _split(node: dict) -> dict:
    return {"target": node["_target_"], "arguments": {key: value for key, value in node.items() if key != "_target_"}}


def layout(name: str) -> list[tuple[str, tuple[int, ...]]]:
    """Keys and shapes, in the published order."""
    structure = STRUCTURES[name]
    sizes = [() if size == "-" else tuple(map(int, size.split("x"))) for size in structure["shapes"].split()]
    return list(zip(DATA["keys"][structure["keys"]].split(), sizes, strict=True))


def test_the_table_is_complete():
    assert len(STRUCTURES) == 105
    assert {structure["class"].rsplit(".", 1)[1] for structure in STRUCTURES.values()} == {
        "CriticObs", "CriticObsAct", "DiffusionMLP", "GMM_MLP", "GMM_Transformer", "Gaussian_MLP", "Gaussian_Transformer",
        "Gaussian_VisionMLP", "Unet1D", "ViTCritic", "VisionDiffusionMLP",
    }  # fmt: skip
    assert sum(len(layout(name)) for name in STRUCTURES) == 3755
    assert layout("Unet1D_094")[5] == ("mid_modules.0.blocks.0.block.0.bias", (256,))


@pytest.mark.parametrize("name", STRUCTURES)
def test_keys_and_shapes_are_the_published_ones(name):
    with torch.device("meta"):
        network = build(STRUCTURES[name]["class"], STRUCTURES[name]["arguments"])
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == dict(layout(name))
