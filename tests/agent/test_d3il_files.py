"""D3IL's demonstration files, read as data; and the filter that makes M1, M2 and M3 of them."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from agent.dataset.d3il_files import read_demo
from agent.dataset.demos import read_demos
from agent.dataset.plain_pickle import plain_data
from agent.errors import DatasetError
from env.d3il import field
from env.normalizer import Normalizer
from script import filter_d3il_avoid_data as filtering

X = {0: 0.42, 1: 0.58, 2: 0.36, 3: 0.5, 4: 0.64, 5: 0.28, 6: 0.42, 7: 0.58, 8: 0.72}


def course(mode: tuple[int, int, int], rows: int = 41) -> np.ndarray:
    """Desired positions (rows, 3) straight through ``mode``."""
    y = np.linspace(-0.28, 0.45, rows)
    x = np.interp(y, [-0.28, *field.ROWS, 0.45], [0.525, *(X[flag] for flag in mode), X[mode[2]]])
    return np.stack([x, y, np.full(rows, 0.12)], axis=1)


def d3il_file(path: Path, mode: tuple[int, int, int], protocol: int = 4) -> np.ndarray:
    """A file in D3IL's layout; the actual position is a row late. Returns the desired positions."""
    desired = course(mode)
    actual = np.concatenate([desired[:1], desired[:-1]])
    robot = {
        "time_stamp": np.arange(len(desired)) * 0.035,
        "des_c_pos": desired,
        "c_pos": actual,
        "j_pos": np.zeros((41, 7)),
    }
    path.write_bytes(pickle.dumps({"robot": robot}, protocol))
    return desired


# --------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_unpickling_would_give_without_unpickling(protocol):
    value = {
        "a": np.arange(12.0).reshape(3, 4), "b": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)), "c": [1, -2, 70000, 2**40],
        "d": (0.5, "x", None, True), "e": np.array([True, False]), "f": np.arange(3, dtype=">i4"), "g": {}, "h": (), "i": np.float64(3.5),
    }  # fmt: skip
    value["again"] = value["a"]
    found = plain_data(pickle.dumps(value, protocol), "it")
    assert found.keys() == value.keys()
    for key in "abef":
        assert found[key].dtype == value[key].dtype and np.array_equal(found[key], value[key]), key
    assert found["again"] is found["a"]
    assert (found["c"], found["d"], found["g"], found["h"], found["i"]) == (value["c"], value["d"], {}, (), 3.5)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_is_run(tmp_path, protocol):
    data = pickle.dumps({"robot": Trap(tmp_path / "sprung")}, protocol)
    with pytest.raises(
        DatasetError, match=r"mkdir.*not plain data.*Nothing of it was run|a DICT instruction; only plain data"
    ):
        plain_data(data, "it")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(data)
    assert (tmp_path / "sprung").exists()  # it was armed


@pytest.mark.parametrize("value", [np.array([{}], object), {1, 2}, np.array(["a"]), Path("x"), 1j])
def test_what_is_no_plain_data_is_refused(value):
    with pytest.raises(DatasetError, match="plain data"):
        plain_data(pickle.dumps(value, 4), "it")


def test_small_files_that_mean_much():
    deep: list = []
    for _ in range(200):
        deep = [deep, deep]
    assert len(plain_data(pickle.dumps(deep, 4), "it")) == 2  # 2^200 lists, if each were looked at
    endless: list = []
    endless.append(endless)
    with pytest.raises(DatasetError, match="contains itself"):
        plain_data(pickle.dumps(endless, 4), "it")
    with pytest.raises(DatasetError, match="it: damaged"):
        plain_data(b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".", "it")
    for dims in ((-7, -11), (7, 13)):
        with pytest.raises(DatasetError, match="it: damaged"):
            plain_data(
                pickle.dumps({"a": np.zeros((7, 11))}, 4).replace(b"K\x07K\x0b", pickle.dumps(dims, 4)[11:-3]), "it"
            )


def test_every_cut_and_many_changes_are_errors_or_data():
    data = pickle.dumps({"robot": {"c_pos": np.arange(4.0)}}, 4)
    for end in range(len(data) - 1):
        with pytest.raises(DatasetError):
            plain_data(data[:end], "it")
    rng = np.random.default_rng(0)
    for _ in range(500):
        bent = bytearray(data)
        bent[rng.integers(len(data))] = rng.integers(256)
        try:
            plain_data(bytes(bent), "it")
        except DatasetError:
            continue


def test_a_demonstration(tmp_path):
    desired = d3il_file(tmp_path / "env_007.pkl", (1, 2, 5))
    demo = read_demo(tmp_path / "env_007.pkl")
    assert demo.name == "env_007" and demo.states.shape == (40, 4) and demo.actions.shape == (40, 2)
    assert np.array_equal(demo.states[:, :2], desired[:-1, :2])
    assert np.array_equal(demo.states[1:, 2:], desired[:-2, :2])
    assert np.allclose(demo.states[:-1, :2] + demo.actions[:-1], demo.states[1:, :2])


