"""The ``model`` section of a published configuration: its classes, and what had to be mended to build them."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from hydra.utils import get_class

from agent.compat import keys, targets
from agent.compat.notes import Notes
from agent.errors import UsageError

BOUNDED = ("Gaussian_MLP", "Gaussian_VisionMLP", "GMM_MLP")  # need action_dim; some published files forget it


def translate_policy(tree: dict[str, Any], notes: Notes) -> None:
    """Make ``tree["model"]`` a section of this project.

    Raises:
        UsageError: it is no section with a ``_target_``, or names a class that neither this project nor the published code has.
    """
    model = tree.get("model")
    if not isinstance(model, dict) or "_target_" not in model:
        raise UsageError(f"model: expected a section with a _target_, found {model!r}")
    for key in keys.POLICY_ONLY:
        value = model.pop(key, None)
        if key == "network_path" and tree.get("base_policy_path") is None and value is not None:
            tree["base_policy_path"] = value
    if "ft_denoising_steps" in model and model["_target_"] in targets.MOVED:
        tree["ft_denoising_steps"] = model.pop("ft_denoising_steps")  # of the checkpoint that is evaluated
    for path, node in _classes(model, "model"):
        published = str(node["_target_"])
        node["_target_"] = targets.MOVED.get(published, published)
        if published in targets.GHOSTS:
            notes.add("mended", f"{path}._target_", f"the original has no {published}")
        _drop_idle(path, node, published, notes)
        _mend(path, node, tree, notes)
        check_class(node["_target_"])
        if published in targets.SWALLOWING:
            known = dict.fromkeys(("_target_", *inspect.signature(get_class(node["_target_"])).parameters))
            notes.drop_unread(node, known, path, set())


def check_class(target: object) -> None:
    """That ``target`` is a policy or network of this project, and so, by its name here, of the published code.

    Raises:
        UsageError: it is not.
    """
    module, _, name = str(target).rpartition(".")
    with contextlib.suppress(ModuleNotFoundError):
        if module.startswith("model.") and isinstance(getattr(importlib.import_module(module), name, None), type):
            return
    raise UsageError(f"_target_: there is no class {target!r} of a policy or network, here or in the published code")


def _classes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _classes(value, f"{path}.{key}")


def _drop_idle(path: str, node: dict[str, Any], published: str, notes: Notes) -> None:
    """Take out what the original's class accepts and does not use, or this project's does without."""
    name = published.rpartition(".")[2]
    for kind, arguments in (("idle", keys.IDLE_ARGUMENTS), ("otherwise", keys.OTHERWISE_ARGUMENTS)):
        for key, why in arguments.get(name, {}).items():
            if node.pop(key, None) is not None:
                notes.add(kind, f"{path}.{key}", why)
    if name != "VitEncoder":
        return
    if "obs_shape" in node:  # the class wants it; height, width and channels come from elsewhere
        notes.add("idle", f"{path}.obs_shape", "img_h, img_w and num_channel are what counts")
    for key, why in keys.IDLE_VIT.items():
        if isinstance(node.get("cfg"), dict) and node["cfg"].pop(key, None) is not None:
            notes.add("idle", f"{path}.cfg.{key}", why)


def _mend(path: str, node: dict[str, Any], tree: dict[str, Any], notes: Notes) -> None:
    """What kept the original from building this network, as it was meant."""
    name = node["_target_"].rpartition(".")[2]
    if name in BOUNDED and "action_dim" not in node and "action_dim" in tree:
        node["action_dim"] = tree["action_dim"]
        notes.add("mended", f"{path}.action_dim", f"absent; it is action_dim, {tree['action_dim']}")
    if name != "Gaussian_MLP" or not node.get("residual_style"):
        return
    dropout = node.pop("dropout", None)
    notes.add(
        "mended",
        f"{path}.residual_style",
        "the original hands dropout to a residual network, which has none"
        + (f"; dropout {dropout} left out" if dropout else ""),
    )
    widths = node.get("mlp_dims")
    if node.get("fixed_std") is None and isinstance(widths, list) and len(widths) % 2 == 1:
        node["residual_style"] = False  # with two heads, the last width is the trunk's output: one too few to pair up
        notes.add(
            "mended",
            f"{path}.residual_style",
            f"the trunk of {widths} cannot be residual; a plain one, as its siblings have",
        )
