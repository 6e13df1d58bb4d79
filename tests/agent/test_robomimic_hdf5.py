"""robomimic's HDF5 files: read, refused by name, converted, and replayed in the engine."""

from __future__ import annotations

import json
import tracemalloc

import h5py
import numpy as np
import pytest

from agent import images
from agent.dataset import robomimic_hdf5
from agent.dataset.demos import read_demos
from agent.dataset.image_stream import save_demos_streamed
from agent.dataset.robomimic_hdf5 import RobomimicFile
from agent.dataset.sequence import StitchedSequenceDataset
from agent.errors import DatasetError
from env.normalizer import Normalizer
from script import process_robomimic_dataset as process
from tests.robomimic_files import env_args, synthetic_demos, write_file

KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
LENGTHS = [7, 11, 5]


@pytest.fixture
def lift(tmp_path):
    """(path, demos) of a small file."""
    demos = synthetic_demos("lift", LENGTHS)
    return write_file(tmp_path / "lift.hdf5", demos, env_args()), demos


def convert(path, folder, *arguments):
    process.main(["--load_path", str(path), "--save_dir", str(folder), *arguments])
    return read_demos(folder / "train.npz", use_img="--cameras" in arguments)


def raw_states(demos, keys=KEYS):
    return np.concatenate([np.concatenate([demo["obs"][key] for key in keys], axis=1) for demo in demos])


# ------------------------------------------------------------------------------------------------- conversion


def test_converted_arrays_follow_the_published_formula(lift, tmp_path):
    path, demos = lift
    arrays = convert(path, tmp_path / "out")
    scale = np.load(tmp_path / "out" / "normalization.npz")
    for name, raw, kind in (
        ("states", raw_states(demos), "obs"),
        ("actions", np.concatenate([d["actions"] for d in demos]), "action"),
    ):
        low, high = np.minimum(raw.min(0), 0), np.maximum(raw.max(0), 0)  # 0 is always in the published range
        np.testing.assert_array_equal(scale[f"{kind}_min"], low.astype(np.float32))
        np.testing.assert_array_equal(scale[f"{kind}_max"], high.astype(np.float32))
        np.testing.assert_allclose(arrays[name], 2 * (raw - low) / (high - low + 1e-6) - 1, atol=2e-6)
        assert arrays[name].dtype == np.float32
    assert scale["obs_min"][:3].tolist() == [0.0, 0.0, 0.0]  # positions are all positive here
    assert arrays["traj_lengths"].tolist() == LENGTHS
    np.testing.assert_array_equal(arrays["rewards"], np.concatenate([d["rewards"] for d in demos]))
    assert not arrays["terminals"].any()
    dataset = StitchedSequenceDataset(tmp_path / "out" / "train.npz", horizon_steps=4)
    assert len(dataset) == sum(n - 3 for n in LENGTHS) and (dataset.obs_dim, dataset.action_dim) == (19, 7)


def test_tight_leaves_zero_out(lift, tmp_path):
    path, demos = lift
    arrays = convert(path, tmp_path / "out", "--tight")
    low = np.load(tmp_path / "out" / "normalization.npz")["obs_min"]
    np.testing.assert_array_equal(low, raw_states(demos).min(0).astype(np.float32))
    assert np.abs(arrays["states"]).max(0).min() > 0.999


@pytest.mark.parametrize(("task", "state", "action"), [("can", 23, 7), ("square", 23, 7), ("transport", 59, 14)])
def test_the_other_tasks_have_the_published_dimensions(tmp_path, task, state, action):
    path = write_file(tmp_path / "x.hdf5", synthetic_demos(task, [5, 7]), env_args(task))
    arrays = convert(path, tmp_path / "out")
    assert arrays["states"].shape == (12, state) and arrays["actions"].shape == (12, action)
    keys = json.loads((tmp_path / "out" / "about.json").read_text())["obs_keys"]
    assert list(keys)[-1] == "object" and sum(keys.values()) == state


def test_split_is_random_whole_and_repeatable(tmp_path):
    demos = synthetic_demos("lift", list(range(3, 14)))
    path = write_file(tmp_path / "x.hdf5", demos, env_args())
    out = tmp_path / "out"
    train = convert(path, out, "--val_split", "0.3", "--normalize")
    val = read_demos(out / "val.npz")
    lengths = train["traj_lengths"].tolist(), val["traj_lengths"].tolist()
    assert (len(lengths[0]), len(lengths[1])) == (7, 4)
    assert sorted(lengths[0] + lengths[1]) == list(range(3, 14)) and lengths[0] == sorted(lengths[0])
    again = convert(path, tmp_path / "again", "--val_split", "0.3")
    other = convert(path, tmp_path / "other", "--val_split", "0.3", "--seed", "1")
    assert again["traj_lengths"].tolist() == lengths[0] != other["traj_lengths"].tolist()
    low = np.load(out / "normalization.npz")["obs_min"]  # of all demonstrations, as published
    np.testing.assert_array_equal(low, np.minimum(raw_states(demos).min(0), 0).astype(np.float32))


