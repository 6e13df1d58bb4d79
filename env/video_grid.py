"""Several episodes side by side in one video: a caption under each, and a border that says how it goes.

Grey: running. Green: solved. Red: time ran out. An episode that is solved is shown for one more second and then stands
still until the others are done.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from env.errors import EnvError
from env.video import render_frames, write_video

log = logging.getLogger(__name__)

RUNNING, SOLVED, FAILED = (120, 120, 120), (34, 160, 60), (215, 40, 40)  # RGB of the borders
_BORDER, _CAPTION = 4, 16  # pixels
_ASPECT = 3 / 4  # height of an episode's image, relative to its width
_WIDTH, _TILE = 480, (160, 320)  # pixels: of all images side by side; of one, at least (for the caption) and at most
_MAX_FRAMES = 200  # per episode; a longer one shows fewer frames per second
_MIN_STRIDE = 2  # control steps from one frame to the next: ten frames per second at 20 Hz
_START_S, _FRAME_S = 120.0, 1.0  # what rendering may take: generous, as other work may go on beside it
_AFTERWARDS_S, _HOLD_S = 1.0, 1.0  # shown of an episode after it was solved; the last picture stands still


@dataclass(frozen=True, slots=True)
class Episode:
    """What is shown of an episode."""

    seed: int
    qpos: np.ndarray  # (T, nq): at its start and after each control step
    solved_at: int | None = None  # row of ``qpos`` from which on the task is solved
    score: float | None = None  # the return, of a task that is never solved


def render_grid(
    model: mujoco.MjModel,
    episodes: Sequence[Episode],
    path: str | os.PathLike[str],
    camera: str | None = None,
    hz: float = 20.0,
    geom_groups: Sequence[int] | None = None,
) -> list[Path]:
    """Write ``<path>.mp4`` and ``<path>.gif`` of all ``episodes``, at the speed at which they happened.

    ``hz`` is the number of rows of ``qpos`` per second; ``camera`` and ``geom_groups`` are those of ``render_frames``.

    Returns:
        the files written: none, after a logged warning, where rendering or writing fails for whatever reason.
    """
    try:
        if not episodes:
            raise EnvError("there is no episode to show")
        shown = [_shown_rows(episode, hz) for episode in episodes]
        stride = max(_MIN_STRIDE, math.ceil(max(shown) / _MAX_FRAMES))
        rows = [np.append(np.arange(0, n - 1, stride), n - 1) for n in shown]
        width = min(max(_WIDTH // columns_of(len(episodes)), _TILE[0]), _TILE[1])
        qpos = np.concatenate([episode.qpos[r] for episode, r in zip(episodes, rows, strict=True)])
        deadline = _START_S + _FRAME_S * len(qpos)
        frames = render_frames(model, qpos, camera, width, round(width * _ASPECT), geom_groups, deadline)
        parts = np.split(frames, np.cumsum([len(r) for r in rows])[:-1])
        tiles = [_tile(e, r, part, hz) for e, r, part in zip(episodes, rows, parts, strict=True)]
        return write_video(compose(tiles, hold=round(_HOLD_S * hz / stride)), path, hz / stride)
    except (EnvError, ImportError, OSError) as error:
        log.warning("No video at %s: %s", path, error)
        return []


def columns_of(n: int) -> int:
    """Columns of a grid of ``n`` episodes: as square as it gets, rather wide than high."""
    return math.ceil(math.sqrt(n))


def compose(tiles: Sequence[np.ndarray], hold: int = 0) -> np.ndarray:
    """``tiles (T_i, h, w, 3)`` uint8 in a grid, row by row: ``(max T_i + hold, rows h, columns w, 3)``.

    A tile that ends early repeats its last frame; ``hold`` frames more are the last picture again. Empty places are white.
    """
    columns, (height, width) = columns_of(len(tiles)), tiles[0].shape[1:3]
    n_frames = max(len(tile) for tile in tiles) + hold
    out = np.full((n_frames, math.ceil(len(tiles) / columns) * height, columns * width, 3), 255, np.uint8)
    for k, tile in enumerate(tiles):
        top, left = k // columns * height, k % columns * width
        place = out[:, top : top + height, left : left + width]
        place[: len(tile)] = tile
        place[len(tile) :] = tile[-1]
    return out


def caption(episode: Episode, hz: float) -> str:
    """What stands under an episode: its seed and its outcome."""
    if episode.score is not None:
        return f"seed {episode.seed}: return {episode.score:.0f} ({(len(episode.qpos) - 1) / hz:.1f} s)"
    if episode.solved_at is None:
        return f"seed {episode.seed}: failed ({(len(episode.qpos) - 1) / hz:.1f} s)"
    return f"seed {episode.seed}: solved ({episode.solved_at / hz:.1f} s)"


def _shown_rows(episode: Episode, hz: float) -> int:
    if episode.solved_at is None:
        return len(episode.qpos)
    return min(len(episode.qpos), episode.solved_at + round(_AFTERWARDS_S * hz) + 1)


def _tile(episode: Episode, rows: np.ndarray, frames: np.ndarray, hz: float) -> np.ndarray:
    """The frames of one episode, which show its ``rows``, with border and caption."""
    n, height, width = frames.shape[:3]
    out = np.empty((n, height + 2 * _BORDER + _CAPTION, width + 2 * _BORDER, 3), np.uint8)
    out[:] = RUNNING
    if episode.solved_at is not None:
        out[rows >= episode.solved_at] = SOLVED
    elif episode.score is None:
        out[-1] = FAILED
    out[:, _BORDER : _BORDER + height, _BORDER : _BORDER + width] = frames
    out[:, _BORDER + height : -_BORDER, _BORDER:-_BORDER] = _strip(caption(episode, hz), width)
    return out


def _strip(text: str, width: int) -> np.ndarray:
    """``text`` in black on white, ``(_CAPTION, width, 3)``."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, _CAPTION), "white")
    ImageDraw.Draw(image).text((3, 2), text, fill="black")
    return np.asarray(image)
