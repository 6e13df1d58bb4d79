"""One command from any format to any other: what comes out is what went in."""

from __future__ import annotations

import json
import pickle

import h5py
import numpy as np
import pytest

from agent.dataset import formats
from agent.dataset.demos import read_demos, save_demos
from agent.dataset.formats import Wishes, read_any, recognise
from agent.dataset.robomimic_hdf5 import RobomimicFile
from agent.errors import DatasetError, UsageError
from env.normalizer import Normalizer
from script import convert_dataset, process_gym_dataset, process_robomimic_dataset
from tests.agent.test_d3il_files import Trap, d3il_file
from tests.robomimic_files import env_args, synthetic_demos, write_file

LENGTHS = [7, 11, 5]


def convert(*arguments) -> None:
    convert_dataset.main([str(a) for a in arguments])


def fails(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        convert(*arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def same(a, b) -> None:
    """The same train.npz, normalization.npz and images, to the bit."""
    for name in ("train.npz", "normalization.npz"):
        with np.load(a / name) as x, np.load(b / name) as y:
            assert sorted(x.files) == sorted(y.files)
            for key in x.files:
                assert x[key].dtype == y[key].dtype
                np.testing.assert_array_equal(x[key], y[key], err_msg=f"{name}: {key}")


@pytest.fixture
def can(tmp_path):
    return write_file(tmp_path / "can.hdf5", synthetic_demos("can", LENGTHS, ("agentview",)), env_args("can"))


# ------------------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("cameras", [(), ("--cameras", "agentview")])
def test_robomimic_to_npz_and_back(can, tmp_path, cameras):
    convert(can, tmp_path / "a", *cameras)
    process_robomimic_dataset.main(["--load_path", str(can), "--save_dir", str(tmp_path / "published"), *cameras])
    same(tmp_path / "a", tmp_path / "published")
    again = cameras[:1]  # the images of an npz file have no names to choose from
    convert(tmp_path / "a", tmp_path / "b.hdf5", *again)
    with RobomimicFile(tmp_path / "b.hdf5", "can", cameras[1:] if cameras else None) as file, h5py.File(can) as source:
        assert file.names() == ["demo_0", "demo_1", "demo_2"]
        np.testing.assert_allclose(file.read("demo_1").actions, source["data/demo_1/actions"], atol=1e-6)
        if cameras:
            np.testing.assert_array_equal(
                file._data["demo_2/obs/agentview_image"], source["data/demo_2/obs/agentview_image"]
            )
    convert(tmp_path / "b.hdf5", tmp_path / "c", *cameras)
    same(tmp_path / "a", tmp_path / "c")
    convert(tmp_path / "a", tmp_path / "d", *again, *(["--uncompressed"] if cameras else []))
    same(tmp_path / "a", tmp_path / "d")
    assert isinstance(read_demos(tmp_path / "d" / "train.npz", bool(cameras)).get("images"), np.memmap) == bool(cameras)


def test_a_part_of_them_and_a_share_for_validation(can, tmp_path):
    convert(can, tmp_path / "a", "--cameras", "agentview")
    convert(tmp_path / "a", tmp_path / "b", "--cameras", "--val_split", "0.4", "--seed", "3")
    whole = read_demos(tmp_path / "a" / "train.npz", use_img=True)
    about = json.loads((tmp_path / "b" / "about.json").read_text())
    assert about["format"] == "npz" and about["task"] == "can" and about["render_quality"] == "faithful"
    kept = about["train_episodes"]
    for name, episodes in (("train.npz", kept), ("val.npz", sorted({0, 1, 2} - set(kept)))):
        part = read_demos(tmp_path / "b" / name, use_img=True)
        rows = np.concatenate([np.arange(7 * (i > 0) + 11 * (i > 1), [7, 18, 23][i]) for i in episodes])
        assert part["traj_lengths"].tolist() == [LENGTHS[i] for i in episodes]
        for key in ("states", "actions", "images"):
            np.testing.assert_array_equal(part[key], whole[key][rows])
    convert(tmp_path / "a", tmp_path / "c.hdf5", "--max_episodes", 2, "--val_split", "0.5")
    with h5py.File(tmp_path / "c.hdf5") as file:
        assert sorted(file["data"]) == ["demo_0", "demo_1"] and file["data"].attrs["total"] == 18
        assert sorted([*file["mask/train"][()], *file["mask/valid"][()]]) == [b"demo_0", b"demo_1"]


def test_other_tasks_in_robomimics_layout(tmp_path):
    rng = np.random.default_rng(0)
    demos = []
    for n in LENGTHS:
        obs = {
            "joints": rng.normal(size=(n, 7)),
            "force": rng.normal(size=n),
            "top": rng.integers(0, 256, (n, 5, 3, 3), np.uint8),
        }
        demos.append({"actions": 9 * rng.normal(size=(n, 2)), "obs": obs})
    path = write_file(tmp_path / "x.hdf5", demos, {"env_name": "Isaac-Lift-v0"})
    found = read_any(path, Wishes(cameras=()))
    assert (
        found.columns == {"force": 1, "joints": 7}
        and found.rewards is None
        and found.about["env_name"] == "Isaac-Lift-v0"
    )
    np.testing.assert_array_equal(
        found.states[7:18], np.column_stack([demos[1]["obs"]["force"], demos[1]["obs"]["joints"]])
    )
    top = np.concatenate([d["obs"]["top"] for d in demos]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(np.concatenate(list(found.images.frames([0, 2]))), np.delete(top, range(7, 18), 0))
    assert read_any(path, Wishes(obs_keys=("joints",), max_episodes=1)).states.shape == (7, 7)
    for arguments in (("a",), ("b.hdf5",)):
        convert(path, tmp_path / arguments[0], "--cameras")
    convert(tmp_path / "b.hdf5", tmp_path / "c", "--cameras", "top")
    same(tmp_path / "a", tmp_path / "c")
    with h5py.File(path, "a") as file:
        file["data/demo_2/obs/joints"][3, 4] = np.nan
    with pytest.raises(DatasetError, match=r"x\.hdf5: data/demo_2/obs/joints\[3, 4\] is nan"):
        read_any(path)
    with pytest.raises(DatasetError, match=r"data/demo_0/obs/wrist is missing"):
        read_any(path, Wishes(obs_keys=("wrist",)))


def test_images_are_scaled(can, tmp_path):
    convert(can, tmp_path / "a", "--cameras", "agentview")
    convert(tmp_path / "a", tmp_path / "b", "--cameras", "--image_size", 26, 22)
    small, large = (read_demos(tmp_path / x / "train.npz", use_img=True)["images"] for x in "ab")
    assert large.shape == (23, 3, 26, 22)
    np.testing.assert_array_equal(large[:, :, ::2, 1::2], small)
    assert json.loads((tmp_path / "b" / "about.json").read_text())["image_size"] == [26, 22]


# -------------------------------------------------------------------------------------------------------------- pickles


def padded(seed: int = 0) -> dict[str, np.ndarray]:
    """Zeros behind each episode, as DPPO's and D3IL's scripts wrote them."""
    rng = np.random.default_rng(seed)
    arrays = {"observations": np.zeros((3, 11, 5)), "actions": np.zeros((3, 11, 2)), "rewards": np.zeros((3, 11))}
    for k, n in enumerate(LENGTHS):
        for array in arrays.values():
            array[k, :n] = rng.uniform(-1, 1, array[k, :n].shape)
    return {**arrays, "traj_length": np.array(LENGTHS)}


@pytest.mark.parametrize("name", ["train.pkl", "train.npz"])
@pytest.mark.parametrize("protocol", [3, 5])
def test_padded_pickles(tmp_path, name, protocol):
    old = tmp_path / "old"
    old.mkdir()
    (old / name).write_bytes(pickle.dumps(padded(), protocol))
    convert(old / name, tmp_path / "plain")
    arrays = read_demos(tmp_path / "plain" / "train.npz")
    for key, source in (("states", "observations"), ("actions", "actions"), ("rewards", "rewards")):
        expected = np.concatenate([padded()[source][k, :n] for k, n in enumerate(LENGTHS)])
        np.testing.assert_allclose(arrays[key], expected, atol=1e-7)
    assert arrays["traj_lengths"].tolist() == LENGTHS
    scale = Normalizer(np.full(5, 2.0), np.full(5, 6.0), np.full(2, -3.0), np.full(2, 1.0))
    scale.save(old / "normalization.npz")
    convert(old / name, tmp_path / "scaled")
    assert Normalizer.load(tmp_path / "scaled" / "normalization.npz") == scale
    np.testing.assert_array_equal(read_demos(tmp_path / "scaled" / "train.npz")["states"], arrays["states"])
    np.testing.assert_allclose(read_any(old / name).states, 2 * arrays["states"] + 4, atol=2e-6)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("traj_length", np.array([7, 12, 5]), "traj_length: expected numbers from 1 to 11, found 5 to 12"),
        ("traj_length", np.array([7.0, 11.0, 5.0]), r"traj_length: expected \(3,\) integers"),
        ("actions", np.zeros((3, 10, 2)), r"actions: expected shape \(3, 11, ...\), found \(3, 10, 2\)"),
        ("observations", np.full((3, 11, 5), np.nan), r"states\[0, 0\] is nan"),
        ("observations", [[1.0]], "no states in it"),
        ("actions", np.array([{}], object), "plain data"),
    ],
)
def test_padded_pickles_that_do_not_do(tmp_path, key, value, message):
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(padded() | {key: value}, 4))
    with pytest.raises(DatasetError, match=message):
        read_any(tmp_path / "train.pkl")


