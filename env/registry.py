"""``make_vector_env(cfg.env)``: from a config to a running ``VectorEnv``.

``env.name`` names one of ``TASKS``, this project's own. A task that lives elsewhere needs no entry here: ``env.family``
says where its ``Family`` is, as ``package.module.Class``, and ``env.name`` is free.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from env.errors import EnvError, MissingSimulatorError
from env.furniture.facts import ENV_NAMES as FURNITURE_NAMES
from env.furniture.facts import FURNITURE, OBS_LIMIT, of_env
from env.furniture.facts import TASKS as FURNITURE_TASKS
from env.protocol import VectorEnv

if TYPE_CHECKING:
    from env.furniture.facts import Furniture
    from env.normalizer import Normalizer

Factory = Callable[[Mapping[str, Any]], VectorEnv]


@functools.cache
def family(name: str, leave_out_unused: bool = True) -> Any:
    """The robomimic task of that name, built once per process (2 s): training and evaluation share it."""
    module, kind = ROBOMIMIC[name]
    return getattr(importlib.import_module(module), kind)(leave_out_unused=leave_out_unused)


def _robomimic(name: str) -> Factory:
    def make(cfg: Mapping[str, Any]) -> VectorEnv:
        return _engine_env(family(name, bool(cfg.get("leave_out_unused", True))), cfg, wrapper="robomimic_lowdim")

    return make


ROBOMIMIC = {  # name -> where its family is
    "lift": ("env.robomimic.lift", "Lift"),
    "can": ("env.robomimic.can", "Can"),
    "square": ("env.robomimic.square", "Square"),
    "transport": ("env.robomimic.transport", "Transport"),
}
TASKS: dict[str, Factory] = {name: _robomimic(name) for name in ROBOMIMIC}


@functools.cache
def locomotion(body: str, version: str = "v4") -> Any:
    """Gymnasium's robot ``body`` in its ``version``, built once per process."""
    from env.gym.locomotion import Locomotion

    return Locomotion(body, version)


def _gym(body: str) -> Factory:
    def make(cfg: Mapping[str, Any]) -> VectorEnv:
        version = str(cfg.get("version") or "v4")
        return _engine_env(locomotion(body, version), cfg, wrapper="mujoco_locomotion_lowdim")

    return make


# D4RL's names (its "v2" says which data; the robot is Gymnasium's ``env.version``, v4 unless asked otherwise)
GYM = {f"{body}{data}-v2": body for body in ("hopper", "walker2d", "halfcheetah") for data in ("", "-medium")}
TASKS.update({name: _gym(body) for name, body in GYM.items()})


def _d3il(name: str) -> Factory:
    def make(cfg: Mapping[str, Any]) -> VectorEnv:
        delay = str(cfg.get("observation_delay") or "published")
        if _original(cfg, "d3il"):
            return _genuine_d3il(name, cfg, delay)
        from env.d3il.avoiding import family

        return _engine_env(family(name, delay), cfg, wrapper="d3il_lowdim")

    return make


def _original(cfg: Mapping[str, Any], name: str) -> bool:
    """Whether ``env.simulator`` asks for the simulator called ``name`` instead of our engine."""
    simulator = cfg.get("simulator") or "engine"
    if simulator not in ("engine", name):
        raise EnvError(f"env.simulator: expected engine or {name}, found {simulator!r}")
    return simulator == name


def _python(cfg: Mapping[str, Any]) -> str | None:
    """The interpreter that has the original simulator; None: this one."""
    path = cfg.get("simulator_python")
    return None if path is None else os.path.expanduser(str(path))


def _genuine_d3il(name: str, cfg: Mapping[str, Any], delay: str) -> VectorEnv:
    """D3IL's own simulation, in worker processes."""
    from env.d3il import genuine
    from env.process import Factory as Named
    from env.process import ProcessVectorEnv

    python = _python(cfg)
    if python is None and genuine.missing():
        raise MissingSimulatorError(
            f"env.simulator=d3il needs {' and '.join(genuine.missing())}, which no registry has: install both from a copy "
            "of D3IL's sources as installation/install_d3il.md says (env.simulator_python names another interpreter that has "
            "them), or leave env.simulator at engine"
        )
    if delay != "published":
        raise EnvError(f"env.observation_delay: D3IL itself knows 'published' only, found {delay!r}")
    multi_step = (cfg.get("wrappers") or {}).get("multi_step") or {}
    return ProcessVectorEnv(
        [Named(f"{genuine.__file__}:Genuine", (name,))] * _count(cfg, "n_envs"),
        act_steps=_count(cfg, "act_steps", multi_step.get("n_action_steps")),
        max_episode_steps=_count(cfg, "max_episode_steps"),
        cond_steps=_count(cfg, "cond_steps", multi_step.get("n_obs_steps") or 1),
        success_reward=1.0 if name == "avoiding" else 2.0,
        python=python,
    )


