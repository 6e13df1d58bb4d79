"""Demonstrations of whatever origin, in their own units: what the readers of other formats give, and the writers take.

Images are never held: ``Images.frames`` reads them again, episode by episode, from where they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agent.dataset.demos import save_demos
from agent.dataset.image_stream import save_demos_streamed
from agent.errors import DatasetError
from agent.files import atomic_write
from env.normalizer import EPSILON, Normalizer


@dataclass(frozen=True)
class Images:
    """The images of a data set: ``(C, H, W)`` uint8 each, all cameras side by side along C."""

    shape: tuple[int, int, int]
    cameras: tuple[str, ...]
    frames: Callable[
        [Sequence[int]], Iterator[np.ndarray]
    ]  # pieces (n, C, H, W) of the episodes asked for, in that order

    def resized(self, height: int, width: int) -> Images:
        """The same, every channel scaled to ``height`` x ``width`` by averaging over areas."""
        shape = (self.shape[0], height, width)

        def frames(episodes: Sequence[int]) -> Iterator[np.ndarray]:
            for piece in self.frames(episodes):
                planes = [_scaled(plane, height, width) for plane in piece.reshape(-1, *piece.shape[2:])]
                yield np.stack(planes).reshape(len(piece), *shape)

        return replace(self, shape=shape, frames=frames)


def _scaled(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BOX))


@dataclass(frozen=True)
class Demonstrations:
    """Trajectories one after another, checked: finite, lengths at least 1 that add up to T.

    ``scale`` normalises them; ``columns`` says what the states are made of, key -> width; ``about`` is what ``about.json``
    will say of their origin.
    """

    states: np.ndarray  # (T, Do) float64
    actions: np.ndarray  # (T, Da) float64
    traj_lengths: np.ndarray  # (E,)
    scale: Normalizer
    columns: Mapping[str, int]
    rewards: np.ndarray | None = None  # (T,)
    terminals: np.ndarray | None = None  # (T,) bool
    images: Images | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.traj_lengths)

    def rows(self, episodes: Sequence[int]) -> np.ndarray:
        """Rows of ``episodes``, in that order."""
        ends = np.cumsum(self.traj_lengths)
        return np.concatenate([np.arange(ends[i] - self.traj_lengths[i], ends[i]) for i in episodes])


def published_range(states: np.ndarray, actions: np.ndarray, tight: bool = False) -> Normalizer:
    """Per-column range of ``states (T, Do)`` and ``actions (T, Da)``; 0 is part of it, as in the published files, unless ``tight``."""
    columns = []
    for array in (states, actions):
        low, high = array.min(axis=0), array.max(axis=0)
        columns.append(np.stack([low, high] if tight else [np.minimum(low, 0.0), np.maximum(high, 0.0)]))
    return Normalizer.fit(*columns)


def exactly_unnormalized(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Inverse of ``Normalizer.normalize_*`` in float64, epsilon included: normalised again the values are the same."""
    low, high = low.astype(np.float64), high.astype(np.float64)
    return (values.astype(np.float64) + 1.0) / 2.0 * (high - low + EPSILON) + low


def write_npz(path: Path, demos: Demonstrations, episodes: Sequence[int], compress: bool = True) -> None:
    """One npz of ``episodes``, normalised, with their images.

    Raises:
        DatasetError: see ``demos.save_demos``.
    """
    rows = demos.rows(episodes)
    arrays = {
        "states": demos.scale.normalize_obs(demos.states[rows]),
        "actions": demos.scale.normalize_action(demos.actions[rows]),
        "traj_lengths": demos.traj_lengths[list(episodes)],
    }
    for name in ("rewards", "terminals"):
        if (values := getattr(demos, name)) is not None:
            arrays[name] = values[rows]
    if demos.images is None:
        save_demos(path, **arrays)
    else:
        save_demos_streamed(path, arrays, demos.images.frames(episodes), demos.images.shape, compress)


def write_about(path: Path, demos: Demonstrations, **more: Any) -> None:
    """``about.json``: where the demonstrations come from, what their states are, and how their images came about."""
    about = {**demos.about, "obs_keys": dict(demos.columns), **more}
    if demos.images is not None:
        about |= {"cameras": list(demos.images.cameras), "image_size": list(demos.images.shape[1:])}
    try:
        with atomic_write(path) as file:
            file.write((json.dumps(about, indent=2) + "\n").encode())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_about(path: Path) -> dict[str, Any]:
    """``about.json`` beside demonstrations; empty if there is none. Raises ``DatasetError`` for a damaged one."""
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: damaged ({error}). Make it again, or remove it") from error
    return about if isinstance(about, dict) else {}
