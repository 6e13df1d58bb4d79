"""From a config to an environment, and the messages for configs that cannot be."""

from __future__ import annotations

import re

import numpy as np
import pytest
from omegaconf import OmegaConf

from env import registry
from env.engine.batch import EngineVectorEnv
from env.errors import EnvError
from tests.env.slider import Slider

CONFIG = {
    "name": "slider",
    "n_envs": 3,
    "max_episode_steps": 11,
    "n_threads": 1,
    "wrappers": {"rail": {"low_dim_keys": ["motion"]}, "multi_step": {"n_action_steps": 5, "n_obs_steps": 2}},
}


@pytest.fixture(autouse=True)
def slider(monkeypatch):
    monkeypatch.setitem(registry.TASKS, "slider", lambda cfg: registry._engine_env(Slider(), cfg, wrapper="rail"))


@pytest.mark.parametrize("convert", [dict, OmegaConf.create])
def test_every_key_reaches_the_environment(convert):
    venv = registry.make_vector_env(convert(CONFIG))
    assert isinstance(venv, EngineVectorEnv)
    assert (venv.n_envs, venv.act_steps, venv.max_episode_steps, venv.obs_shapes) == (3, 5, 11, {"state": (2, 2)})
    assert venv.simulations.n_threads == 1


def test_own_keys_win_over_the_wrappers():
    venv = registry.make_vector_env(CONFIG | {"act_steps": 7, "cond_steps": 1, "wrappers": None})
    assert (venv.act_steps, venv.obs_shapes) == (7, {"state": (1, 3)})


def test_a_normalizer_wraps_the_environment():
    from env.normalizer import Normalizer

    normalizer = Normalizer(np.full(2, -2.0), np.full(2, 2.0), np.array([-3.0]), np.array([3.0]))
    plain, wrapped = (registry.make_vector_env(CONFIG, n) for n in (None, normalizer))
    np.testing.assert_allclose(wrapped.reset(5)["state"], normalizer.normalize_obs(plain.reset(5)["state"]), rtol=1e-6)


def test_an_unknown_task_names_the_nearest_and_all_others():
    with pytest.raises(
        EnvError, match=r"unknown task 'lfit'; did you mean 'lift'\? Known tasks: .*can, .*lift, .*slider"
    ):
        registry.make_vector_env(CONFIG | {"name": "lfit"})


def test_a_family_of_any_package_needs_no_entry(monkeypatch, tmp_path):
    (tmp_path / "rails.py").write_text(
        "from env.engine.family import Family\nfrom tests.env.slider import Slider\nclass Rail(Slider, Family): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own, listed = (
        registry.make_vector_env(CONFIG | more | {"wrappers": None, "act_steps": 2})
        for more in ({"name": "whatever", "family": "rails.Rail"}, {})
    )
    chunk = np.full((3, 2, 1), 0.7)
    np.testing.assert_array_equal(own.reset(5)["state"], listed.reset(5)["state"])
    np.testing.assert_array_equal(own.step(chunk).obs["state"], listed.step(chunk).obs["state"])
    assert (
        registry.make_vector_env(CONFIG | {"family": "rails.Rail", "wrappers": None, "act_steps": 1}).family
        is own.family
    )


WRONG = {
    "Slider": "expected package.module.Class",
    "nowhere.Slider": "no module 'nowhere'. Put the folder that holds it on PYTHONPATH",
    "tests.nowhere.Slider": "no module 'tests.nowhere'",
    "tests.env.slider.Silder": "did you mean tests.env.slider.Slider",
    "tests.env.slider.SOLVED": "has no class 'SOLVED'",
    "tests.env.slider.Slider": "inherit from env.engine.family.Family",
    "env.engine.family.Family": "inherit from env.engine.family.Family",
    "halves.Half": "it has no action_dim, control_kernel, begin",
}


@pytest.mark.parametrize("path", WRONG)
@pytest.mark.parametrize("ask", [registry.make_vector_env, registry.check_task])
def test_a_wrong_family_says_what_is_wrong(path, ask, monkeypatch, tmp_path):
    (tmp_path / "halves.py").write_text(
        "from env.engine.family import Family\nclass Half(Family):\n"
        "    name, layout, model, observe_kernel = 'half', {}, None, 0\n    def draw(self, rng): return rng.random(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvError, match=re.escape(WRONG[path])):
        ask(CONFIG | {"family": path})


IMPOSSIBLE = [("n_envs", 0), ("n_envs", None), ("max_episode_steps", "long"), ("n_threads", -1), ("act_steps", 1.5)]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE)
def test_impossible_values_name_their_key(key, value):
    with pytest.raises(EnvError, match=f"env.{key}"):
        registry.make_vector_env(CONFIG | {key: value})


@pytest.mark.robomimic
def test_lift_is_registered():
    pytest.importorskip("robosuite")
    cfg = {
        "name": "lift",
        "env_type": "robomimic",
        "n_envs": 2,
        "max_episode_steps": 300,
        "act_steps": 4,
        "n_threads": None,
    }
    keys = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]
    wrappers = {"robomimic_lowdim": {"low_dim_keys": keys, "normalization_path": None}}
    venv = registry.make_vector_env(cfg | {"wrappers": wrappers})
    assert venv.obs_shapes == {"state": (1, 19)} and venv.action_dim == 7
    obs = venv.reset(0)["state"]
    assert np.isfinite(venv.step(np.zeros((2, 4, 7))).obs["state"]).all()
    second = registry.make_vector_env(cfg)  # shares the task's facts, but no simulation
    assert second.family is venv.family
    np.testing.assert_array_equal(second.reset(0)["state"], obs)
