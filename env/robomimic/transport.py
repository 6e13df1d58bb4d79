"""Transport: one Panda arm takes the lid off a bin and hands the hammer in it to another arm, which clears a piece of
trash out of the target bin first and puts the hammer there (robosuite 1.5.2's TwoArmTransport, arms opposed).

Observation (59): ``robot0_*`` and ``robot1_*`` (9 each: eef_pos, eef_quat, gripper_qpos) and ``object`` (41: payload position
and orientation, trash position and orientation, lid handle position and orientation, target bin position, trash bin
position, payload in target bin, trash in trash bin (0 or 1), then payload minus gripper 0, lid handle minus gripper 0,
payload minus gripper 1, trash minus gripper 1). Orientations are (x, y, z, w), the objects' with w >= 0.

Action (14): Lift's seven for each arm. Reward 1 per control step (20 Hz) in which the hammer touches the floor of the
target bin and the trash the floor of the trash bin; nothing ends an episode but time.

Each episode draws the size of the hammer's head: every simulation has a model of its own.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any, ClassVar

import mujoco
import numpy as np

from env.engine import osc
from env.engine.library import GEOM_XPOS, N_HANDLES, SOLVED, XPOS, control_kernel, floats, integers, observe_kernel
from env.errors import EnvError
from env.robomimic import poses, suite
from env.robomimic.task import SuiteTask, arm_layout

N_OBS, N_MEMORY = 59, osc.memory_size(2)
_AT = osc.first_task_id(2)
PAYLOAD, TRASH, LID, HANDLE, TARGET_FLOOR, TRASH_FLOOR, N_GEOMS, GROUPS = range(_AT, _AT + 8)
IN_PAYLOAD, IN_TRASH, IN_TARGET, IN_BIN = 1, 2, 3, 4  # groups of geoms, 0: none
N_FACTS = osc.N_ARM_FACTS


@control_kernel(__file__)
def _control(handles, memory, ids, facts, action, reward):
    h, own, numbers = integers(handles, N_HANDLES), floats(memory, N_MEMORY), integers(ids, GROUPS)
    groups = integers(ids + 8 * GROUPS, numbers[N_GEOMS])
    osc.control_arms(h, own, numbers, floats(facts, N_FACTS), floats(action, 14))
    solved = poses.touching(h, groups, IN_TARGET, IN_PAYLOAD) and poses.touching(h, groups, IN_BIN, IN_TRASH)
    floats(reward, 1)[0] = 1.0 if solved else 0.0
    return SOLVED if solved else 0


@observe_kernel(__file__)
def _observe(handles, memory, ids, facts, obs):
    h, numbers, out = integers(handles, N_HANDLES), integers(ids, GROUPS), floats(obs, N_OBS)
    groups = integers(ids + 8 * GROUPS, numbers[N_GEOMS])
    osc.observe_arm(h, numbers, 0, out)
    osc.observe_arm(h, numbers, 1, out[9:])
    payload, trash = floats(h[XPOS] + 24 * numbers[PAYLOAD], 3), floats(h[XPOS] + 24 * numbers[TRASH], 3)
    handle = floats(h[GEOM_XPOS] + 24 * numbers[HANDLE], 3)
    target, waste = (
        floats(h[GEOM_XPOS] + 24 * numbers[TARGET_FLOOR], 3),
        floats(h[GEOM_XPOS] + 24 * numbers[TRASH_FLOOR], 3),
    )
    for r in range(3):
        out[18 + r], out[25 + r], out[32 + r] = payload[r], trash[r], handle[r]
        out[39 + r], out[42 + r] = target[r], waste[r]
        out[47 + r], out[50 + r] = payload[r] - out[r], handle[r] - out[r]
        out[53 + r], out[56 + r] = payload[r] - out[9 + r], trash[r] - out[9 + r]
    poses.write_upright_quaternion(h, numbers[PAYLOAD], out[21:])
    poses.write_upright_quaternion(h, numbers[TRASH], out[28:])
    poses.write_upright_quaternion(h, numbers[LID], out[35:])
    out[45] = 1.0 if poses.touching(h, groups, IN_TARGET, IN_PAYLOAD) else 0.0
    out[46] = 1.0 if poses.touching(h, groups, IN_BIN, IN_TRASH) else 0.0


class Transport(SuiteTask):
    """The task; see the module docstring and ``SuiteTask``."""

    name, action_dim, memory_size = "transport", 14, N_MEMORY
    suite_task, robots = "TwoArmTransport", ("Panda", "Panda")
    objects = (
        "transport_start_bin", "transport_start_bin_lid", "payload", "transport_target_bin", "trash", "transport_trash_bin",
    )  # fmt: skip
    n_extra, own_models = 1, True  # the hammer head's half-size (m)
    camera = "frontview"  # shows both arms
    control_kernel, observe_kernel = _control, _observe
    layout: ClassVar[dict[str, slice]] = arm_layout(2, 41)

    def _find(self, env: Any) -> None:
        group = env.transport
        parts = {
            IN_PAYLOAD: group.payload.contact_geoms, IN_TRASH: group.trash.contact_geoms,
            IN_TARGET: group.target_bin.base_geoms, IN_BIN: group.trash_bin.base_geoms,
        }  # fmt: skip
        geoms = {key: [self._geom(name) for name in names] for key, names in parts.items()}
        groups = np.zeros(self.model.ngeom, np.int64)
        for key, members in geoms.items():
            groups[members] = key
        bodies = [self.body(thing.root_body) for thing in (group.payload, group.trash, group.lid)]
        handle = self._geom(group.lid.handle_geoms[0])
        if self.model.geom_bodyid[handle] != bodies[2] or not np.array_equal(
            self.model.geom_quat[handle], [1, 0, 0, 0]
        ):
            raise EnvError("the lid's handle is turned against the lid: robosuite's model has changed")
        singles = [*bodies, handle, geoms[IN_TARGET][0], geoms[IN_BIN][0], self.model.ngeom]
        self.ids = np.array([*self._arm_ids, *singles, *groups], np.int64)
        self.facts = np.array(self._arm_facts)
        self._hammer = _Hammer(group.payload, self._xml)
        self._walls = [float(group.objects[name].wall_thickness) for name in ("start_bin", "target_bin")]
        self._bin_height = float(group.bin_size[2])

    def _geom(self, name: str) -> int:
        return suite.element_id(self.model, mujoco.mjtObj.mjOBJ_GEOM, name)

    def _draw_extra(self, rng: np.random.Generator) -> np.ndarray:
        return np.array([self._hammer.draw(rng)])

    def _extra_of(self, suite_env: Any) -> np.ndarray:
        return np.array([suite_env.transport.payload.head_halfsize])

    def _arrange(self, poses: dict[str, np.ndarray], extra: np.ndarray) -> dict[str, np.ndarray]:
        """Lid and hammer belong to the start bin, the trash into the target bin."""
        start, target = poses["transport_start_bin"][:2], poses["transport_target_bin"][:2]
        for name, xy, above in (
            ("transport_start_bin_lid", start, self._bin_height),
            ("payload", start, self._walls[0]),
            ("trash", target, self._walls[1]),
        ):
            poses[name][:2] = xy
            poses[name][2] += above
        return poses

    def patch(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray) -> None:
        """Give the hammer its head, exactly as if the model had been compiled with it (robosuite recompiles for every
        episode).
        """
        self._hammer.patch(model, float(start[0]))
        mujoco.mj_setConst(model, data)


class _Hammer:
    """robosuite's hammer: the head's half-size is drawn anew in every episode."""

    _GEOMS = ("handle", "head", "neck", "face", "claw")

    def __init__(self, payload: Any, xml: str) -> None:
        ranges = (
            payload.handle_radius_range,
            payload.handle_length_range,
            payload.handle_density_range,
            payload.handle_friction_range,
        )
        if any(np.ptp(r) != 0.0 for r in ranges):
            raise EnvError("robosuite draws the hammer's handle: this engine knows only one of fixed size")
        self._radius, self._length = float(payload.handle_radius), float(payload.handle_length)
        self._body = payload.root_body
        self._alone = self._only_hammer(suite.physics_xml(xml))

    def draw(self, rng: np.random.Generator) -> float:
        """Half-size of the head (m). robosuite draws the handle's four numbers, too, from ranges of no width."""
        rng.random(4)
        return float(rng.uniform(self._radius, self._radius * 1.2))

    def patch(self, model: mujoco.MjModel, half: float) -> None:
        """Copy a freshly compiled hammer into ``model``, visual geoms included."""
        alone = mujoco.MjModel.from_xml_string(self._compile(half))
        body, single = model.body(self._body).id, alone.body(self._body).id
        for field in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
            getattr(model, field)[body] = getattr(alone, field)[single]
        for name in self._GEOMS:
            own = alone.geom(f"payload_{name}").id
            for copy in (f"payload_{name}", f"payload_{name}_vis"):
                geom = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, copy)
                if geom >= 0:
                    for field in ("geom_size", "geom_pos", "geom_quat", "geom_aabb", "geom_rbound"):
                        getattr(model, field)[geom] = getattr(alone, field)[own]
        if model.body_bvhnum[body] == alone.body_bvhnum[single]:
            self._copy_tree(model, body, alone, single)

    @staticmethod
    def _copy_tree(model: mujoco.MjModel, body: int, alone: mujoco.MjModel, single: int) -> None:
        """The body's bounding volumes, whose leaves are numbered by geom."""
        n, to, at = model.body_bvhnum[body], model.body_bvhadr[body], alone.body_bvhadr[single]
        nodes, own = slice(to, to + n), slice(at, at + n)
        model.bvh_aabb[nodes], model.bvh_child[nodes] = alone.bvh_aabb[own], alone.bvh_child[own]
        model.bvh_depth[nodes] = alone.bvh_depth[own]
        shift = model.body_geomadr[body] - alone.body_geomadr[single]
        leaves = alone.bvh_nodeid[own]
        model.bvh_nodeid[nodes] = np.where(leaves >= 0, leaves + shift, leaves)

    def _only_hammer(self, xml: str) -> ElementTree.Element:
        root = ElementTree.fromstring(xml)
        hammer = next(body for body in root.iter("body") if body.get("name") == self._body)
        alone = ElementTree.Element("mujoco")
        alone.extend([root.find("compiler"), root.find("option"), ElementTree.Element("worldbody")])
        alone.find("worldbody").append(hammer)
        return alone

    def _compile(self, h: float) -> str:
        """The hammer's MJCF with a head of half-size ``h``; geometry of robosuite's ``HammerObject``."""
        end = self._length / 2.0 + h
        parts = {
            "head": ((h * 2, h, h), (0.0, 0.0, end)),
            "neck": ((h * 0.8, h * 0.2), (h * 2.2, 0.0, end)),
            "face": ((h, h * 0.4), (h * 2.8, 0.0, end)),
            "claw": ((h * 0.7072, h * 0.95, h * 0.7072), (-h * 2, 0.0, end)),
        }
        for geom in self._alone.iter("geom"):
            size, position = parts.get(geom.get("name", "").removeprefix("payload_"), (None, None))
            if size is not None:
                geom.set("size", " ".join(map(repr, size)))
                geom.set("pos", " ".join(map(repr, position)))
        return ElementTree.tostring(self._alone, encoding="unicode")