@pytest.mark.parametrize(
    ("robot", "message"),
    [
        ({"c_pos": np.zeros((3, 3))}, "expected.*des_c_pos.*found c_pos"),
        ({"c_pos": np.zeros((3, 3)), "des_c_pos": np.zeros((4, 3))}, r"c_pos: expected \(T, 3\)"),
        ({"c_pos": np.zeros(3), "des_c_pos": np.zeros(3)}, r"expected \(T, 3\)"),
        ({"c_pos": np.full((3, 3), np.nan), "des_c_pos": np.zeros((3, 3))}, "robot/c_pos: NaN or infinity in row 0"),
    ],
)
def test_what_is_wrong_with_a_demonstration_is_said(tmp_path, robot, message):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"robot": robot}, 4))
    with pytest.raises(DatasetError, match=message):
        read_demo(tmp_path / "x.pkl")


# ------------------------------------------------------------------------------------------------------------- filtering


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    folder = tmp_path_factory.mktemp("d3il")
    for k, mode in enumerate(field.MODES):
        d3il_file(folder / f"env_{k:03}.pkl", mode)
    return folder


def kept(folder: Path) -> list[tuple[int | None, ...]]:
    """Modes of what ``folder`` holds, in metres again."""
    arrays, scale = read_demos(folder / "train.npz"), Normalizer.load(folder / "normalization.npz")
    states = np.split(scale.unnormalize_obs(arrays["states"]), np.cumsum(arrays["traj_lengths"])[:-1])
    return [field.mode_of(s[:, :2]) for s in states]


@pytest.mark.parametrize(("subset", "other"), [("avoid_m1", 6), ("avoid_m2", 7), ("avoid_m3", 8)])
def test_published_subsets(everything, tmp_path, monkeypatch, capsys, subset, other):
    monkeypatch.setenv("DPPO_DATA_DIR", str(tmp_path))
    filtering.main(["--load_path", str(everything), "--subset", subset])
    folder = tmp_path / "d3il" / subset
    assert kept(folder) == [(1, 2, 5), (1, 2, other)]
    scale = Normalizer.load(folder / "normalization.npz")
    desired = np.concatenate([course((1, 2, k))[:-1, :2] for k in (5, other)])
    assert np.allclose(scale.obs_max[:2], desired.max(axis=0)) and np.allclose(
        scale.obs_min[:2], [0, -0.28]
    )  # 0 included
    assert scale.action_min[1] == 0 and np.allclose(scale.action_max[1], 0.73 / 40)
    assert json.loads((folder / "about.json").read_text())["modes"] == {"1-2-5": 1, f"1-2-{other}": 1}
    assert "2 of 24 demonstrations, 80 transitions" in capsys.readouterr().out


def test_filtering_npz_files_keeps_the_same(everything, tmp_path):
    filtering.main(["--load_path", str(everything), "--save_dir", str(tmp_path / "all")])
    assert kept(tmp_path / "all") == list(field.MODES)
    flags = ["--desired_modes", "6", "7", "--required_modes", "0", "--avoid_modes", "3"]
    for source, out in ((everything, "a"), (tmp_path / "all", "b")):
        filtering.main(["--load_path", str(source), "--save_dir", str(tmp_path / out), *flags])
    wanted = [m for m in field.MODES if m[0] == 0 and m[1] != 3 and m[2] in (6, 7)]
    assert kept(tmp_path / "a") == kept(tmp_path / "b") == wanted
    a, b = (read_demos(tmp_path / out / "train.npz")["states"] for out in "ab")
    assert np.allclose(a, b, atol=1e-5)


def test_ratios_and_splits_are_drawn_from_the_seed(everything, tmp_path):
    def run(out: str, *more: str) -> list[tuple[int | None, ...]]:
        filtering.main(["--load_path", str(everything), "--save_dir", str(tmp_path / out), *more])
        return kept(tmp_path / out)

    half = ["--desired_modes", "5", "8", "--desired_mode_ratios", "0", "1"]
    assert {mode[2] for mode in run("a", *half)} == {8}
    split = run("b", "--val_split", "0.25", "--seed", "3")
    assert len(split) == 18 and len(read_demos(tmp_path / "b" / "val.npz")["traj_lengths"]) == 6
    assert run("c", "--val_split", "0.25", "--seed", "3") == split != run("d", "--val_split", "0.25", "--seed", "4")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--save_dir", "x", "--desired_modes", "9"], "modes are 0 to 8, found 9"),
        (
            ["--save_dir", "x", "--desired_modes", "5", "--desired_mode_ratios", "1", "1"],
            "expected one per desired mode (1), found 2",
        ),
        (["--save_dir", "x", "--val_split", "1"], "--val_split"),
        (["--save_dir", "x", "--desired_modes", "5", "--avoid_modes", "5"], "none of 24 demonstrations"),
        ([], "--save_dir"),
    ],
)
def test_senseless_arguments_are_named(everything, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        filtering.main(["--load_path", str(everything), *more])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_empty_folder_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        filtering.main(["--load_path", str(tmp_path), "--subset", "avoid_m1", "--save_dir", str(tmp_path / "out")])
    assert f"{tmp_path}: no *.pkl in it" in capsys.readouterr().err