# D3IL's names: m<k> rewards passing on the k-th side of ``env.d3il.field``; without, only crossing the line counts
D3IL = ("avoiding", *(f"avoiding-m{flag}" for flag in (5, 6, 7, 8)))
TASKS.update({name: _d3il(name) for name in D3IL})


def _furniture(name: str) -> Factory:
    def make(cfg: Mapping[str, Any]) -> VectorEnv:
        furniture, randomness = of_env(name)
        said = cfg.get("specific") or {}
        for key, value in (("furniture", furniture.name), ("randomness", randomness)):
            if said.get(key, value) != value:
                raise EnvError(f"env.specific.{key}={said[key]} does not go with env.name={name}, which is of {value}")
        if _original(cfg, "isaacgym"):
            return _genuine_furniture(furniture, randomness, cfg)
        if not said.get("sparse_reward", True):
            raise EnvError(
                "env.specific.sparse_reward=false is of env.simulator=isaacgym; our engine rewards a pair once"
            )
        from env.furniture.assembly import family

        return _engine_env(family(name), cfg, wrapper="furniture_lowdim")

    return make


def _genuine_furniture(furniture: Furniture, randomness: str, cfg: Mapping[str, Any]) -> VectorEnv:
    """Furniture-Bench's own simulation, all of it in one worker process."""
    from env.furniture.isaac import IsaacVectorEnv

    if cfg.get("end_on_success"):
        raise EnvError("env.end_on_success: IsaacGym's episodes last until the time limit; set it to false")
    said, multi_step = cfg.get("specific") or {}, (cfg.get("wrappers") or {}).get("multi_step") or {}
    return IsaacVectorEnv(
        furniture,
        randomness,
        n_envs=_count(cfg, "n_envs"),
        act_steps=_count(cfg, "act_steps", multi_step.get("n_action_steps") or said.get("act_steps")),
        max_episode_steps=_count(cfg, "max_episode_steps"),
        cond_steps=_count(cfg, "cond_steps", multi_step.get("n_obs_steps") or said.get("obs_steps") or 1),
        sparse_reward=bool(said.get("sparse_reward", True)),
        headless=not _shown(cfg),
        gpu_id=int(said.get("gpu_id", 0)),
        python=_python(cfg),
    )


def _shown(cfg: Mapping[str, Any]) -> bool:
    """Whether a window is wanted: ``env.render``, or of Furniture-Bench ``env.specific.headless=false``."""
    return bool(cfg.get("render", not (cfg.get("specific") or {}).get("headless", True)))


TASKS.update({name: _furniture(name) for name in FURNITURE_NAMES})


@functools.cache
def elsewhere(path: str) -> Any:
    """The ``Family`` at ``path`` (package.module.Class), built without arguments, once per process.

    Raises:
        EnvError: there is no such module or class, or it is not a family; the message says what to do.
    """
    from env.engine.family import Family

    module, _, name = str(path).rpartition(".")
    if not module:
        raise EnvError(f"env.family: expected package.module.Class, found {path!r}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvError(
            f"env.family={path}: there is no module {error.name!r}. Put the folder that holds it on PYTHONPATH, or install "
            "its package"
        ) from error
    kind = getattr(found, name, None)
    if not isinstance(kind, type):
        classes = [key for key, value in vars(found).items() if isinstance(value, type)]
        near = difflib.get_close_matches(name, classes, n=1)
        hint = f"; did you mean {module}.{near[0]}?" if near else ""
        raise EnvError(f"env.family={path}: {found.__file__} has no class {name!r}{hint}")
    if Family not in kind.__mro__[1:]:
        raise EnvError(f"env.family={path}: no family of the engine; let it inherit from env.engine.family.Family")
    built = kind()
    absent = [key for key in Family.__annotations__ if not hasattr(built, key)]
    absent += [key for key in ("draw", "begin") if getattr(kind, key) is getattr(Family, key)]
    if absent:
        raise EnvError(f"env.family={path}: it has no {', '.join(absent)}; env/engine/family.py says what each is")
    return built


