"""The parts of Furniture-Bench's three tasks from primitives, as MJCF: sizes in metres, measured on the published meshes, each in its
mesh's own frame.

What may touch what is a matter of bits (``GENERAL`` geoms are ``FIT``, ``SHELL`` and ``WALL``):

* ``FIT``: pegs, nuts and the walls of bores; ``SHELL``: solid outsides, which pegs pass through because the bore in them is made of
  ``FIT`` walls;
* ``REST``: what may lie on the table (few geoms do, so that a part at rest has a few contacts and not dozens), enough of them to keep a part that
  was knocked over out of it, whichever side it lies on;
* ``HAND``: what the hand touches, which is all but cylinders, collars and the walls of a bore in something narrower than these;
* ``LID``: the feet of the lamp's hood and the ledge they rest on; ``WALL``: what meets the obstacles, which is all but table tops and bores: a top
  has edges of its own for them, because two boxes side by side have eight contacts.

All that meets anything but the table is a box, a sphere or a capsule: contacts of cylinders cost five times as much. A peg is a capsule (it
finds its hole) and the thread is no shape at all: see ``screw.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from env.d3il.panda import text

FIT, SHELL, REST, LID, WALL, HAND = 1, 2, 4, 8, 16, 32
TOP = FIT | SHELL
GENERAL = TOP | WALL
PEG = 0.0095  # m, radius of what stands for a peg of 10 with thread crests at 12.2
BORE = 0.0125  # m, radius
RIM = 0.022  # m: how far a bore's walls reach, beyond the corners of the square that the bore is
NUT_RADIUS, NUT_BALL, NUT_GAP = 0.0195, 0.0015, 0.0003  # m: the collar that stands for the thread's first turn
FIRM = 'solref=".01 1" solimp=".999 .9999 .001 .5 2"'  # else what weighs 23 g is pressed through walls
_QUARTER = (math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0)  # from z to -y, for cylinders along y


@dataclass(frozen=True)
class Part:
    """Shape of a part: its geoms, what it weighs, and its peg where it has one.

    ``axis`` (of the peg, unit, into the hole), ``root`` and ``tip`` (m along ``axis`` from the part's origin).
    """

    geoms: str
    mass: float
    axis: tuple[float, float, float] | None = None
    root: float = 0.0
    tip: float = 0.0

    @property
    def collar(self) -> float:
        """m along ``axis`` to the collar's centre when the peg is home: ``NUT_GAP`` outside the hole's rim."""
        return self.root - NUT_GAP - NUT_BALL


def joined(values: Iterable[str]) -> str:
    """Pieces of MJCF one after another."""
    return "".join(values)


def _geom(kind: str, size: Sequence[float], at: Sequence[float], bits: int, more: str = "") -> str:
    affinity = bits & ~(REST | WALL) | (HAND if bits & (SHELL | HAND) else 0)
    return f'<geom type="{kind}" size="{text(size)}" pos="{text(at)}" contype="{bits & ~HAND}" conaffinity="{affinity}" class="part" {more}/>'


def box(half: Sequence[float], at: Sequence[float], bits: int = GENERAL, more: str = "") -> str:
    """A box from its half sizes and centre."""
    return _geom("box", half, at, bits, more)


def cylinder(radius: float, low: float, high: float, bits: int = GENERAL, along: str = "y") -> str:
    """A cylinder about the y or z axis, between two heights."""
    middle, half = (low + high) / 2, (high - low) / 2
    at, turn = ((0, middle, 0), f'quat="{text(_QUARTER)}"') if along == "y" else ((0, 0, middle), "")
    return _geom("cylinder", (radius, half), at, bits, turn)


def ball(radius: float, at: Sequence[float], bits: int) -> str:
    """A sphere."""
    return _geom("sphere", (radius,), at, bits)


def _knobs(places: Iterable[Sequence[float]]) -> str:
    """Balls without mass that a part rests on when it tilts or has been knocked over."""
    return joined(_geom("sphere", (0.002,), at, REST, 'mass="0"') for at in places)


def rod(radius: float, start: Sequence[float], end: Sequence[float], bits: int) -> str:
    """A capsule without mass between two points."""
    return f'<geom type="capsule" size="{radius}" fromto="{text((*start, *end))}" contype="{bits}" conaffinity="0" class="part" mass="0"/>'


def peg(tip: float, root: float, along: str = "y") -> str:
    """A peg about the y or z axis from ``root`` to its rounded ``tip``."""
    inward = math.copysign(PEG, root - tip)
    ends = [(0, end, 0) if along == "y" else (0, 0, end) for end in (tip + inward, root)]
    return f'<geom type="capsule" size="{PEG}" fromto="{text((*ends[0], *ends[1]))}" contype="{FIT | WALL | REST}" conaffinity="{FIT | HAND}" class="part"/>'


def bore(
    low: float, high: float, centre: tuple[float, float] = (0.0, 0.0), along: str = "y", bits: int = FIT | HAND
) -> str:
    """The four walls of a hole with square section, about an axis along y or z through ``centre`` (the other two coordinates)."""
    a, b = centre
    middle, half, thick = (low + high) / 2, (high - low) / 2, (RIM - BORE) / 2
    walls = [(s * (BORE + thick), 0.0, thick, RIM) for s in (-1, 1)] + [
        (0.0, s * (BORE + thick), BORE, thick) for s in (-1, 1)
    ]
    out = ""
    for x, z, hx, hz in walls:
        if along == "y":
            out += box((hx, half, hz), (a + x, middle, b + z), bits, FIRM)
        else:
            out += box((hx, hz, half), (a + x, b + z, middle), bits, FIRM)
    return out


def _ring(n: int, radius: float, half: Sequence[float], height: float, lean: float, bits: int, along: str) -> str:
    """``n`` boxes around the y or z axis: ``half`` are the half sizes outwards, along the axis and around; they lean outwards by
    ``lean`` rad.
    """
    out = ""
    for k in range(n):
        angle = math.tau * k / n
        x, y = radius * math.cos(angle), radius * math.sin(angle)
        if along == "y":  # about y by -angle, then lean about the local z
            more = f'euler="0 {-angle!r} {-lean!r}"'
            out += box(half, (x, height, y), bits, more)
        else:
            out += box((half[0], half[2], half[1]), (x, y, height), bits, f'euler="0 0 {angle!r}"')
    return out


def _square_table_top() -> str:
    corner, high, edge, round_ = 0.05625, 0.0156, 0.08125, 0.008
    floor = box((edge, 0.0015625, edge), (0, -0.0140625, 0), TOP | REST)
    rims = joined(
        box((0.003125, high - 0.001, edge), (s * 0.078125, 0.001, 0), TOP)
        + box((0.075, high - 0.001, 0.003125), (0, 0.001, s * 0.078125), TOP)
        for s in (-1, 1)
    )
    out, end = edge - round_, edge - 2 * round_
    edges = joined(
        rod(round_, (s * out, 0, -end), (s * out, 0, end), WALL)
        + rod(round_, (-end, 0, s * out), (end, 0, s * out), WALL)
        for s in (-1, 1)
    ) + box((edge - 0.001, high - 0.001, edge - 0.001), (0, 0, 0), WALL, 'mass="0"')
    return (
        floor
        + rims
        + edges
        + _knobs((x * (edge - 0.002), high - 0.002, z * (edge - 0.002)) for x in (-1, 1) for z in (-1, 1))
        + "".join(bore(-0.0125, high, (x, z)) for x in (-corner, corner) for z in (-corner, corner))
    )


def _leg() -> str:
    return box((0.015, 0.03125, 0.015), (0, 0, 0), GENERAL | REST) + peg(-0.05625, -0.03125)


def _lamp_base() -> str:
    """Foot down (+y), flange up."""
    return (
        bore(-0.0458, -0.015)
        + box((0.0275, 0.0019, 0.0275), (0, -0.0439, 0), SHELL | WALL | REST)
        + box((0.028, 0.006, 0.028), (0, 0.002, 0), SHELL | WALL)
        + box((0.04235, 0.0046, 0.04235), (0, 0.0126, 0), GENERAL | REST)
        + box((0.046, 0.001, 0.046), (0, -0.0387, 0), LID)
    )


def _lamp_bulb() -> str:
    return (
        peg(-0.053, -0.022)
        + cylinder(0.0224, -0.022, -0.013, REST)
        + ball(0.0175, (0, 0, 0), SHELL | WALL)
        + ball(0.03, (0, 0.038, 0), GENERAL | REST)
    )


def _lamp_hood() -> str:
    """A cone that widens towards +y, which is down: eight walls, four feet, and as many on top for when it has been knocked over."""
    lean = math.atan(14 / 100)
    walls = _ring(8, 0.0355, (0.0015, 0.049, 0.0137), -0.0014, lean, GENERAL, "y")
    feet = joined(
        ball(0.002, (x, 0.0466, z), REST | LID) for x, z in ((0.042, 0), (-0.042, 0), (0, 0.042), (0, -0.042))
    )
    tops = joined(ball(0.002, (x, -0.0485, z), REST) for x, z in ((0.027, 0), (-0.027, 0), (0, 0.027), (0, -0.027)))
    return walls + feet + tops


def _round_table_top() -> str:
    """A disc with a rim and a boss towards +z. To the obstacles it is a ball that has its equator in the disc. It rests on a cylinder's three
    contacts, and 0.1 mm higher on a dozen balls: where a hand presses the rim between the three it would tip and be jammed into the table.
    """
    return (
        cylinder(0.1, 0.0, 0.004, REST, "z")
        + _geom("sphere", (0.1,), (0, 0, 0.002), WALL, 'mass="0"')
        + box((0.068, 0.068, 0.002), (0, 0, 0.002), TOP)
        + _ring(16, 0.0953, (0.003, 0.0065, 0.0192), 0.0105, 0.0, TOP, "z")
        + bore(0.005, 0.03125, along="z")
        + box((0.015, 0.015, 0.0136), (0, 0, 0.0176), SHELL | REST)
        + _knobs((0.0953 * x, 0.0953 * y, 0.015) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)))
        + _knobs(
            (0.099 * math.cos(angle), 0.099 * math.sin(angle), 0.0021)
            for angle in (math.tau * k / 12 for k in range(12))
        )
    )


def _round_table_leg() -> str:
    return (
        peg(-0.0394, -0.013)
        + ball(0.0162, (0, 0.0032, 0), SHELL | WALL)
        + cylinder(0.02125, 0.013, 0.0519, REST)
        + ball(0.02125, (0, 0.0296, 0), SHELL | WALL)
        + bore(0.024, 0.0519, bits=FIT)
    )


def _round_table_base() -> str:
    """A cross that stands on its peg (towards -z)."""
    tip = box((0.0065, 0.0065, 0.0015), (0, 0, -0.02725), REST)
    bars = box((0.065, 0.012, 0.006125), (0, 0, 0.005125), SHELL | WALL | REST) + box(
        (0.012, 0.065, 0.006125), (0, 0, 0.005125), SHELL | WALL | REST
    )
    return peg(-0.0285, -0.001, "z") + tip + bars


_DOWN_Y, _DOWN_Z = (0.0, -1.0, 0.0), (0.0, 0.0, -1.0)
PARTS = {
    "square_table_top": Part(_square_table_top(), 0.151),
    **{f"leg{i}": Part(_leg(), 0.0231, _DOWN_Y, 0.03125, 0.05625) for i in (1, 2, 3, 4)},
    "lamp_base": Part(_lamp_base(), 0.0597),
    "lamp_bulb": Part(_lamp_bulb(), 0.0385, _DOWN_Y, 0.022, 0.053),
    "lamp_hood": Part(_lamp_hood(), 0.060),
    "round_table_top": Part(_round_table_top(), 0.1217),
    "round_table_leg": Part(_round_table_leg(), 0.0323, _DOWN_Y, 0.013, 0.0394),
    "round_table_base": Part(_round_table_base(), 0.0437, _DOWN_Z, 0.001, 0.02875),
}


def nut(part: Part) -> str:
    """The collar on a peg, four balls, in the place it has when the peg is home."""
    around = ((1, 0), (-1, 0), (0, 1), (0, -1))
    places = [(NUT_RADIUS * a, NUT_RADIUS * b) for a, b in around]
    _, y, z = (part.collar * a for a in part.axis)
    centres = [(a, y, b) for a, b in places] if part.axis[1] else [(a, b, z) for a, b in places]
    return joined(_geom("sphere", (NUT_BALL,), at, FIT, f'{FIRM} mass="0"') for at in centres)
