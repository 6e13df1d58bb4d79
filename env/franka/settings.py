"""The settings of a deployment: sections of its configuration as the dataclasses of the control core, every key checked.

Numbers have one home: the defaults of those dataclasses, and what a configuration says instead.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from env.franka.cell import ROBOTS
from env.franka.gripper import GripperSettings
from env.franka.guards import SafetySettings
from env.franka.reference import Caps, ReferenceSettings
from env.franka.runner import SUITE_HOME, RunnerSettings
from env.franka.schedule import ScheduleSettings
from env.franka.types import ControlSettings, DeploymentError

Kind = TypeVar("Kind")
_CHOICES = {
    "mode": ("run", "shadow"),
    "operator": ("keyboard", "none"),
    "robot.kind": tuple(ROBOTS),
    "camera.kind": ("none", "mujoco", "replay", "realsense", "opencv"),
    "policy.kind": ("local", "remote"),
}
_KEYS = (  # of the top; sections are checked by themselves
    "task", "world", "checkpoint", "normalization_path", "episodes", "seed", "mode", "speed_scale", "max_steps", "operator", "device",
    "home", "object_pose", "log_root", "logdir", "gripper", "safety", "control", "policy", "scheduler", "robot", "camera",
)  # fmt: skip
_POLICY = {"local": ("kind", "ddim_steps", "act_steps"), "remote": ("kind", "url", "timeout")}
_REFERENCE = ("caps", "leash_force", "leash_angle")  # of section safety, but the reference model's own


@dataclass(frozen=True)
class Settings:
    """What the parts of a deployment are run with."""

    safety: SafetySettings
    reference: ReferenceSettings
    control: ControlSettings
    schedule: ScheduleSettings
    gripper: GripperSettings
    mode: str
    speed_scale: float
    max_steps: int | None
    home: tuple[float, ...] | None

    def steps(self, trained: int) -> int:
        """Action ticks of an episode; a slower robot needs more of them than in training."""
        return self.max_steps or math.ceil(trained / self.speed_scale)

    def runner(self, steps: int) -> RunnerSettings:
        """For episodes of ``steps`` action ticks."""
        return RunnerSettings(mode=self.mode, speed_scale=self.speed_scale, max_steps=steps, home=self.home)


def read_settings(cfg: Mapping[str, Any]) -> Settings:
    """Check all of a deployment's configuration.

    Raises:
        DeploymentError: an unknown key (with the nearest known one), a value of the wrong kind or out of range.
    """
    _known(cfg, _KEYS, "")
    for key, choices in _CHOICES.items():
        section, _, name = key.rpartition(".")
        found = (cfg[section] if section else cfg).get(name)
        if found not in choices:
            raise DeploymentError(f"{key}: expected one of {', '.join(choices)}, found {found!r}")
    _known(cfg["robot"], ("kind", *ROBOTS[cfg["robot"]["kind"]]), "robot")
    _known(cfg["policy"], _POLICY[cfg["policy"]["kind"]], "policy")
    for key, low, high in (("episodes", 1, math.inf), ("seed", 0, 2**31), ("max_steps", 1, math.inf)):
        _number(cfg[key], int, low, high, key, optional=key == "max_steps")
    _number(cfg["speed_scale"], (int, float), 1e-3, 1.0, "speed_scale")
    reference = {k: v for k, v in cfg["safety"].items() if k in _REFERENCE}
    reference["caps"] = _made(Caps, reference.get("caps") or {}, "safety.caps")
    return Settings(
        safety=_made(SafetySettings, {k: v for k, v in cfg["safety"].items() if k not in _REFERENCE}, "safety"),
        reference=ReferenceSettings(**reference),
        control=_made(ControlSettings, cfg["control"], "control"),
        schedule=_made(ScheduleSettings, cfg["scheduler"], "scheduler"),
        gripper=_made(GripperSettings, cfg["gripper"], "gripper"),
        mode=cfg["mode"],
        speed_scale=float(cfg["speed_scale"]),
        max_steps=cfg["max_steps"],
        home=_home(cfg["home"]),
    )


def _home(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, bool):
        return SUITE_HOME if value else None
    if not isinstance(value, list) or len(value) != 7:
        raise DeploymentError(f"home: expected true, false or seven joint positions (rad), found {value!r}")
    return tuple(float(x) for x in value)


def _made(kind: type[Kind], section: Mapping[str, Any], where: str) -> Kind:
    """``kind(**section)``: lists as tuples, every key one of its fields, every value of the kind of its default."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    _known(section, tuple(fields), where)
    values = {}
    for key, value in section.items():
        default = fields[key].default
        if isinstance(default, (int, float)) and not isinstance(value, (int, float)) and value is not None:
            raise DeploymentError(f"{where}.{key}: expected a number, found {value!r}")
        values[key] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise DeploymentError(f"{where}: {error}") from error


def _known(section: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for key in section:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
            path = f"{where}." if where else ""
            raise DeploymentError(f"{path}{key}: there is no such key; did you mean {path}{near[0]}?")


def _number(value: Any, kind: Any, low: float, high: float, key: str, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        raise DeploymentError(
            f"{key}: expected {'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}, found {value!r}"
        )
