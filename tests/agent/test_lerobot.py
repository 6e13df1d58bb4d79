"""LeRobotDataset v3: numbers, episodes in shared files, and the colours of its videos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agent.dataset import video
from agent.dataset.demos import read_demos
from agent.dataset.formats import Wishes, read_any
from agent.errors import DatasetError, UsageError
from script import convert_dataset
from tests.lerobot_files import CAMERAS, SIZE, colour, write_lerobot, write_mp4

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
LENGTHS = [7, 5, 11]
CODEC = 12  # 8-bit levels by which H.264 at this quality, with halved colour, may miss a plain colour


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = tmp_path_factory.mktemp("lerobot") / "toy"
    return root, write_lerobot(root, LENGTHS, stills=True)


@pytest.fixture
def plain(tmp_path):
    write_lerobot(tmp_path / "toy", LENGTHS, videos=False)
    return tmp_path / "toy"


def expected(cameras, episodes) -> np.ndarray:
    """Colours (T, 3 per camera)."""
    return np.array(
        [np.concatenate([colour(i, k, CAMERAS.index(c)) for c in cameras]) for i in episodes for k in range(LENGTHS[i])]
    )


def test_numbers(shared):
    root, arrays = shared
    found = read_any(root)
    np.testing.assert_array_equal(found.states, arrays["observation.state"])
    np.testing.assert_array_equal(found.actions, arrays["action"])
    np.testing.assert_array_equal(found.rewards, arrays["next.reward"])
    assert found.traj_lengths.tolist() == LENGTHS and not found.terminals.any() and found.images is None
    np.testing.assert_array_equal(found.scale.obs_min, arrays["observation.state"].min(axis=0))
    both = read_any(root, Wishes(obs_keys=("observation.force", "observation.state"), max_episodes=2))
    assert both.columns == {"observation.force": 3, "observation.state": 7} and len(both.states) == 12
    np.testing.assert_array_equal(both.states[:, :3], arrays["observation.force"][:12])


@pytest.mark.parametrize("episodes", [[0, 1, 2], [0, 2], [1], [2, 0]])
def test_colours_of_the_videos(shared, episodes):
    images = read_any(shared[0], Wishes(cameras=("wrist", "observation.images.front"))).images
    frames = np.concatenate(list(images.frames(episodes)))
    assert images.cameras == ("wrist", "front") and frames.shape == (sum(LENGTHS[i] for i in episodes), 6, *SIZE)
    centre = frames[:, :, 8:-8, 8:-8].astype(int)
    wanted = expected(("wrist", "front"), episodes)[:, :, None, None]
    assert np.abs(centre - wanted).max() <= CODEC
    assert np.abs(np.diff(wanted, axis=0)).max() > 10 * CODEC  # another frame's colour would be seen


def test_images_in_the_table(shared):
    images = read_any(shared[0], Wishes(cameras=("image",))).images
    np.testing.assert_array_equal(
        np.concatenate(list(images.frames([0, 1, 2]))), np.broadcast_to(expected(("front",), range(3))[:, :, None, None], (23, 3, *SIZE))
    )  # fmt: skip


def test_command_line(shared, tmp_path, capsys):
    root, arrays = shared
    convert_dataset.main(
        [str(root), str(tmp_path / "a"), "--cameras", *CAMERAS, "--image_size", "9", "13", "--uncompressed"]
    )
    made = read_demos(tmp_path / "a" / "train.npz", use_img=True)
    assert isinstance(made["images"], np.memmap) and made["images"].shape == (23, 6, 9, 13)
    assert (
        np.abs(made["images"][:, :, 3:6, 4:9].astype(int) - expected(CAMERAS, range(3))[:, :, None, None]).max()
        <= CODEC
    )
    assert "lerobot: 3 episodes of 5 to 11 steps, 23 transitions" in capsys.readouterr().out
    about = json.loads((tmp_path / "a" / "about.json").read_text())
    assert (about["format"], about["fps"], about["cameras"], about["image_size"]) == (
        "lerobot",
        10,
        list(CAMERAS),
        [9, 13],
    )
    convert_dataset.main([str(root), str(tmp_path / "b.hdf5")])
    np.testing.assert_allclose(read_any(tmp_path / "b.hdf5").states, arrays["observation.state"])


def edited(root: Path, change) -> None:
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def retabled(path: Path, **columns) -> None:
    table = pq.read_table(path)
    for name, change in columns.items():
        name = name.replace("__", ".").replace("_of_", "/")
        at = table.column_names.index(name)
        values = change(table[name].to_pylist())
        table = table.remove_column(at) if values is None else table.set_column(at, name, pa.array(values))
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i: i.update(codebase_version="v2.1"),
            r"codebase_version: expected v3\.\*, found v2\.1; .*convert_dataset_v21",
        ),
        (lambda i: i.update(fps=0), "fps: expected a positive number, found 0"),
        (lambda i: i.update(features=[]), "features: expected an object"),
        (lambda i: i["features"]["action"].update(shape=[5, 2]), r"features\.action\.shape: expected one number"),
        (lambda i: i["features"]["action"].update(shape=[-5]), r"features\.action\.shape: expected positive"),
        (lambda i: i["features"]["action"].update(shape=[6]), "action: expected 6 numbers in each row, found 5"),
        (lambda i: i.update(data_path="../{0.__class__}"), "data_path: expected data/chunk"),
        (lambda i: i["features"].pop("action"), "no feature action in it; it has observation.state"),
    ],
)
def test_info_that_does_not_do(plain, change, message):
    edited(plain, change)
    with pytest.raises(UsageError, match=message):
        read_any(plain)


@pytest.mark.parametrize(
    ("file", "columns", "message"),
    [
        ("data/chunk-000/file-001", {"action": lambda v: [*v[:-1], [float("nan")] * 5]}, "action: NaN or infinity in row 10"),
        ("data/chunk-000/file-001", {"action": lambda v: [*v[:-1], [1.0]]}, "action: rows of 1 to 5 numbers"),
        ("data/chunk-000/file-001", {"action": lambda v: [*v[:-1], None]}, "action has gaps"),
        ("data/chunk-000/file-000", {"action": lambda v: None}, "no column action; it has"),
        ("data/chunk-000/file-000", {"action": lambda v: ["x"] * len(v)}, "action: expected numbers, found string"),
        ("data/chunk-000/file-000", {"frame_index": lambda v: v[::-1]}, r"episode 0: expected frames 0 to 6.*found 7 rows"),
        ("meta/episodes/chunk-000/file-000", {"length": lambda v: [7, 6, 11]}, "episode 1: expected frames 0 to 5 .*found 5 rows"),
        ("meta/episodes/chunk-000/file-000", {"episode_index": lambda v: [0, 1, 1]}, r"expected episodes 0, 1, 2, ..., found \[0, 1, 1\]"),
        ("meta/episodes/chunk-000/file-000", {"data_of_file_index": lambda v: [0, 7, 1]}, r"file-007\.parquet: no such file"),
        ("meta/episodes/chunk-000/file-000", {"data_of_file_index": lambda v: [0, -1, 1]}, r"expected numbers, found \[0, -1\]"),
    ],
)  # fmt: skip
def test_tables_that_do_not_do(plain, file, columns, message):
    retabled(plain / f"{file}.parquet", **columns)
    with pytest.raises(DatasetError, match=message):
        read_any(plain)


def test_files_cut_short(plain):
    path = plain / "data" / "chunk-000" / "file-000.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DatasetError, match=r"file-000\.parquet: damaged, or no parquet file"):
        read_any(plain)


def test_videos_that_do_not_do(shared):
    root, _ = shared
    path = root / "videos" / "observation.images.front" / "chunk-000" / "file-001.mp4"
    data = path.read_bytes()
    frames = read_any(root, Wishes(cameras=("front",))).images.frames
    try:
        for content, message in (
            (data[: len(data) // 2], "cannot be decoded"),
            (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "no MP4 file"),
            (None, "has 5 frames; episode 2 is frames 0 to 10"),
        ):
            if content is None:
                write_mp4(root, "observation.images.front", 1, [(2, 5)], 0)
            else:
                path.write_bytes(content)
            with pytest.raises(DatasetError, match=message):
                list(frames([0, 2]))
    finally:
        path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"expected frames of 50 x 36, found 52 36"):
        list(video.decode(path, 36, 50))
    with pytest.raises(UsageError, match=r"no camera side in it; it has observation\.images\.front"):
        read_any(root, Wishes(cameras=("side",)))


def test_without_pyarrow(plain, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"needs pyarrow: pip install 'd2ppo\[data\]'"):
        read_any(plain)
