"""Before Hydra reads a published file: the environment variables it asks for, and a command line that Hydra accepts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from agent.compat import arithmetic
from agent.compat.targets import is_published
from agent.errors import UsageError

CFG = Path(__file__).resolve().parents[2] / "cfg"
RUN = CFG / "base" / "run.yaml"
VARIABLES = {"DPPO_LOG_DIR": "log_root", "DPPO_DATA_DIR": "data_root", "DPPO_WANDB_ENTITY": "wandb.entity"}
_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def prepare(argv: list[str]) -> list[str]:
    """The command line as Hydra should see it: unchanged for the project's own configurations.

    For a published file: the environment variables it reads get the project's own defaults, the run directory is left to the
    run itself, and ``key=value`` also sets keys that the file does not have (``resume=true``, ``train.max_grad_norm=1``).

    Raises:
        UsageError: the file is no YAML.
    """
    arithmetic.register()
    args = get_args_parser().parse_args(argv)
    path = _file(args.config_dir, args.config_path, args.config_name)
    if path is None or not _published(path):
        return argv
    base = OmegaConf.load(RUN)
    for name, key in VARIABLES.items():
        os.environ.setdefault(name, str(OmegaConf.select(base, key) or ""))
    given = {word.lstrip("+~").partition("=")[0] for word in args.overrides}
    ours = [(f"hydra.{key}", value) for key, value in _leaves(OmegaConf.to_container(base.hydra, resolve=False))]
    ours += [(key, OmegaConf.select(base, key)) for key in ("log_root", "data_root")]
    added = [f"++{key}={_quoted(value)}" for key, value in ours if key not in given]
    first = argv.index(args.overrides[0]) if args.overrides else 0  # overrides must stand together
    words = {word for word in args.overrides if _OVERRIDE.match(word) and not word.startswith("hydra.")}
    theirs = [f"++{word}" if word in words else word for word in argv]
    return [*theirs[:first], *added, *theirs[first:]]


def _file(folder: str | None, instead: str | None, name: str | None) -> Path | None:
    """The file of ``--config-name`` in ``--config-dir``, or in ``--config-path``, which to Hydra is relative to the script."""
    if not name:
        return None
    where = Path(folder) if folder else CFG.parent / "script" / instead if instead else CFG
    path = where / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    return path if path.is_file() else None


def _published(path: Path, depth: int = 3) -> bool:
    """Whether a file is a published one, or is made from one that lies beside it (``defaults``)."""
    content = read(path)
    if is_published(content) or depth == 0 or not OmegaConf.is_dict(content):
        return is_published(content)
    parts = OmegaConf.to_container(content, resolve=False).get("defaults")
    named = [path.parent / f"{part}.yaml" for part in parts if isinstance(part, str)] if isinstance(parts, list) else []
    return any(_published(part, depth - 1) for part in named if part.is_file())


def read(path: Path) -> Any:
    """A YAML file, not resolved.

    Raises:
        UsageError: it cannot be read, or is no YAML.
    """
    try:
        return OmegaConf.load(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a YAML parser raises many kinds; all of them say where
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path}: expected a YAML file, but it cannot be read: {reason}") from error


def _leaves(node: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values."""
    found = []
    for key, value in node.items():
        here = f"{path}.{key}".lstrip(".")
        found += _leaves(value, here) if isinstance(value, dict) else [(here, value)]
    return found


def _quoted(value: Any) -> str:
    """A value in the grammar of Hydra's command line."""
    if value is None or isinstance(value, bool | int):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_quoted, value))}]"
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
