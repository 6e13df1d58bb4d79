"""The dependency rule of the house: script -> agent -> {model, env}; model and env never meet.

Nor does every package of others enter every room, and what is slow to import is imported where it is used.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("model", "env", "agent", "script")
MAY_USE = {  # rooms of ours
    "model": {"model"},
    "env": {"env"},
    "agent": {"agent", "model", "env"},
    "script": set(ROOMS),
}
NEVER = {  # packages of others: model computes, env simulates without a learning framework
    "model": {"hydra", "omegaconf", "mujoco", "gymnasium", "robosuite", "wandb", "h5py", "numba"},
    "env": {"torch", "hydra", "omegaconf", "wandb", "einops"},
    "agent": {"robosuite", "numba"},
    "script": set(),
}
LAZY = {
    "robosuite",
    "wandb",
    "gdown",
    "minari",
    "imageio",
    "matplotlib",
    "cv2",
    "msgpack",
    "panda_py",
    "pyrealsense2",
    "websockets",
}  # slow or optional


def imports(source: str) -> list[tuple[int, str, bool]]:
    """(line, dotted name, whether on start-up) of every absolute import, also under ``if`` and inside functions."""
    tree = ast.parse(source)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, id(node) not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.lineno, node.module, id(node) not in inside))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "importlib.import_module",
            "__import__",
            "import_module",
        }:
            found += [
                (node.lineno, a.value, False)
                for a in node.args
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
    return found


def violations(room: str, source: str) -> list[str]:
    """What ``source``, a file of ``room``, imports that it must not."""
    bad = []
    for line, name, on_start in imports(source):
        top = name.split(".")[0]
        if (top in ROOMS and top not in MAY_USE[room]) or top in NEVER[room] or top == "tests":
            bad.append(f"line {line}: {room} imports {name}")
        elif top in LAZY and on_start and room != "script":
            bad.append(f"line {line}: {name} is imported on start-up; import it inside the function that needs it")
    return bad


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = [f"{f.relative_to(ROOT)}, {v}" for f in files for v in violations(room, f.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("model", "import env.protocol"),
        ("model", "def f():\n    from agent.agent import build"),
        ("env", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch.nn as nn"),
        ("env", "import importlib\nimportlib.import_module('model.types')"),
        ("agent", "from script.run import main"),
        ("env", "import robosuite"),
    ],
)
def test_the_rule_sees_each_way_of_importing(room, source):
    assert violations(room, source)


def test_the_rule_allows_what_it_should():
    assert not violations(
        "env", "import numpy\ndef f():\n    import robosuite\nfrom env.errors import EnvError\nfrom . import x"
    )
    assert not violations("agent", "from env.registry import make_vector_env\nimport model.types")


def test_every_package_that_is_imported_is_a_requirement():
    """A clean installation must have what the code asks for; robosuite's own or the standard library's do not count."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11 on
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    names = {r.split(">")[0].split("=")[0].split("[")[0].strip().lower() for r in wanted}
    known_as = {
        "franky-control": "franky",
        "hydra-core": "hydra",
        "imageio-ffmpeg": "imageio_ffmpeg",
        "panda-python": "panda_py",
    }
    known_as |= {"pillow": "PIL", "scikit-learn": "sklearn", "umap-learn": "umap"}
    known = (
        {known_as.get(n, n.replace("-", "_")) for n in names}
        | set(ROOMS)
        | set(sys.stdlib_module_names)
        | {"pip", "llvmlite", "OpenGL", "cv2"}
    )  # llvmlite: numba's other half; OpenGL: what mujoco draws with; cv2: robosuite's
    used = {
        (name.split(".")[0], str(f.relative_to(ROOT)))
        for room in ROOMS
        for f in (ROOT / room).rglob("*.py")
        for _, name, _ in imports(f.read_text(encoding="utf-8"))
    }
    siblings = {f.stem for f in (ROOT / "script").rglob("*.py")} | {
        d.name for d in (ROOT / "script").rglob("*") if d.is_dir()
    }
    strangers = sorted((n, f) for n, f in used if n not in known and not (f.startswith("script") and n in siblings))
    assert not strangers, strangers
