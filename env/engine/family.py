"""What the engine knows of a task: a few facts and two compiled kernels. Adding a task means writing one ``Family``."""

from __future__ import annotations

from typing import Protocol

import mujoco
import numpy as np


class Family(Protocol):
    """A task of the engine. Everything random in an episode is drawn at its start, by ``draw``; the rest is physics.

    ``facts[0]`` is the largest |coordinate| or |velocity| of a simulation that counts as stable.
    """

    name: str
    action_dim: int
    layout: dict[str, slice]  # observation key -> columns of the full observation the observe kernel writes
    memory_size: int  # float64 of controller state per simulation
    own_models: bool  # whether ``patch`` changes the model, so that each simulation needs a copy
    model: mujoco.MjModel  # physics
    ids: np.ndarray  # int64, for the kernels
    facts: np.ndarray  # float64, for the kernels
    control_kernel: int  # address, see ``library.control_kernel``
    observe_kernel: int  # address, see ``library.observe_kernel``

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The start of an episode: float64, of fixed length. Its only source of randomness is ``rng``."""

    def patch(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray) -> None:
        """Change ``model`` to the one of an episode that began with ``start``, whatever it was before. May use up
        ``data``.
        """

    def begin(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray, memory: np.ndarray) -> None:
        """Put a simulation (its model patched, its data reset) at the start of the episode, forward kinematics done."""

    def render_model(self) -> mujoco.MjModel:
        """The same task with everything visible, for videos: the same ``qpos``."""


def observation_dim(family: Family) -> int:
    """Length of the full observation."""
    return max(columns.stop for columns in family.layout.values())
