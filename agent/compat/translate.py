"""From a composed published configuration to one of this project's, with an account of what was done to it."""

from __future__ import annotations

import difflib
import functools
import logging
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from agent.compat import algorithms, keys, targets
from agent.compat.command_line import CFG
from agent.compat.notes import Notes
from agent.compat.policy import translate_policy
from agent.config import schema
from agent.dataset.normalization import existing
from agent.errors import UsageError

log = logging.getLogger(__name__)

SCRATCH = "scratch"  # a base policy of random weights
TERMINAL = ("d3il", "furniture")  # where the time limit ends what an episode is worth
PPO_DIFFUSION = "model.diffusion.diffusion_ppo.PPODiffusion"
BASES = {  # what the original leaves to its code stands in these files of cfg/base
    "pretrain": ("run", "stage/pretrain"),
    "finetune": ("run", "env", "stage/finetune"),
    "eval": ("run", "env", "stage/eval"),
}
_NOT_OF_A_BASE = ("hydra", "defaults", "model", "name", "network_name", "denoising_steps", "ft_denoising_steps")
_LEVEL = {"pretrain": "train", "finetune": "train env", "eval": "env"}  # sections that a stage must have


class Translation(NamedTuple):
    """The configuration here, what was changed, and what of it this version cannot do (sentences)."""

    cfg: DictConfig
    notes: Notes
    missing: list[str]


def adapt(cfg: DictConfig, overrides: Iterable[str] = ()) -> DictConfig:
    """``translate`` a published configuration and tell the log; return the project's own ones as they are.

    Args:
        overrides: the command line's (``train.n_epochs=1``).

    Raises:
        UsageError: as ``translate``; or something in it is not supported, by name.
    """
    if not targets.is_published(cfg):
        raw = OmegaConf.to_container(cfg, resolve=False)
        if "stage" not in raw and "_target_" in raw:
            raise UsageError(_unknown_agent(str(raw["_target_"])))
        return cfg
    found = translate(cfg, overrides)
    for line in found.notes.lines():
        log.warning("%s", line)
    if found.missing:
        raise UsageError(f"this configuration is understood, but {'; '.join(found.missing)}")
    return found.cfg


def translate(cfg: DictConfig, overrides: Iterable[str] = ()) -> Translation:
    """The configuration that means here what ``cfg`` was meant to mean there. ``agent.config.validate`` is the caller's.

    Raises:
        UsageError: it does not resolve, a section is none, or a class or a key on the command line does not exist.
    """
    agent, tree = targets.AGENTS[cfg["_target_"]], _resolved(cfg)
    notes = Notes({word.lstrip("+~").partition("=")[0] for word in overrides})
    name = tree["_target_"].rpartition(".")[2]
    notes.add("translated", "_target_", f"{tree['_target_']} -> {agent.ours}")
    for section in _LEVEL[agent.stage].split():
        if not isinstance(tree.get(section), dict):
            raise UsageError(f"{section}: expected a section, found {tree.get(section)!r}")
    tree |= {"_target_": agent.ours, "stage": agent.stage, "benchmark": _benchmark(tree)}
    if agent.stage == "finetune":
        tree["train"]["algorithm"] = f"agent.finetune.{agent.learner}"
        algorithms.move_to_train(tree)
    missing = _refusals(tree)
    translate_policy(tree, notes)
    names = {key: tree.pop(key) for key in keys.NAMES[agent.stage] if not isinstance(tree.get(key, {}), dict)}
    if agent.stage == "finetune":
        algorithms.translate_algorithm(tree, agent.learner.partition(".")[2], notes)
    _leave_out(tree, notes)
    for key in keys.IDLE_TRAIN.get(name, ()):
        if tree["train"].pop(key, None) is not None:
            notes.add("idle", f"train.{key}", f"{name} never reads it")
    {"pretrain": _pretrain, "finetune": _finetune, "eval": _eval}[agent.stage](tree, names, notes)
    if tree["benchmark"] == "furniture" and "env" in tree and tree["env"].get("simulator") != "isaacgym":
        notes.add(
            "otherwise",
            "env.specific",
            "simulated by our re-implementation on MuJoCo (env.simulator=isaacgym: original)",
        )
    _devices(tree, notes)
    notes.drop_unread(tree, schema(tree) | {"wandb": _base("run")["wandb"]}, "", _sources(cfg))
    return Translation(_on_base(tree, agent), notes, missing)


def _unknown_agent(target: str) -> str:
    """A sentence on a ``_target_`` that is an agent neither here nor there."""
    near = difflib.get_close_matches(target, targets.AGENTS, n=1)
    hint = (
        f"; did you mean {near[0]!r}?"
        if near
        else ". A configuration of one's own begins with /base/stage: pretrain, finetune or eval"
    )
    return f"_target_: there is no agent {target!r}, here or in the published code{hint}"


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except Exception as error:  # OmegaConf raises many kinds; all of them name the key
        raise UsageError(f"the configuration does not resolve: {error}") from error


