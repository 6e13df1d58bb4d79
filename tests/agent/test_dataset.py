"""Chunks against a slow, obvious reference; and every way in which a demonstration file can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent.dataset import sequence
from agent.dataset.demos import save_demos
from agent.dataset.sequence import StitchedSequenceDataset
from agent.errors import DatasetError

LENGTHS = np.array([5, 2, 11, 3])  # the second is shorter than a chunk
OBS_DIM, ACTION_DIM, HORIZON = 7, 5, 3


def _arrays(lengths=LENGTHS, seed=0, **more):
    rng = np.random.default_rng(seed)
    total = int(np.sum(lengths))
    states = rng.uniform(-1, 1, (total, OBS_DIM)).astype(np.float32)
    actions = rng.uniform(-1, 1, (total, ACTION_DIM)).astype(np.float32)
    return {"states": states, "actions": actions, "traj_lengths": np.asarray(lengths), **more}


@pytest.fixture
def demos(tmp_path):
    path, arrays = tmp_path / "train.npz", _arrays()
    arrays["images"] = np.random.default_rng(1).integers(0, 256, (len(arrays["states"]), 3, 2, 4), dtype=np.uint8)
    save_demos(path, **arrays)
    return path, arrays


def _reference(arrays, horizon, cond_steps):
    """(actions, states) of every chunk, with loops."""
    chunks, offset = [], 0
    for length in arrays["traj_lengths"]:
        for i in range(length - horizon + 1):
            history = [offset + max(i - back, 0) for back in reversed(range(cond_steps))]
            chunks.append((arrays["actions"][offset + i : offset + i + horizon], arrays["states"][history]))
        offset += length
    return chunks


@pytest.mark.parametrize("cond_steps", [1, 2, 4])
def test_chunks_are_the_references(demos, cond_steps):
    path, arrays = demos
    dataset = StitchedSequenceDataset(path, horizon_steps=HORIZON, cond_steps=cond_steps)
    chunks = _reference(arrays, HORIZON, cond_steps)
    assert len(dataset) == len(chunks) == 3 + 0 + 9 + 1
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    batch = dataset.batch(order)
    assert batch.actions.shape == (13, HORIZON, ACTION_DIM) and batch.actions.dtype == torch.float32
    assert set(batch.conditions) == {"state"} and batch.conditions["state"].shape == (13, cond_steps, OBS_DIM)
    for row, index in enumerate(order.tolist()):
        np.testing.assert_array_equal(batch.actions[row], chunks[index][0])
        np.testing.assert_array_equal(batch.conditions["state"][row], chunks[index][1])


def test_images_stay_bytes_and_follow_the_same_history(demos):
    path, arrays = demos
    dataset = StitchedSequenceDataset(path, horizon_steps=HORIZON, cond_steps=3, img_cond_steps=2, use_img=True)
    rgb = dataset.batch(torch.tensor([0, 4])).conditions["rgb"]
    assert rgb.dtype == torch.uint8 and rgb.shape == (2, 2, 3, 2, 4)
    np.testing.assert_array_equal(rgb[0], arrays["images"][[0, 0]])
    np.testing.assert_array_equal(
        rgb[1], arrays["images"][[7, 8]]
    )  # start 1 of the third trajectory, which begins at row 7


def test_images_lie_on_a_device_only_where_it_has_room_for_twice_as_many(demos, monkeypatch):
    path, arrays = demos
    free = arrays["images"].nbytes * 2
    monkeypatch.setattr(sequence, "free_bytes", lambda device: free)
    given = {"horizon_steps": HORIZON, "use_img": True, "device": "meta"}  # a GPU without data
    dataset = StitchedSequenceDataset(path, **given)
    assert dataset.images.device.type == "meta" and not dataset.mapped
    rgb = dataset.batch(torch.tensor([0, 4])).conditions["rgb"]
    assert rgb.device.type == "meta" and rgb.shape == (2, 1, 3, 2, 4) and rgb.dtype == torch.uint8
    free -= 1
    assert StitchedSequenceDataset(path, **given).images.device.type == "cpu"


def test_only_the_first_episodes_and_the_dimensions(demos):
    path, _ = demos
    dataset = StitchedSequenceDataset(path, horizon_steps=HORIZON, max_n_episodes=2)
    assert (len(dataset), dataset.n_trajectories, dataset.obs_dim, dataset.action_dim) == (3, 2, OBS_DIM, ACTION_DIM)
    dataset.check(OBS_DIM, ACTION_DIM)
    with pytest.raises(DatasetError, match=r"obs_dim=19.*found 7 columns.*train_dataset_path"):
        dataset.check(19, ACTION_DIM)
    with pytest.raises(DatasetError, match=r"action_dim=4.*found 5"):
        dataset.check(OBS_DIM, 4)


def test_split_is_by_trajectory(tmp_path):
    save_demos(tmp_path / "train.npz", **_arrays(lengths=np.full(10, 7)))
    dataset = StitchedSequenceDataset(tmp_path / "train.npz", horizon_steps=HORIZON)
    train, held_out = dataset.split(0.7, torch.Generator().manual_seed(3))
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(50))
    assert (len(train), len(held_out)) == (35, 15)
    assert {i // 5 for i in train.tolist()}.isdisjoint(i // 5 for i in held_out.tolist())
    again, _ = dataset.split(0.7, torch.Generator().manual_seed(3))
    other, _ = dataset.split(0.7, torch.Generator().manual_seed(4))
    assert torch.equal(train, again) and not torch.equal(train, other)
    everything, nothing = dataset.split(1.0)
    assert (len(everything), len(nothing)) == (50, 0)


def test_split_leaves_each_side_a_trajectory_that_gives_chunks(demos, tmp_path):
    dataset = StitchedSequenceDataset(demos[0], horizon_steps=HORIZON)
    for fraction in (0.01, 0.99):
        train, held_out = dataset.split(fraction, torch.Generator().manual_seed(0))
        assert len(train) > 0 and len(held_out) > 0
    for fraction in (0.0, 1.5):
        with pytest.raises(DatasetError, match="train_split"):
            dataset.split(fraction)
    save_demos(tmp_path / "one.npz", **_arrays(lengths=[11, 2]))
    with pytest.raises(DatasetError, match="only 1 trajectory"):
        StitchedSequenceDataset(tmp_path / "one.npz", horizon_steps=HORIZON).split(0.5)


def _load(path, **settings):
    return StitchedSequenceDataset(path, **{"horizon_steps": HORIZON, **settings})


def test_missing_file_names_the_command(tmp_path):
    with pytest.raises(DatasetError, match=r"nothing\.npz.*script/collect_demos\.py --task.*DPPO_DATA_DIR"):
        _load(tmp_path / "nothing.npz")


def _changed(name, row, value):
    arrays = _arrays()
    arrays[name] = arrays[name].copy()
    arrays[name][row] = value
    return arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (_changed("states", (4, 2), np.nan), r"states\[4, 2\] is nan"),
        (_changed("actions", (20, 1), -np.inf), r"actions\[20, 1\] is -inf"),
        (_changed("actions", (3, 4), 1.01), r"actions\[3, 4\] is 1\.01.*not normalised"),
        (_changed("states", (0, 0), -57.0), r"states\[0, 0\] is -57.*not normalised"),
        (_arrays() | {"rewards": np.full(21, np.nan)}, r"rewards\[0\] is nan"),
        (_arrays() | {"traj_lengths": np.array([5, 2, 11, 4])}, "states has 21 rows, but traj_lengths add up to 22"),
        (_arrays() | {"rewards": np.zeros(20)}, "rewards has 20 rows"),
        (_arrays() | {"terminals": np.zeros(22, bool)}, "terminals has 22 rows"),
        (_arrays() | {"traj_lengths": np.array([5, 0, 16])}, "traj_lengths: expected"),
        (_arrays() | {"traj_lengths": np.array([5.0, 16.0])}, "traj_lengths: expected"),
        (_arrays() | {"traj_lengths": np.array([], int)}, "traj_lengths: expected"),
        (_arrays() | {"states": np.zeros((21, 2, 3))}, r"states: expected \(T, D\)"),
        (_arrays() | {"actions": np.zeros(21)}, r"actions: expected \(T, D\)"),
        ({"states": np.zeros((2, 3)), "actions": np.zeros((2, 3))}, "no traj_lengths in it"),
    ],
)
def test_bad_content_is_named_on_reading_and_never_written(tmp_path, arrays, message):
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(DatasetError, match=message):
        _load(tmp_path / "train.npz")
    if "traj_lengths" in arrays:
        with pytest.raises(DatasetError, match=message):
            save_demos(tmp_path / "out.npz", **arrays)
        assert not (tmp_path / "out.npz").exists()


def test_rounding_beyond_the_range_is_accepted(tmp_path):
    np.savez(tmp_path / "train.npz", **_changed("actions", (3, 4), 1.0009))
    assert len(_load(tmp_path / "train.npz")) == 13


def test_images_must_be_there_and_be_bytes(tmp_path, demos):
    np.savez(tmp_path / "plain.npz", **_arrays())
    with pytest.raises(DatasetError, match="no images in it"):
        _load(tmp_path / "plain.npz", use_img=True)
    np.savez(tmp_path / "float.npz", **_arrays(), images=np.zeros((21, 3, 2, 4)))
    with pytest.raises(DatasetError, match="images: expected.*uint8"):
        _load(tmp_path / "float.npz", use_img=True)
    with pytest.raises(DatasetError, match="img_cond_steps"):
        _load(demos[0], use_img=True, img_cond_steps=2)


@pytest.mark.parametrize("keep", [0, 1, 2, 100, 1500, -1])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "train.npz"
    save_demos(path, **_arrays())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=r"train\.npz: damaged"):
        _load(path)


def test_flipped_bits(tmp_path):
    path = tmp_path / "train.npz"
    save_demos(path, **_arrays())
    data = bytearray(path.read_bytes())
    data[300:310] = b"\xff" * 10
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="damaged"):
        _load(path)


def test_pickles_are_refused_unread(tmp_path):
    torch.save(_arrays(), tmp_path / "old.npz", _use_new_zipfile_serialization=False)  # a pickle under an honest name
    np.savez(tmp_path / "objects.npz", **_arrays() | {"states": np.array([{"a": 1}] * 21, dtype=object)})
    (tmp_path / "train.pkl").write_bytes(b"anything")
    for name in ("old.npz", "objects.npz", "train.pkl"):
        with pytest.raises(DatasetError, match=rf"{name}.*pickle.*npz"):
            _load(tmp_path / name)


def test_no_trajectory_is_long_enough(demos):
    with pytest.raises(DatasetError, match="horizon_steps=12, longest trajectory 11"):
        _load(demos[0], horizon_steps=12)
    assert len(_load(demos[0], horizon_steps=11)) == 1


@pytest.mark.parametrize("key", ["horizon_steps", "cond_steps", "max_n_episodes"])
def test_nonsense_settings(demos, key):
    with pytest.raises(DatasetError, match=key):
        _load(demos[0], **{key: 0})


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "train.npz"
    save_demos(path, **_arrays())
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(DatasetError, match=r"cannot be written \(No space left"):
        save_demos(path, **_arrays(seed=1))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["train.npz"]