@dataclass(frozen=True)
class Expert:
    """A task's scripted expert, and how its demonstrations are made unless asked otherwise."""

    suite: str
    make: Callable[..., Any]  # make(n, rng, noise, retry): ``retry`` says whether to try again after a miss
    steps: int  # control steps of an episode
    noise: float  # human-like clumsiness; 0 is perfect
    until_success: bool = True  # try until it succeeds, and end there (otherwise: one try, all ``steps`` recorded)
    env: str | None = None  # the environment's name, where it is not the task's
    episodes: int = 300  # demonstrations


def _expert(task: str, kind: str) -> Callable[..., Any]:
    def make(n: int, rng: np.random.Generator, noise: float, retry: bool) -> Any:
        return getattr(importlib.import_module(f"env.robomimic.{task}_expert"), kind)(n, rng, noise=noise, retry=retry)

    return make


def _avoiding_expert(task: str) -> Callable[..., Any]:
    def make(n: int, rng: np.random.Generator, noise: float, retry: bool) -> Any:
        return importlib.import_module("env.d3il.avoiding_expert").expert(task, n, rng, noise)

    return make


def _furniture_expert(furniture: str) -> Callable[..., Any]:
    def make(n: int, rng: np.random.Generator, noise: float, retry: bool) -> Any:
        found = importlib.import_module(f"env.furniture.{furniture}_expert")
        return found.EXPERT(n, rng, noise=noise, retry=retry)

    return make


EXPERTS: dict[str, Expert] = {
    "lift": Expert("robomimic", _expert("lift", "LiftExpert"), steps=100, noise=0.3, until_success=False),
    "can": Expert("robomimic", _expert("can", "CanExpert"), steps=300, noise=1.0),
    "square": Expert("robomimic", _expert("square", "SquareExpert"), steps=400, noise=1.0),
    "transport": Expert("robomimic", _expert("transport", "TransportExpert"), steps=800, noise=1.0),
    **{
        task: Expert("d3il", _avoiding_expert(task), steps=150, noise=1.0, env="avoiding", episodes=episodes)
        for task, episodes in (("avoid", 96), ("avoid_m1", 8), ("avoid_m2", 8), ("avoid_m3", 8))
    },
    **{
        task: Expert(
            "furniture", _furniture_expert(name), steps=FURNITURE[name].max_episode_steps, noise=1.0, env=f"{task}_dim"
        )
        for task, (name, _) in FURNITURE_TASKS.items()
    },
}


def make_vector_env(cfg: Mapping[str, Any], normalizer: Normalizer | None = None) -> VectorEnv:
    """Build the environment a config's ``env`` section describes.

    Args:
        cfg: ``name`` (a key of ``TASKS``) or ``family`` (package.module.Class), ``n_envs``, ``max_episode_steps``, ``act_steps`` (or
            ``wrappers.multi_step.n_action_steps``); optional: ``cond_steps`` (or ``wrappers.multi_step.n_obs_steps``;
            1), ``n_threads`` (null: all cores), ``wrappers.robomimic_lowdim.low_dim_keys`` (null: all); of D3IL ``simulator``
            and ``observation_delay`` (``env/d3il/avoiding.py``), of Furniture-Bench ``simulator`` and ``specific``; for images
            ``wrappers.robomimic_image`` (``image_keys``, ``low_dim_keys``, ``shape_meta``), ``render_quality``,
            ``renderer`` (``engine/renderers.py``) and ``img_cond_steps``.
        normalizer: wrap the environment so that it speaks normalised observations and actions.

    Raises:
        EnvError: an unknown task, or a missing or impossible value; the message names the key.
        MissingSimulatorError: the task's simulator is not installed, or in a version that does not work.
    """
    check_task(cfg)
    path = cfg.get("family")
    venv = TASKS[cfg["name"]](cfg) if path is None else _engine_env(elsewhere(path), cfg, wrapper="robomimic_lowdim")
    if normalizer is not None:
        from env.normalizer import NormalizedVectorEnv

        limit = OBS_LIMIT if path is None and cfg["name"] in FURNITURE_NAMES else None
        venv = NormalizedVectorEnv(venv, normalizer, limit)
    if _shown(cfg) and cfg.get("simulator") != "isaacgym":  # that has a window of its own
        from env.viewer import LiveView

        venv = LiveView(venv)
    return venv


