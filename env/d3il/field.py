"""The obstacle field of D3IL's "avoiding": where its cylinders stand, what counts as passing them on which side, and
which trajectories make up the published data sets M1, M2 and M3. Metres, in the frame of the robot's base.

The rod comes from small y and has to cross a line at large y. On its way it passes three rows of cylinders, each on one
side; the nine *flags* say which: 0, 1 left or right of the first row's only cylinder (left: smaller x); 2, 3, 4 left,
between, right of the second row's; 5, 6, 7, 8 the four gaps of the third row. A *mode* is one flag per row: 24 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_FLAGS = 9
ROWS = (-0.10, 0.08, 0.26)  # y of the rows of cylinders
PASSAGES = ((0.5,), (0.425, 0.575), (0.35, 0.5, 0.65))  # x of their cylinders
FIRST_FLAG = (0, 2, 5)  # flag of each row's leftmost passage
BAND = 0.03  # the simulation decides on a row's flag this near to the first two rows
FILTER_BAND = 0.01  # and the published filter of data sets, in every state this near
CYLINDERS = (  # name, x, y, radius, half of the height; they stand with their middle on the table's plane
    ("l1_obs", 0.500, -0.10, 0.030, 0.07),
    ("l2_top_obs", 0.425, 0.08, 0.025, 0.10),
    ("l2_bottom_obs", 0.575, 0.08, 0.025, 0.10),
    ("l3_top_obs", 0.350, 0.26, 0.025, 0.10),
    ("l3_mid_obs", 0.500, 0.26, 0.025, 0.10),
    ("l3_bottom_obs", 0.650, 0.26, 0.025, 0.10),
)
ROD_RADIUS = 0.01
START = (0.525, -0.28)  # where the hand is meant to begin
LINE, GOAL = 0.35, 0.40  # the line that is drawn, and the y beyond which a step is rewarded
X_RANGE = (0.2, 0.8)  # outside, every step costs
MODES = tuple((a, b, c) for a in (0, 1) for b in (2, 3, 4) for c in (5, 6, 7, 8))


@dataclass(frozen=True)
class Subset:
    """A published choice of demonstrations: any of ``desired`` and all of ``required`` flags."""

    desired: tuple[int, ...]
    required: tuple[int, ...]

    @property
    def modes(self) -> tuple[tuple[int, int, int], ...]:
        """The modes that belong to it."""
        return tuple(m for m in MODES if set(m) & set(self.desired) and set(self.required) <= set(m))


SUBSETS = {
    "avoid_m1": Subset((5, 6), (1, 2)),
    "avoid_m2": Subset((5, 7), (1, 2)),
    "avoid_m3": Subset((5, 8), (1, 2)),
}


def passage(row: int, x: float) -> int | None:
    """The flag of passing row ``row`` (0, 1, 2) at ``x``; None exactly on a boundary, where nothing is flagged."""
    if x in PASSAGES[row]:
        return None
    return FIRST_FLAG[row] + int(np.searchsorted(PASSAGES[row], x))


def mode_of(xy: np.ndarray) -> tuple[int | None, int | None, int | None]:
    """The mode of a trajectory ``xy (T, 2)`` as the simulation sees it: each row's flag at the first position within
    ``BAND`` of it (rows 1 and 2) or beyond it (row 3); None where it never came there.
    """
    found = []
    for row, y in enumerate(ROWS):
        near = xy[:, 1] >= y if row == 2 else np.abs(xy[:, 1] - y) <= BAND
        found.append(passage(row, float(xy[np.argmax(near), 0])) if near.any() else None)
    return tuple(found)


def flags_of(xy: np.ndarray) -> set[int]:
    """Every flag that any position of ``xy (T, 2)`` raises by the published filter's rule (``FILTER_BAND``; row 3: beyond)."""
    found: set[int | None] = set()
    for row, y in enumerate(ROWS):
        near = xy[:, 1] >= y if row == 2 else np.abs(xy[:, 1] - y) <= FILTER_BAND
        found |= {passage(row, float(x)) for x in xy[near, 0]}
    return {flag for flag in found if flag is not None}


def keeps(xy: np.ndarray, desired: Sequence[int], required: Sequence[int] = (), avoided: Sequence[int] = ()) -> bool:
    """Whether the published filter keeps a trajectory: any ``desired`` flag, all ``required`` ones, no ``avoided`` one."""
    flags = flags_of(xy)
    return bool(flags & set(desired)) and set(required) <= flags and not flags & set(avoided)
