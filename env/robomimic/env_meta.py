"""What a robomimic ``env_args`` (in an HDF5 file) or env_meta JSON (in ``cfg/robomimic/env_meta``) says of its
environment, checked against what the engine does.

The published work (robosuite 1.4.1) commands Panda arms by OSC_POSE at 20 Hz: deltas in the world frame, 0.05 m and
0.5 rad at most, kp 150, critically damped. That is what ``env.engine.osc`` computes, and nothing else; so a file whose
``env_args`` say otherwise holds actions that would move our arms differently, and is refused by the name of the key.

robosuite 1.5 files differ in three ways. The controller hides in a composite one (``body_parts``); keys have new names
(``damping_ratio``, ``input_type``); deltas are by default in the frame of the robot's base (``input_ref_frame``), which
is the world's for one arm and turned by 90 degrees for the two of TwoArmTransport. And ``object`` is arranged in another
way: ``object_obs.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from env.errors import EnvError

FOLDER = Path(__file__).resolve().parents[2] / "cfg" / "robomimic" / "env_meta"
ROBOSUITE_TYPE = 1  # robomimic's number for robosuite among its kinds of environment
CONTROL_FREQ = 20
ARM_KEYS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}  # proprioception of each arm, in order, and dimensions
ACTIONS_PER_ARM = 7


@dataclass(frozen=True)
class TaskFacts:
    """A robomimic task: robosuite's name for it, its arms, the dimensions of its object observation, its cameras."""

    suite_name: str
    arms: int
    object_dim: int
    cameras: tuple[str, ...]  # of the published image policies

    @property
    def action_dim(self) -> int:
        """6 deltas and a gripper per arm."""
        return ACTIONS_PER_ARM * self.arms

    def obs_dims(self, use_object: bool = True) -> dict[str, int]:
        """Observation keys in the published order, with their dimensions; image policies do without the object."""
        keys = {f"robot{i}_{key}": dim for i in range(self.arms) for key, dim in ARM_KEYS.items()}
        return keys | ({"object": self.object_dim} if use_object else {})


TASKS = {
    "lift": TaskFacts("Lift", 1, 10, ("robot0_eye_in_hand",)),
    "can": TaskFacts("PickPlaceCan", 1, 14, ("robot0_eye_in_hand",)),
    "square": TaskFacts("NutAssemblySquare", 1, 14, ("agentview",)),
    "transport": TaskFacts("TwoArmTransport", 2, 41, ("shouldercamera0", "shouldercamera1")),
}

# Keys of an OSC_POSE controller that change what an action does: the value the engine has, and what robosuite takes
# where the key is absent. Limits of gains matter only where the policy commands gains (impedance_mode).
_LIMITS = [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]
_CONTROLLER = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": _LIMITS,
    "output_min": [-x for x in _LIMITS],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "input_type": "delta",
    "interpolation": None,
}
_OLD_NAMES = {"damping": "damping_ratio"}
_ENV_KWARGS = {"control_freq": CONTROL_FREQ}
_DEFAULTS = {"gripper_types": "default", "base_types": "default", "use_object_obs": True}
_SAFE_WHEN_ABSENT = {"position_limits", "orientation_limits", "interpolation"}
_OPPOSED = ("single-arm-opposed", "opposed")  # the names of robosuite 1.4 and 1.5


@dataclass(frozen=True)
class EnvMeta:
    """An ``env_args`` that the engine reproduces."""

    task: str
    version: tuple[int, ...]  # of robosuite; empty where it is not told
    env_kwargs: Mapping[str, Any]
    warnings: tuple[str, ...]  # differences that do not change what an action does

    @property
    def images(self) -> tuple[str, ...]:
        """The cameras it renders; none where ``use_camera_obs`` is false."""
        if not self.env_kwargs.get("use_camera_obs"):
            return ()
        names = self.env_kwargs.get("camera_names") or ("agentview",)
        return (names,) if isinstance(names, str) else tuple(names)


