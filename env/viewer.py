"""A window onto one simulation while it runs (``+env.render=True``)."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from env.protocol import NpObs, StepResult, VectorEnv

log = logging.getLogger(__name__)


class LiveView:
    """A ``VectorEnv`` that shows slot 0 in MuJoCo's viewer, once per action chunk. Closing the window ends the show, not the run.

    Args:
        venv: keeps its motion (``render_model``, ``render_state``): the engine's environments, normalised or not.
    """

    def __init__(self, venv: VectorEnv) -> None:
        self._venv, self._viewer = venv, None
        if not hasattr(venv, "render_model"):
            log.warning("env.render: %s cannot be shown", type(venv).__name__)
        elif sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            log.warning("env.render: there is no display here (DISPLAY is not set); env.save_video=True records instead")
        else:
            self._open()

    def _open(self) -> None:
        from mujoco import viewer

        self._model = self._venv.render_model()
        self._data = mujoco.MjData(self._model)
        self._viewer = viewer.launch_passive(self._model, self._data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while the object is being built or copied
            raise AttributeError(name)
        return getattr(self._venv, name)

    def reset(self, seed: int | Sequence[int]) -> NpObs:
        """See ``VectorEnv.reset``."""
        obs = self._venv.reset(seed)
        self._show()
        return obs

    def step(self, chunk: np.ndarray) -> StepResult:
        """See ``VectorEnv.step``."""
        result = self._venv.step(chunk)
        self._show()
        return result

    def close(self) -> None:
        """Close the window and the environment."""
        if self._viewer is not None:
            self._viewer.close()
            self._viewer = None
        self._venv.close()

    def _show(self) -> None:
        if self._viewer is None or not self._viewer.is_running():
            return
        with self._viewer.lock():
            self._data.qpos[:] = self._venv.render_state(0)
            mujoco.mj_forward(self._model, self._data)
        self._viewer.sync()
