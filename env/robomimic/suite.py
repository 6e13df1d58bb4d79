"""robosuite as a source of facts: its MJCF, its controller's gains, its joints; the simulating is done by
``env.engine``.

Only this module and ``reference.py`` import robosuite, and only when called: it takes a second, talks much, and sets
environment variables.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import types
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from typing import Any

import mujoco
import numpy as np

from env.engine import osc
from env.engine.library import check_versions
from env.errors import EnvError, MissingSimulatorError

STABLE_LIMIT = 1e4  # m, rad, m/s, rad/s: far beyond anything a robot does


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence robosuite's advice (private macros, optional packages) and undo its change of ``MUJOCO_GL``."""
    previous, gl = logging.root.manager.disable, os.environ.get("MUJOCO_GL")
    logging.disable(max(previous, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
        if gl is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = gl


@contextlib.contextmanager
def without_windows() -> Iterator[None]:
    """OpenCV stays outside for now: robosuite imports it for windows only, and it brings libGL into the process (or fails for want of it).

    What robosuite gets in its place imports OpenCV when it is first used.
    """
    if "cv2" in sys.modules:
        yield
        return
    later = types.ModuleType("cv2")
    later.__getattr__ = lambda name: getattr(importlib.import_module("cv2"), name)
    sys.modules["cv2"] = later
    try:
        yield
    finally:
        del sys.modules["cv2"]


def import_robosuite() -> Any:
    """The package, checked and silent. Raises ``MissingSimulatorError``, saying what to install."""
    check_versions(robosuite=True)
    try:
        with quiet(), without_windows():
            import robosuite
    except ImportError as error:
        raise MissingSimulatorError(
            f"robosuite is installed but cannot be imported ({error}). Try: bash script/setup.sh"
        ) from error
    return robosuite


def make_suite_env(
    task: str,
    robots: Sequence[str],
    *,
    seed: int | None = None,
    lite_physics: bool = True,
    cameras: Sequence[str] = (),
    image_size: Sequence[int] = (96, 96),
) -> Any:
    """A robosuite environment controlled by OSC_POSE in the *world* frame as the published datasets are; it renders
    only if ``cameras`` are named (``image_size``: height and width).
    """
    robosuite = import_robosuite()
    with quiet():
        config = robosuite.controllers.load_composite_controller_config(controller="BASIC", robot=robots[0])
        arm = dict(config["body_parts"]["right"], input_ref_frame="world")
        config["body_parts"] = {"right": arm}  # the others belong to robots with more limbs, and would be warned about
        return robosuite.make(
            task,
            robots=list(robots),
            controller_configs=[config] * len(robots),
            has_renderer=False,
            has_offscreen_renderer=bool(cameras),
            use_camera_obs=bool(cameras),
            **({"camera_names": list(cameras)} if cameras else {}),
            camera_heights=image_size[0],
            camera_widths=image_size[1],
            control_freq=20,
            horizon=10**9,
            ignore_done=True,
            lite_physics=lite_physics,
            seed=seed,
        )


ARENA = (
    "32M"  # room for contacts and constraints of one simulation; a few hundred kB are used, the rest is address space
)


def full_xml(suite_env: Any, without: Sequence[str] = ()) -> str:
    """The task's MJCF at full precision (the compiled model's own XML has six digits), with file paths resolved.

    Bodies named in ``without`` are left out. Bodies that cannot move stand where robosuite put them after compiling.
    """
    root = ElementTree.fromstring(suite_env.edit_model_xml(suite_env.model.get_xml()))
    world, model = root.find("worldbody"), suite_env.sim.model._model
    for body in list(world):
        if body.tag == "body" and body.get("name") in without:
            world.remove(body)
        elif body.tag == "body" and body.get("name") and model.body(body.get("name")).dofnum[0] == 0:
            now = model.body(body.get("name")).pos
            if not np.array_equal(now, [float(x) for x in body.get("pos", "0 0 0").split()]):
                body.set("pos", " ".join(repr(float(x)) for x in now))
    return ElementTree.tostring(root, encoding="unicode")


def keep_solver_tolerance(model: mujoco.MjModel, whole: mujoco.MjModel) -> None:
    """Let the constraint solver of ``model`` stop where that of ``whole``, which has more bodies, would: its tolerance is
    scaled by 1 / (mean inertia * nv).
    """
    model.stat.meaninertia = whole.stat.meaninertia * whole.nv / model.nv


def physics_xml(xml: str) -> str:
    """The MJCF without what physics does not see: visual geoms, their meshes and textures, and sensors.

    Inertia comes from explicit ``inertial`` elements and collision geoms, so motion stays the same to the bit
    (tested), 10 % faster.
    """
    root = ElementTree.fromstring(xml)
    for parent in root.iter():
        for child in list(parent):
            if child.tag == "geom" and child.get("contype") == "0" and child.get("conaffinity") == "0":
                parent.remove(child)
    meshes = {geom.get("mesh") for geom in root.iter("geom")}
    for asset in root.findall("asset"):
        for child in list(asset):
            if child.tag in ("texture", "material") or (child.tag == "mesh" and child.get("name") not in meshes):
                asset.remove(child)
    for element in (*root.iter("geom"), *root.iter("site")):
        element.attrib.pop("material", None)
    for sensors in root.findall("sensor"):
        root.remove(sensors)
    for size in root.findall("size"):  # robosuite's limits ask for 1.2 GB of address space per simulation
        root.remove(size)
    ElementTree.SubElement(root, "size", memory=ARENA)
    return ElementTree.tostring(root, encoding="unicode")


def element_id(model: mujoco.MjModel, kind: mujoco.mjtObj, name: str) -> int:
    """Id of a named element. Raises ``EnvError`` when the model has none of that name."""
    found = mujoco.mj_name2id(model, kind, name)
    if found < 0:
        raise EnvError(f"the model has no {kind.name[6:].lower()} {name!r}: robosuite's names have changed")
    return found


def arm_ids(suite_env: Any, model: mujoco.MjModel) -> list[int]:
    """``osc``'s ids of all robots (one arm each): see there."""
    steps = int(suite_env.control_timestep / suite_env.model_timestep)
    ids = [len(suite_env.robots), steps, model.nv, model.nu]
    for robot in suite_env.robots:
        gripper, joints = robot.gripper["right"], robot.robot_model.arm_joints
        first = [element_id(model, mujoco.mjtObj.mjOBJ_JOINT, name) for name in (joints[0], gripper.joints[0])]
        ids += [
            element_id(model, mujoco.mjtObj.mjOBJ_SITE, gripper.important_sites["grip_site"]),
            element_id(model, mujoco.mjtObj.mjOBJ_BODY, robot.robot_model.eef_name["right"]),
            int(model.jnt_qposadr[first[0]]),
            int(model.jnt_dofadr[first[0]]),
            element_id(model, mujoco.mjtObj.mjOBJ_ACTUATOR, robot.robot_model.arm_actuators[0]),
            int(model.jnt_qposadr[first[1]]),
            element_id(model, mujoco.mjtObj.mjOBJ_ACTUATOR, gripper.actuators[0]),
        ]
    return ids


def arm_facts(suite_env: Any) -> list[float]:
    """``osc``'s facts, read from robosuite's controller. Raises ``EnvError`` where it is set up in a way ``osc`` does
    not do.
    """
    controller, gripper = suite_env.robots[0].part_controllers["right"], suite_env.robots[0].gripper["right"]
    kp, kd, scale = controller.kp, controller.kd, controller.output_max
    expected = {
        "equal gains": np.ptp(kp) == 0.0,
        "critical damping": np.array_equal(kd, 2.0 * np.sqrt(kp)),
        "symmetric scales": np.array_equal(controller.output_min, -scale)
        and np.ptp(scale[:3]) == np.ptp(scale[3:]) == 0.0,
        "deltas in the world frame": controller.input_type == "delta" and controller.input_ref_frame == "world",
        "uncoupled position and orientation": bool(controller.uncoupling),
        "seven joints": len(controller.qpos_index) == osc.N_JOINTS,
        "two fingers": len(gripper.joints) == 2 and len(gripper.actuators) == 2,
    }
    missing = [fact for fact, holds in expected.items() if not holds]
    if missing:
        raise EnvError(f"robosuite's controller is not the one this engine reproduces; expected: {', '.join(missing)}")
    return [STABLE_LIMIT, float(kp[0]), float(scale[0]), float(scale[3]), float(gripper.speed)]


def begin_arms(
    model: mujoco.MjModel, data: mujoco.MjData, ids: np.ndarray, joints: np.ndarray, memory: np.ndarray
) -> None:
    """Set the arms' joints ``(n_arms, 7)`` in reset ``data`` and the controllers' memory, as when robosuite builds
    its controllers.

    At that moment the fingers are still shut; the mass matrix of then serves the episode's first substep.
    """
    arms = ids[osc.FIRST_ARM :].tolist()
    for k, q in enumerate(joints):
        at = arms[osc.N_ARM_IDS * k + 2]
        data.qpos[at : at + osc.N_JOINTS] = q
    mujoco.mj_forward(model, data)
    mass = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, mass, data.qM)
    memory[osc.STALE] = 1.0
    for k, q in enumerate(joints):
        own, dof = memory[1 + osc.N_ARM_MEMORY * k :], arms[osc.N_ARM_IDS * k + 3]
        own[osc.INITIAL : osc.INITIAL + osc.N_JOINTS] = q
        own[osc.GRIPPER : osc.GRIPPER + 2] = 0.0
        block = mass[dof : dof + osc.N_JOINTS, dof : dof + osc.N_JOINTS]
        own[osc.MASS : osc.MASS + block.size] = block.ravel()
