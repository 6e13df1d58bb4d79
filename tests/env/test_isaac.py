"""The original Furniture-Bench, against a stand-in with its interface (``isaac_stand_in``): 1,000 environments, NaN, and processes that die, raise or hang."""

from __future__ import annotations

import ast
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.finetune.rollout import EpisodeTracker, Rollout, collect
from env.errors import EnvError, MissingSimulatorError
from env.furniture.facts import FURNITURE
from env.furniture.isaac import PROGRAM, IsaacVectorEnv
from env.normalizer import Normalizer
from env.process_link import WorkerError
from env.protocol import VectorEnv
from env.registry import make_vector_env
from model.types import Sample

STAND_IN = Path(__file__).with_name("isaac_stand_in")
MANY, TE, LIMIT = 1000, 3, 11  # the last chunk of an episode is cut short
BLOW_UP, DIE, RAISE, HANG = (1, 0.95), (1, -0.95), (2, 0.95), (2, -0.95)  # axis and place of the stand-in that hurt
PAIR = 7  # numbers of a pose


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    """One that has the simulator, and is not this one as far as anybody can tell."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{STAND_IN}" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def build(interpreter, furniture="one_leg", n_envs=5, **settings):
    return IsaacVectorEnv(FURNITURE[furniture], "low", n_envs, TE, LIMIT, python=interpreter, **settings)


@pytest.fixture(scope="module")
def many(interpreter):
    venv = build(interpreter, n_envs=MANY, cond_steps=2)
    yield venv
    venv.close()


@pytest.fixture(scope="module")
def lamp(interpreter):
    venv = build(interpreter, "lamp", sparse_reward=False, timeout_s=20.0)
    yield venv
    venv.close()


def still(n, where=(0.1, 0.0, 0.1), grip=-1.0):
    """A chunk of standing there, upright: (n, TE, 10)."""
    return np.tile(np.float32([*where, 1, 0, 0, 0, 1, 0, grip]), (n, TE, 1))


def placed(chunk, slot, place, step=1):
    """``chunk`` with one action of ``slot`` that goes to a place that hurts."""
    chunk = chunk.copy()
    chunk[slot, step, place[0]] = place[1]
    return chunk


def test_it_is_a_vector_env_of_a_thousand(many):
    assert isinstance(many, VectorEnv)
    assert (many.n_envs, many.act_steps, many.action_dim, many.max_episode_steps) == (MANY, TE, 10, LIMIT)
    assert many.obs_shapes == {"state": (2, 58)}
    obs = many.reset(17)
    assert obs["state"].shape == (MANY, 2, 58) and obs["state"].dtype == np.float32
    np.testing.assert_array_equal(obs["state"][:, 0], obs["state"][:, 1])
    assert len(np.unique(obs["state"][:, 0, 16])) > MANY / 2  # every environment begins elsewhere
    cosine, sine = np.cos(0.6), np.sin(0.6)
    np.testing.assert_allclose(obs["state"][3, 0, 3:9], [cosine, -sine, 0, sine, cosine, 0], atol=1e-4)  # rows
    again = many.reset(17)
    np.testing.assert_array_equal(obs["state"], again["state"])
    assert (many.reset(18)["state"] != obs["state"]).any()


def test_a_chunk_does_what_its_actions_say(many):
    first = many.reset(5)["state"]
    chunk = still(MANY)
    chunk[:, :, 0] = np.linspace(0.1, 0.3, MANY)[:, None] + [0, 0.02, 0.05]
    result = many.step(chunk)
    np.testing.assert_allclose(result.obs["state"][:, :, 0], chunk[:, -2:, 0], rtol=1e-6)  # the last two, oldest first
    np.testing.assert_array_equal(result.obs["state"][:, 1, 16:], first[:, 1, 16:])  # nobody touched a part
    np.testing.assert_allclose(result.obs["state"][:, 1, 9], 10 * (chunk[:, 2, 0] - chunk[:, 1, 0]), rtol=1e-4)
    assert (result.info["steps"] == TE).all() and not result.info["invalid"].any() and not result.reward.any()
    assert not (result.terminated | result.truncated | result.success).any()


def test_reward_success_and_the_time_limit(many):
    many.reset(6)
    seeds = many.seeds()
    results = [many.step(still(MANY, (0.41 if k == 1 else 0.1, 0, 0.1), grip=1.0)) for k in range(4)]
    assert [r.reward.sum() for r in results] == [0, MANY, 0, 0]  # once, not in every step
    assert [r.success.all() for r in results] == [False, True, True, True]  # it stays solved
    assert [int(r.info["steps"][0]) for r in results] == [3, 3, 3, 2]
    assert results[-1].truncated.all() and not results[-1].terminated.any()
    np.testing.assert_allclose(results[-1].final_obs["state"][:, 1, 0], 0.1, atol=1e-6)
    assert (results[-1].obs["state"][:, 1, 16:] != results[-1].final_obs["state"][:, 1, 16:]).all()
    np.testing.assert_array_equal(results[-1].info["seed"], seeds)
    assert not (many.seeds() == seeds).any() and not results[-1].obs["state"][:, :, 9:12].any()
    early = still(MANY, grip=1.0)
    early[:, 0, 0] = 0.41  # at once: the gripper is open then, whatever it was told last in the episode before
    assert not many.step(early).reward.any()


def test_nan_costs_its_own_episode_only(many, caplog):
    many.reset(7)
    seeds, clean = many.seeds(), still(MANY)
    many.step(clean)
    with caplog.at_level(logging.WARNING):
        result = many.step(placed(placed(clean, 3, BLOW_UP), 500, BLOW_UP, step=2))
    hit = np.isin(np.arange(MANY), [3, 500])
    np.testing.assert_array_equal(result.info["invalid"], hit)
    np.testing.assert_array_equal(result.truncated, hit)
    assert result.info["steps"][[3, 500, 4]].tolist() == [2, 3, 3] and not result.reward.any()
    assert all(np.isfinite(x["state"]).all() for x in (result.obs, result.final_obs))
    np.testing.assert_allclose(result.final_obs["state"][3, 1, :2], [0.1, 0.0], atol=1e-6)  # before it blew up
    assert (many.seeds() != seeds).nonzero()[0].tolist() == [3, 500] and not caplog.records
    rest = [many.step(clean) for _ in range(2)]  # these are two steps into their episodes' last chunk
    np.testing.assert_array_equal(rest[-1].truncated, ~hit)
    assert not rest[-1].info["invalid"].any()
    ends = [many.step(clean).truncated for _ in range(2)]
    np.testing.assert_array_equal(ends[-1], hit)  # those begun in between


def test_a_list_of_seeds_is_played_once_each(many):
    seeds = [3 + k for k in range(MANY + 7)]
    many.reset(seeds)
    done = []
    while (many.seeds() >= 0).any():
        active = many.seeds() >= 0
        result = many.step(np.where(active[:, None, None], still(MANY), 0))
        done += result.info["seed"][result.truncated].tolist()
        np.testing.assert_array_equal(result.info["active"], active)
        assert not result.info["invalid"].any() and not result.final_obs["state"][~active].any()
    assert sorted(done) == seeds
    assert (many.step(np.zeros((MANY, TE, 10))).info["steps"] == 0).all()


def test_a_dying_process_costs_the_running_episodes(many, caplog):
    many.reset(8)
    seeds = many.seeds()
    known = many.step(still(MANY)).obs["state"]
    with caplog.at_level(logging.WARNING):
        result = many.step(placed(still(MANY), 77, DIE))
    assert result.info["invalid"].all() and result.truncated.all() and not result.reward.any()
    np.testing.assert_array_equal(result.final_obs["state"], known)
    np.testing.assert_array_equal(result.info["seed"], seeds)
    assert not (many.seeds() == seeds).any() and np.isfinite(result.obs["state"]).all()
    assert "ended with code 6" in caplog.text and "illegal memory access" in caplog.text
    assert f"{MANY} running episodes are dropped" in caplog.text
    result = many.step(still(MANY))
    assert not result.info["invalid"].any() and (result.info["steps"] == TE).all()


def test_an_error_and_a_hang_count_as_death(lamp, caplog):
    lamp.reset(9)
    lamp.step(still(5))
    with caplog.at_level(logging.WARNING):
        assert lamp.step(placed(still(5), 1, RAISE)).info["invalid"].all()
        assert "PhysX Internal CUDA error" in caplog.text
        lamp.step(still(5))
        lamp.timeout_s = 4.0
        assert lamp.step(placed(still(5), 1, HANG)).info["invalid"].all()
        lamp.timeout_s = 20.0
    assert "did not answer 'step' within 4 s" in caplog.text
    assert not lamp.step(still(5)).info["invalid"].any()


def test_dense_rewards_and_bulbs_of_those_who_play_on(lamp):
    lamp.reset(10)
    reach = still(5, (0.3, 0.2, 0.1))
    reach[3:] = still(2)
    touched = lamp.step(reach).obs["state"][:, 0, 16 : 16 + 3 * PAIR].reshape(5, 3, PAIR)
    np.testing.assert_allclose(touched[:3, 1, :3], reach[:3, -1, :3], rtol=1e-6)
    result = lamp.step(
        placed(reach, 0, BLOW_UP, step=2)
    )  # slot 0 begins anew, which makes the simulator forget all bulbs
    bulbs = result.obs["state"][:, 0, 16 : 16 + 3 * PAIR].reshape(5, 3, PAIR)[:, 1]
    closed = still(5, (0.15, 0.25, 0.1), grip=1.0)  # too near to touch a bulb: only who has one moves it
    after = lamp.step(closed).obs["state"][:, 0, 16 : 16 + 3 * PAIR].reshape(5, 3, PAIR)[:, 1]
    np.testing.assert_allclose(after[1:3, :3], closed[1:3, -1, :3], rtol=1e-6)  # still in the hand
    np.testing.assert_array_equal(after[1:3, 3:], bulbs[1:3, 3:])
    lamp.reset(11)
    lamp.step(still(5, grip=1.0))
    result = lamp.step(still(5, (0.6, 0, 0.1), grip=1.0))  # both pairs, one after the other, then nothing more
    assert result.reward.tolist() == [1 + 2 + 2] * 5 and result.success.all()


def test_the_running_episodes_begin_anew_from_a_saved_state(lamp, caplog):
    first = lamp.reset(12)["state"]
    lamp.step(still(5))
    state = lamp.state_dict()
    lamp.reset(13)
    with caplog.at_level(logging.WARNING):
        again = lamp.load_state_dict(state)["state"]
    np.testing.assert_array_equal(again, first)
    assert "begin anew" in caplog.text
    with pytest.raises(EnvError, match=r"expected env.n_envs=4, found 5"):
        lamp.load_state_dict({**state, "seeds": np.zeros(4, np.int64)})


class Standing:
    """A policy: stand there, and once at a place that hurts."""

    noise_shape = (1,)

    def __init__(self):
        self.chunks = iter([{}, {2: BLOW_UP}, {}, {1: DIE}, {}])

    def sample(self, obs, deterministic, noise):
        chunk = still(len(noise))
        for slot, place in next(self.chunks).items():
            chunk = placed(chunk, slot, place)
        trajectories = torch.from_numpy(chunk)
        return Sample(trajectories, trajectories[:, None].expand(-1, 2, -1, -1), torch.zeros(len(noise), 1))


def test_what_training_collects_is_without_the_dropped_episodes(lamp):
    obs = lamp.reset(14)
    rollout = Rollout.allocate(5, 5, {"state": torch.as_tensor(obs["state"][:1])}, (2, TE, 10), torch.device("cpu"))
    tracker = EpisodeTracker.start(5)
    collect(Standing(), lamp, obs, np.ones(5, bool), rollout, tracker, torch.Generator())
    expected = np.ones((5, 5), bool)
    expected[:4] = False  # the fourth chunk killed the process, and with it all that had run since the beginning
    np.testing.assert_array_equal(rollout.valid.numpy(), expected)
    assert torch.isfinite(rollout.obs["state"]).all() and tracker.n_invalid == 6 and not tracker.finished


def test_a_process_that_never_gets_anywhere_is_the_callers(interpreter):
    venv = build(interpreter, timeout_s=30.0)
    venv.reset(1)
    with pytest.raises(WorkerError, match="ended with code 6"):
        venv.step(placed(still(5), 0, DIE, step=0))
    with pytest.raises(EnvError, match="closed"):
        venv.step(still(5))


CFG = {
    "name": "one_leg_med_dim",
    "simulator": "isaacgym",
    "n_envs": 2,
    "max_episode_steps": LIMIT,
    "specific": {"furniture": "one_leg", "randomness": "med", "headless": False, "sparse_reward": True, "act_steps": TE, "obs_steps": 1},
}  # fmt: skip


def test_it_is_made_from_the_published_keys(interpreter):
    bounds = np.full(58, 0.001, np.float32)
    normalizer = Normalizer(-bounds, bounds, -np.ones(10), np.ones(10))
    venv = make_vector_env({**CFG, "simulator_python": interpreter}, normalizer)
    try:
        assert (venv.act_steps, venv.obs_shapes) == (TE, {"state": (1, 58)})
        state = venv.reset(1)["state"]
        assert state.max() == 5.0 and np.abs(state).max() == 5.0  # cut off, as published
        assert venv.venv._settings["headless"] is False and venv.venv._settings["randomness"] == "med"
    finally:
        venv.close()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({}, MissingSimulatorError, r"has no isaacgym and no furniture_bench.*install_furniture\.md.*env\.simulator_python"),
        ({"simulator_python": "~/nowhere/python"}, WorkerError, "nowhere/python cannot be started"),
        ({"simulator": "isaac"}, EnvError, "env.simulator: expected engine or isaacgym, found 'isaac'"),
        ({"specific": {"furniture": "lamp"}}, EnvError, "env.specific.furniture=lamp does not go with env.name=one_leg_med_dim"),
        ({"end_on_success": True}, EnvError, "env.end_on_success"),
        ({"simulator": "engine", "specific": {"sparse_reward": False}}, EnvError, "env.specific.sparse_reward"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(change, error, message):
    with pytest.raises(error, match=message):
        make_vector_env({**CFG, **change})


def test_an_interpreter_with_half_of_it(tmp_path):
    """As with the package of the index, which has no environment for reinforcement learning."""
    for name in ("isaacgym", "furniture_bench"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with pytest.raises(MissingSimulatorError, match=r"has no furniture_bench\.envs\. installation"):
        build(str(python))


def test_the_worker_is_for_python_3_8_and_imports_numpy_only():
    tree = ast.parse(PROGRAM.read_text(encoding="utf-8"), feature_version=(3, 8))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names - sys.stdlib_module_names - {"importlib.util"} == {"numpy"}
