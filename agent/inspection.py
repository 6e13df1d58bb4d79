"""What a checkpoint is: of whom, of which algorithm, what networks, read off names and shapes; and which configuration fits.

Nothing is guessed: a configuration fits if the policy that it builds has exactly the checkpoint's keys and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import Tensor

from agent import checkpoint
from agent.agent import build
from agent.config import register_resolvers
from agent.download import find
from agent.errors import UsageError
from agent.policy_weights import config_beside
from model.types import ShapeError, StateDictError

CFG = Path(__file__).resolve().parents[1] / "cfg"
Shapes = dict[str, tuple[int, ...]]

# What a fine-tuning run keeps beside its tuned network, by the names of its parts; the first that is all there says which it is.
ALGORITHMS = (
    ({"actor_ft", "critic"}, "PPO"),
    ({"critic_networks", "bc_policy"}, "IBRL"),
    ({"critic_networks"}, "RLPD"),
    ({"critic_q", "critic_v"}, "IDQL"),
    ({"critic_q"}, "QSM"),
    ({"critic_target", "actor_target"}, "DIPO"),
    ({"critic_target"}, "DQL"),
    ({"target_critic"}, "SAC or Cal-QL"),
    ({"critic"}, "AWR"),
    ({"actor"}, "RWR"),
)


def inspect(path: str | Path, configs: bool = True) -> dict[str, Any]:
    """All that can be said of the checkpoint ``path``, plain enough for JSON.

    Args:
        configs: also look for the leaves of ``cfg/`` that fit (seconds).

    Raises:
        CheckpointError: it cannot be read.
    """
    path = Path(path).expanduser()
    payload = checkpoint.load(path)
    parts = _parts(payload["model"])
    networks = {name: network(shapes) for name, shapes in parts.items() if name not in ("actor", "eta")}
    policy = networks.get("network") or next(iter(networks.values()))
    about = {
        "file": str(path),
        "of": _author(payload, path),
        "stage": payload["kind"],
        "algorithm": _algorithm(payload["kind"], set(parts), policy["class"]),
        "step": {key: payload[key] for key in ("epoch", "itr") if key in payload},
        "averaged_weights": bool(payload.get("ema")),
        "normalizer": payload.get("normalizer") is not None,
        "images": (payload.get("extra") or {}).get("images"),
        "networks": networks,
        "configuration": _own(payload, path),
    }
    if configs:
        leaves = fitting(payload["model"], payload["kind"])
        named = f"{path.resolve()} {about['configuration']}"  # the shapes of tasks may be alike; names tell them apart
        likely = [leaf for leaf in leaves if leaf.parent.name.partition("-")[0] in named]
        about["fits"] = [str(leaf.relative_to(CFG.parent)) for leaf in likely or leaves]
    return about


def network(shapes: Shapes) -> dict[str, Any]:
    """Class, number of parameters and sizes of one network, from the shapes of its tensors."""
    found: dict[str, Any] = {"class": _class_of(shapes), "parameters": sum(map(_count, shapes.values()))}
    trunk, last = _widths(shapes, "mlp_base."), _widths(shapes, "mlp_mean.") or _widths(shapes, "Q1.")
    widths = [*trunk, last[-1]] if trunk else last  # two heads stand on a trunk
    if widths:
        residual = any(re.match(r"(mlp_base|mlp_mean|Q1)\.layers\.", key) for key in shapes)
        found |= {"mlp_dims": widths[1:-1], "residual_style": residual, "output": widths[-1]}
    for key, name in (("time_embedding.1.weight", "time_dim"), ("time_mlp.1.weight", "diffusion_step_embed_dim")):
        if key in shapes:
            found[name] = shapes[key][1]
    if "backbone.vit.pos_embed" in shapes:
        cameras = [key for key in shapes if re.fullmatch(r"compress\d?\.input_proj\.0\.weight", key)]
        found |= {"cameras": max(1, len(cameras)), "patches": shapes["backbone.vit.pos_embed"][1]}
    observation = _observation(shapes, found, widths)
    if observation is not None:
        found["observation"] = observation
    return found


def fitting(state: Mapping[str, Tensor], kind: str) -> list[Path]:
    """The leaves of ``cfg/`` of that stage whose policies have exactly the keys and shapes of ``state``."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    policy = network({key.removeprefix("network."): x for key, x in shapes.items() if key.startswith("network.")})
    found = []
    for leaf in sorted(CFG.glob(f"*/{kind}/*/*.yaml")):
        task = _task(leaf)
        seen = task.get("obs_dim", 0) * task.get("cond_steps", 1)
        if policy.get("observation") in (None, seen) and policy.get("output", 0) % task.get("action_dim", 1) == 0:
            found += [leaf] if _shapes_of(leaf) == shapes else []
    return found


