"""What the engine knows of a task: a few facts and two compiled kernels. Adding a task means writing one ``Family``."""

from __future__ import annotations

import copy
from typing import ClassVar, Protocol

import mujoco
import numpy as np

STABLE_LIMIT = 1e6  # where a family names none


class Family(Protocol):
    """A task of the engine. Everything random in an episode is drawn at its start, by ``draw``; the rest is physics.

    ``facts[0]`` is the largest |coordinate| or |velocity| of a simulation that counts as stable. What has a value here
    may be left out by a class that inherits from this one.
    """

    name: str
    action_dim: int
    layout: dict[str, slice]  # observation key -> columns of the full observation the observe kernel writes
    model: mujoco.MjModel  # physics
    control_kernel: int  # address, see ``library.control_kernel``
    observe_kernel: int  # address, see ``library.observe_kernel``
    ids: np.ndarray = np.zeros(0, np.int64)  # for the kernels
    facts: np.ndarray = np.array([STABLE_LIMIT])  # float64, for the kernels
    memory_size: int = 0  # float64 of controller state per simulation
    own_models: bool = False  # whether ``patch`` changes the model, so that each simulation needs a copy
    begin_kernel: int = 0  # address, see ``library.begin_kernel``: instead of ``begin`` (and ``patch``), for short episodes

    # Of videos and reports:
    solvable: ClassVar[bool] = True  # False: nothing is ever solved, what counts is the return
    control_hz: float = 20.0  # control steps per second
    camera: ClassVar[str | None] = None  # None: a free one that sees everything
    visual_geoms: ClassVar[tuple[int, ...]] = (0, 1, 2)  # groups that are seen

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The start of an episode: float64, of fixed length. Its only source of randomness is ``rng``."""

    def patch(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray) -> None:
        """Change ``model`` to the one of an episode that began with ``start``, whatever it was before. May use up
        ``data``. Here: nothing, the model is the same in all episodes.
        """

    def begin(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray, memory: np.ndarray) -> None:
        """Put a simulation (its model patched, its data reset) at the start of the episode, forward kinematics done.
        ``memory`` holds whatever the last episode left there.
        """

    def render_model(self) -> mujoco.MjModel:
        """The same task with everything visible, for videos: the same ``qpos``. Here: nothing is hidden."""
        return copy.copy(self.model)


def observation_dim(family: Family) -> int:
    """Length of the full observation."""
    return max(columns.stop for columns in family.layout.values())