def _sources(cfg: DictConfig) -> set[str]:
    """Keys that others are computed from: they had an effect, if not by themselves."""
    text = str(OmegaConf.to_container(cfg, resolve=False))
    return set(re.findall(r"\$\{([\w.]+)", text))


def _benchmark(tree: dict[str, Any]) -> str:
    """robomimic, gym, d3il or furniture, from where the run and its data are; custom where they do not say."""
    paths = " ".join(str(tree.get(key)) for key in ("logdir", "train_dataset_path", "normalization_path"))
    found = re.search(r"[/\\](robomimic|gym|d3il|furniture)(?:-[a-z]+)?[/\\]", paths)
    return found.group(1) if found else "custom"


def _get(tree: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The section that holds the last name of ``path``, and that name; an empty section where there is none."""
    node: Any = tree
    *sections, last = path.split(".")
    for section in sections:
        node = node.get(section) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else {}), last


def _refusals(tree: dict[str, Any]) -> list[str]:
    """Take out switches that are off; sentences on those that are on."""
    found = []
    for path, refused in keys.REFUSED.items():
        section, key = _get(tree, path)
        value = section.pop(key, refused.off)
        if value != refused.off and value is not None:
            found.append(f"{path}={value}: {refused.what} is not supported; set it to {refused.off}")
    return found


def _leave_out(tree: dict[str, Any], notes: Notes) -> None:
    """What was done by these keys is done without them here."""
    rules = {**keys.OTHERWISE, **(keys.OTHERWISE_FINETUNE if tree["stage"] == "finetune" else {})}
    for pattern, why in rules.items():
        for path in _matching(tree, pattern):
            section, key = _get(tree, path)
            if section.pop(key, None) not in (None, False):
                notes.add("otherwise", path, why)


def _matching(tree: dict[str, Any], pattern: str) -> list[str]:
    """Dotted keys of ``tree`` that the pattern names."""
    found = [("", tree)]
    for part in pattern.split("."):
        found = [
            (f"{path}.{key}".lstrip("."), node[key])
            for path, node in found
            if isinstance(node, dict)
            for key in node
            if fnmatch(str(key), part)
        ]
    return [path for path, _ in found]


def _pretrain(tree: dict[str, Any], names: dict[str, Any], notes: Notes) -> None:
    """The data set says where its statistics are; the original did not ask for them before fine-tuning."""
    tree.setdefault("env_name", str(names.get("env")))
    _dispersion(tree, notes)
    if "normalization_path" in tree:
        return
    data = Path(str(tree.get("train_dataset_path"))).expanduser()
    beside = existing(data.parent / "normalization.npz")
    without = data.is_file() and not beside.is_file()  # where there are no data either, both are downloaded
    tree["normalization_path"] = None if without else str(beside)
    if without:
        why = f"would be {beside}, which is not there: the checkpoint will carry no statistics"
        notes.add("otherwise", "normalization_path", why)


def _dispersion(tree: dict[str, Any], notes: Notes) -> None:
    """The published dispersive loss is not what it says (spec: saturated, on the network's output); here it is, unless asked otherwise."""
    model = tree["model"]
    if model.get("use_dispersive_loss") and "dispersive_loss_variant" not in model:
        notes.add(
            "otherwise",
            "model.dispersive_loss_*",
            "acts on hidden features, with distances per dimension (model.dispersive_loss_variant=released: as published)",
        )


def _finetune(tree: dict[str, Any], names: dict[str, Any], notes: Notes) -> None:
    if tree["model"]["_target_"] == PPO_DIFFUSION:
        tree["model"]["reward_horizon"] = tree.pop("reward_horizon", tree.get("act_steps"))
        algorithms.count_pairs(tree, notes)
    algorithm, online = tree["train"]["algorithm"].rpartition(".")[2], tree["train"].get("train_online", True)
    if algorithm == "IBRL" or (algorithm == "CalQL" and online):
        tree.setdefault("base_policy_path", None)  # the newest that fits; they cannot do without
    elif tree.get("base_policy_path") is None:
        tree["base_policy_path"] = SCRATCH
        notes.add("translated", "base_policy_path", f"none -> {SCRATCH}: random weights")
    if tree["benchmark"] in TERMINAL and not notes.given("train.time_limit"):
        notes.add(
            "otherwise",
            "train.time_limit",
            "terminal: the time limit ends what an episode is worth (original: bootstrap)",
        )
    _images(tree, notes)
    _dataset_name(tree)


def _eval(tree: dict[str, Any], names: dict[str, Any], notes: Notes) -> None:
    """So many chunks in every environment become whole episodes on recorded seeds."""
    env, chunks, wanted = tree["env"], tree.pop("n_steps", None), names.get("target_episodes")
    tree["wandb"] = None
    if tree.setdefault("base_policy_path", None) is None:
        notes.add("mended", "base_policy_path", "none; the newest pre-trained checkpoint under DPPO_LOG_DIR that fits")
    if not tree.get("ft_denoising_steps"):  # 0 of a pre-trained policy
        tree.pop("ft_denoising_steps", None)
    if "n_episodes" not in tree:
        try:
            each = max(1, chunks * tree["act_steps"] // env["max_episode_steps"])
            tree["n_episodes"] = wanted or each * env["n_envs"]
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise UsageError(
                "n_steps, act_steps, env.max_episode_steps and env.n_envs: expected whole numbers, found "
                f"{chunks!r}, {tree.get('act_steps')!r}, {env.get('max_episode_steps')!r}, {env.get('n_envs')!r}"
            ) from error
        notes.add("translated", "n_steps", f"{chunks} chunks -> n_episodes {tree['n_episodes']}, on recorded seeds")
    _images(tree, notes)
    _dataset_name(tree)


def _images(tree: dict[str, Any], notes: Notes) -> None:
    if _sees(tree) and "render_quality" not in tree["env"]:
        tree["env"]["render_quality"] = "faithful"
        notes.add(
            "translated",
            "env.render_quality",
            "faithful: published image policies were trained on robosuite's own pixels",
        )


def _sees(tree: dict[str, Any]) -> bool:
    wrappers = tree["env"].get("wrappers")
    return isinstance(wrappers, dict) and "robomimic_image" in wrappers


def _dataset_name(tree: dict[str, Any]) -> None:
    """Which data set: of several of one environment (D3IL's ``mode``), or named otherwise than the environment (Furniture-Bench)."""
    if tree["benchmark"] in ("d3il", "furniture") and tree.get("normalization_path"):
        tree["task"] = {"dataset": Path(str(tree["normalization_path"])).parent.name}
    path = tree.get("robomimic_env_cfg_path")
    if isinstance(path, str) and not Path(path).is_file() and (CFG.parent / path).is_file():
        tree["robomimic_env_cfg_path"] = str(CFG.parent / path)  # the run was started in another folder


def _devices(tree: dict[str, Any], notes: Notes) -> None:
    """A GPU that a file names and this machine has not is no reason to stop; one that a person names is."""
    from agent.agent import resolve_device

    for path in ("device", "train_dataset.device", "offline_dataset.device"):
        section, key = _get(tree, path)
        if key not in section or notes.given(path):
            continue
        try:
            resolve_device(section[key])
        except UsageError:
            notes.add("translated", path, f"{section[key]} -> auto (there is no such device here)")
            section[key] = "auto"


def _on_base(tree: dict[str, Any], agent: targets.Agent) -> DictConfig:
    """``tree`` on top of what the project's own configurations of that kind share."""
    stage, benchmark = tree["stage"], tree["benchmark"]
    files = list(BASES[stage])
    if stage == "finetune":
        files += _with_defaults(f"method/{agent.learner.partition('.')[0]}")
    if stage != "pretrain":
        image = "_img" if _sees(tree) else ""
        files.append(f"benchmark/{benchmark}{image}_env")
    if tree["model"]["_target_"] == PPO_DIFFUSION:
        files.append("method/ft_ppo_diffusion")
    parts = [{key: value for key, value in _base(name).items() if key not in _NOT_OF_A_BASE} for name in files]
    if stage == "finetune" and benchmark in TERMINAL:
        parts.append({"train": {"time_limit": "terminal"}})  # as in the project's own configurations
    for section, value in keys.STRANGERS:
        node, key = _get(tree, section)
        if node.get(key) in ("", value):
            node[key] = None
    if tree.get("wandb") is None:  # merging null keeps the base's section
        for part in parts:
            part.pop("wandb", None)
    merged: dict[str, Any] = {}
    for part in (*parts, tree):
        merged = _over(merged, part)
    try:
        out = OmegaConf.create(merged)
        OmegaConf.resolve(out)
    except Exception as error:  # OmegaConf raises many kinds; all of them name the key
        raise UsageError(f"the configuration does not go with cfg/base: {error}") from error
    return out


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``below`` with the values of ``above`` where it has any; sections are merged."""
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        out[key] = _over(below[key], value) if both else value
    return out


def _with_defaults(name: str) -> list[str]:
    """The files of ``cfg/base`` that ``name`` begins with, and itself."""
    first = [entry.removeprefix("/base/") for entry in _base(name).get("defaults", ()) if entry != "_self_"]
    return [file for entry in first for file in _with_defaults(entry)] + [name]


@functools.cache
def _base(name: str) -> dict[str, Any]:
    """A file of ``cfg/base``, not resolved; nothing where there is none."""
    path = CFG / "base" / f"{name}.yaml"
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else {}
