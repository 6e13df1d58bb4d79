"""A camera that OpenCV opens: a UVC device, or a film played as if it were one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from env.franka.camera import CapturingCamera, pace
from env.franka.types import Clock, DeploymentError


class OpenCVCamera(CapturingCamera):
    """``source``: the number of a device (/dev/video<n>; MJPG, a buffer of one picture), or a film's path, played once at its own speed.

    ``latency`` is how much older a picture is than its arrival, in seconds (``script/measure_latency.py``). See ``CapturingCamera``.
    """

    def __init__(
        self, name: str, clock: Clock, source: int | str | Path = 0, latency: float = 0.0, **settings: Any
    ) -> None:
        super().__init__(name, clock, **settings)
        self._source, self._latency = source, latency
        self._device: Any = None
        self._number, self._due, self._film_fps = 0, 0.0, 0.0

    def _open(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise DeploymentError(
                f"camera=opencv needs OpenCV ({error}): pip install -c constraints.txt opencv-python-headless"
            ) from error
        if isinstance(self._source, int):
            device = cv2.VideoCapture(self._source, cv2.CAP_V4L2 if sys.platform.startswith("linux") else cv2.CAP_ANY)
            device.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG"))
            for key, value in (
                ("FRAME_WIDTH", self.width),
                ("FRAME_HEIGHT", self.height),
                ("FPS", self.fps),
                ("BUFFERSIZE", 1),
            ):
                device.set(getattr(cv2, f"CAP_PROP_{key}"), value)
            what = f"/dev/video{self._source}"
        else:
            what = Path(self._source).expanduser()
            device = cv2.VideoCapture(str(what))
            self._film_fps = device.get(cv2.CAP_PROP_FPS) or self.fps
        if not device.isOpened():
            device.release()
            raise DeploymentError(
                f"camera {self.name}: OpenCV cannot open {what}: no such camera or film, or it is in use"
            )
        self._device = device

    def _grab(self) -> tuple[np.ndarray, float, int] | None:
        good, picture = self._device.read()
        if not good:
            self._stop.wait(0.02)  # a device that is gone answers at once
            return None
        if self._film_fps:
            self._due = pace(self._stop, self._due, self._film_fps, self._clock.now())
        self._number += 1
        picture = picture[..., ::-1] if picture.ndim == 3 else picture  # OpenCV's order is BGR
        return np.ascontiguousarray(picture), self._clock.now() - self._latency, self._number

    def _release(self) -> None:
        self._device.release()
