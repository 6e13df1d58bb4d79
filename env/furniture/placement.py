"""Where an episode begins: poses of the parts, shift of the obstacles, joints of the arm.

Parts are placed about their published poses as the original FurnitureBench does it (``low``: 1.5 cm, 15 degrees; ``med``: 5 cm, 45 degrees,
within the area a tag's camera sees, never within a centimetre of each other or of an obstacle); obstacles and joints vary as in the
simulator that DPPO used. That one pushes the parts instead, by impulses whose effect depends on masses nobody outside IsaacGym
knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from env.furniture.facts import TAG_TO_ROBOT, Furniture, euler
from env.furniture.scene import OBSTACLE_CENTRE, OBSTACLES, START_JOINTS


@dataclass(frozen=True)
class Home:
    """A part's pose in the tag frame before anything is drawn, and the room it takes on the table: half the sides of a rectangle about
    ``offset``, or the radius of a circle (m). The cross of the round table's base is higher than the table's rim, only its middle counts.
    """

    position: tuple[float, float, float]
    rotation: np.ndarray
    half: tuple[float, float] = (0.0, 0.0)
    offset: tuple[float, float] = (0.0, 0.0)
    radius: float = 0.0
    low: float = 0.0  # radius beside what is flat
    flat: bool = False
    farthest: float = math.inf  # m: how far it may be moved towards +y


_LEG = euler(0, -90, 0)
_LEG_HALF, _LEG_OFFSET = (0.015, 0.0438), (0.0, -0.0125)
_TILT = math.asin(0.126)  # of the bulb, which lies on its globe and its collar
HOMES = {
    "square_table_top": Home((0.0, 0.24, -0.015625), euler(-90, 0, 180), (0.08125, 0.08125)),
    "leg1": Home((-0.20, 0.07, -0.015), _LEG, _LEG_HALF, _LEG_OFFSET),
    "leg2": Home((-0.12, 0.07, -0.015), _LEG, _LEG_HALF, _LEG_OFFSET),
    "leg3": Home((0.12, 0.07, -0.015), _LEG, _LEG_HALF, _LEG_OFFSET),
    "leg4": Home((0.20, 0.07, -0.015), _LEG, _LEG_HALF, _LEG_OFFSET),
    "lamp_base": Home((0.05, 0.14, -0.0172), euler(90, 0, 0), (0.0424, 0.0424)),
    "lamp_bulb": Home((-0.05, 0.235, -0.0252), euler(-math.degrees(_TILT), 0, 0), (0.03, 0.0605), (0.0, 0.0075)),
    "lamp_hood": Home((-0.08, 0.13, -0.0486), euler(90, 0, 0), (0.044, 0.044)),
    "round_table_top": Home((0.0, 0.205, 0.0), euler(0, 180, 0), radius=0.1, low=0.1, flat=True, farthest=0.01),
    "round_table_leg": Home((0.13, 0.10, -0.02125), np.eye(3), (0.02125, 0.0457), (0.0, 0.0063)),
    "round_table_base": Home((-0.12, 0.12, -0.02875), euler(180, 0, 0), radius=0.066, low=0.03),
}


@dataclass(frozen=True)
class Spread:
    """How far a randomness goes: parts (m, degrees), obstacles (m), joints (degrees); ``bounded``: origins stay in ``AREA``."""

    position: float
    turn: float
    obstacles: float
    joints: float
    bounded: bool


SPREADS = {"low": Spread(0.015, 15.0, 0.02, 5.0, False), "med": Spread(0.05, 45.0, 0.04, 10.0, True)}
AREA = (-0.21, 0.21), (0.07, 0.37)  # m, tag frame x and y
MARGIN = 0.01  # m between what stands on the table
_TRIES, _TRIES_PER_PART = 200, 50
Room = tuple[float, float, float, float, float, float, bool]
N_FIRST = 9  # of a start: joints (7), shift of the obstacles (2); then x, y, yaw of every part
_WALLS = tuple(  # centres in the tag frame's x and y, half sizes
    (OBSTACLE_CENTRE[1] + dy, OBSTACLE_CENTRE[0] + dx - TAG_TO_ROBOT[0][0], hy, hx, 0.0, 0.0, False)
    for _, (dx, dy, _), (hx, hy, _) in OBSTACLES
)


def draw(furniture: Furniture, spread: Spread, rng: np.random.Generator) -> np.ndarray:
    """A start: joints (7, rad), shift of the obstacles in x and y (2, m, robot frame), then x, y (m, tag frame) and yaw (rad) of
    each part.
    """
    joints = np.array(START_JOINTS) + rng.uniform(-1, 1, 7) * math.radians(spread.joints)
    shift = rng.uniform(-spread.obstacles, spread.obstacles, 2)
    walls = [(x + shift[1], y + shift[0], hx, hy, 0.0, 0.0, False) for x, y, hx, hy, *_ in _WALLS]
    homes = [HOMES[name] for name in furniture.parts]
    for _ in range(_TRIES):
        placed: list[tuple[float, float, float]] = []
        taken = list(walls)
        for home in homes:
            at = _place(home, spread, rng, taken)
            if at is None:
                break
            placed.append(at)
        if len(placed) == len(homes):
            return np.concatenate([joints, shift, *placed])
    return np.concatenate([joints, np.zeros(2), *([*home.position[:2], 0.0] for home in homes)])


def _place(
    home: Home, spread: Spread, rng: np.random.Generator, taken: list[Room]
) -> tuple[float, float, float] | None:
    """x, y, yaw of a part that keeps its distance from the rectangles ``taken``, which it joins; None where it does not fit."""
    for _ in range(_TRIES_PER_PART):
        dx, dy, turn = rng.uniform(-1, 1, 3)
        x, y = home.position[0] + spread.position * dx, home.position[1] + spread.position * dy
        yaw = math.radians(spread.turn) * turn
        if spread.bounded and not all(low <= v <= high for v, (low, high) in zip((x, y), AREA, strict=True)):
            continue
        if y - home.position[1] > home.farthest:
            continue
        mine = footprint(home, x, y, yaw)
        if all(_apart(mine, other) for other in taken):
            taken.append(mine)
            return x, y, yaw
    return None


def footprint(home: Home, x: float, y: float, yaw: float) -> Room:
    """The room of a part with its origin at x, y, turned by ``yaw``: centre, half sizes of an upright rectangle, radius around that."""
    c, s = math.cos(yaw), math.sin(yaw)
    (a, b), (hx, hy) = home.offset, home.half
    return (
        x + c * a - s * b,
        y + s * a + c * b,
        abs(c) * hx + abs(s) * hy,
        abs(s) * hx + abs(c) * hy,
        home.radius,
        home.low,
        home.flat,
    )


def _apart(one: Room, other: Room) -> bool:
    dx, dy = max(abs(one[0] - other[0]) - one[2] - other[2], 0.0), max(abs(one[1] - other[1]) - one[3] - other[3], 0.0)
    mine, its = one[5 if other[6] else 4], other[5 if one[6] else 4]
    return math.hypot(dx, dy) > mine + its + MARGIN


def pose(home: Home, x: float, y: float, yaw: float) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) and rotation (3, 3), robot frame, of a part at x, y, yaw of a start."""
    origin, to_robot = TAG_TO_ROBOT
    return to_robot @ (x, y, home.position[2]) + origin, to_robot @ euler(0, 0, math.degrees(yaw)) @ home.rotation