def test_order_is_numeric_and_filters_hold(tmp_path):
    demos = synthetic_demos("lift", [3, 5, 7])
    for demo, name in zip(demos, ("demo_10", "demo_2", "demo_0")):
        demo["name"] = name
    path = write_file(tmp_path / "x.hdf5", demos, env_args(), {"train": ["demo_10", "demo_2"], "valid": ["demo_0"]})
    assert convert(path, tmp_path / "all")["traj_lengths"].tolist() == [7, 5, 3]
    assert convert(path, tmp_path / "two", "--max_episodes", "2")["traj_lengths"].tolist() == [7, 5]
    assert convert(path, tmp_path / "train", "--filter_key", "train")["traj_lengths"].tolist() == [5, 3]
    with RobomimicFile(path) as file, pytest.raises(DatasetError, match=r"x\.hdf5: mask/20_percent.*train, valid"):
        file.names("20_percent")


def test_images_are_channels_first_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(robomimic_hdf5.RobomimicFile.frames, "__defaults__", (4,))  # pieces shorter than an episode
    cameras = ("shouldercamera0", "shouldercamera1")
    demos = synthetic_demos("transport", [5, 7], cameras)
    path = write_file(tmp_path / "x.hdf5", demos, env_args("transport"))
    arrays = convert(path, tmp_path / "out", "--cameras")  # the published ones
    assert arrays["images"].shape == (12, 6, 13, 11) and arrays["images"].dtype == np.uint8
    assert arrays["states"].shape == (12, 18)  # without object
    expected = {"render_quality": "faithful", "cameras": list(cameras), "image_size": [13, 11]}
    assert images.of_demonstrations(tmp_path / "out" / "train.npz") == expected
    for k, camera in enumerate(cameras):
        whole = np.concatenate([demo["obs"][f"{camera}_image"] for demo in demos])
        np.testing.assert_array_equal(arrays["images"][:, 3 * k : 3 * k + 3], whole.transpose(0, 3, 1, 2))
    one = convert(path, tmp_path / "one", "--cameras", "shouldercamera1_image", "--val_split", "0.5")
    assert one["images"].shape[1] == 3 and len(one["images"]) == one["traj_lengths"].sum()
    assert len(read_demos(tmp_path / "one" / "val.npz", use_img=True)["images"]) == 12 - len(one["images"])


def test_images_never_stand_in_memory_together(tmp_path):
    shape, pieces, n = (3, 96, 96), 64, 16
    arrays = {
        "states": np.zeros((pieces * n, 2)),
        "actions": np.zeros((pieces * n, 1)),
        "traj_lengths": np.array([pieces * n]),
    }
    tracemalloc.start()
    save_demos_streamed(tmp_path / "a.npz", arrays, (np.full((n, *shape), k, np.uint8) for k in range(pieces)), shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6 < pieces * n * 3 * 96 * 96 / 5  # 28 MB in all
    images = read_demos(tmp_path / "a.npz", use_img=True)["images"]
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.repeat(np.arange(pieces), n))


@pytest.mark.parametrize(
    "pieces",
    [
        [np.zeros((2, 3, 2, 7), np.uint8)],
        [np.zeros((3, 3, 2, 7), np.uint8)] * 2,
        [np.zeros((5, 3, 2, 7), np.float32)],
        [np.zeros((5, 3, 7, 2), np.uint8)],
    ],
)
def test_wrong_streams_leave_nothing_behind(tmp_path, pieces):
    arrays = {"states": np.zeros((5, 2)), "actions": np.zeros((5, 1)), "traj_lengths": np.array([5])}
    with pytest.raises(DatasetError, match="images: expected"):
        save_demos_streamed(tmp_path / "a.npz", arrays, pieces, (3, 2, 7))
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced_unasked(lift, tmp_path, capsys):
    path, _ = lift
    convert(path, tmp_path / "out", "--val_split", "0.4")
    before = (tmp_path / "out" / "train.npz").read_bytes()
    with pytest.raises(SystemExit) as stop:
        convert(path, tmp_path / "out")
    assert stop.value.code == 2 and "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "train.npz").read_bytes() == before
    convert(path, tmp_path / "out", "--overwrite")
    assert len(read_demos(tmp_path / "out" / "train.npz")["traj_lengths"]) == 3
    assert not (tmp_path / "out" / "val.npz").exists()  # it was normalised with the former file's range
    convert(path, tmp_path / "out", "--save_name_prefix", "small_")
    assert (tmp_path / "out" / "small_normalization.npz").exists()


