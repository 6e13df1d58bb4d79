"""A camera in the twin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from env.franka.types import Clock, Frame


class MujocoCamera:
    """A ``Camera`` whose pictures are drawn when one looks: ``render()`` gives ``(H, W, 3)`` uint8 RGB of the world as it is at
    ``clock.now()``. Looked at again at the same moment, it is the same frame."""

    def __init__(self, name: str, render: Callable[[], np.ndarray], clock: Clock) -> None:
        self.name, self._render, self._clock = name, render, clock
        self._frame: Frame | None = None

    def start(self) -> None: ...

    def latest(self) -> Frame:
        t = self._clock.now()
        if self._frame is None or self._frame.t_host != t:
            self._frame = Frame(self._render(), t, 0 if self._frame is None else self._frame.number + 1)
        return self._frame

    def close(self) -> None: ...
