"""Style that a linter does not see: lengths, silence, and nothing that runs code from a file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("agent", "env", "model", "script")
SOURCES = sorted(f for room in ROOMS for f in (ROOT / room).rglob("*.py"))
MAX_FUNCTION, MAX_MODULE, MAX_LEAF = 80, 400, 15
# `Python objects in disguise`: reading them runs whatever they say
RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# spelled in pieces, so that this file does not contain what it looks for
HOSTS = re.compile(
    "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "deb" + r"ian\.org", "npm" + r"js\.(org|com)"])
)
MACHINE = re.compile(r"(?<![\w.~])/(?:work|farm|root|home/\w+)/|(?<![\w./])" + "/tm" + r"p/(?!\w*\$)")
TEXT = {".py", ".sh", ".yaml", ".yml", ".md", ".toml", ".txt", ".json", ""}


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def faults(source: str, room: str) -> list[str]:
    """What is wrong with ``source``, a module of ``room``."""
    tree = ast.parse(source)
    found = []
    if (n := source.count("\n")) > MAX_MODULE:
        found.append(f"{n} lines; a module has at most {MAX_MODULE}")
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and (n := node.end_lineno - node.lineno + 1) > MAX_FUNCTION
        ):
            found.append(f"line {node.lineno}: {node.name} has {n} lines, at most {MAX_FUNCTION}")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except")
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [
            f"line {node.lineno}: {name} runs code from a file" for name in names if name.split(".")[0] in RUNS_CODE
        ]
    for call in calls(tree):
        name, given = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name == "print" and room != "script":
            found.append(f"line {call.lineno}: print; return it, log it, or let script/ say it")
        if name in {"eval", "exec"}:
            found.append(f"line {call.lineno}: {name}")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(f"line {call.lineno}: torch.load without weights_only=True")
        if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
            found.append(f"line {call.lineno}: allow_pickle or shell")
        if name.endswith("yaml.load") and "Safe" not in given.get("Loader", ""):
            found.append(f"line {call.lineno}: yaml.load without a safe loader")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_modules_keep_to_the_style(room):
    files = [f for f in SOURCES if f.relative_to(ROOT).parts[0] == room]
    assert files
    found = [f"{f.relative_to(ROOT)}: {x}" for f in files for x in faults(f.read_text(encoding="utf-8"), room)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n" + "    a = 1\n" * 83,
        "a = 1\n" * 401,
        "print('x')",
        "import pickle",
        "from pickle import load",
        "eval('1')",
        "import torch\ntorch.load('x')",
        "torch.load('x', weights_only=False)",
        "np.load('x', allow_pickle=True)",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_each_fault_is_seen(source):
    assert faults(source, "agent")


def test_what_is_fine_passes():
    assert not faults("import torch\ntorch.load('x', weights_only=True)\nmodel.eval()\n", "agent")
    assert not faults("print('a script may speak')\n", "script")


def leaves() -> list[Path]:
    """Runnable configurations: everything under cfg/ but the building blocks."""
    return [f for f in sorted((ROOT / "cfg").rglob("*.yaml")) if f.relative_to(ROOT / "cfg").parts[0] != "base"]


def test_leaf_configurations_hold_only_deltas():
    assert leaves()
    for leaf in leaves():
        lines = [
            s for s in leaf.read_text(encoding="utf-8").splitlines() if s.strip() and not s.strip().startswith("#")
        ]
        assert len(lines) <= MAX_LEAF, f"{leaf.relative_to(ROOT)}: {len(lines)} lines, at most {MAX_LEAF}"


def test_no_folder_on_the_search_path_shadows_a_key():
    """A group named wandb would turn `wandb=null` into a crash; a YAML at the top of cfg/ would silently beat a leaf."""
    assert not list((ROOT / "cfg").glob("*.yaml"))
    assert not [d for d in (ROOT / "cfg").rglob("*") if d.is_dir() and d.name in {"wandb", "env", "train", "model"}]


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    folders = [*ROOMS, "cfg", "installation", "tests", ".ci"]
    files = [
        f for folder in folders for f in (ROOT / folder).rglob("*") if f.is_file() and "__pycache__" not in f.parts
    ]
    files += [f for f in ROOT.iterdir() if f.is_file() and not f.name.startswith(".")]
    found = []
    for file in files:
        if file.suffix not in TEXT or file == Path(__file__).resolve():
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if HOSTS.search(line) or MACHINE.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)
