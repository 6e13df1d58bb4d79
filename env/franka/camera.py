"""Cameras: a thread each that keeps the newest picture, and knows when it is not new.

A picture that repeats its number, or the last picture to the bit (a sensor's noise never does), is not new: ``latest`` goes on giving the
old frame with its old time, so that whoever looks at its age sees a frozen camera. One that is gone or gives another size raises.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from env.franka.image import colour_order, read_picture
from env.franka.types import Clock, DeploymentError, Frame

FROZEN = 0.5  # seconds without a new picture that ``trouble`` speaks of
LOST = 2.0  # seconds without any picture after which a camera is taken for gone
FIRST = 10.0  # seconds for the first picture
_KINDS = ("realsense", "opencv", "mujoco", "replay")


class CapturingCamera(ABC):
    """A ``Camera`` (``types.py``) with a thread that captures; what a driver adds is ``_open``, ``_grab`` and ``_release``.

    Args:
        name: what the deployment calls it, as robomimic would.
        clock: whose time its frames have.
        width, height, fps: asked of the device, and required of its pictures.
        reference: a picture of the scene with true colours (PNG, JPEG): where the camera's first one looks like it with red and blue
            exchanged, it is refused.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        width: int = 640,
        height: int = 480,
        fps: int = 30,
        reference: str | Path | None = None,
    ) -> None:
        self.name, self.width, self.height, self.fps = name, width, height, fps
        self._clock = clock
        self._reference = None if reference is None else read_picture(reference)
        self._frame: Frame | None = None
        self._heard, self._repeats, self._gone = 0.0, 0, ""
        self._first, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------------------- what a driver does

    @abstractmethod
    def _open(self) -> None:
        """Open the device. Raises ``DeploymentError``."""

    @abstractmethod
    def _grab(self) -> tuple[np.ndarray, float, int] | None:
        """The next picture ``(H, W, 3)`` uint8 RGB, an array of its own, its time and number; None where none came for a while."""

    @abstractmethod
    def _release(self) -> None:
        """Close the device, whatever state it is in."""

    # ---------------------------------------------------------------------------------------------------------------- protocol

    def start(self) -> None:
        """Open, and wait for the first picture. Raises ``DeploymentError``: no such camera, no picture, another size, colours exchanged."""
        if self._thread is not None:
            return
        self._open()
        self._heard = self._clock.now()
        self._thread = threading.Thread(target=self._capture, name=f"camera {self.name}", daemon=True)
        self._thread.start()
        came = self._first.wait(FIRST)
        try:
            frame = self.latest()
            if not came or frame is None:
                raise DeploymentError(
                    f"camera {self.name}: no picture within {FIRST:g} s of its start; look at its cable and its USB port"
                )
            if self._reference is not None and colour_order(frame.image, self._reference) == "bgr":
                raise DeploymentError(
                    f"camera {self.name}: red and blue are exchanged in its pictures, compared with the reference: it gives BGR where RGB "
                    "is expected (or the reference does)"
                )
        except DeploymentError:
            self.close()
            raise

    def latest(self) -> Frame | None:
        """The newest frame, None before the first. Raises ``DeploymentError`` once the camera is gone."""
        if self._gone:
            raise DeploymentError(f"camera {self.name}: {self._gone}")
        return self._frame

    def trouble(self) -> str | None:
        """What is wrong with it, as a sentence: gone, or frozen and how."""
        frame = self._frame
        if self._gone or frame is None:
            return f"camera {self.name}: {self._gone or 'no picture yet'}"
        age = self._clock.now() - frame.t_host
        if age < FROZEN:
            return None
        how = (
            f"its last {self._repeats} pictures repeat picture {frame.number}" if self._repeats else "it sends nothing"
        )
        return f"camera {self.name}: frozen for {age:.2f} s: {how}"

    def close(self) -> None:
        """End the thread and let go of the device; may be repeated."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(LOST)

    # ------------------------------------------------------------------------------------------------------------------ thread

    def _capture(self) -> None:
        try:
            while not self._stop.is_set() and not self._gone:
                self._take(self._grab())
        except Exception as error:  # noqa: BLE001  a driver's own kinds: whatever it is, the camera is gone
            self._gone = f"gone ({error})"
        finally:
            self._first.set()
            self._release()

    def _take(self, grabbed: tuple[np.ndarray, float, int] | None) -> None:
        now = self._clock.now()
        if grabbed is None:
            if now - self._heard > LOST:
                self._gone = f"gone: no picture for {now - self._heard:.1f} s. Is it unplugged?"
            return
        self._heard = now
        image, t, number = grabbed
        if image.shape != (self.height, self.width, 3) or image.dtype != np.uint8:
            self._gone = (
                f"expected pictures of {self.width} x {self.height} pixels, 3 colours, uint8; found {image.shape[1::-1]}, shape {image.shape} "
                f"{image.dtype}. Set camera.width and camera.height to what it can do"
            )
        elif self._frame is not None and (number == self._frame.number or np.array_equal(image, self._frame.image)):
            self._repeats += 1
        else:
            self._frame, self._repeats = Frame(image, t, number), 0
            self._first.set()


def pace(stop: threading.Event, last: float, fps: float, now: float) -> float:
    """For files, which come as fast as one reads: wait until a picture is due, ``1 / fps`` after the last; when that is."""
    due = max(last + 1.0 / fps, now)
    stop.wait(due - now)
    return due


def make_camera(kind: str, name: str, clock: Clock, **settings: object) -> CapturingCamera:
    """A camera of a device: ``realsense`` or ``opencv``, with the settings of its class. Raises ``DeploymentError``."""
    if kind == "realsense":
        from env.franka.camera_realsense import RealSenseCamera as Kind
    elif kind == "opencv":
        from env.franka.camera_opencv import OpenCVCamera as Kind
    else:
        raise DeploymentError(f"camera: expected one of {', '.join(_KINDS)}, found {kind!r}")
    try:
        return Kind(name, clock, **settings)
    except TypeError as error:
        raise DeploymentError(f"camera {name} ({kind}): {error}") from error
