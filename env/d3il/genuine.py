"""The genuine D3IL simulation of "avoiding", where its packages ``gym_avoiding`` and ``d3il_sim`` are installed.

This file runs in the workers of ``env/process.py`` and imports nothing of this project. It smooths what stands in the way: D3IL
asks for ``np.NAN``, which NumPy 2 no longer has; it writes a temporary file into its own package while it is built, so that workers
are built one after another; it keeps its inverse kinematics from one episode to the next, which here begins anew.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

PACKAGES = ("gym_avoiding", "d3il_sim")
CLASSES = {
    "avoiding": "ObstacleAvoidanceEnv",
    **{f"avoiding-m{flag}": f"ObstacleAvoidanceM{flag}Env" for flag in (5, 6, 7, 8)},
}


def missing() -> list[str]:
    """The packages that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


class Genuine:
    """D3IL's environment ``name`` (a key of ``CLASSES``) behind gym's older interface; nothing but time ends an episode."""

    def __init__(self, name: str) -> None:
        if not hasattr(np, "NAN"):
            np.NAN = np.nan
        kind = getattr(importlib.import_module(f"{PACKAGES[0]}.envs"), CLASSES[name])
        with _alone():
            self.env = kind()
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def reset(self, seed: int | None = None) -> np.ndarray:
        """The first observation (4,); nothing is random."""
        controller = getattr(self.env, "controller", None)
        if hasattr(controller, "reset"):
            controller.reset()
        return self.env.reset()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        """One control step; never done."""
        observation, reward, _, info = self.env.step(np.asarray(action, np.float64))
        return observation, float(reward), False, {"mode_encoding": info.get("mode_encoding")}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other process of this user is in here."""
    try:
        import fcntl
    except ImportError:  # not on this system: at worst two builds disturb each other, and one says so
        yield
        return
    path = os.path.join(tempfile.gettempdir(), f"d2ppo-d3il-{os.getuid()}.lock")
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