def check_env_meta(path: str | os.PathLike[str], task: str, images: bool | None = None) -> EnvMeta:
    """Read an env_meta JSON (``robomimic_env_cfg_path``) and check that it describes ``task`` as the engine runs it.

    Args:
        path: relative paths are looked for here, and then in the repository.
        task: ``lift``, ``can``, ``square`` or ``transport``.
        images: whether it must (True) or must not (False) render cameras; None: either.

    Raises:
        EnvError: no such file, no JSON, or a key with a value the engine does not do; names file, key, expected and
            found.
    """
    path = Path(path).expanduser()
    inside = FOLDER.parents[2] / path
    path = inside if not path.is_absolute() and not path.exists() and inside.exists() else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(p.name for p in FOLDER.glob("*.json"))) or "none"
        raise EnvError(
            f"robomimic_env_cfg_path: {path} cannot be read ({error}). cfg/robomimic/env_meta has {known}"
        ) from error
    meta = check_env_args(text, f"robomimic_env_cfg_path: {path}", task)
    if images is not None and images != bool(meta.images):
        name = f"{task}-img.json" if images else f"{task}.json"
        raise EnvError(
            f"robomimic_env_cfg_path: {path}: env_kwargs.use_camera_obs: expected {images}, found {bool(meta.images)}; "
            f"the one for {'image' if images else 'state'} policies is cfg/robomimic/env_meta/{name}"
        )
    return meta


def check_configured(path: str | None, env: Mapping[str, Any]) -> None:
    """Check ``robomimic_env_cfg_path`` against a configuration's ``env`` section: the same task, images or none, cameras.

    Nothing is checked without a path, nor for tasks that are not robomimic's.

    Raises:
        EnvError: see ``check_env_meta``; or a camera of ``image_keys`` that the file does not render.
    """
    if path is None or env.get("name") not in TASKS:
        return
    wrapper = (env.get("wrappers") or {}).get("robomimic_image")
    meta = check_env_meta(path, env["name"], images=wrapper is not None)
    wanted = [str(key).removesuffix("_image") for key in (wrapper or {}).get("image_keys") or ()]
    missing = [camera for camera in wanted if camera not in meta.images]
    if missing:
        raise EnvError(
            f"robomimic_env_cfg_path: {path}: env_kwargs.camera_names: expected {', '.join(wanted)} as "
            f"env.wrappers.robomimic_image.image_keys says, found {', '.join(meta.images)}. Name the camera in a file of "
            "your own, or set robomimic_env_cfg_path=null"
        )


def check_env_args(env_args: str | bytes | Mapping[str, Any], where: str, task: str | None = None) -> EnvMeta:
    """Check an ``env_args`` (JSON or the mapping in it); ``where`` begins every message.

    Args:
        task: the task it must be; None: whichever of ours it is.

    Raises:
        EnvError: naming every key that differs from what the engine does, expected and found.
    """
    args = _parsed(env_args, where)
    name, kwargs = args.get("env_name"), args.get("env_kwargs")
    found = {facts.suite_name: key for key, facts in TASKS.items()}.get(name)
    if found is None or (task is not None and found != task):
        expected = TASKS[task].suite_name if task else " or ".join(facts.suite_name for facts in TASKS.values())
        raise EnvError(f"{where}: env_name: expected {expected}, found {name!r}")
    if args.get("type", ROBOSUITE_TYPE) != ROBOSUITE_TYPE:
        raise EnvError(f"{where}: type: expected {ROBOSUITE_TYPE} (robosuite), found {args['type']!r}")
    if not isinstance(kwargs, Mapping):
        raise EnvError(f"{where}: env_kwargs: expected the arguments of robosuite.make, found {kwargs!r}")
    problems, warnings = [], []
    for problem, fatal in (*_environment(found, kwargs), *_controllers(found, kwargs, _version(args))):
        (problems if fatal else warnings).append(problem)
    if problems:
        raise EnvError(f"{where}: not what the engine does: " + "; ".join(problems))
    return EnvMeta(found, _version(args), dict(kwargs), tuple(warnings))


