"""Hopper, walker2d and halfcheetah on the engine against the installed Gymnasium's own -v4 and -v5, to 1e-10."""

from __future__ import annotations

import warnings

import gymnasium
import mujoco
import numpy as np
import pytest

from env.engine.batch import EngineVectorEnv
from env.engine.library import TERMINATED
from env.errors import EnvError, MissingSimulatorError
from env.gym import locomotion
from env.gym.locomotion import BODIES, VERSIONS, Locomotion
from env.normalizer import Normalizer
from env.registry import GYM, make_vector_env

NAMES = {"hopper": "Hopper", "walker2d": "Walker2d", "halfcheetah": "HalfCheetah"}
EXACT = 1e-10
TASKS = [(body, version) for body in NAMES for version in VERSIONS]


def _theirs(body, version):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium would rather have -v5
        return gymnasium.make(f"{NAMES[body]}-{version}").unwrapped


def _venv(body, version="v4", n=1, act_steps=1, limit=1000):
    return EngineVectorEnv(Locomotion(body, version), n, act_steps, limit, n_threads=1)


def _state(data):
    return np.concatenate([data.qpos, data.qvel])


@pytest.mark.parametrize(("body", "version"), TASKS)
def test_a_thousand_steps_are_gymnasiums(body, version):
    """Free-running, on through falls (Gymnasium's bare environment goes on, too), with actions beyond their range."""
    theirs, venv = _theirs(body, version), _venv(body, version)
    seen, _ = theirs.reset(seed=11)
    venv.reset([11])
    sims, rng, worst, ends = venv.simulations, np.random.default_rng(3), 0.0, 0
    for t in range(1000):
        action = rng.uniform(-1.7, 1.7, venv.action_dim)
        pairs = [(sims.history[0, 0], seen), (_state(sims.data[0]), _state(theirs.data))]
        worst = max(worst, *(np.abs(a - b).max() for a, b in pairs))
        seen, reward, terminated, truncated, _ = theirs.step(action)
        ours = sims.run(np.array([0]), action[None, None], np.array([1]))
        worst = max(worst, abs(ours.reward[0] - reward))
        assert bool(ours.bits[0] & TERMINATED) == terminated and not truncated, f"step {t}"
        ends += terminated
    assert worst < EXACT
    assert ends == 0 if body == "halfcheetah" else 100 < ends < 1000


