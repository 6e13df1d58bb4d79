"""What the images of a policy were: render quality, cameras, size, and who drew them. It travels from the demonstrations' ``about.json``
into every checkpoint, and a policy is never shown images of another kind without a word: of another quality or camera not at all; drawn
by another renderer only where ``env.renderer`` names it, or where nothing here can draw as in training."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from agent.agent import read
from agent.errors import CheckpointError, DatasetError
from env.engine.renderers import GL, kind_of, resolve

log = logging.getLogger(__name__)

ABOUT = "about.json"
KEYS = ("render_quality", "cameras", "image_size", "renderer")
QUALITY, RENDERER = "env.render_quality", "env.renderer"
_WRAPPER = "env.wrappers.robomimic_image"
_CAMERA_KEYS = f"{_WRAPPER}.image_keys"
_SUFFIX = "_image"


def of_demonstrations(dataset_path: str | Path) -> dict[str, Any] | None:
    """What ``about.json`` beside the demonstrations says of ``KEYS``; None if it says nothing.

    Raises:
        DatasetError: the file is damaged.
    """
    path = Path(dataset_path).expanduser().parent / ABOUT
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: damaged ({error}). Collect or convert the demonstrations again") from error
    found = {key: about[key] for key in KEYS if isinstance(about, Mapping) and about.get(key) is not None}
    return found or None


def of_checkpoint(payload: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the policy's training images were; None for state policies, published files and demonstrations that did not say."""
    return (payload.get("extra") or {}).get("images")


def mismatch(images: Mapping[str, Any] | None, cfg: DictConfig) -> str | None:
    """What differs between the images a policy was trained on and those ``cfg.env`` renders, as a sentence; None if nothing
    does, or nothing is known of the former."""
    if not images:
        return None
    trained, found = images.get("render_quality"), read(cfg, QUALITY, None)
    if trained is not None and trained != found:
        return (
            f"{QUALITY}: the policy was trained on {trained!r} images, found {found!r}. "
            f"Set {QUALITY}={trained}, or train on demonstrations rendered as {found!r}"
        )
    trained, found = images.get("cameras"), read(cfg, _CAMERA_KEYS, None)
    if trained is not None and found is not None and _names(trained) != _names(found):
        return f"{_CAMERA_KEYS}: the policy was trained on {_names(trained)}, found {_names(found)}"
    return None


def check(payload: Mapping[str, Any], cfg: DictConfig, path: str | Path) -> None:
    """Raise ``CheckpointError`` if the policy of ``payload``, read from ``path``, was trained on other images than ``cfg.env``
    renders."""
    problem = mismatch(of_checkpoint(payload), cfg)
    if problem is not None:
        raise CheckpointError(f"{problem} ({path})")
    if of_checkpoint(payload) is None and wanted(cfg):
        log.warning("%s does not say how its training images were rendered; %s is taken as given", path, QUALITY)


def settled(payload: Mapping[str, Any], cfg: DictConfig) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Who draws the images of a run that goes on with the policy of ``payload`` (empty: with none).

    Returns:
        What to record of the images; None where there are none. And ``cfg.env`` as plain Python, ``renderer`` no longer "auto".

    Raises ``EnvError`` for an unknown renderer.
    """
    images, env = of_checkpoint(payload), OmegaConf.to_container(cfg.env, resolve=True)
    if not wanted(cfg):
        return images, env
    trained_by = (images or {}).get("renderer", GL) if payload else None
    env["renderer"] = resolve(env.get("renderer"), trained_by)
    now = kind_of(env["renderer"])
    if trained_by not in (None, now):
        why = "" if env["renderer"] == read(cfg, RENDERER, None) else " (there is no OpenGL here)"
        log.warning(
            "%s: the policy was trained on images drawn by %r, and sees those of %r%s", RENDERER, trained_by, now, why
        )
    seen = {
        "render_quality": env.get("render_quality"),
        "cameras": _names(read(cfg, _CAMERA_KEYS, [])),
        "renderer": now,
    }
    return {**(images or {}), **seen}, env


def wanted(cfg: DictConfig) -> bool:
    """Whether ``cfg.env`` renders images."""
    return read(cfg, _WRAPPER, None) is not None


def _names(cameras: Any) -> list[str]:
    return [str(name).removesuffix(_SUFFIX) for name in cameras]