def _shapes_of(leaf: Path) -> Shapes | None:
    """Keys and shapes of the policy that a leaf builds; nothing is allocated. None where it builds none here."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(leaf.parent), version_base="1.3"):
        node = compose(leaf.stem, overrides=[f"hydra.searchpath=[file://{CFG}]"]).get("model")
    try:
        with torch.device("meta"):
            policy = build(OmegaConf.to_container(node, resolve=True))
    except (UsageError, ShapeError, StateDictError):
        return None
    return {key: tuple(value.shape) for key, value in policy.state_dict().items()}


def _task(leaf: Path) -> dict[str, Any]:
    """The task file that a leaf names in its defaults, as it stands there; of several, all together."""
    task: dict[str, Any] = {}
    for entry in OmegaConf.load(leaf).get("defaults", []):
        names = entry.get("/base/task", ()) if OmegaConf.is_dict(entry) else ()
        for name in [names] if isinstance(names, str) else names:
            task |= OmegaConf.to_container(OmegaConf.load(CFG / "base" / "task" / f"{name}.yaml"), resolve=False)
    return task


def _parts(state: Mapping[str, Tensor]) -> dict[str, Shapes]:
    """The modules of a policy (``network``, ``critic``, ...) and the shapes in each."""
    parts: dict[str, Shapes] = {}
    for key, value in state.items():
        name, _, rest = key.partition(".")
        parts.setdefault(name, {})[rest] = tuple(value.shape)
    return parts


def _algorithm(kind: str, parts: set[str], policy: str) -> str:
    family = "diffusion" if "Diffusion" in policy or "Unet" in policy else policy.partition("_")[0]
    if kind == "pretrain":
        return f"{family} pre-training"
    name = next((name for needed, name in ALGORITHMS if needed <= parts), "unknown")
    return f"{name} ({family}{', DDIM' if 'eta' in parts else ''})"


def _author(payload: Mapping[str, Any], path: Path) -> str:
    """Ours says so. DPPO's files and D2PPO's look alike; the place of a published one, or its configuration, may tell."""
    if not checkpoint.is_published(payload):
        return f"this project, {(payload.get('versions') or {}).get('source', 'version unknown')}"
    entry = find(path)
    if entry is not None:
        return f"DPPO, published as {entry.target}"
    return "D2PPO (by its path)" if "dispersive" in str(path) else "DPPO or D2PPO"


def _own(payload: Mapping[str, Any], path: Path) -> str | None:
    """The name of the configuration that came with the checkpoint; None where none did."""
    config = payload.get("config")
    if config is None and checkpoint.is_published(payload):
        try:
            config = config_beside(path)
        except UsageError as error:
            return f"beside it, but not usable: {error}"
    return None if config is None else str(config.get("name") or config.get("env_name") or "without a name")


def _class_of(shapes: Shapes) -> str:
    """The published class with parameters of these names."""
    sees, tops = "backbone.vit.pos_embed" in shapes, {key.partition(".")[0] for key in shapes}
    if "time_embedding" in tops:
        return "VisionDiffusionMLP" if sees else "DiffusionMLP"
    if "time_mlp" in tops:
        return "VisionUnet1D" if sees else "Unet1D"
    if "transformer" in tops:
        return "GMM_Transformer" if "modes_head" in tops else "Gaussian_Transformer"
    if "mlp_weights" in tops:
        return "GMM_MLP"
    if "logvar_min" in tops or "mlp_mean" in tops:
        return "Gaussian_VisionMLP" if sees else "Gaussian_MLP"
    if "Q1" in tops:
        if sees or "Q2" in tops:
            return "ViTCritic" if sees else "CriticObsAct"
        return "CriticObs" if "Q1.layers.0.weight" in shapes else "CriticObs or CriticObsAct"
    return "unknown"


def _widths(shapes: Shapes, prefix: str) -> list[int]:
    """Input, hidden widths and output of a perceptron, plain or residual (where each block has two layers)."""
    matrices = [shape for key, shape in shapes.items() if key.startswith(prefix) and _is_layer(key)]
    return [matrices[0][1], *(shape[0] for shape in matrices)] if matrices else []


def _is_layer(key: str) -> bool:
    return bool(re.search(r"(layers\.\d+|layers\.\d+\.l\d|moduleList\.\d+\.linear_1)\.weight$", key))


def _observation(shapes: Shapes, found: Mapping[str, Any], widths: list[int]) -> int | None:
    """How many numbers the policy is shown (``cond_steps x obs_dim``); None where the shapes do not tell."""
    for key, shape in shapes.items():
        if re.fullmatch(r"compress1?\.input_proj\.0\.weight", key):
            return shape[1] - found["patches"]
        if re.fullmatch(r"(cond_mlp\..*|transformer\.cond_obs_emb)\.weight", key) and len(shape) == 2:
            return shape[1]
        if key == "down_modules.0.0.cond_encoder.0.weight" and not any(k.startswith("cond_mlp") for k in shapes):
            return shape[1] - found["diffusion_step_embed_dim"]
    if not widths or "patches" in found:
        return None
    return widths[0] - found["output"] - found["time_dim"] if "time_dim" in found else widths[0]


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def lines(about: Mapping[str, Any]) -> Iterator[str]:
    """``inspect``'s answer for a person."""
    step = ", ".join(f"{key} {value}" for key, value in about["step"].items())
    yield f"{about['file']}"
    yield f"  {about['algorithm']}, {step or 'step unknown'}; of {about['of']}"
    extras = [
        name
        for name, there in (("averaged weights", about["averaged_weights"]), ("normaliser", about["normalizer"]))
        if there
    ]
    yield f"  holds {', '.join(extras) or 'neither averaged weights nor a normaliser'}"
    for name, sizes in about["networks"].items():
        rest = ", ".join(f"{key} {value}" for key, value in sizes.items() if key not in ("class", "parameters"))
        yield f"  {name:<9} {sizes['class']}, {sizes['parameters']:,} parameters{': ' if rest else ''}{rest}"
    yield f"  its own configuration: {about['configuration'] or 'none'}"
    if "fits" in about:
        yield f"  fits: {', '.join(about['fits']) or 'no configuration of cfg/'}"
