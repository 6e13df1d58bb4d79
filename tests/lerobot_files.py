"""Data sets in LeRobotDataset's layout v3, written with pyarrow and ffmpeg alone: what the reader is tested against."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

FPS, SIZE = 10, (36, 52)
CAMERAS = ("front", "wrist")
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40], [40, 200, 200]], np.uint8)


def colour(episode: int, frame: int, camera: int) -> np.ndarray:
    """The one colour that a frame has."""
    return COLOURS[(3 * episode + frame + 2 * camera) % len(COLOURS)]


def write_lerobot(
    root: Path, lengths: list[int], per_file: int = 2, videos: bool = True, stills: bool = False, seed: int = 0
) -> dict[str, np.ndarray]:
    """Episodes of ``lengths`` steps, ``per_file`` of them in a file; returns states, actions and rewards as stored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, total = np.random.default_rng(seed), sum(lengths)
    arrays = {"observation.state": rng.normal(size=(total, 7)), "observation.force": rng.normal(size=(total, 3))}
    arrays |= {"action": rng.normal(size=(total, 5)), "next.reward": rng.normal(size=total)}
    arrays = {key: value.astype(np.float32) for key, value in arrays.items()}
    features = {key: {"dtype": "float32", "shape": list(a.shape[1:] or (1,))} for key, a in arrays.items()}
    if videos:
        features |= {f"observation.images.{c}": {"dtype": "video", "shape": [*SIZE, 3]} for c in CAMERAS}
    if stills:
        features["observation.image"] = {"dtype": "image", "shape": [3, *SIZE]}
    info = {
        "codebase_version": "v3.0", "robot_type": "toy", "fps": FPS, "features": features, "total_episodes": len(lengths),
        "total_frames": total, "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    }  # fmt: skip
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    rows = []
    for number, first in enumerate(range(0, len(lengths), per_file)):
        mine = list(range(first, min(first + per_file, len(lengths))))
        at = sum(lengths[:first])
        part = slice(at, at + sum(lengths[i] for i in mine))
        table = {
            "observation.state": pa.array(list(arrays["observation.state"][part]), pa.list_(pa.float32(), 7)),
            "observation.force": pa.array(list(arrays["observation.force"][part]), pa.list_(pa.float32())),
            "action": pa.array(list(arrays["action"][part]), pa.list_(pa.float32())),
            "next.reward": pa.array(arrays["next.reward"][part]),
            "episode_index": np.repeat(mine, [lengths[i] for i in mine]),
            "frame_index": np.concatenate([np.arange(lengths[i]) for i in mine]),
        }
        if stills:
            table["observation.image"] = [{"bytes": png(i, k), "path": None} for i in mine for k in range(lengths[i])]
        target = root / "data" / "chunk-000" / f"file-{number:03d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), target)
        if videos:
            for c, camera in enumerate(CAMERAS):
                write_mp4(root, f"observation.images.{camera}", number, [(i, lengths[i]) for i in mine], c)
        start = 0
        for i in mine:
            row = {
                "episode_index": i,
                "length": lengths[i],
                "data/chunk_index": 0,
                "data/file_index": number,
                "tasks": ["x"],
            }
            for camera in CAMERAS if videos else ():
                key = f"videos/observation.images.{camera}"
                row |= {f"{key}/chunk_index": 0, f"{key}/file_index": number, f"{key}/from_timestamp": start / FPS}
            rows.append(row)
            start += lengths[i]
    pq.write_table(pa.Table.from_pylist(rows), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    return arrays


def write_mp4(root: Path, key: str, number: int, episodes: list[tuple[int, int]], camera: int) -> None:
    from env.video_encoder import encode

    frames = [np.full((*SIZE, 3), colour(i, k, camera)) for i, length in episodes for k in range(length)]
    path = root / "videos" / key / "chunk-000" / f"file-{number:03d}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(np.stack(frames), path, FPS)


def png(episode: int, frame: int) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((*SIZE, 3), colour(episode, frame, 0))).save(out, "PNG")
    return out.getvalue()