@pytest.mark.parametrize(("body", "version"), TASKS)
def test_looking_for_no_islands_changes_no_bit(body, version):
    """Our model against Gymnasium's, in all that the next step depends on: falling, and on the ground."""
    models = _venv(body, version).family.model, _theirs(body, version).model
    assert models[0].ntree == 1
    data, rng, touching = [mujoco.MjData(model) for model in models], np.random.default_rng(2), 0
    states = np.zeros((2, mujoco.mj_stateSize(models[0], mujoco.mjtState.mjSTATE_INTEGRATION)))
    for _ in range(2000):
        control = rng.uniform(-1, 1, models[0].nu)
        for model, one, state in zip(models, data, states, strict=True):
            one.ctrl[:] = control
            mujoco.mj_step(model, one)
            mujoco.mj_getState(model, one, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        np.testing.assert_array_equal(*states)
        touching += data[0].ncon > 1
    assert touching > 500


@pytest.mark.parametrize(("body", "version"), TASKS)
def test_episodes_in_chunks_are_gymnasiums(body, version):
    """Seeds, reset noise, summed rewards, final and first observations, ends wherever they fall in a chunk."""
    limit, act_steps, n = 53, 7, 3
    theirs, venv = _theirs(body, version), _venv(body, version, n, act_steps, limit)
    seeds = list(range(20, 20 + 2 * n))
    queue, rng, ends = iter(seeds), np.random.default_rng(5), set()
    obs = venv.reset(seeds)
    assert venv.obs_shapes == {"state": (1, {"hopper": 11}.get(body, 17))}
    plans = {seed: rng.uniform(-1, 1, (70, venv.action_dim)) for seed in seeds}
    at, at_seed = np.zeros(n, int), [next(queue) for _ in range(n)]
    reference = {seed: _episode(theirs, seed, plans[seed], limit) for seed in seeds}
    for i, seed in enumerate(at_seed):
        np.testing.assert_array_equal(obs["state"][i, 0], reference[seed][0][0].astype(np.float32))
    while (venv.seeds() >= 0).any():
        active = venv.seeds() >= 0
        chunk = np.zeros((n, act_steps, venv.action_dim))
        for i in np.flatnonzero(active):
            chunk[i] = plans[at_seed[i]][at[i] : at[i] + act_steps]
        step = venv.step(chunk)
        for i in np.flatnonzero(active):
            path, rewards, terminated = reference[at_seed[i]]
            at[i], before = at[i] + step.info["steps"][i], at[i]
            np.testing.assert_allclose(step.reward[i], rewards[before : at[i]].sum(), rtol=1e-6, atol=1e-6)
            np.testing.assert_array_equal(step.final_obs["state"][i, 0], path[at[i]].astype(np.float32))
            done = at[i] == len(rewards)
            assert step.terminated[i] == (done and terminated) and step.truncated[i] == (done and not terminated)
            assert not step.success[i] and not step.info["invalid"][i]
            if done:
                ends.add(int(at[i] - before))
                at[i], at_seed[i] = 0, next(queue, -1)
    assert ends == {4} if body == "halfcheetah" else len(ends) > 1  # 53 = 7 * 7 + 4


def _episode(env, seed, actions, limit):
    """(T + 1, Do) observations, (T,) rewards, whether it terminated, from Gymnasium."""
    obs, _ = env.reset(seed=seed)
    path, rewards = [obs], []
    for action in actions[:limit]:
        obs, reward, terminated, _, _ = env.step(action)
        path.append(obs)
        rewards.append(reward)
        if terminated:
            break
    return np.array(path), np.array(rewards), terminated


@pytest.mark.parametrize(("version", "expected"), [("v4", 2.0), ("v5", 1.0)])
def test_a_fall_inside_a_chunk_by_hand(version, expected):
    """High in the air, upright but for 0.19 rad and turning at 1 rad/s, 0.008 s per control step: 0.198 rad is
    healthy, 0.206 rad ends it, at the second of five control steps. v5 pays nothing for the last.
    """
    venv = _venv("hopper", version, act_steps=5)
    venv.reset([2, 3])
    data = venv.simulations.data[0]
    data.qpos[:], data.qvel[:] = [0, 3, 0.19, 0, 0, 0], [0, 0, 1, 0, 0, 0]
    mujoco.mj_forward(venv.family.model, data)
    step = venv.step(np.zeros((1, 5, 3)))
    assert step.info["steps"].tolist() == [2] and step.terminated[0] and not step.truncated[0]
    assert step.final_obs["state"][0, 0, 1] == pytest.approx(0.206, abs=1e-3)  # the angle
    assert step.final_obs["state"][0, 0, 0] == pytest.approx(3 - 9.81 * 0.016**2 / 2, abs=1e-3)  # the fall
    assert step.reward[0] == pytest.approx(expected, abs=0.05)  # hardly moved in x, no control
    assert venv.seeds().tolist() == [3] and abs(step.obs["state"][0, 0, 1]) < 0.01


def test_the_cost_is_of_what_was_asked_for():
    """A torque beyond its range does what the range's end does, and costs more: 3 * (4 - 1) * 0.001."""
    venv = _venv("hopper", n=2)
    venv.reset([7, 7])
    step = venv.step(np.array([[[2.0] * 3], [[1.0] * 3]]))
    np.testing.assert_array_equal(step.obs["state"][0], step.obs["state"][1])
    assert step.reward[1] - step.reward[0] == pytest.approx(0.009, abs=1e-6)


def test_the_time_limit_truncates_and_a_fall_at_the_limit_terminates():
    venv = _venv("halfcheetah", act_steps=4, limit=11)
    venv.reset([1, 2])
    steps = [venv.step(np.zeros((1, 4, 6))) for _ in range(3)]
    assert [bool(s.truncated[0]) for s in steps] == [False, False, True]
    assert not any(s.terminated[0] for s in steps) and steps[-1].info["steps"][0] == 3
    theirs = _theirs("halfcheetah", "v4")
    path, rewards, _ = _episode(theirs, 1, np.zeros((11, 6)), 11)
    np.testing.assert_array_equal(steps[-1].final_obs["state"][0, 0], path[-1].astype(np.float32))
    assert sum(float(s.reward[0]) for s in steps) == pytest.approx(rewards.sum(), abs=1e-5)
    _, rewards, terminated = _episode(_theirs("hopper", "v4"), 1, np.ones((200, 3)), 200)
    venv = _venv("hopper", act_steps=len(rewards) + 3, limit=len(rewards))
    venv.reset([1, 2])
    step = venv.step(np.ones((1, len(rewards) + 3, 3)))
    assert terminated and step.terminated[0] and not step.truncated[0]


def test_the_registry_knows_the_published_names():
    cfg = {"n_envs": 2, "act_steps": 4, "max_episode_steps": 1000, "n_threads": 1}
    for name in ("hopper", "walker2d", "halfcheetah"):
        for published in (f"{name}-v2", f"{name}-medium-v2"):
            assert GYM[published] == name
            assert make_vector_env({"name": published, **cfg}).family.name == f"{name}-v4"
    v4, v5 = (make_vector_env({"name": "walker2d-v2", "version": v, **cfg}) for v in VERSIONS)
    assert v5.family.name == "walker2d-v5"
    v4.reset(0)
    with pytest.raises(EnvError, match=r"'walker2d-v4'.*'walker2d-v5'"):
        v5.load_state_dict(v4.state_dict())
    with pytest.raises(EnvError, match=r"env\.version: expected v4 or v5.*'v3'"):
        make_vector_env({"name": "hopper-v2", "version": "v3", **cfg})
    with pytest.raises(EnvError, match=r"unknown task 'hoper-v2'; did you mean 'hopper-v2'"):
        make_vector_env({"name": "hoper-v2", **cfg})
    with pytest.raises(EnvError, match=r"'ant'.*hopper, walker2d, halfcheetah"):
        Locomotion("ant")


def test_a_missing_model_says_what_to_install(monkeypatch):
    monkeypatch.setattr(locomotion.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingSimulatorError, match=r"hopper\.xml.*pip install gymnasium"):
        Locomotion("hopper")


@pytest.mark.parametrize("body", BODIES)
def test_normalised_as_published(body):
    """The published wrapper: observations to [-1, 1] unclipped, actions back, rewards as they are."""
    rng = np.random.default_rng(4)
    bare = _venv(body, n=2, act_steps=3)
    n, a = bare.obs_shapes["state"][1], bare.action_dim
    low, span = rng.uniform(-2, -1, n + a), rng.uniform(2, 3, n + a)
    scale = Normalizer(low[:n], (low + span)[:n], low[n:], (low + span)[n:])
    cfg = {"name": f"{body}-v2", "n_envs": 2, "act_steps": 3, "max_episode_steps": 1000, "n_threads": 1}
    venv = make_vector_env(cfg, scale)
    first, raw = venv.reset([1, 2])["state"], bare.reset([1, 2])["state"]
    np.testing.assert_allclose(first, 2 * (raw - low[:n]) / (span[:n] + 1e-6) - 1, atol=2e-6)
    chunk = rng.uniform(-1, 1, (2, 3, a))
    step, expected = venv.step(chunk), bare.step((chunk + 1) / 2 * span[n:] + low[n:])
    np.testing.assert_allclose(step.reward, expected.reward, atol=1e-4)
    np.testing.assert_allclose(
        step.obs["state"], 2 * (expected.obs["state"] - low[:n]) / (span[:n] + 1e-6) - 1, atol=1e-3
    )


def test_a_saved_episode_goes_on_bit_for_bit():
    rng = np.random.default_rng(8)
    first, second = _venv("walker2d", n=3, act_steps=2), _venv("walker2d", n=3, act_steps=2)
    first.reset(5)
    for _ in range(4):
        first.step(rng.uniform(-0.3, 0.3, (3, 2, 6)))
    second.load_state_dict(first.state_dict())
    for _ in range(9):  # through falls and new episodes
        chunk = rng.uniform(-1, 1, (3, 2, 6))
        a, b = first.step(chunk), second.step(chunk)
        np.testing.assert_array_equal(a.obs["state"], b.obs["state"])
        np.testing.assert_array_equal(a.reward, b.reward)


@pytest.mark.parametrize(("body", "version"), [t for t in TASKS if t[0] != "halfcheetah"])
def test_what_is_healthy_is_gymnasiums_to_the_edge(body, version):
    """States on both sides of every bound, set by hand: one step each, in both."""
    theirs, venv, rng = _theirs(body, version), _venv(body, version), np.random.default_rng(6)
    theirs.reset(seed=0)
    venv.reset([0])
    sims, data, n = venv.simulations, venv.simulations.data[0], venv.family.model.nv
    known, said = BODIES[body], []
    bounds = [(1, b) for b in known.height] + [(2, b) for b in known.angle]
    for joint, bound in [(j, b) for j, b in bounds if np.isfinite(b)] * 8:
        qpos, qvel = np.zeros(n), 0.1 * rng.standard_normal(n)
        qpos[1] = np.mean(np.minimum(known.height, 5.0))  # healthy but for what follows
        qpos[joint] = bound + rng.uniform(-0.02, 0.02)
        said.append(_one_step(theirs, sims, data, qpos, qvel))
    for joint in range(2 * n) if body == "hopper" else ():
        state = np.zeros(2 * n)
        state[1], state[joint] = 30.0, 103.0  # beyond what counts as a state of hopper, but for x and z
        said.append(_one_step(theirs, sims, data, state[:n], state[n:]))
    assert 0.2 < np.mean(said) < 0.8


def _one_step(theirs, sims, data, qpos, qvel):
    """Whether Gymnasium ended the episode; asserts that the engine says the same of the same state."""
    theirs.set_state(qpos, qvel)
    data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = qpos, qvel, theirs.data.qacc_warmstart
    mujoco.mj_forward(theirs.model, data)
    _, reward, terminated, _, _ = theirs.step(np.zeros(theirs.model.nu))
    ours = sims.run(np.array([0]), np.zeros((1, 1, theirs.model.nu)), np.array([1]))
    assert bool(ours.bits[0] & TERMINATED) == terminated, (qpos, qvel)
    assert abs(ours.reward[0] - reward) < EXACT
    return terminated