def test_pickles_are_never_run(tmp_path, capsys):
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(padded() | {"x": Trap(tmp_path / "sprung")}, 4))
    assert "mkdir, which is not plain data" in fails(capsys, tmp_path / "train.pkl", tmp_path / "out")
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------------- others


def d4rl_file(path, n: int = 23) -> None:
    rng = np.random.default_rng(0)
    ends = np.isin(np.arange(n), (6, 17))
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(n, 11)), rng.normal(size=(n, 3))
        file["rewards"], file["terminals"], file["timeouts"] = np.ones(n), ends, np.zeros(n, bool)


def test_locomotion_as_its_own_script(tmp_path):
    d4rl_file(tmp_path / "hopper_medium-v2.hdf5")
    convert(tmp_path / "hopper_medium-v2.hdf5", tmp_path / "a")
    process_gym_dataset.main(
        ["--load_path", str(tmp_path / "hopper_medium-v2.hdf5"), "--save_dir", str(tmp_path / "b")]
    )
    same(tmp_path / "a", tmp_path / "b")
    assert read_demos(tmp_path / "a" / "train.npz")["terminals"].nonzero()[0].tolist() == [6, 17]


def test_any_robot_of_minari(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "kitchen" / "data"
    folder.mkdir(parents=True)
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for k, n in enumerate(LENGTHS):
            group = file.create_group(f"episode_{k}")
            group.attrs["total_steps"] = n
            for key, width in (("goal/x", 2), ("arm", 3), ("position", 5)):
                group[f"observations/{key}"] = rng.normal(size=(n + 1, width))
            group["actions"], group["rewards"] = rng.normal(size=(n, 4)), -np.ones(n)
            group["terminations"], group["truncations"] = np.zeros(n, bool), np.arange(n) == n - 1
    found = read_any(tmp_path / "kitchen")
    assert (found.about["format"], found.states.shape, len(found)) == ("minari", (23, 8), 3)
    with h5py.File(folder / "main_data.hdf5") as file:
        np.testing.assert_array_equal(found.states[7:18, 3:], file["episode_1/observations/position"][:-1])
        nested = read_any(tmp_path / "kitchen", Wishes(obs_keys=("goal/x",)))
        np.testing.assert_array_equal(nested.states[:7], file["episode_0/observations/goal/x"][:-1])


def test_d3ils_files(tmp_path):
    desired = d3il_file(tmp_path / "env_000.pkl", (1, 2, 5))
    d3il_file(tmp_path / "env_001.pkl", (0, 2, 5))
    found = read_any(tmp_path)
    assert recognise(tmp_path) == recognise(tmp_path / "env_001.pkl") == "d3il" and found.states.shape == (80, 4)
    np.testing.assert_allclose(found.actions[:40], np.diff(desired[:, :2], axis=0))
    assert (found.scale.obs_min <= 0).all() and (read_any(tmp_path, Wishes(tight=True)).scale.obs_min > 0).any()


# --------------------------------------------------------------------------------------------------------------- refusals


def test_own_data_in_its_own_units(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"states": 40 * rng.normal(size=(23, 5)), "actions": 3 + rng.normal(size=(23, 2)), "traj_lengths": LENGTHS}
    np.savez(tmp_path / "mine.npz", **arrays)
    convert(tmp_path / "mine.npz", tmp_path / "a", "--tight")
    scale, made = Normalizer.load(tmp_path / "a" / "normalization.npz"), read_demos(tmp_path / "a" / "train.npz")
    np.testing.assert_allclose(scale.unnormalize_obs(made["states"]), arrays["states"], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(made["states"].min(axis=0), -1, atol=1e-6)
    scale.save(tmp_path / "normalization.npz")
    with pytest.raises(DatasetError, match=r"states reach 8?\d+\.?\d*, but normalization\.npz beside it says"):
        read_any(tmp_path / "mine.npz")


def test_refusals(can, tmp_path, capsys):
    convert(can, tmp_path / "a")
    assert "1 to 0" not in capsys.readouterr().out
    for arguments, message in (
        ((can, tmp_path / "a"), "train.npz exists; --overwrite"),
        ((tmp_path / "a", tmp_path / "a", "--overwrite"), "is what is read"),
        ((can, tmp_path / "train.npz", "--max_episodes", 0), "--max_episodes: expected at least 1"),
        ((can, can.with_suffix(".zip"), "--image_size", 2, 2), "--image_size: expected"),
        ((can, tmp_path / "x.h5", "--uncompressed", "--cameras"), "--uncompressed: is for images in npz"),
        ((tmp_path / "a", tmp_path / "x", "--filter_key", "train"), "--filter_key: means nothing for npz data"),
        ((tmp_path, tmp_path / "x"), "a folder of no format that is known here"),
        ((tmp_path / "absent", tmp_path / "x"), "absent: cannot be read"),
        ((__file__, tmp_path / "x"), "of no format that is known here: npz"),
    ):
        assert message in fails(capsys, *arguments), arguments
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.h5").exists()
    convert(can, tmp_path / "a", "--overwrite", "--max_episodes", 1)
    out = capsys.readouterr().out
    assert "robomimic: 1 episodes of 7 to 7 steps, 7 transitions" in out and "robot0_eef_pos 3" in out


def test_what_lies_in_another_file_is_not_read(tmp_path):
    """HDF5 can point at other files: a data set must not become a way to read what its receiver did not mean to share."""
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(46.0).tobytes())
    demos = [{"actions": np.ones((7, 2)), "obs": {"state": np.ones((7, 3))}}]
    for kind in ("external", "link", "virtual", "huge"):
        path = write_file(tmp_path / f"{kind}.hdf5", demos, {"env_name": "x"})
        with h5py.File(path, "a") as file:
            obs = file["data/demo_0/obs"]
            del obs["state"]
            if kind == "external":
                obs.create_dataset("state", (7, 3), float, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
            elif kind == "link":
                obs["state"] = h5py.ExternalLink("virtual.hdf5", "/data/demo_0/actions")
            elif kind == "virtual":
                layout = h5py.VirtualLayout((7, 2), float)
                layout[:] = h5py.VirtualSource(tmp_path / "link.hdf5", "data/demo_0/actions", (7, 2))
                obs.create_virtual_dataset("state", layout)
            else:
                obs.create_dataset("state", (7, 2**40), float, chunks=(1, 2**10))
        with pytest.raises(
            DatasetError, match=r"in another file|no rows of numbers|said to have .* but the file holds 0"
        ):
            read_any(path)


def test_every_reader_is_known_by_its_own_data(tmp_path, can):
    d4rl_file(tmp_path / "d.hdf5")
    save_demos(tmp_path / "n.npz", np.zeros((3, 2)), np.zeros((3, 1)), np.array([3]))
    assert [recognise(p) for p in (can, tmp_path / "d.hdf5", tmp_path / "n.npz")] == ["robomimic", "d4rl", "npz"]
    assert set(formats.READERS) == {"npz", "pickle", "d3il", "robomimic", "minari", "d4rl", "lerobot"}
    with pytest.raises(UsageError, match="--env_name: means nothing for robomimic data"):
        read_any(can, Wishes(env_name="hopper-medium-v2"))
