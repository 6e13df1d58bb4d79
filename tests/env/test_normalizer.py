"""Normalisation: the published formula, files kept and files refused, and the wrapper around a VectorEnv."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from env.errors import EnvError
from env.normalizer import NormalizedVectorEnv, Normalizer
from env.protocol import StepResult, VectorEnv

N, TO, TE, DO, DA = 3, 2, 5, 7, 4


def make_normalizer(seed: int = 0, obs_dim: int = DO, action_dim: int = DA) -> Normalizer:
    rng = np.random.default_rng(seed)
    obs_min, action_min = rng.normal(size=obs_dim), rng.normal(size=action_dim)
    return Normalizer(
        obs_min, obs_min + rng.uniform(0.1, 3, obs_dim), action_min, action_min + rng.uniform(0.1, 3, action_dim)
    )


class FakeEnv:
    """Answers with known numbers; slot 2 is idle, slot 1 ended."""

    n_envs, act_steps, action_dim, max_episode_steps = N, TE, DA, 11

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.obs_shapes = {"state": (TO, DO), "rgb": (TO, 3, 2, 2)}
        images = rng.integers(0, 255, (N, TO, 3, 2, 2), np.uint8)
        self.raw = {"state": rng.normal(size=(N, TO, DO)).astype(np.float32), "rgb": images}
        self.final = {**self.raw, "state": self.raw["state"] + 1}
        for obs in (self.raw, self.final):
            obs["state"][2] = 0
        self.closed = 0

    def reset(self, seed):
        return self.raw

    def step(self, chunk):
        self.chunk = chunk
        flags = np.array([False, True, False])
        info = {"active": np.array([True, True, False]), "steps": np.array([5, 2, 0])}
        return StepResult(self.raw, np.ones(N, np.float32), flags, ~flags, self.final, flags, info)

    def seeds(self):
        return np.array([4, 9, -1])

    def state_dict(self):
        return {"x": 1}

    def load_state_dict(self, state):
        return self.raw

    def close(self):
        self.closed += 1

    def render_state(self, i):
        return i + 100


def test_formula_of_the_published_files():
    norm = Normalizer([-1.0, 2.0], [3.0, 2.5], [0.0], [4.0])
    x = np.array([[1.0, 2.25], [3.0, 2.0], [-1.0, 3.0]])
    expected = 2 * (x - [-1, 2]) / (np.array([4, 0.5]) + 1e-6) - 1
    np.testing.assert_allclose(norm.normalize_obs(x), expected, atol=1e-7)
    np.testing.assert_allclose(norm.normalize_action(np.array([4.0])), [2 * 4 / (4 + 1e-6) - 1], rtol=0, atol=1e-7)
    ends = norm.unnormalize_action(np.array([[-1.0], [0.0], [1.0]]))
    np.testing.assert_array_equal(ends, [[0], [2], [4]])  # no epsilon: exact ends
    assert norm.normalize_obs(x).dtype == np.float32


def test_epsilon_in_normalise_only():
    norm = Normalizer([0.0], [1e-6], [0.0], [1e-6])
    assert norm.normalize_obs(np.array([1e-6]))[0] == pytest.approx(0.0, abs=1e-3)  # range + 1e-6 halves it
    assert norm.unnormalize_obs(np.array([1.0]))[0] == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize("kind, dim", [("obs", DO), ("action", DA)])
def test_round_trip(kind, dim):
    norm = make_normalizer()
    x = np.random.default_rng(1).uniform(-1, 1, size=(13, TO, dim))
    back = getattr(norm, f"normalize_{kind}")(getattr(norm, f"unnormalize_{kind}")(x))
    np.testing.assert_allclose(back, x, atol=3e-5)


def test_fit_covers_the_data_and_constant_columns():
    rng = np.random.default_rng(2)
    states, actions = rng.normal(size=(101, DO)).astype(np.float32), rng.uniform(-1, 1, (101, DA)).astype(np.float32)
    states[:, 3], actions[:, 1] = 0.7, 0.25
    norm = Normalizer.fit(states, actions)
    normalised = norm.normalize_obs(states)
    moving = [c for c in range(DO) if c != 3]
    np.testing.assert_allclose(normalised[:, moving].min(0), -1, atol=1e-5)
    np.testing.assert_allclose(normalised[:, moving].max(0), 1, atol=1e-5)
    np.testing.assert_allclose(normalised[:, 3], 0, atol=1e-5)
    assert abs(norm.normalize_obs(states + 0.01)[0, 3]) < 0.1  # a small deviation stays small
    np.testing.assert_allclose(norm.unnormalize_action(rng.uniform(-1, 1, (17, DA)))[:, 1], 0.25, atol=1e-7)


@pytest.mark.parametrize("bad, match", [(np.nan, "row 4, column 2"), (np.inf, "row 4, column 2")])
def test_fit_refuses_non_finite(bad, match):
    states = np.zeros((11, DO))
    states[4, 2] = bad
    with pytest.raises(EnvError, match=match):
        Normalizer.fit(states, np.zeros((11, DA)))


def test_save_load_equal_and_difference(tmp_path):
    norm = make_normalizer()
    path = tmp_path / "deep" / "normalization.npz"
    norm.save(path)
    again = Normalizer.load(path)
    assert again == norm and again.describe_difference(norm) == ""
    assert Normalizer.from_dict(norm.to_dict()) == norm
    assert [p.name for p in path.parent.iterdir()] == ["normalization.npz"]
    other = norm.to_dict()
    other["obs_max"][3] += 0.5
    other = Normalizer(**other)
    assert other != norm
    assert "obs_max[3]" in norm.describe_difference(other) and "1 of 7" in norm.describe_difference(other)
    assert "columns here" in norm.describe_difference(make_normalizer(obs_dim=5))
    assert norm != "something else"


def test_float64_files_compare_equal_to_their_float32_checkpoint(tmp_path):
    exact = {key: value.astype(np.float64) + 1e-9 for key, value in make_normalizer().to_dict().items()}
    path = tmp_path / "n.npz"
    np.savez(path, **exact)
    assert Normalizer.load(path) == Normalizer.from_dict(
        {key: value.astype(np.float32) for key, value in exact.items()}
    )


def _write(path, **changes):
    arrays = {**make_normalizer().to_dict(), **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"action_max": None}, "no action_max"),
        ({"obs_min": np.zeros((2, DO))}, "one-dimensional"),
        ({"obs_min": np.zeros(DO + 1)}, "8 columns and obs_max has 7"),
        ({"action_min": np.full(DA, np.nan)}, "NaN"),
        ({"action_min": np.full(DA, 1e3)}, "action_min exceeds action_max in column 0"),
        ({"obs_min": np.array(["a"] * DO)}, "numbers"),
        ({"obs_min": np.array([None] * DO)}, "damaged|pickle"),
    ],
)
def test_load_refuses_wrong_content_and_names_the_file(tmp_path, changes, match):
    path = tmp_path / "normalization.npz"
    _write(path, **changes)
    with pytest.raises(EnvError, match=match) as caught:
        Normalizer.load(path)
    assert str(path) in str(caught.value)


def test_load_refuses_files_that_are_not_npz(tmp_path):
    path = tmp_path / "normalization.npz"
    with pytest.raises(EnvError, match=r"does not exist.*collect_demos"):
        Normalizer.load(path)
    path.write_bytes(pickle.dumps({"obs_min": [1]}))
    with pytest.raises(EnvError, match="pickle"):
        Normalizer.load(path)
    path.write_bytes(b"")
    with pytest.raises(EnvError, match="not an npz"):
        Normalizer.load(path)
    make_normalizer().save(path)
    whole = path.read_bytes()
    for cut in (7, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(EnvError, match="damaged"):
            Normalizer.load(path)


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "normalization.npz"
    norm = make_normalizer()
    norm.save(path)

    def broken(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(OSError, match="disk full"):
        make_normalizer(1).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["normalization.npz"]
    assert Normalizer.load(path) == norm


def test_statistics_are_frozen_and_copied():
    low = np.zeros(DO, np.float32)
    norm = Normalizer(low, np.ones(DO), np.zeros(DA), np.ones(DA))
    low += 5
    assert norm.obs_min.max() == 0
    with pytest.raises(ValueError):
        norm.obs_min[0] = 3


def test_wrong_width_is_named():
    with pytest.raises(EnvError, match=r"\(\.\.\., 7\), found \(2, 6\)"):
        make_normalizer().normalize_obs(np.zeros((2, 6)))


def test_wrapper_normalises_obs_and_final_obs_and_keeps_idle_rows_zero():
    inner, norm = FakeEnv(), make_normalizer()
    venv = NormalizedVectorEnv(inner, norm)
    assert isinstance(venv, VectorEnv)
    for obs in (venv.reset(0), venv.load_state_dict({})):
        np.testing.assert_array_equal(obs["state"][:2], norm.normalize_obs(inner.raw["state"])[:2])
        assert (obs["state"][2] == 0).all()
        assert obs["rgb"] is inner.raw["rgb"]
    result = venv.step(np.zeros((N, TE, DA), np.float32))
    np.testing.assert_array_equal(result.final_obs["state"][:2], norm.normalize_obs(inner.final["state"])[:2])
    assert (result.final_obs["state"][2] == 0).all() and (result.obs["state"][2] == 0).all()
    assert (result.reward == 1).all() and result.terminated.tolist() == [False, True, False]


def test_wrapper_clips_then_unnormalises_without_touching_the_input():
    inner, norm = FakeEnv(), make_normalizer()
    chunk = np.random.default_rng(3).uniform(-3, 3, (N, TE, DA)).astype(np.float32)
    before = chunk.copy()
    NormalizedVectorEnv(inner, norm).step(chunk)
    np.testing.assert_array_equal(inner.chunk, norm.unnormalize_action(np.clip(before, -1, 1)))
    np.testing.assert_array_equal(chunk, before)
    tolerance = 1e-6
    assert (inner.chunk <= norm.action_max + tolerance).all() and (inner.chunk >= norm.action_min - tolerance).all()


def test_wrapper_refuses_mismatched_dimensions_and_bad_chunks():
    with pytest.raises(EnvError, match="7 observation dimensions and the normalisation statistics 5"):
        NormalizedVectorEnv(FakeEnv(), make_normalizer(obs_dim=5))
    with pytest.raises(EnvError, match="4 action dimensions"):
        NormalizedVectorEnv(FakeEnv(), make_normalizer(action_dim=3))
    venv = NormalizedVectorEnv(FakeEnv(), make_normalizer())
    with pytest.raises(EnvError, match=r"\(3, 5, 4\), found \(3, 4, 5\)"):
        venv.step(np.zeros((N, DA, TE)))
    chunk = np.zeros((N, TE, DA))
    chunk[1, 2, 3] = np.nan
    with pytest.raises(EnvError, match="slot 1"):
        venv.step(chunk)


def test_wrapper_delegates_the_rest():
    inner = FakeEnv()
    venv = NormalizedVectorEnv(inner, make_normalizer())
    assert venv.render_state(7) == 107 and venv.state_dict() == {"x": 1}
    venv.close()
    assert inner.closed == 1
    with pytest.raises(AttributeError):
        _ = venv.nothing_like_this
    with pytest.raises(AttributeError):
        _ = object.__new__(NormalizedVectorEnv).render_state  # a half-built copy must not recurse