def test_default_folder_is_where_configurations_look(lift, tmp_path, monkeypatch):
    monkeypatch.setenv("DPPO_DATA_DIR", str(tmp_path / "data"))
    process.main(["--load_path", str(lift[0])])
    Normalizer.load(tmp_path / "data" / "robomimic" / "lift" / "normalization.npz")
    read_demos(tmp_path / "data" / "robomimic" / "lift" / "train.npz")


# ------------------------------------------------------------------------------- arrangements of other versions


@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_robosuite_15s_object_is_rearranged(tmp_path, task):
    old = synthetic_demos(task, [17])
    new = synthetic_demos(task, [17])
    obj = new[0]["obs"].pop("object")
    if task == "lift":
        obj[:, 7:] *= -1
    else:
        obj = np.concatenate([obj[:, 7:], obj[:, :7]], axis=1)
    new[0]["obs"]["object-state"] = obj  # and robosuite's own name of it
    files = [write_file(tmp_path / f"{k}.hdf5", demos, env_args(task)) for k, demos in enumerate((old, new))]
    states = []
    for path in files:
        with RobomimicFile(path) as file:
            states.append(file.read("demo_0").states)
    np.testing.assert_allclose(states[0], states[1], atol=1e-12)
    np.testing.assert_array_equal(states[0], raw_states(old))


def test_an_object_that_fits_no_arrangement_is_refused(tmp_path):
    demos = synthetic_demos("lift", [17])
    demos[0]["obs"]["object"][:, 7:] = 0.5
    path = write_file(tmp_path / "x.hdf5", demos, env_args())
    with (
        RobomimicFile(path) as file,
        pytest.raises(DatasetError, match=r"x\.hdf5: data/demo_0/obs/object.*arrangement"),
    ):
        file.read("demo_0")


# ----------------------------------------------------------------------------------------------------- refusals


def change(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file)


def put(key, function):
    """Replace a dataset by ``function`` of it; None removes it."""

    def edit(file):
        value = function(file[key][()]) if function else None
        del file[key]
        if value is not None:
            file[key] = value

    return edit


def poke(key, index, value):
    def edit(file):
        file[key][index] = value

    return edit