def _parsed(env_args: str | bytes | Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if isinstance(env_args, (str, bytes)):
        try:
            env_args = json.loads(env_args)
        except ValueError as error:
            raise EnvError(f"{where}: no JSON ({error})") from error
    if not isinstance(env_args, Mapping):
        raise EnvError(f"{where}: expected a JSON object with env_name and env_kwargs, found {type(env_args).__name__}")
    return env_args


def _version(args: Mapping[str, Any]) -> tuple[int, ...]:
    parts = str(args.get("env_version") or "").split(".")
    return tuple(int(part) for part in parts if part.isdigit())


Difference = tuple[str, bool]  # what differs, and whether that is fatal


def _environment(task: str, kwargs: Mapping[str, Any]) -> Iterator[Difference]:
    arms = TASKS[task].arms
    robots = kwargs.get("robots")
    robots = [robots] if isinstance(robots, str) else robots
    if robots != ["Panda"] * arms:
        yield f"env_kwargs.robots: expected {['Panda'] * arms}, found {robots!r}", True
    for key, expected in _ENV_KWARGS.items():
        if kwargs.get(key) != expected:
            yield f"env_kwargs.{key}: expected {expected}, found {kwargs.get(key)!r}", True
    for key, expected in _DEFAULTS.items():
        given = kwargs.get(key, expected)
        if given != expected and given != [expected] * arms:
            yield f"env_kwargs.{key}: expected {expected!r}, found {given!r}", True
    layout = kwargs.get("env_configuration")
    if arms == 2 and layout not in _OPPOSED:
        yield f"env_kwargs.env_configuration: expected {' or '.join(_OPPOSED)}, found {layout!r}", True
    if kwargs.get("reward_shaping"):
        yield "env_kwargs.reward_shaping: the engine's reward is 1 where the task is solved, here it is shaped", False


def _controllers(task: str, kwargs: Mapping[str, Any], version: tuple[int, ...]) -> Iterator[Difference]:
    key, given = "env_kwargs.controller_configs", kwargs.get("controller_configs")
    configs = list(given) if isinstance(given, (list, tuple)) else [given] * TASKS[task].arms
    if len(configs) != TASKS[task].arms:
        yield f"{key}: expected one per robot ({TASKS[task].arms}), found {len(configs)}", True
        return
    told = set()
    for i, config in enumerate(configs):
        where = f"{key}[{i}]" if isinstance(given, (list, tuple)) else key
        for difference in _controller(where, config, TASKS[task].arms, version):
            if difference not in told:
                told.add(difference)
                yield difference


def _controller(where: str, config: Any, arms: int, version: tuple[int, ...]) -> Iterator[Difference]:
    if isinstance(config, Mapping) and "body_parts" in config:
        if config.get("type", "BASIC") != "BASIC":
            yield f"{where}.type: expected BASIC, found {config['type']!r}", True
        parts = config["body_parts"] or {}
        parts = parts.get("arms", parts)
        where, config = f"{where}.body_parts.right", parts.get("right")
    if not isinstance(config, Mapping):
        yield f"{where}: expected the settings of an OSC_POSE controller, found {config!r}", True
        return
    settings = {_OLD_NAMES.get(name, name): value for name, value in config.items()}
    if "control_delta" in settings:
        settings.setdefault("input_type", "delta" if settings["control_delta"] else "absolute")
    for name, expected in _CONTROLLER.items():
        found = settings.get(name, expected if name in _SAFE_WHEN_ABSENT else "nothing")
        if not _same(found, expected):
            yield f"{where}.{name}: expected {_shown(expected)}, found {_shown(found)}", True
    yield from _frame(where, settings, arms, version)


def _frame(where: str, settings: Mapping[str, Any], arms: int, version: tuple[int, ...]) -> Iterator[Difference]:
    """Where the deltas live: the world's frame before robosuite 1.5, by default the base's since then."""
    frame = settings.get("input_ref_frame", "base" if version >= (1, 5) else "world")
    if frame not in ("world", "base"):
        yield f"{where}.input_ref_frame: expected world, found {frame!r}", True
    elif frame == "base" and arms > 1:
        yield (
            (
                f"{where}.input_ref_frame: expected world, found base: the arms stand turned by 90 degrees, so the recorded "
                "deltas would move ours sideways"
            ),
            True,
        )
    elif frame == "base":
        yield f"{where}.input_ref_frame is base; with this robot's upright base that is the world's frame", False


def _same(found: Any, expected: Any) -> bool:
    """Equal, where one number may stand for a list of equal ones."""
    if found is None or expected is None or isinstance(expected, (str, bool)):
        return found is expected or (type(found) is type(expected) and found == expected)
    try:
        values = np.asarray(found, np.float64)
        wanted = np.asarray(expected, np.float64)
    except (TypeError, ValueError):
        return False
    if values.ndim > 1 or (wanted.ndim and values.shape != wanted.shape) or values.size not in (1, 6):
        return False
    return bool((values == wanted).all())


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (list, dict, tuple, bool, type(None))) else str(value)
