"""What a deployment drives: arm, hand and cameras, made from their sections of a configuration; vendors' packages only when chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from env.engine.renderers import resolve
from env.franka.camera import make_camera
from env.franka.camera_mujoco import MujocoCamera
from env.franka.camera_replay import ReplayCamera
from env.franka.clock import VirtualClock, WallClock
from env.franka.episode import Episode, read_episode
from env.franka.frames import Transform
from env.franka.image import Fit
from env.franka.observation import ImageFit, ObjectPose, ObservationSpec
from env.franka.types import Camera, Clock, DeploymentError, Gripper, Robot

ROBOTS = {  # kind -> its settings and their types
    "panda": {"ip": str},
    "franky": {"ip": str},
    "mujoco": {"law": str, "feedforward": float, "lockstep": bool},
    "replay": {"episode": str},
}
SIMULATED = ("mujoco", "replay")
_FIT = ("crop",)  # settings of a camera's picture rather than of the camera


@dataclass
class Cell:
    """``task`` and ``world``: of the scene. ``twin``: the simulated robot, where it is one. ``close`` lets go of what was opened."""

    robot: Robot
    gripper: Gripper
    clock: Clock
    world: Transform
    cameras: Mapping[str, Camera] = field(default_factory=dict)
    fits: Mapping[str, ImageFit] = field(default_factory=dict)
    object_pose: ObjectPose | None = None
    twin: Any = None
    resources: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        self.resources.close()


def make_cell(
    robot: Mapping[str, Any],
    camera: Mapping[str, Any],
    spec: ObservationSpec,
    world: Transform,
    object_pose: str | None = None,
) -> Cell:
    """Arm, hand and the cameras that the policy sees through.

    Args:
        robot, camera: sections of the configuration, with ``kind``.
        spec: what the policy sees.
        world: where the arm's base stands in the world of the observations; the twin knows its own.
        object_pose: ``package.module.function`` of a pose estimator.

    Raises:
        DeploymentError: something that is missing, unknown or does not fit together.
    """
    kind, episode = robot["kind"], None
    clock: Clock = VirtualClock() if kind in SIMULATED and robot.get("lockstep", True) else WallClock()
    pose = None if object_pose is None else _function(object_pose)
    if kind == "mujoco":
        from env.franka.robot_mujoco import MujocoRobot

        twin = MujocoRobot(clock, spec.task, robot["law"], float(robot["feedforward"]))
        cell = Cell(twin, twin.gripper, clock, twin.world, object_pose=pose or twin.object_pose, twin=twin)
    elif kind == "replay":
        from env.franka.robot_replay import ReplayRobot

        episode = read_episode(_given(robot, "episode", "the folder of a recorded episode"))
        replay = ReplayRobot(episode, clock)
        cell = Cell(replay, replay.gripper, clock, world, object_pose=pose or _recorded(episode, replay, world))
    else:
        cell = Cell(*_arm(kind, _given(robot, "ip", "the control unit's address, such as 172.16.0.2")), clock, world)
        cell.object_pose = pose
    if spec.cameras:
        cell.cameras = {name: _camera(name, camera, spec, cell, episode) for name in spec.cameras}
        cell.fits = {name: Fit(spec.image_size, _crop(_settings_of(name, camera))) for name in spec.cameras}
    return cell


def _arm(kind: str, ip: str) -> tuple[Robot, Gripper]:
    """A real arm and its hand; the hand connects when it is made."""
    if kind == "panda":
        from env.franka.gripper_panda import PandaGripper
        from env.franka.robot_panda import PandaRobot

        return PandaRobot(ip), PandaGripper(ip)
    from env.franka.robot_franky import FrankyGripper, FrankyRobot

    return FrankyRobot(ip), FrankyGripper(ip)


def _recorded(episode: Episode, replay: Any, world: Transform) -> ObjectPose | None:
    """The object's pose as the recorded policy saw it; None where it saw none."""
    seen, to_base = episode.ticks.get("obs/object"), world.inverse()
    if seen is None:
        return None
    return lambda: (to_base.point(seen[replay.row()][:3]), to_base.orientation(seen[replay.row()][3:7]))


def _camera(name: str, camera: Mapping[str, Any], spec: ObservationSpec, cell: Cell, episode: Episode | None) -> Camera:
    kind = camera["kind"]
    if kind == "none":
        raise DeploymentError(f"camera=none, but the policy sees through {', '.join(spec.cameras)}: choose a camera")
    if kind == "mujoco":
        if cell.twin is None:
            raise DeploymentError("camera=mujoco draws the twin's scene: it goes with robot=mujoco")
        quality = spec.render_quality or "balanced"
        view = cell.twin.view(name, spec.image_size, quality, resolve(None, spec.renderer))
        cell.resources.callback(view.close)
        return MujocoCamera(name, view, cell.clock)
    if kind == "replay":
        if episode is None:
            raise DeploymentError("camera=replay shows the pictures of robot.episode: it goes with robot=replay")
        return ReplayCamera(name, episode, cell.clock)
    settings = {k: v for k, v in _settings_of(name, camera).items() if k not in _FIT}
    return make_camera(kind, name, cell.clock, **settings)


def _settings_of(name: str, camera: Mapping[str, Any]) -> dict[str, Any]:
    """A camera's own settings: those of all, and what ``each`` says of this one."""
    return {
        k: v for k, v in {**camera, **(camera.get("each") or {}).get(name, {})}.items() if k not in ("kind", "each")
    }


def _crop(settings: Mapping[str, Any]) -> tuple[int, int, int] | None:
    crop = settings.get("crop")
    return None if crop is None else tuple(crop)


def _given(section: Mapping[str, Any], key: str, what: str) -> str:
    if section.get(key) is None:
        raise DeploymentError(f"robot.{key}: {what} is needed (robot={section['kind']} robot.{key}=...)")
    return str(section[key])


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DeploymentError(
            f"object_pose: cannot import {path!r} ({error}); expected package.module.function"
        ) from error
    if not callable(found):
        raise DeploymentError(f"object_pose: {path} is no function")
    return found
