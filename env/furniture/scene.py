"""The whole scene as MJCF: table, three obstacles in a U, a Panda, the parts, and the threads between them.

A thread is a *nut*, a body on the peg (a child of the part that has the peg) that slides along it and turns about it, both
coupled by a tendon: ``u = pitch / (2 pi) * turn``, u (m) being how far the peg still has to go. Once peg and hole have found each other, an
equality that is switched on welds the nut into the hole; from then on the part can only be screwed. Until then the nut is a collar that
keeps the peg from being pushed in. ``screw.py`` switches.

World frame: the robot's base, table at z = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

from env.d3il import panda
from env.d3il.ik import FLANGE, HAND_TURN
from env.d3il.panda import text
from env.furniture.arm import GRIPPER_FORCE
from env.furniture.facts import Furniture
from env.furniture.looks import HIDDEN, assets, looks
from env.furniture.parts import FIRM, HAND, PARTS, REST, WALL, joined, nut
from env.furniture.screw import FRICTION_TORQUE, PITCH

DT = 0.004  # s
START_JOINTS = (-0.02630888, 0.3758795, 0.12485036, -2.1383357, -0.09431414, 2.49648072, 0.01921718)
STIFFNESS, DAMPING = 1000.0, 200.0  # N m/rad, N m s/rad of the arm's joints
DRAG = 1e-4  # N s/m, N m s/rad of a part: else what is round would roll away for ever
EE_FROM_HAND = 0.103399  # m along the hand's axis
# how much stiffer friction is than contact: what is round slips out of the fingers at 3 and less; legs with faces do not, and solving is quicker
IMPRATIO = {"one_leg": 1}
TOLERANCE = 1e-5  # of the solver: MuJoCo's 1e-8 costs 5 % of a step
OBSTACLE_CENTRE = (0.6815, 0.0, 0.015)  # m, of the front one
OBSTACLES = (  # centre relative to the front one's, half sizes
    ("front", (0.0, 0.0, 0.0), (0.01, 0.175, 0.015)),
    ("right", (-0.075, -0.175, 0.0), (0.085, 0.01, 0.015)),
    ("left", (-0.075, 0.175, 0.0), (0.085, 0.01, 0.015)),
)
_FINGERS = f'contype="{HAND | REST}" conaffinity="0"'


@dataclass(frozen=True)
class Screw:
    """A peg that can be screwed into a hole of another part: names of its MJCF elements, and how far it has to go.

    ``pair`` (index into ``Furniture.pairs``) says where it ends; ``welds`` are one equality per place.
    """

    pair: int
    part: str
    socket: str
    tendon: str
    slide: str
    turn: str
    welds: tuple[str, ...]
    excludes: tuple[str, str]  # of part and socket, of nut and socket
    depth: float  # m from the rim of the hole to the tip, when home


def screws(furniture: Furniture) -> tuple[Screw, ...]:
    """One for each pair whose second part has a peg."""
    found = []
    for index, pair in enumerate(furniture.pairs):
        name, socket = furniture.parts[pair.second], furniture.parts[pair.first]
        part = PARTS[name]
        if part.axis is not None:
            welds = tuple(f"{name}_{k}" for k in range(len(pair.places)))
            ends = (f"{name}_{what}" for what in ("thread", "slide", "turn"))
            excludes = f"{name}_excluded", f"{name}_nut_excluded"
            found.append(Screw(index, name, socket, *ends, welds, excludes, part.tip - part.root))
    return tuple(found)


def scene(furniture: Furniture, visual: bool = False) -> str:
    """The MJCF. ``visual``: with an arm's shape, light and a camera."""
    threads = {screw.part: screw for screw in screws(furniture)}
    parts = joined(_part(name, threads.get(name), visual) for name in furniture.parts)
    tendons = joined(
        f'<fixed name="{s.tendon}"><joint joint="{s.slide}" coef="1"/><joint joint="{s.turn}" coef="{-PITCH / math.tau!r}"/></fixed>'
        for s in threads.values()
    )
    equalities = joined(f'<tendon name="{s.tendon}" tendon1="{s.tendon}" {FIRM}/>' for s in threads.values())
    equalities += joined(_weld(furniture, s, k) for s in threads.values() for k in range(len(s.welds)))
    apart = joined(f'<exclude body1="hand" body2="{finger}"/>' for finger in ("left", "right"))
    apart += joined(
        f'<exclude name="{which}" body1="{s.socket}" body2="{body}"/>'
        for s in threads.values()
        for which, body in zip(s.excludes, (s.part, f"{s.part}_nut"), strict=True)
    )
    world = _surroundings(visual) + _arm(furniture.gripper_width, visual) + parts
    return (
        '<mujoco model="furniture"><compiler angle="radian" autolimits="true"/>'
        f'<option timestep="{DT}" integrator="implicitfast" cone="elliptic" tolerance="{TOLERANCE}" '
        f'impratio="{IMPRATIO.get(furniture.name, 10)}"/><size memory="4M"/>'
        '<default><geom friction=".15"/><default class="part"><geom condim="4" friction=".15 .002 .0001" '
        f'group="{HIDDEN if visual else 0}"/></default><default class="arm"><joint armature=".1"/></default></default>'
        f"{_LOOKS.replace('</asset>', assets(furniture) + '</asset>') if visual else ''}<worldbody>{world}</worldbody>"
        f"<tendon>{tendons}</tendon><equality>{equalities}</equality><actuator>{_motors()}</actuator><contact>{apart}</contact></mujoco>"
    )


