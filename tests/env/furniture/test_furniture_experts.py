"""The scripted experts of Furniture-Bench: they assemble, repeat themselves by seed, and their demonstrations are the published kind."""

from __future__ import annotations

import math

import numpy as np
import pytest

from env.engine.batch import EngineVectorEnv
from env.furniture import assembly, spatial
from env.furniture.facts import euler
from env.registry import EXPERTS
from script import collect_demos


def play(task: str, seeds, noise: float, steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return of each of the episodes, and all first actions (steps, n, 10) of them."""
    entry, n = EXPERTS[task], len(seeds)
    venv = EngineVectorEnv(assembly.family(entry.env), n, 1, entry.steps, n_threads=1)
    expert = entry.make(n, np.random.default_rng(1), noise=noise, retry=True)
    obs, total, actions, over = venv.reset(seeds)["state"][:, 0], np.zeros(n), [], np.zeros(n, bool)
    for _ in range(steps or entry.steps):
        actions.append(expert.act(obs))
        result = venv.step(actions[-1][:, None])
        total[~over] += result.reward[~over]
        over |= result.success | result.truncated
        obs = result.obs["state"][:, 0]
        assert not result.info["invalid"].any()
        if over.all():
            break
    venv.close()
    return total, np.array(actions)


def test_one_leg_is_assembled_by_turning():
    total, actions = play("one_leg_low", [3, 5], noise=1.0)
    assert (total == 1).all()
    assert np.isfinite(actions).all() and actions.shape[2] == 10
    rows = actions[:, :, 3:9].reshape(-1, 2, 3)
    assert np.allclose(np.linalg.norm(rows, axis=2), 1.0, atol=1e-3)
    closings = (np.diff(actions[:, 0, 9]) > 0).sum()
    assert closings >= 5  # top, leg, and three strokes at least


def test_the_same_seeds_act_the_same_and_noise_varies():
    first, again = (play("lamp_low", [3], noise=1.0, steps=40)[1] for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:30], play("lamp_low", [3], noise=0.0, steps=40)[1][:30])


def test_spatial_helpers_agree_with_matrices():
    a, b = euler(20, -40, 70), euler(-100, 5, 33)
    rows = [tuple(map(tuple, m.tolist())) for m in (a, b)]
    assert np.allclose(spatial.times(*rows), a @ b) and np.allclose(spatial.transpose(rows[0]), a.T)
    assert np.allclose(spatial.turned(rows[0], (1.0, 2.0, 3.0)), a @ [1, 2, 3])
    assert np.allclose(spatial.about(spatial.vector_of(rows[0])), a)
    assert np.allclose(spatial.about_z(0.3), euler(0, 0, math.degrees(0.3)))
    assert np.allclose(spatial.about_y(0.3), euler(0, math.degrees(0.3), 0))
    assert np.allclose(spatial.cross((1.0, 2.0, 3.0), (-2.0, 0.5, 4.0)), np.cross([1, 2, 3], [-2, 0.5, 4]))


def test_demonstrations_go_where_the_published_ones_are(tmp_path):
    collect_demos.main(["--task", "one_leg_low", "--episodes", "2", "--n-envs", "2", "--out", str(tmp_path)])
    folder = tmp_path / "furniture" / "one_leg_low"
    with np.load(folder / "train.npz", allow_pickle=False) as demos:
        lengths = demos["traj_lengths"]
        assert demos["states"].shape == (lengths.sum(), 58) and demos["actions"].shape == (lengths.sum(), 10)
        assert np.abs(demos["states"]).max() <= 1.001 and len(lengths) == 2
        ends = np.cumsum(lengths)
        assert [demos["rewards"][e - n : e].sum() for e, n in zip(ends, lengths, strict=True)] == [1, 1]
    with np.load(folder / "normalization.npz", allow_pickle=False) as bounds:
        assert bounds["obs_min"].shape == (58,) and bounds["action_max"].shape == (10,)


def test_furniture_has_no_demonstrations_with_images(tmp_path):
    with pytest.raises(SystemExit):
        collect_demos.main(["--task", "lamp_low", "--images", "--out", str(tmp_path)])
