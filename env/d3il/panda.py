"""D3IL's Panda with a rod in its hand among the cylinders, as MJCF: masses and kinematics of the arm, no meshes.

What is simulated is exactly what D3IL simulates here: seven links, hand, closed fingers, the rod as the only thing that
touches, and the cylinders. Inertias are those of D3IL's arm (link 8's and the fingers' are larger than the real ones, on
purpose or not: they are part of the dynamics). ``scene(visual=True)`` adds shapes to look at, which neither weigh nor touch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from env.d3il import field
from env.d3il.ik import DT, FLANGE, HAND_TO_TCP, HAND_TURN, OFFSET, TURN

FORCE_LIMITS = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)  # N m
ROD_HALF, ROD_CENTRE = 0.15, 0.075  # m along the hand's axis, from the flange
START_JOINTS = (-0.35640868, 0.42944545, -0.1350106, -2.05465189, 0.09357822, 2.48071794, 0.23250676)
HEIGHT = 0.12  # m: where the hand is held
# mass (kg), centre of mass (m), orientation (w x y z) and principal moments (kg m^2) of links 1 to 7; range of each joint
_LINKS = (
    (2.77281, (1.1399e-05, -0.0312655, -0.0693733), (0.98466, 0.174481, -0.000101815, 0.000347662),
     (0.0164224, 0.0153969, 0.00546286), (-2.9671, 2.9671)),
    (2.7996, (-1.31766e-05, -0.0703216, 0.0311782), (0.57484, 0.818266, -6.05764e-05, -6.61626e-05),
     (0.016787, 0.0157415, 0.00553027), (-1.8326, 1.8326)),
    (2.14603, (0.0443483, 0.0249283, -0.03813), (0.0615263, 0.349824, 0.234291, 0.904956),
     (0.00915257, 0.00896477, 0.00384742), (-2.9671, 2.9671)),
    (2.18807, (-0.0385503, 0.0395256, 0.0247162), (0.813566, 0.465041, 0.309792, 0.160858),
     (0.00946899, 0.00928491, 0.00396694), (-3.1416, 0.0873)),
    (3.19545, (-6.36776e-05, 0.0384124, -0.10997), (0.990767, -0.135571, 0.000963106, 0.000694406),
     (0.0278873, 0.0268823, 0.00569569), (-2.9671, 2.9671)),
    (1.35761, (0.0510023, 0.00693267, 0.00616899), (-0.0460841, 0.754362, 0.044494, 0.653325),
     (0.00412168, 0.0033698, 0.00213304), (-0.0873, 3.8223)),
    (0.417345, (0.0103614, 0.0103596, 0.0791078), (0.63547, 0.278021, -0.670462, 0.263369),
     (0.000637671, 0.000528056, 0.000279577), (-2.9671, 2.9671)),
)  # fmt: skip
N_LINKS = len(_LINKS)
_HAND = (
    0.670782, (-2.76618e-06, -0.00061547, 0.0239295), (0.697945, 0.716151, -0.000242485, 8.47563e-05),
    (0.00227632, 0.00206087, 0.000456542),
)  # fmt: skip


def scene(visual: bool = False) -> str:
    """The MJCF. ``visual``: with an arm, a table, the finish line and cameras to look at and through."""
    bodies = "".join(link(i, visual) for i in range(N_LINKS))
    motors = "".join(
        f'<motor name="m{i + 1}" joint="j{i + 1}" forcelimited="true" forcerange="-{limit} {limit}"/>'
        for i, limit in enumerate(FORCE_LIMITS)
    )
    obstacles = "".join(
        f'<geom name="{name}" type="cylinder" pos="{x} {y} 0" size="{radius} {half}" group="1" rgba=".75 .2 .2 1"/>'
        for name, x, y, radius, half in field.CYLINDERS
    )
    return (
        '<mujoco model="avoiding"><compiler angle="radian" autolimits="true"/>'
        f'<option timestep="{DT}" cone="elliptic" impratio="3" tolerance="1e-10"/>'
        f"{_LOOKS if visual else ''}<size memory='4M'/>"
        f"<worldbody>{obstacles}{_surroundings() if visual else ''}{bodies}{_hand(visual)}{'</body>' * N_LINKS}"
        f"</worldbody><actuator>{motors}</actuator></mujoco>"
    )


def text(values: Iterable[float]) -> str:
    """Numbers as MJCF has them, at full precision."""
    return " ".join(repr(float(v)) for v in values)


def inertial(mass: float, com: Iterable[float], quat: Iterable[float], moments: Iterable[float]) -> str:
    return f'<inertial mass="{mass}" pos="{text(com)}" quat="{text(quat)}" diaginertia="{text(moments)}"/>'


def link(i: int, visual: bool) -> str:
    """Link ``i`` (0 to ``N_LINKS`` - 1) of the arm with its joint, as a body that the caller closes after what it carries."""
    mass, com, quat, moments, (low, high) = _LINKS[i]
    half = TURN[i] * math.pi / 4
    return (
        f'<body name="l{i + 1}" pos="{text(OFFSET[i])}" quat="{text((math.cos(half), math.sin(half), 0, 0))}">'
        f'{inertial(mass, com, quat, moments)}<joint name="j{i + 1}" axis="0 0 1" range="{low} {high}"/>'
        f"{_SHAPES[i] if visual else ''}"
    )


def _hand(visual: bool) -> str:
    """Flange, hand, closed fingers, rod, and the TCP that is controlled."""
    half = HAND_TURN / 2
    return (
        f'<body name="l8" pos="0 0 {FLANGE}">{inertial(0.1, (0, 0, 0), (1, 0, 0, 0), (0.1, 0.1, 0.1))}'
        f'<body name="hand" quat="{text((math.cos(half), 0, 0, math.sin(half)))}">{inertial(*_HAND)}'
        f'{_HAND_SHAPE if visual else ""}<body name="fingers" pos="0 0 .0584">'
        f"{inertial(0.0637508, (0, 0, 0.035), (1, 0, 0, 0), (0.02013, 0.02013, 0.02003))}</body>"
        f'<body name="tcp" pos="0 0 {HAND_TO_TCP}"><site name="tcp" size=".001" rgba="0 0 0 0"/></body>'
        f'<body name="rod"><geom name="rod" type="cylinder" size="{field.ROD_RADIUS} {ROD_HALF}" '
        f'pos="0 0 {ROD_CENTRE}" density="1000" group="1" rgba=".1 .35 .8 1"/></body></body></body>'
    )


_SEEN = 'contype="0" conaffinity="0" mass="0" group="1"'
_WHITE, _DARK = 'rgba=".92 .93 .95 1"', 'rgba=".25 .27 .3 1"'


def _capsule(a: Iterable[float], b: Iterable[float], radius: float, colour: str = _WHITE) -> str:
    return f'<geom type="capsule" fromto="{text((*a, *b))}" size="{radius}" {_SEEN} {colour}/>'


_SHAPES = (
    _capsule((0, 0, -0.19), (0, 0, -0.05), 0.06) + _capsule((0, -0.05, 0), (0, 0.05, 0), 0.06, _DARK),
    _capsule((0, 0, -0.05), (0, 0, 0.05), 0.058) + _capsule((0, -0.19, 0), (0, -0.05, 0), 0.056),
    _capsule((0, 0, -0.12), (0, 0, -0.03), 0.056, _DARK) + _capsule((0, 0, 0), (0.0825, 0, 0), 0.053),
    _capsule((0, 0, -0.05), (0, 0, 0.05), 0.053, _DARK) + _capsule((0, 0, 0), (-0.0825, 0.09, 0), 0.05),
    _capsule((0, 0, -0.29), (0, 0.06, -0.08), 0.046) + _capsule((0, 0.06, -0.08), (0, 0, 0), 0.044),
    _capsule((0, 0, -0.05), (0, 0, 0.02), 0.048, _DARK) + _capsule((0, 0, 0), (0.088, 0, 0), 0.042),
    _capsule((0, 0, -0.02), (0, 0, 0.085), 0.042, _DARK),
)
_HAND_SHAPE = (
    f'<geom type="box" size=".028 .1 .03" pos="0 0 .03" {_SEEN} {_WHITE}/>'
    f'<geom type="box" size=".012 .022 .028" pos="0 0 .085" {_SEEN} {_DARK}/>'
)
_LOOKS = (
    '<visual><global offwidth="1024" offheight="1024"/><headlight ambient=".4 .4 .4" diffuse=".3 .3 .3" specular="0 0 0"/>'
    '<quality shadowsize="2048"/></visual>'
    '<asset><texture name="sky" type="skybox" builtin="flat" rgb1=".93 .95 .97" rgb2=".93 .95 .97" width="32" '
    'height="32"/></asset>'
)


def _surroundings() -> str:
    """Table, the line to cross, the robot's foot, light and cameras."""
    low, high = field.X_RANGE
    middle = (low + high) / 2
    return (
        f'<geom type="box" size=".45 .55 .02" pos="{middle} .07 -.095" {_SEEN} rgba=".8 .76 .7 1"/>'
        f'<geom type="box" size="{(high - low) / 2} .004 .002" pos="{middle} {field.LINE} -.073" {_SEEN} '
        'rgba=".1 .6 .25 1"/>'
        f"{_capsule((-0.03, 0, 0.03), (0, 0, 0.12), 0.075)}"
        '<light pos=".3 -.6 2" dir="0 .3 -1" diffuse=".35 .35 .35" specular=".1 .1 .1" castshadow="true"/>'
        f'<camera name="field" pos="1.55 -.35 1.05" xyaxes="{text(look((1.55, -0.35, 1.05), (0.38, 0.05, 0.14)))}" '
        'fovy="50"/>'
        f'<camera name="above" pos="{middle} .06 1.7" xyaxes="0 1 0 -1 0 0" fovy="40"/>'
    )


def look(eye: tuple[float, ...], at: tuple[float, ...]) -> tuple[float, ...]:
    """The x and y axes of a camera at ``eye`` that looks at ``at``, upright."""
    back = [e - a for e, a in zip(eye, at, strict=True)]
    length = math.sqrt(sum(b * b for b in back))
    bx, by, bz = (b / length for b in back)
    side = math.hypot(bx, by)
    xaxis = (-by / side, bx / side, 0.0)
    yaxis = (by * xaxis[2] - bz * xaxis[1], bz * xaxis[0] - bx * xaxis[2], bx * xaxis[1] - by * xaxis[0])
    return (*xaxis, *yaxis)
