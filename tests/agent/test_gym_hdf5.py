"""Minari's and D4RL's locomotion files: read, cut into episodes, refused by name, converted."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from agent.dataset.demos import read_demos
from agent.dataset.gym_hdf5 import DIMENSIONS, read_gym
from agent.dataset.sequence import StitchedSequenceDataset
from agent.errors import DatasetError, UsageError
from env.normalizer import Normalizer
from env.registry import locomotion
from script import process_gym_dataset as process

LENGTHS, FELL = [7, 11, 5, 13], [True, False, True, False]
REST = 3  # steps after the last end, with the data's extremes in them


def steps(n, seed, obs_dim=11, action_dim=3):
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.normal(2, 3, (n, obs_dim)),
        "actions": rng.uniform(-1, 1, (n, action_dim)).astype(np.float32),
        "rewards": rng.uniform(0.5, 2, n),
    }


@pytest.fixture
def episodes():
    done = [steps(n, seed) for seed, n in enumerate(LENGTHS)]
    done[2]["rewards"] -= 5  # adds up to less than nothing
    return done


def rest():
    last = steps(REST, 99)
    last["observations"][1], last["actions"][1] = 40.0, 0.99
    return last


@pytest.fixture
def d4rl(tmp_path, episodes):
    path = tmp_path / "hopper_medium-v2.hdf5"
    parts = [*episodes, rest()]
    ends = np.cumsum(LENGTHS) - 1
    with h5py.File(path, "w") as file:
        for key in ("observations", "actions", "rewards"):
            file[key] = np.concatenate([part[key] for part in parts]).astype(np.float32)
        for key, mine in (("terminals", True), ("timeouts", False)):
            flags = np.zeros(sum(LENGTHS) + REST, bool)
            flags[ends] = [fell == mine for fell in FELL]
            file[key] = flags
        file["infos/qpos"] = np.zeros((sum(LENGTHS) + REST, 6))
        file["metadata/algorithm"] = "SAC"
    return path


@pytest.fixture
def minari(tmp_path, episodes):
    folder = tmp_path / "mujoco" / "hopper" / "medium-v0"
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for i, (part, fell) in enumerate(zip([*episodes, rest()], [*FELL, None])):
            group = file.create_group(f"episode_{i + 8}")  # 8, 9, 10: numbers, not words
            for key, value in part.items():
                group[key] = np.concatenate([value, value[:1] * 1e3]) if key == "observations" else value
            n = len(part["actions"])
            for key, mine in (("terminations", True), ("truncations", False)):
                group[key] = np.arange(n) == (n - 1 if fell is mine else -1)
            group.attrs.update({"id": i, "total_steps": n, "seed": 3})
            group.create_group("infos")
    about = {"dataset_id": "mujoco/hopper/medium-v0", "env_spec": json.dumps({"id": "Hopper-v5"}), "total_episodes": 5}
    (folder / "data" / "metadata.json").write_text(json.dumps(about))
    return folder


def main_file(folder):
    return folder / "data" / "main_data.hdf5"


# ------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("layout", ["d4rl", "minari"])
def test_both_layouts_hold_the_same_episodes(layout, request, episodes):
    data = read_gym(request.getfixturevalue(layout))
    assert (data.layout, data.env_name) == (layout, "hopper-medium-v2")
    assert data.env_id == {"d4rl": None, "minari": "Hopper-v5"}[layout]
    assert [len(e.actions) for e in data.episodes] == LENGTHS
    assert [e.terminated for e in data.episodes] == FELL
    for found, expected in zip(data.episodes, episodes):
        np.testing.assert_allclose(found.states, expected["observations"], rtol=1e-6)
        np.testing.assert_allclose(found.actions, expected["actions"], rtol=1e-6)
        np.testing.assert_allclose(found.rewards, expected["rewards"], rtol=1e-6)
    assert [len(actions) for _, actions in data.unfinished] == [REST]
    assert len(data.everything()[0]) == sum(LENGTHS) + REST


@pytest.mark.parametrize("layout", ["d4rl", "minari"])
def test_converted_as_published(layout, request, episodes, tmp_path):
    out = tmp_path / "out"
    process.main(["--load_path", str(request.getfixturevalue(layout)), "--save_dir", str(out)])
    arrays, scale = read_demos(out / "train.npz"), np.load(out / "normalization.npz")
    kept = [0, 1, 3]  # without the one whose rewards add up to less than nothing
    everything = [*episodes, rest()]  # but the range is that of all of it
    for name, key, kind in (("states", "observations", "obs"), ("actions", "actions", "action")):
        raw = np.concatenate([part[key] for part in everything]).astype(np.float32)
        low, high = raw.min(0), raw.max(0)
        np.testing.assert_allclose(scale[f"{kind}_min"], low, rtol=1e-6)
        np.testing.assert_allclose(scale[f"{kind}_max"], high, rtol=1e-6)
        mine = np.concatenate([episodes[i][key] for i in kept])
        np.testing.assert_allclose(arrays[name], 2 * (mine - low) / (high - low + 1e-6) - 1, atol=2e-6)
    assert scale["obs_max"][0] == 40.0
    assert arrays["traj_lengths"].tolist() == [LENGTHS[i] for i in kept]
    assert np.flatnonzero(arrays["terminals"]).tolist() == [6]  # only the first of the three fell
    np.testing.assert_allclose(arrays["rewards"], np.concatenate([episodes[i]["rewards"] for i in kept]), rtol=1e-6)
    assert json.loads((out / "about.json").read_text())["dropped_episodes"] == 1
    dataset = StitchedSequenceDataset(out / "train.npz", horizon_steps=4)
    assert len(dataset) == sum(LENGTHS[i] - 3 for i in kept) and (dataset.obs_dim, dataset.action_dim) == (11, 3)
    assert Normalizer.load(out / "normalization.npz").obs_dim == 11


def test_names_of_the_data(d4rl, minari, tmp_path):
    for stem, data in (
        ("hopper_medium", "medium"),
        ("hopper-medium-v2", "medium"),
        ("hopper_medium_expert-v2", "medium-expert"),
    ):
        d4rl = d4rl.rename(tmp_path / f"{stem}.hdf5")
        assert read_gym(d4rl).env_name == f"hopper-{data}-v2"
    d4rl = d4rl.rename(tmp_path / "data.hdf5")
    with pytest.raises(UsageError, match=r"--env_name: data\.hdf5 does not say.*hopper-medium-v2"):
        read_gym(d4rl)
    assert read_gym(d4rl, "hopper-medium-v2").env_name == "hopper-medium-v2"
    with pytest.raises(UsageError, match=r"--env_name: expected hopper, walker2d, halfcheetah.*'ant-medium-v2'"):
        read_gym(d4rl, "ant-medium-v2")
    with pytest.raises(DatasetError, match=r"recorded in Hopper-v5; expected data of walker2d"):
        read_gym(minari, "walker2d-medium-v2")
    main_file(minari).with_name("metadata.json").unlink()
    with pytest.raises(UsageError, match=r"--env_name: main_data\.hdf5"):
        read_gym(minari)
    with h5py.File(main_file(minari), "a") as file:  # Minari before 0.5 kept them there
        file.attrs["dataset_id"] = "mujoco/hopper/expert-v0"
    assert read_gym(main_file(minari)).env_name == "hopper-expert-v2"


def test_dimensions_are_the_engines():
    for body, (obs_dim, action_dim) in DIMENSIONS.items():
        family = locomotion(body)
        assert (family.layout["velocity"].stop, family.action_dim) == (obs_dim, action_dim)


# ------------------------------------------------------------------------------------------------- refusals


def replaced(path, key, change):
    with h5py.File(path, "a") as file:
        value = change(file[key][...])
        del file[key]
        if value is not None:
            file[key] = value


def spoilt(array, index, value):
    array = array.astype(float)
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("timeouts", lambda a: None, r"timeouts is missing \(D4RL's files before -v2.*it has actions"),
        ("rewards", lambda a: None, r"rewards is missing; it has actions"),
        ("observations", lambda a: a[:, :9], r"observations: expected numbers of shape \(any, 11\), found \(39, 9\)"),
        ("actions", lambda a: a[:-1], r"actions: expected numbers of shape \(39, 3\), found \(38, 3\)"),
        ("rewards", lambda a: a[:, None], r"rewards: expected numbers of shape \(39\), found \(39, 1\)"),
        ("observations", lambda a: spoilt(a, (17, 5), np.nan), r"observations\[17, 5\] is nan; expected finite"),
        ("actions", lambda a: spoilt(a, (4, 2), np.inf), r"actions\[4, 2\] is inf"),
        ("terminals", lambda a: spoilt(a, 2, 0.5), r"terminals: expected true or false"),
        ("rewards", lambda a: np.array([b"x"] * 39), r"rewards: expected numbers"),
    ],
)
def test_d4rl_refusals(d4rl, key, change, message):
    replaced(d4rl, key, change)
    with pytest.raises(DatasetError, match=r"hopper_medium-v2\.hdf5: " + message):
        read_gym(d4rl)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("rewards", lambda a: None, r"rewards is missing.*episode_9 has actions"),
        ("observations", lambda a: a[:-1], r"observations: expected numbers of shape \(12, 11\), found \(11, 11\)"),
        ("actions", lambda a: a[:-2], r"actions: expected 11 rows \(attribute total_steps; at least 1\), found 9"),
        ("actions", lambda a: a[:, :2], r"actions: expected numbers of shape \(any, 3\), found \(11, 2\)"),
        ("observations", lambda a: spoilt(a, (3, 5), np.nan), r"observations\[3, 5\] is nan"),
        ("terminations", lambda a: None, r"terminations is missing"),
    ],
)
def test_minari_refusals(minari, key, change, message):
    replaced(main_file(minari), f"episode_9/{key}", change)
    with pytest.raises(DatasetError, match=r"main_data\.hdf5: episode_9/" + message):
        read_gym(minari)


def test_files_that_are_neither(minari, d4rl, tmp_path):
    replaced(main_file(minari), "episode_9/terminations", lambda a: spoilt(a, 4, 1))
    with pytest.raises(DatasetError, match=r"episode_9: ends at step 4 of 11; expected an end at its last step only"):
        read_gym(minari)
    for key in ("terminals", "timeouts"):
        replaced(d4rl, key, np.zeros_like)
    with pytest.raises(DatasetError, match=r"no episode ends in it; expected at least one terminal or timeout"):
        read_gym(d4rl)
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros(3)
    with pytest.raises(DatasetError, match=r"neither Minari's layout .* nor D4RL's .*; it has data"):
        read_gym(tmp_path / "other.hdf5")
    (tmp_path / "text.hdf5").write_text("x")
    with pytest.raises(DatasetError, match=r"text\.hdf5: no HDF5 file"):
        read_gym(tmp_path / "text.hdf5")
    with pytest.raises(DatasetError, match=r"absent\.hdf5: no such file"):
        read_gym(tmp_path / "absent.hdf5")
    with pytest.raises(DatasetError, match=r"without data/main_data\.hdf5"):
        read_gym(tmp_path)


def test_command_line(d4rl, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DPPO_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "data" / "gym" / "hopper-medium-v2"
    process.main(["--load_path", str(d4rl), "--val_split", "0.4", "--seed", "2"])
    train, val = read_demos(folder / "train.npz"), read_demos(folder / "val.npz")
    assert len(train["traj_lengths"]) + len(val["traj_lengths"]) == 3 and len(val["traj_lengths"]) == 2
    with pytest.raises(SystemExit, match="2"):
        process.main(["--load_path", str(d4rl)])
    assert "--overwrite" in capsys.readouterr().err
    process.main(["--load_path", str(d4rl), "--overwrite", "--max_episodes", "2"])
    assert read_demos(folder / "train.npz")["traj_lengths"].tolist() == LENGTHS[:2]
    assert not (folder / "val.npz").exists()
    for arguments, message in (
        (["--max_episodes", "0"], "--max_episodes must be"),
        (["--val_split", "1"], "--val_split"),
    ):
        with pytest.raises(SystemExit, match="2"):
            process.main(["--load_path", str(d4rl), "--save_dir", str(tmp_path / "new"), *arguments])
        assert message in capsys.readouterr().err
    replaced(d4rl, "rewards", lambda a: -abs(a))
    with pytest.raises(SystemExit, match="2"):
        process.main(["--load_path", str(d4rl), "--save_dir", str(tmp_path / "new"), "--max_episodes", "1"])
