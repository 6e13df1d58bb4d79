"""A RealSense's colour camera, or a recording of one (``.db3``) played as if it were one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from env.franka.camera import CapturingCamera, pace
from env.franka.types import Clock, DeploymentError

_WAIT_MS = 200
_WARM_UP = 30  # pictures until exposure is what it will be
_PLAUSIBLE = 1.0  # seconds that a picture may be old; beyond, the clocks of camera and machine do not agree


class RealSenseCamera(CapturingCamera):
    """``serial``: which camera, None for the only one; or ``file``: a recording, played once.

    ``exposure`` (100 us), ``gain`` and ``white_balance`` (K) are fixed, as a policy's pictures should be; None leaves one to the camera.
    See ``CapturingCamera``.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        serial: str | None = None,
        file: str | Path | None = None,
        exposure: float | None = 120.0,
        gain: float | None = 0.0,
        white_balance: float | None = 5900.0,
        **settings: Any,
    ) -> None:
        super().__init__(name, clock, **settings)
        self._serial, self._file = (
            None if serial is None else str(serial),
            None if file is None else Path(file).expanduser(),
        )
        self._options = {"exposure": exposure, "gain": gain, "white_balance": white_balance}
        self._pipeline: Any = None
        self._playback: Any = None
        self._reversed, self._due, self._skip = False, 0.0, 0

    def _open(self) -> None:
        rs = _library()
        config = rs.config()
        if self._file is not None:
            if not self._file.is_file() or self._file.suffix != ".db3":
                raise DeploymentError(
                    f"camera {self.name}: expected a RealSense recording with the suffix .db3, found {self._file}"
                )
            config.enable_device_from_file(str(self._file), repeat_playback=False)
            config.enable_stream(rs.stream.color)
        else:
            found = [device.get_info(rs.camera_info.serial_number) for device in rs.context().query_devices()]
            if not found or (self._serial is not None and self._serial not in found):
                wanted = "" if self._serial is None else f" with serial number {self._serial}"
                raise DeploymentError(
                    f"camera {self.name}: no RealSense{wanted}; connected: {', '.join(found) or 'none'}"
                )
            if self._serial is not None:
                config.enable_device(self._serial)
            config.enable_stream(rs.stream.color, self.width, self.height, rs.format.rgb8, self.fps)
            self._skip = _WARM_UP
        self._pipeline, self._rs = rs.pipeline(), rs
        try:
            profile = self._pipeline.start(config)
            order = profile.get_stream(rs.stream.color).format()
            if self._file is not None:
                self._playback = profile.get_device().as_playback()
                self._playback.set_real_time(False)  # picture by picture; the pace is ours
            else:
                self._settle(profile.get_device().first_color_sensor())
        except RuntimeError as error:
            raise DeploymentError(f"camera {self.name}: this RealSense cannot do as asked ({error})") from error
        if order not in (rs.format.rgb8, rs.format.bgr8):
            self._release()
            raise DeploymentError(f"camera {self.name}: expected pictures as rgb8 or bgr8, found {order}")
        self._reversed = order == rs.format.bgr8

    def _settle(self, sensor: Any) -> None:
        """Fixed exposure, gain and white balance, and times of the host."""
        option = self._rs.option
        settings = [(option.global_time_enabled, 1.0)]
        if self._options["exposure"] is not None:
            settings += [(option.enable_auto_exposure, 0.0), (option.exposure, self._options["exposure"])]
        if self._options["gain"] is not None:
            settings.append((option.gain, self._options["gain"]))
        if self._options["white_balance"] is not None:
            settings += [
                (option.enable_auto_white_balance, 0.0),
                (option.white_balance, self._options["white_balance"]),
            ]
        for key, value in settings:
            if sensor.supports(key):
                sensor.set_option(key, value)

    def _grab(self) -> tuple[np.ndarray, float, int] | None:
        good, frames = self._pipeline.try_wait_for_frames(_WAIT_MS)
        picture = frames.get_color_frame() if good else None
        if not picture:
            return None
        if self._skip:
            self._skip, self._heard = self._skip - 1, self._clock.now()
            return None
        if self._file is not None:
            self._due = pace(self._stop, self._due, picture.get_profile().fps() or self.fps, self._clock.now())
        image = np.asanyarray(picture.get_data())
        return np.array(image[..., ::-1] if self._reversed else image), self._time(picture), picture.get_frame_number()

    def _time(self, picture: Any) -> float:
        """Of exposure, where the camera's clock follows this machine's; else of arrival."""
        now, domains = self._clock.now(), self._rs.timestamp_domain
        if (
            picture.get_frame_timestamp_domain() not in (domains.global_time, domains.system_time)
            or self._file is not None
        ):
            return now
        age = time.time() - picture.get_timestamp() / 1e3
        return now - age if 0.0 <= age < _PLAUSIBLE else now

    def _release(self) -> None:
        try:
            if self._playback is not None:
                self._playback.pause()  # stopping while it reads the file's end corrupts memory (2.59, about one time in a hundred)
            self._pipeline.stop()
        except RuntimeError:  # gone already
            return


def _library() -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        raise DeploymentError(
            f"camera=realsense needs pyrealsense2, which cannot be imported ({error}): pip install -c constraints.txt -e '.[real]', and on "
            "Debian or Ubuntu apt-get install libusb-1.0-0"
        ) from error
    return pyrealsense2
