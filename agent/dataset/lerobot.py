"""LeRobotDataset v3, read without the lerobot package (numbers need pyarrow, videos only ffmpeg, which comes with imageio-ffmpeg).

    meta/info.json                                   codebase_version v3.*, fps, features, data_path, video_path, totals
    meta/episodes/chunk-000/file-000.parquet         a row per episode: episode_index, length, data/{chunk,file}_index,
                                                     videos/<key>/{chunk_index, file_index, from_timestamp, to_timestamp}
    data/chunk-000/file-000.parquet                  a row per step, of many episodes: episode_index, frame_index, action,
                                                     observation.state, next.reward ..., images as PNG where they are no video
    videos/<key>/chunk-000/file-000.mp4              a camera's frames, episode after episode

States are ``observation.state`` unless other features are named, side by side. Demonstrations here end by time, so ``terminals``
are all false, as in robomimic's. Values are in the data's own units; they are normalised by their own range.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agent.dataset.demonstrations import Demonstrations, Images
from agent.dataset.parquet import column, read_table
from agent.dataset.video import decode
from agent.errors import DatasetError, UsageError
from env.normalizer import Normalizer

INFO = Path("meta") / "info.json"
STATE, ACTION, REWARD = "observation.state", "action", "next.reward"
PIECE = 64  # frames handed over at once
_NUMBERS = ("episode_index", "frame_index")
_MAX_INDEX = 10**6  # of a chunk or a file
_VISUAL = ("video", "image")
_PATHS = {  # templates that nobody changes; nothing that a file says is used as one
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


def read_lerobot(
    root: Path, obs_keys: Sequence[str] = (), cameras: Sequence[str] | None = None, max_episodes: int | None = None
) -> Demonstrations:
    """A data set's demonstrations, checked. Videos are looked at only when frames are asked for.

    Args:
        root: the folder with ``meta``, ``data`` and ``videos``.
        obs_keys: features that make the state; empty: ``observation.state``.
        cameras: None: no images; empty: all of them; else names, with or without ``observation.images.``.

    Raises:
        DatasetError: another version, a file or column missing, episodes that do not add up, values that are not finite.
        UsageError: pyarrow is not installed; a camera or key that is not in it.
    """
    data = _DataSet(root)
    keys = list(obs_keys) or [STATE]
    columns = {key: data.width(key) for key in keys}
    episodes = data.episodes()[:max_episodes]
    wanted = {**columns, ACTION: data.width(ACTION)}
    if REWARD in data.features:
        wanted[REWARD] = 0
    steps = [data.steps(episode, wanted) for episode in episodes]
    states = np.concatenate([np.concatenate([s[key] for key in keys], axis=1) for s in steps]).astype(np.float64)
    actions = np.concatenate([s[ACTION] for s in steps]).astype(np.float64)
    about = {"env_name": str(data.info.get("robot_type") or root.name), "fps": data.fps}
    return Demonstrations(
        states, actions, np.array([e.length for e in episodes]), Normalizer.fit(states, actions), columns,
        rewards=np.concatenate([s[REWARD] for s in steps]).astype(np.float64) if REWARD in wanted else None,
        terminals=np.zeros(len(states), bool), about=about,
        images=None if cameras is None else data.images(cameras, episodes),
    )  # fmt: skip


@dataclass(frozen=True)
class _Episode:
    """A row of ``meta/episodes``."""

    index: int
    length: int
    row: Mapping[str, Any]


class _DataSet:
    """A data set's meta-data, checked, and what they lead to."""

    def __init__(self, root: Path) -> None:
        self.root, path = root, root / INFO
        try:
            self.info = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DatasetError(f"{path}: cannot be read ({error}). Download it again") from error
        if not isinstance(self.info, dict):
            raise DatasetError(f"{path}: expected an object, found a {type(self.info).__name__}")
        version = str(self.info.get("codebase_version"))
        if not version.startswith("v3."):
            raise DatasetError(
                f"{path}: codebase_version: expected v3.*, found {version}; lerobot's convert_dataset_v21_to_v30 makes v3 of v2.1"
            )
        self.path, self.features, self.fps = path, self.info.get("features"), self.info.get("fps")
        if not isinstance(self.features, dict) or not all(isinstance(f, dict) for f in self.features.values()):
            raise DatasetError(f"{path}: features: expected an object of objects, found {self.features!r:.80}")
        if isinstance(self.fps, bool) or not isinstance(self.fps, (int, float)) or not 0 < self.fps < 1e6:
            raise DatasetError(f"{path}: fps: expected a positive number, found {self.fps!r:.80}")
        for key, usual in _PATHS.items():
            if self.info.get(key) not in (None, usual):
                raise DatasetError(f"{path}: {key}: expected {usual}, found {self.info[key]!r:.100}")
        self._open: Path | None = None  # the data file that ``_arrays`` are of
        self._arrays: dict[str, np.ndarray] = {}

    def width(self, key: str) -> int:
        """Columns of the feature ``key``, a vector of numbers."""
        if key not in self.features:
            raise UsageError(f"{self.path}: no feature {key} in it; it has {', '.join(self.features)}")
        shape = self._shape(key)
        if len(shape) != 1:
            raise DatasetError(f"{self.path}: features.{key}.shape: expected one number, found {shape}")
        return shape[0]

    def _shape(self, key: str) -> list[int]:
        shape = self.features[key].get("shape")
        good = isinstance(shape, list) and all(type(n) is int and 0 < n < 2**20 for n in shape)
        if not good:
            raise DatasetError(f"{self.path}: features.{key}.shape: expected positive integers, found {shape!r:.80}")
        return shape

    def episodes(self) -> list[_Episode]:
        """All of them, in order."""
        folder = self.root / "meta" / "episodes"
        found = []
        for path in sorted(folder.glob("chunk-*/file-*.parquet")):
            table = read_table(path)
            for name in ("episode_index", "length", "data/chunk_index", "data/file_index"):
                if name not in table.column_names:
                    raise DatasetError(f"{path}: no column {name}; it has {', '.join(table.column_names[:30])}")
                column(table, name, 0, str(path), kinds="iu")
            found += [_Episode(row["episode_index"], row["length"], row) for row in table.to_pylist()]
        found.sort(key=lambda episode: episode.index)
        if [e.index for e in found] != list(range(len(found))) or not found:
            raise DatasetError(f"{folder}: expected episodes 0, 1, 2, ..., found {[e.index for e in found][:30]}")
        wrong = [e for e in found if e.length < 1]
        if wrong:
            raise DatasetError(f"{folder}: episode {wrong[0].index} has length {wrong[0].length}")
        return found

    def steps(self, episode: _Episode, wanted: Mapping[str, int]) -> dict[str, np.ndarray]:
        """The rows of one episode: ``key -> (length, width)``, in order of ``frame_index``."""
        path = self._file("data", "data", episode, ".parquet")
        if path != self._open:  # episodes come in order: one file at a time is enough
            table = read_table(path, [*wanted, *_NUMBERS])
            self._arrays = {key: column(table, key, width, str(path)) for key, width in wanted.items()}
            self._arrays |= {key: column(table, key, 0, str(path), kinds="iu") for key in _NUMBERS}
            self._open = path
        rows = self._rows(self._arrays, episode, path)
        return {key: self._arrays[key][rows] for key in wanted}

    def _rows(self, arrays: Mapping[str, np.ndarray], episode: _Episode, path: Path) -> np.ndarray:
        rows = np.flatnonzero(arrays["episode_index"] == episode.index)
        frames = arrays["frame_index"][rows]
        if len(rows) != episode.length or not np.array_equal(frames, np.arange(episode.length)):
            raise DatasetError(
                f"{path}: episode {episode.index}: expected frames 0 to {episode.length - 1} as meta/episodes says, found "
                f"{len(rows)} rows"
            )
        return rows

    def _file(self, folder: str, prefix: str, episode: _Episode, suffix: str) -> Path:
        """Where a part of an episode is: under the data set's root, by the layout's own names."""
        numbers = [episode.row.get(f"{prefix}/{name}_index") for name in ("chunk", "file")]
        if not all(type(n) is int and 0 <= n < _MAX_INDEX for n in numbers):
            raise DatasetError(
                f"{self.root}/meta/episodes: episode {episode.index}: {prefix}/chunk_index and file_index: expected numbers, "
                f"found {numbers}"
            )
        return self.root / folder / f"chunk-{numbers[0]:03d}" / f"file-{numbers[1]:03d}{suffix}"

    # ------------------------------------------------------------------------------------------------------------ images

    def images(self, cameras: Sequence[str], episodes: Sequence[_Episode]) -> Images:
        """The frames of ``cameras``, side by side along the channels."""
        every = [key for key, feature in self.features.items() if feature.get("dtype") in _VISUAL]
        keys = [self._camera(name, every) for name in cameras] or every
        if not keys:
            raise UsageError(f"{self.path}: no images in it; it has {', '.join(self.features)}")
        sizes = [self._size(key) for key in keys]
        if len(set(sizes)) > 1:
            raise UsageError(f"{self.path}: cameras of different sizes ({keys}: {sizes}); name some of one size")

        def frames(chosen: Sequence[int]) -> Iterator[np.ndarray]:
            sources = [self._frames(key, [episodes[i] for i in chosen], sizes[0]) for key in keys]
            total = sum(episodes[i].length for i in chosen)
            for start in range(0, total, PIECE):
                n = min(PIECE, total - start)
                piece = [np.stack([next(source) for _ in range(n)]) for source in sources]
                yield np.ascontiguousarray(np.concatenate(piece, axis=3).transpose(0, 3, 1, 2))

        names = tuple(key.removeprefix("observation.images.").removeprefix("observation.") for key in keys)
        return Images((3 * len(keys), *sizes[0]), names, frames)

    def _camera(self, name: str, every: Sequence[str]) -> str:
        for key in (name, f"observation.images.{name}", f"observation.{name}"):
            if key in every:
                return key
        raise UsageError(f"{self.path}: no camera {name} in it; it has {', '.join(every) or 'none'}")

    def _size(self, key: str) -> tuple[int, int]:
        """Height and width; a shape may say the channels first or last."""
        shape = self._shape(key)
        if len(shape) == 3 and shape[2] == 3:
            return shape[0], shape[1]
        if len(shape) == 3 and shape[0] == 3:
            return shape[1], shape[2]
        raise DatasetError(f"{self.path}: features.{key}.shape: expected height, width and 3 colours, found {shape}")

    def _frames(self, key: str, episodes: Sequence[_Episode], size: tuple[int, int]) -> Iterator[np.ndarray]:
        """Frame after frame of ``episodes``, ``(H, W, 3)`` uint8."""
        if self.features[key]["dtype"] == "image":
            yield from self._stills(key, episodes, size)
            return
        path, stream, at = None, iter(()), 0
        for episode in episodes:
            wanted, start = self._file(f"videos/{key}", f"videos/{key}", episode, ".mp4"), self._start(key, episode)
            if wanted != path or start < at:
                path, stream, at = wanted, decode(wanted, *size), 0
            for number, frame in enumerate(stream, at):
                at = number + 1
                if number >= start:
                    yield frame
                if at == start + episode.length:
                    break
            if at != start + episode.length:
                raise DatasetError(
                    f"{path}: has {at} frames; episode {episode.index} is frames {start} to {start + episode.length - 1}"
                )

    def _start(self, key: str, episode: _Episode) -> int:
        """The number of an episode's first frame in its video."""
        name = f"videos/{key}/from_timestamp"
        seconds = episode.row.get(name)
        if not isinstance(seconds, (int, float)) or not 0 <= seconds * self.fps < 1e9:
            raise DatasetError(
                f"{self.root}/meta/episodes: episode {episode.index}: {name}: expected seconds, found {seconds!r}"
            )
        return math.floor(seconds * self.fps + 0.5)

    def _stills(self, key: str, episodes: Sequence[_Episode], size: tuple[int, int]) -> Iterator[np.ndarray]:
        """Images kept in the table itself, as PNG or JPEG: ``{bytes, path}``."""
        path, table, arrays = None, None, {}
        for episode in episodes:
            wanted = self._file("data", "data", episode, ".parquet")
            if wanted != path:
                path, table = wanted, read_table(wanted, [key, *_NUMBERS])
                arrays = {name: column(table, name, 0, str(path), kinds="iu") for name in _NUMBERS}
            for row in self._rows(arrays, episode, path):
                cell = table[key][int(row)].as_py()
                yield _still(cell.get("bytes") if isinstance(cell, dict) else cell, size, f"{path}: {key}, row {row}")


def _still(data: Any, size: tuple[int, int], where: str) -> np.ndarray:
    if not isinstance(data, bytes):
        raise DatasetError(f"{where}: expected the bytes of an image, found {type(data).__name__}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a small file that would become a huge image
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if image.size != (size[1], size[0]):
                    raise DatasetError(f"{where}: expected an image of {size[1]} x {size[0]}, found {image.size}")
                return np.asarray(image.convert("RGB"))
    except DatasetError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Warning, MemoryError, KeyError, TypeError, IndexError) as error:
        raise DatasetError(f"{where}: no image, or a damaged one ({error})") from error
