"""A camera's frames as a film, encoded while they come."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from pathlib import Path

import numpy as np

_PATIENCE = 10.0  # seconds for the encoder to end


@functools.cache
def encoder() -> str:
    """Where ffmpeg is. To be asked once before a robot moves: looking for it holds the interpreter up. Raises ``OSError``."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise OSError(f"no ffmpeg: {error}") from error


class Film:
    """An MP4 (H.264) at ``path`` of the images it is given; in fragments of a second, each complete, so that a film that was cut off
    plays up to there. The encoder is a process of its own, started by the first image. Used by one thread."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._encoder: subprocess.Popen[bytes] | None = None

    def take(self, image: np.ndarray) -> None:
        """One more picture, ``(H, W, 3)`` uint8, all of one size; an odd last row or column is cut off. May wait. Raises ``OSError``."""
        height, width = (n // 2 * 2 for n in image.shape[:2])
        if self._encoder is None:
            self._encoder = self._start(width, height)
        self._encoder.stdin.write(np.ascontiguousarray(image[:height, :width]).data)

    def close(self) -> None:
        """Raises ``OSError`` where there is no whole film."""
        if self._encoder is None:
            return
        with contextlib.suppress(OSError):  # what was not taken was reported by take
            self._encoder.stdin.close()
        try:
            code = self._encoder.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._encoder.kill()
            code = self._encoder.wait()
        said = self._encoder.stderr.read().decode(errors="replace").strip()
        self._encoder.stderr.close()
        if code:
            raise OSError(f"{self._path}: ffmpeg ended with {code}: {said[-300:] or 'no message'}")

    def _start(self, width: int, height: int) -> subprocess.Popen[bytes]:
        command = [
            encoder(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
            "-r", str(self._fps), "-i", "-", "-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast", "-tune", "zerolatency",
            "-crf", "18", "-threads", "1", "-g", str(round(self._fps)), "-movflags", "+frag_keyframe+empty_moov+default_base_moof", str(self._path),
        ]  # fmt: skip
        # Its own session: Ctrl-C is for the robot to stop, not for the film to be cut.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
