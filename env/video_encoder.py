"""Encode frames in a process of its own: ``python video_encoder.py <frames.npy> <target.mp4> <fps>``; called by ``env/video.py``.

imageio-ffmpeg starts ffmpeg with a fork. In a process that holds hundreds of simulations the kernel may refuse that for want of memory, which
the copy would never touch; a small process forks freely.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: names in it must not shadow installed packages

import imageio_ffmpeg
import numpy as np


def encode(frames: np.ndarray, path: Path, fps: float) -> None:
    """``frames (T, H, W, 3)`` uint8 as H.264; an odd last row or column is cut off."""
    frames = np.ascontiguousarray(frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2])
    writer = imageio_ffmpeg.write_frames(
        str(path), (frames.shape[2], frames.shape[1]), fps=fps, quality=7, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(frame)
    finally:
        writer.close()


if __name__ == "__main__":
    encode(np.load(sys.argv[1], mmap_mode="r", allow_pickle=False), Path(sys.argv[2]), float(sys.argv[3]))