def build(furniture: Furniture, visual: bool = False) -> mujoco.MjModel:
    """The scene compiled, with gravity compensated on the arm and every part as heavy as it should be."""
    spec = mujoco.MjSpec.from_string(scene(furniture, visual))
    for name in (*(f"l{i + 1}" for i in range(panda.N_LINKS)), "hand", "left", "right"):
        spec.body(name).gravcomp = 1.0
    model = spec.compile()
    for name in furniture.parts:
        body = model.body(name)
        scale = PARTS[name].mass / body.mass[0]
        body.mass[:] *= scale
        body.inertia[:] *= scale
    for name in (name for screw in screws(furniture) for name in screw.excludes):
        model.exclude_signature[model.exclude(name).id] = 0  # none: ``screw.py`` writes it while the thread holds
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def _part(name: str, screw: Screw | None, visual: bool) -> str:
    part = PARTS[name]
    inner = ""
    if screw is not None:
        axis, limit = text(part.axis), (screw.depth + 0.01) * math.tau / PITCH
        inner = (
            f'<body name="{name}_nut"><inertial mass=".002" pos="0 0 0" diaginertia="1e-6 1e-6 1e-6"/>'
            # inertia along the axis makes the thread stiff, and is next to nothing against turning: times (pitch / 2 pi)^2
            f'<joint name="{screw.slide}" type="slide" axis="{axis}" armature="1"/>'
            f'<joint name="{screw.turn}" type="hinge" axis="{axis}" range="0 {limit}" armature="1e-4" damping="1e-4" frictionloss="{FRICTION_TORQUE}" '
            'solreffriction=".01 1" solimpfriction=".999 .9999 .001 .5 2" '
            f'solreflimit=".01 1" solimplimit=".999 .9999 .001 .5 2"/>{nut(part)}</body>'
        )
    return f'<body name="{name}"><joint name="{name}" type="free" damping="{DRAG}"/>{part.geoms}{looks(name) if visual else ""}{inner}</body>'


def _weld(furniture: Furniture, screw: Screw, k: int) -> str:
    """The nut in hole ``k``: its frame is where the part's is when home."""
    pair, quat = furniture.pairs[screw.pair], np.zeros(4)
    mujoco.mju_mat2Quat(quat, pair.rotation.ravel())
    return (
        f'<weld name="{screw.welds[k]}" body1="{screw.socket}" body2="{screw.part}_nut" active="false" '
        f'relpose="{text((*pair.places[k], *quat))}" {FIRM}/>'
    )