def check_task(cfg: Mapping[str, Any]) -> None:
    """Raise ``EnvError`` for an unknown ``name``, with the nearest known one (this imports nothing), or for a ``family``
    that is not there.
    """
    if cfg.get("family") is not None:
        elsewhere(cfg["family"])
        return
    name = _required(cfg, "name")
    if name not in TASKS:
        near = difflib.get_close_matches(str(name), TASKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise EnvError(
            f"env.name: unknown task {name!r}{hint} Known tasks: {', '.join(sorted(TASKS))}; of any other, env.family says "
            "where it is (package.module.Class)"
        )


def _engine_env(family: Any, cfg: Mapping[str, Any], wrapper: str) -> VectorEnv:
    """An engine environment from the usual keys; ``wrapper`` names the entry of ``wrappers`` that may hold
    ``low_dim_keys``.
    """
    from env.engine.batch import EngineVectorEnv

    wrappers = cfg.get("wrappers") or {}
    multi_step = wrappers.get("multi_step") or {}
    seen = wrappers.get("robomimic_image")
    keys = (seen or wrappers.get(wrapper) or {}).get("low_dim_keys")
    return EngineVectorEnv(
        family,
        n_envs=_count(cfg, "n_envs"),
        act_steps=_count(cfg, "act_steps", multi_step.get("n_action_steps")),
        max_episode_steps=_count(cfg, "max_episode_steps"),
        obs_keys=None if keys is None else list(keys),
        obs_steps=_count(cfg, "cond_steps", multi_step.get("n_obs_steps") or 1),
        n_threads=None if cfg.get("n_threads") is None else _count(cfg, "n_threads"),
        end_on_success=bool(cfg.get("end_on_success")),
        **({} if seen is None else _image_arguments(cfg, seen)),
    )


def _image_arguments(cfg: Mapping[str, Any], wrapper: Mapping[str, Any]) -> dict[str, Any]:
    """``EngineVectorEnv``'s arguments for images, from the published ``wrappers.robomimic_image``: ``image_keys``
    (cameras, with ``_image`` at the end) and ``shape_meta.obs.rgb.shape`` (3 per camera, height, width).
    """
    names = [str(key) for key in wrapper.get("image_keys") or ()]
    if not names or not all(name.endswith("_image") for name in names):
        raise EnvError(
            f"env.wrappers.robomimic_image.image_keys: expected a list of <camera>_image, found {names or 'nothing'}"
        )
    meta = wrapper.get("shape_meta") or cfg.get("shape_meta") or {}
    shape = list(((meta.get("obs") or {}).get("rgb") or {}).get("shape") or (3 * len(names), 96, 96))
    if len(shape) != 3 or shape[0] != 3 * len(names):
        raise EnvError(
            f"shape_meta.obs.rgb.shape: expected [{3 * len(names)}, height, width] for {len(names)} cameras "
            f"({', '.join(names)}), found {shape}"
        )
    return {
        "cameras": [name.removesuffix("_image") for name in names],
        "image_size": (shape[1], shape[2]),
        "render_quality": cfg.get("render_quality") or "balanced",
        "renderer": cfg.get("renderer") or "auto",
        "img_obs_steps": _count(cfg, "img_cond_steps", 1),
    }


def _required(cfg: Mapping[str, Any], key: str, default: Any = None) -> Any:
    value = cfg.get(key)
    value = default if value is None else value
    if value is None:
        raise EnvError(f"env.{key} is missing from the config; it has {', '.join(map(str, cfg)) or 'nothing'}")
    return value


def _count(cfg: Mapping[str, Any], key: str, default: Any = None) -> int:
    value = _required(cfg, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EnvError(f"env.{key} must be a whole number of at least 1, found {value!r}")
    return value
