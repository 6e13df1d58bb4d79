"""Frames of a video file, decoded by ffmpeg in a process of its own: a damaged file can end or stall that one only.

The file must be an MP4, and ffmpeg may open nothing else: no network, no other file.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agent.errors import DatasetError

STALL_SECONDS = 60.0  # without a single frame
_OPTIONS = ("-hide_banner", "-nostdin", "-v", "error", "-threads", "1", "-protocol_whitelist", "file,pipe", "-f", "mp4")
_MP4 = b"ftyp"  # at byte 4


def decode(path: Path, height: int, width: int) -> Iterator[np.ndarray]:
    """Every frame of ``path`` in the order of showing, ``(height, width, 3)`` uint8.

    Raises:
        DatasetError: absent, no MP4, damaged, of another size, or no frame within ``STALL_SECONDS``. Only a damage that ffmpeg
            notices is noticed: lossy video has no checksum.
    """
    import imageio_ffmpeg

    _check_kind(path)
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *_OPTIONS,
        "-noautorotate",
        "-i",
        f"file:{path}",
        "-map",
        "0:v:0",
        "-fps_mode",
        "passthrough",
    ]
    command += ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"]
    with tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints)
        stalled = threading.Event()
        try:
            while (frame := _next(child, stalled, path, height, width)) is not None:
                yield frame
            if child.wait(STALL_SECONDS) != 0:
                complaints.seek(0)
                said = complaints.read(300).decode(errors="replace").strip().splitlines()
                raise DatasetError(f"{path}: cannot be decoded ({said[0] if said else 'ffmpeg fails'})")
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def _next(
    child: subprocess.Popen[bytes], stalled: threading.Event, path: Path, height: int, width: int
) -> np.ndarray | None:
    """One image in the PPM format: ``P6``, size, 255, the bytes. None at the end."""
    header = f"P6\n{width} {height}\n255\n".encode()

    def give_up() -> None:
        stalled.set()
        child.kill()

    watch = threading.Timer(STALL_SECONDS, give_up)
    watch.start()
    try:
        start = child.stdout.read(len(header))
        frame = np.empty((height, width, 3), np.uint8)
        got = child.stdout.readinto(memoryview(frame).cast("B")) if start == header else 0
    finally:
        watch.cancel()
    if stalled.is_set():
        raise DatasetError(f"{path}: no frame within {STALL_SECONDS:g} s; the file is damaged")
    if start and start[: len(header)] != header:
        size = start.split(b"\n")[1].decode(errors="replace") if start.count(b"\n") > 1 else "nothing"
        raise DatasetError(f"{path}: expected frames of {width} x {height}, found {size}")
    if start and got != frame.nbytes:
        raise DatasetError(f"{path}: ends within a frame")
    return frame if start else None


def _check_kind(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
    if start[4:] != _MP4:
        raise DatasetError(f"{path}: no MP4 file (it does not begin like one). Download it again")