def attribute(group, key, value):
    def edit(file):
        file[group].attrs[key] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("data/demo_1/actions", None), r"data/demo_1/actions is missing; the demonstration has dones"),
        (put("data/demo_1/rewards", None), r"data/demo_1/rewards is missing"),
        (put("data/demo_1/obs/object", None), r"data/demo_1/obs/object is missing; obs has robot0_eef_pos"),
        (lambda f: f.pop("data/demo_1/obs"), r"data/demo_1/obs is missing.*states"),
        (put("data/demo_2/actions", lambda a: a[:, :6]), r"data/demo_2/actions: expected numbers of shape \(any, 7\)"),
        (put("data/demo_1/obs/object", lambda a: a[:, :9]), r"data/demo_1/obs/object: .*\(11, 10\), found \(11, 9\)"),
        (put("data/demo_1/obs/robot0_eef_pos", lambda a: a[:-1]), r"robot0_eef_pos: .*\(11, 3\), found \(10, 3\)"),
        (put("data/demo_1/rewards", lambda a: a[:, None]), r"data/demo_1/rewards: .*\(11\), found \(11, 1\)"),
        (put("data/demo_1/rewards", lambda a: a.astype("S3")), r"data/demo_1/rewards: expected numbers"),
        (put("data/demo_1/dones", lambda a: a[:-2]), r"data/demo_1/dones: expected 11 rows.*found 9"),
        (poke("data/demo_1/actions", (3, 2), np.nan), r"data/demo_1/actions\[3, 2\] is nan"),
        (poke("data/demo_2/obs/robot0_eef_quat", (1, 0), np.inf), r"data/demo_2/obs/robot0_eef_quat\[1, 0\] is inf"),
        (poke("data/demo_0/rewards", 4, np.nan), r"data/demo_0/rewards\[4\] is nan"),
        (poke("data/demo_0/actions", (6, 1), -1.3), r"data/demo_0/actions\[6, 1\] is -1\.3; expected values in \[-1, 1\]"),
        (attribute("data/demo_1", "num_samples", 12), r"data/demo_1/actions: expected 12 rows.*num_samples.*found 11"),
        (attribute("data", "total", 24), r"attribute total is 24, but the actions are 23 rows"),
        (attribute("data", "env_args", "{"), r"env_args: no JSON"),
        (lambda f: f["data"].attrs.pop("env_args"), r"no attribute env_args; it has total.*convert_robosuite"),
        (lambda f: f.move("data", "dat"), r"no group 'data' in it; it has dat"),
        (lambda f: f.move("data/demo_1", "data/episode"), r"data/episode: expected demonstrations called demo_<number>"),
        (lambda f: [f["data"].pop(f"demo_{k}") for k in range(3)] and f["data"].attrs.pop("total"), "no demonstrations"),
        (lambda f: f.create_dataset("data/demo_7", data=1.0), "data/demo_7: expected a group"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_by_name(lift, tmp_path, capsys, edit, message):
    path, _ = lift
    change(path, edit)
    with pytest.raises(SystemExit) as stop:
        convert(path, tmp_path / "out")
    assert stop.value.code == 2
    said = capsys.readouterr().err
    with pytest.raises(DatasetError, match=r"lift\.hdf5: .*" + message):
        raise DatasetError(said.split("error: ")[1].strip())
    assert not (tmp_path / "out").exists()  # refused before anything was written


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("data/demo_0/obs/agentview_image", None), "agentview_image is missing.*dataset_states_to_obs"),
        (put("data/demo_1/obs/agentview_image", None), "1/obs/agentview_image is missing"),
        (
            put("data/demo_1/obs/agentview_image", lambda a: a[:-1]),
            r"1/obs/.*expected shape \(7, 13, 11, 3\), found \(6,",
        ),
        (put("data/demo_1/obs/agentview_image", lambda a: a[:, :-1]), r"1/obs/.*expected shape \(7, 13, 11, 3\)"),
        (put("data/demo_0/obs/agentview_image", lambda a: a / 255), r"expected \(T, H, W, 3\) uint8, found .*float64"),
    ],
)
def test_bad_images_are_refused_by_name(tmp_path, capsys, edit, message):
    path = write_file(tmp_path / "x.hdf5", synthetic_demos("square", [5, 7], ("agentview",)), env_args("square"))
    change(path, edit)
    with pytest.raises(SystemExit):
        convert(path, tmp_path / "out", "--cameras", "agentview")
    with pytest.raises(DatasetError, match=r"x\.hdf5: data/demo_.*" + message):
        raise DatasetError(capsys.readouterr().err.split("error: ")[1].replace("\n", " "))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x04pickle", b"PK\x03\x04"]
)
def test_what_is_no_hdf5_is_refused(tmp_path, content):
    (tmp_path / "x.hdf5").write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.hdf5: no HDF5 file"):
        RobomimicFile(tmp_path / "x.hdf5")
    with pytest.raises(DatasetError, match="no such file"):
        RobomimicFile(tmp_path / "y.hdf5")


def test_a_truncated_or_damaged_file_is_refused(lift, tmp_path):
    path, demos = lift
    whole = path.read_bytes()
    (tmp_path / "short.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"short\.hdf5: damaged or cut short"):
        RobomimicFile(tmp_path / "short.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/actions"]
        file.create_dataset("data/demo_0/actions", data=demos[0]["actions"], compression="gzip", chunks=(7, 7))
        at = file["data/demo_0/actions"].id.get_chunk_info(0).byte_offset
    damaged = bytearray(path.read_bytes())
    damaged[at : at + 40] = b"\xff" * 40
    path.write_bytes(damaged)
    with RobomimicFile(path) as file, pytest.raises(DatasetError, match="data/demo_0/actions: cannot be read"):
        file.read("demo_0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--val_split", "1.0"], "--val_split"),
        (["--val_split", "0.9"], "no demonstration of 3"),
        (["--max_episodes", "0"], "--max_episodes"),
    ],
)
def test_nonsense_arguments(lift, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        convert(lift[0], tmp_path / "out", *arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ published npz


def test_published_files_are_read_as_they_are(tmp_path):
    """float64, other integers, images, and keys nobody asked for: spec 4.1 and what savez makes of it."""
    rng = np.random.default_rng(0)
    np.savez_compressed(
        tmp_path / "train.npz",
        states=rng.uniform(-1, 1, (12, 9)), actions=rng.uniform(-1, 1, (12, 7)), traj_lengths=np.array([5, 7], np.int32),
        images=rng.integers(0, 256, (12, 3, 13, 11), np.uint8), rewards=np.zeros(12), terminals=np.zeros(12, bool),
        something_else=np.zeros(3), max_traj_length=np.array(7),
    )  # fmt: skip
    arrays = read_demos(tmp_path / "train.npz", use_img=True)
    assert set(arrays) == {"states", "actions", "traj_lengths", "images", "rewards", "terminals"}
    dataset = StitchedSequenceDataset(tmp_path / "train.npz", horizon_steps=4, use_img=True)
    assert len(dataset) == 2 + 4
