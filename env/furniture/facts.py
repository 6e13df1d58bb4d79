"""What Furniture-Bench's three tasks are, as DPPO and D2PPO use them: names, numbers, no simulation.

Anything that simulates them, our engine or the genuine simulator, takes its facts from here. Metres, radians; poses are
(position, rotation matrix) and *relative* ones are ``inv(T_first) T_second``. "Tag frame": that of the tag on the table, in which parts are
observed; ``TAG_TO_ROBOT`` brings it to the robot's base frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product

import numpy as np

from env.errors import EnvError

# (what is said here is compiled into kernels, whose cache looks at all files with the words `import numba`)
CONTROL_HZ = 10.0
ACTION_DIM = (
    10  # position of the hand (3, robot frame), first two rows of its rotation (6), gripper (1: < 0 opens, > 0 closes)
)
ROBOT_STATE = 16  # position 3, rotation rows 6, velocity 3, angular velocity 3 (robot frame), gripper width 1
POSE = 7  # position 3, quaternion x y z w (tag frame), of every part and of the front obstacle
OBS_LIMIT = 5.0  # normalised observations are clamped to this
POSITION_TOLERANCE = 0.005  # m, per axis
AXIS_COSINE = 0.94  # of each axis of the relative rotation with the wanted one, at least
RANDOMNESS = ("low", "med")
TAG_TO_ROBOT = (0.3015, 0.0, 0.0), np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


@dataclass(frozen=True)
class Pair:
    """Two parts (numbers in ``Furniture.parts``) that belong together, and where the second may sit in the first's frame."""

    first: int
    second: int
    places: tuple[tuple[float, float, float], ...]  # m; any of them
    rotation: np.ndarray | None  # (3, 3), or None: any


@dataclass(frozen=True)
class Furniture:
    """One piece of furniture: its parts in the order in which they are observed, and what is to be assembled."""

    name: str
    parts: tuple[str, ...]
    pairs: tuple[Pair, ...]
    max_episode_steps: int
    gripper_width: float  # m, largest

    @property
    def obs_dim(self) -> int:
        """Robot, parts, front obstacle: 58 or 44."""
        return ROBOT_STATE + POSE * (len(self.parts) + 1)

    @property
    def success_return(self) -> int:
        """Return of an episode that counts as solved: a reward of 1 for each pair."""
        return len(self.pairs)


def euler(x: float, y: float, z: float) -> np.ndarray:
    """Rotation by ``x``, then ``y``, then ``z`` degrees about the fixed axes: Rz Ry Rx (3, 3)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians([x, y, z])), np.sin(np.radians([x, y, z]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


CORNER = 0.05625  # m: where the table's bosses are, in x and z
LEG_HEIGHT = 0.046875
FURNITURE = {
    "one_leg": Furniture(
        "one_leg",
        ("square_table_top", "leg1", "leg2", "leg3", "leg4"),
        (Pair(0, 4, tuple((x, LEG_HEIGHT, z) for x, z in product((-CORNER, CORNER), repeat=2)), np.eye(3)),),
        max_episode_steps=700,
        gripper_width=0.065,
    ),
    "lamp": Furniture(
        "lamp",
        ("lamp_base", "lamp_bulb", "lamp_hood"),
        (
            Pair(0, 1, ((0.0, -0.0678, 0.0),), euler(0, 0, 180)),
            Pair(0, 2, ((0.0, -0.088324, 0.0),), None),
        ),
        max_episode_steps=1000,
        gripper_width=0.07,
    ),
    "round_table": Furniture(
        "round_table",
        ("round_table_top", "round_table_leg", "round_table_base"),
        (
            Pair(0, 1, ((0.0, 0.0, 0.044375),), euler(90, 0, 185)),
            Pair(1, 2, ((0.0, 0.053125, 0.0),), euler(-90, 90, 0)),
        ),
        max_episode_steps=1000,
        gripper_width=0.065,
    ),
}
TASKS = {  # the published name of a data set -> (furniture, randomness); an environment's name has "_dim" at its end
    f"{name}_{randomness}": (name, randomness) for name in FURNITURE for randomness in RANDOMNESS
}
ENV_NAMES = tuple(f"{task}_dim" for task in TASKS)


def of_env(name: str) -> tuple[Furniture, str]:
    """Furniture and randomness of an environment's published name, ``one_leg_low_dim`` and so on.

    Raises:
        EnvError: no such task.
    """
    found = re.fullmatch(r"(\w+)_dim", name)
    if not found or found[1] not in TASKS:
        raise EnvError(f"env.name: expected one of {', '.join(ENV_NAMES)}, found {name!r}")
    furniture, randomness = TASKS[found[1]]
    return FURNITURE[furniture], randomness