def _arm(width: float, visual: bool) -> str:
    links, half = joined(panda.link(i, visual) for i in range(panda.N_LINKS)), HAND_TURN / 2
    return (
        f'<body childclass="arm">{links}<body name="hand" pos="0 0 {FLANGE}" quat="{text((math.cos(half), 0, 0, math.sin(half)))}">'
        '<inertial mass=".73" pos="0 0 .024" diaginertia=".0023 .0021 .0005"/>'
        f'<geom type="box" pos="0 0 .03" size=".02 .1 .03" mass="0" priority="1" {_FINGERS} {FIRM} {_WHITE}/>'
        f'<site name="ee" pos="0 0 {EE_FROM_HAND}" size=".001" rgba="0 0 0 0"/>'
        f"{_finger('left', 1, width)}{_finger('right', -1, width)}</body></body>{'</body>' * panda.N_LINKS}"
    )


def _finger(name: str, side: int, width: float) -> str:
    pad = 'friction="1 .02 .001" condim="4" priority="2" solref=".008 1" solimp=".95 .99 .001"'
    return (
        f'<body name="{name}" pos="0 0 .0584"><joint name="{name}" type="slide" axis="0 {side} 0" range="0 {width / 2}" damping="20" armature="1" '
        f'solreflimit=".01 1" solimplimit=".999 .9999 .001 .5 2"/>'
        f'<geom type="box" pos="0 {side * 0.00758} .04525" size=".00875 .0076 .00925" mass=".03" {_FINGERS} {pad} {_DARK}/>'
        f'<geom type="box" pos="0 {side * 0.0159} .02835" size=".00875 .0035 .01175" euler="{side * 0.5236} 0 0" mass=".01" {_FINGERS} {pad} {_DARK}/></body>'
    )


def _motors() -> str:
    arm = joined(
        f'<position joint="j{i + 1}" kp="{STIFFNESS}" kv="{DAMPING}" forcerange="-{limit} {limit}"/>'
        for i, limit in enumerate(panda.FORCE_LIMITS)
    )
    return arm + joined(f'<motor joint="{f}" ctrlrange="-{GRIPPER_FORCE} {GRIPPER_FORCE}"/>' for f in ("left", "right"))


_WHITE, _DARK = 'rgba=".92 .93 .95 1"', 'rgba=".25 .27 .3 1"'
_LOOKS = (
    '<visual><global offwidth="1280" offheight="960"/><headlight ambient=".4 .4 .4" diffuse=".3 .3 .3" specular="0 0 0"/>'
    '<quality shadowsize="2048"/></visual>'
    '<asset><texture name="sky" type="skybox" builtin="flat" rgb1=".93 .95 .97" rgb2=".93 .95 .97" width="32" height="32"/></asset>'
)


def _surroundings(visual: bool) -> str:
    """Table (its friction counts, not the parts'), obstacles, and what one sees by."""
    obstacles = joined(
        f'<geom name="obstacle_{name}" type="box" pos="{text(at)}" size="{text(half)}" contype="0" conaffinity="{WALL | HAND}" '
        f'{FIRM} rgba=".3 .3 .33 1"/>'
        for name, at, half in OBSTACLES
    )
    eye, at = (1.25, -0.42, 0.62), (0.53, 0.0, 0.07)
    seen = (
        '<light pos=".3 -.6 2" dir="0 .3 -1" diffuse=".35 .35 .35" specular=".1 .1 .1"/>'
        f'<camera name="table" pos="{text(eye)}" xyaxes="{text(panda.look(eye, at))}" fovy="31"/>'
    )
    return (
        '<geom name="table" type="plane" pos=".4 0 0" size=".65 .6 .1" friction=".125" condim="3" priority="1" contype="0" '
        f'conaffinity="{REST}" {FIRM} rgba=".86 .85 .82 1"/>'
        f'<body name="obstacles" mocap="true" pos="{text(OBSTACLE_CENTRE)}">{obstacles}</body>{seen if visual else ""}'
    )
