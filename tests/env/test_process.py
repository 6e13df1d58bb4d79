"""Gymnasium environments in worker processes: the whole VectorEnv protocol, and workers that raise, die or hang."""

from __future__ import annotations

import ast
import functools
import logging
import os
import re
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from env import process
from env.errors import EnvError
from env.process import ProcessVectorEnv
from env.process_link import WORKER, Factory, WorkerError
from env.protocol import VectorEnv, episode_seed

N, TO, TE, DO, DA, LIMIT = 3, 2, 5, 7, 2, 13


class PointMass(gymnasium.Env):
    """Position and velocity in the plane, a clock and two constants of the episode; an action is an acceleration.

    ``x > goal`` terminates, ``own_limit`` steps truncate, and the trouble makers are for the tests of failures.
    """

    def __init__(self, goal=2.0, own_limit=10**6, trouble="", at=3, noise_from_nowhere=False, width=DO):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1, 1, (DA,), np.float32)
        self.goal, self.own_limit, self.trouble, self.at, self.noise = goal, own_limit, trouble, at, noise_from_nowhere

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 4)
        self.constants = self.np_random.uniform(-1, 1, 2)
        self.clock = 0
        return self._obs(), {}

    def step(self, action):
        self.clock += 1
        if self.trouble and self.clock == self.at:
            self._cause_trouble()
        self.state[2:] += 0.1 * action + 0.01 * self.np_random.normal(size=2)  # drawn in the episode: still its seed's
        self.state[:2] += 0.3 * self.state[2:]
        terminated = bool(self.state[0] > self.goal)
        info = {"success": terminated} if self.trouble != "silent" else {}
        return self._obs(), float(self.state[1]), terminated, self.clock >= self.own_limit, info

    def _obs(self):
        clock = self.clock + (np.random.default_rng().uniform() if self.noise else 0.0)
        return np.concatenate([self.state, [clock], self.constants])[: self.observation_space.shape[0]]

    def _cause_trouble(self):
        if self.trouble == "raise":
            raise RuntimeError("the gripper is stuck")
        if self.trouble == "die":
            sys.stderr.write("about to fall over\n")
            os._exit(7)
        if self.trouble == "segfault":
            import ctypes

            ctypes.string_at(0)
        if self.trouble == "hang":
            time.sleep(60)
        if self.trouble == "nan":
            self.state[3] = np.nan
        if self.trouble == "print":
            print('{"reward": 1e9}')  # a chatty simulator
            os.system("echo from a child of the simulator")


class Camera(gymnasium.Env):
    """A Dict observation with two images of different layouts."""

    def __init__(self):
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pose": box(-1, 1, (3,)),
                "height": box(-1, 1, ()),
                "wrist": box(0, 255, (5, 11, 3), np.uint8),
                "front": box(0, 255, (1, 5, 11), np.uint8),
            }
        )
        self.action_space = box(-1, 1, (2, 2), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(0.0), {}

    def step(self, action):
        assert action.shape == (2, 2) and action.dtype == np.float64
        return self._obs(action[1, 0]), 0.25, False, False, {}

    def _obs(self, x):
        wrist = np.arange(5 * 11 * 3, dtype=np.uint8).reshape(5, 11, 3)
        return {
            "pose": np.float32([x, 0.5, -0.5]),
            "height": np.float32(0.75),
            "wrist": wrist,
            "front": np.full((1, 5, 11), 9, np.uint8),
        }


OLD_GYM = """
import random
import sys

import numpy as np

assert not [path for path in sys.path if "only-for-the-parent" in path]


class Box:
    def __init__(self, n):
        self.shape, self.dtype = (n,), np.dtype("float32")


class OldGym:
    def __init__(self):
        self.observation_space, self.action_space = Box(2), Box(1)

    def seed(self, seed):
        self.seeded = seed

    def reset(self):
        self.clock = 0
        return np.array([self.seeded % 1000, np.random.uniform() + random.random()])

    def step(self, action):
        self.clock += 1
        info = {"TimeLimit.truncated": True} if self.clock == 4 and action[0] < 0 else {}
        return np.array([self.clock, 0.0]), 1.0, self.clock == 4, info
"""


def make_discrete():
    """An environment whose actions are not continuous."""
    return gymnasium.make("CartPole-v1")


def build(n=N, act_steps=TE, limit=LIMIT, cond_steps=TO, timeout_s=30.0, **kwargs):
    return ProcessVectorEnv(
        [functools.partial(PointMass, **kwargs)] * n, act_steps, limit, cond_steps, timeout_s=timeout_s
    )


@pytest.fixture(scope="module")
def venv():
    venv = build(own_limit=11)
    yield venv
    venv.close()


def chunks(n_chunks, seed=0, n=N):
    return np.random.default_rng(seed).uniform(-1, 1, (n_chunks, n, TE, DA)).astype(np.float32)


def reference(seed, actions, limit=LIMIT, **kwargs):
    """One episode by hand: stacked observations, rewards and how it ended, step by step."""
    env = PointMass(**kwargs)
    history = [env.reset(seed=seed)[0]] * TO
    rows, rewards, ends = [np.stack(history)], [], []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        history = [*history[1:], obs]
        rows.append(np.stack(history))
        rewards.append(reward)
        ends.append((terminated, not terminated and (truncated or len(rewards) >= limit)))
        if any(ends[-1]):
            break
    return np.array(rows, np.float32), np.array(rewards), ends


def test_it_is_a_vector_env(venv):
    assert isinstance(venv, VectorEnv)
    assert (venv.n_envs, venv.act_steps, venv.action_dim, venv.max_episode_steps) == (N, TE, DA, LIMIT)
    assert venv.obs_shapes == {"state": (TO, DO)}


def test_episodes_match_the_environment_stepped_by_hand(venv):
    actions = chunks(9)
    obs = venv.reset(17)
    assert obs["state"].shape == (N, TO, DO) and obs["state"].dtype == np.float32
    episode, done_steps = np.zeros(N, int), np.zeros(N, int)
    played = [[] for _ in range(N)]
    kinds = set()
    for chunk in actions:
        before = venv.seeds()
        result = venv.step(chunk)
        assert (
            result.reward.dtype == np.float32
            and result.terminated.dtype == bool
            and result.info["steps"].dtype == np.int64
        )
        for i in range(N):
            seed = episode_seed(17, i, episode[i])
            assert before[i] == seed == result.info["seed"][i]
            steps = result.info["steps"][i]
            played[i].extend(chunk[i])
            rows, rewards, ends = reference(seed, played[i], own_limit=11)
            assert done_steps[i] + steps == len(rewards)  # all of the chunk, or until the end and no further
            assert result.reward[i] == pytest.approx(rewards[done_steps[i] :].sum(), abs=1e-5)
            assert (result.terminated[i], result.truncated[i]) == ends[-1]
            assert result.success[i] == result.terminated[i]
            np.testing.assert_array_equal(result.final_obs["state"][i], rows[-1])
            done_steps[i] += steps
            if any(ends[-1]):
                kinds.add((ends[-1], int(steps) < TE))
                episode[i], done_steps[i], played[i] = episode[i] + 1, 0, []
                rows = reference(episode_seed(17, i, episode[i]), [])[0]
            np.testing.assert_array_equal(result.obs["state"][i], rows[-1])
        assert result.info["active"].all() and not result.info["invalid"].any()
    assert ((True, False), True) in kinds and ((False, True), True) in kinds  # both ends happened inside a chunk


def test_the_callers_limit_truncates_too():
    venv = build(n=1, limit=7, goal=1e9)
    try:
        venv.reset([3])
        first, second = (venv.step(np.zeros((1, TE, DA))) for _ in range(2))
        assert first.info["steps"] == 5 and not first.truncated
        assert second.info["steps"] == 2 and second.truncated and not second.terminated
    finally:
        venv.close()


def test_reaching_the_goal_at_the_limit_is_an_end_not_a_cut():
    venv = build(n=1, limit=1, goal=-1e9)
    try:
        venv.reset([3])
        result = venv.step(np.zeros((1, TE, DA)))
        assert result.terminated and not result.truncated
    finally:
        venv.close()


def test_a_list_of_seeds_is_played_once_each_in_order_then_slots_idle(venv):
    seeds = [101, 103, 107, 109, 113]
    venv.reset(seeds)
    assert venv.seeds().tolist() == seeds[:3]
    begun, active_rows = list(venv.seeds()), []
    for chunk in chunks(12, seed=4):
        before = venv.seeds()
        result = venv.step(chunk)
        active = before >= 0
        np.testing.assert_array_equal(result.info["active"], active)
        np.testing.assert_array_equal(result.info["seed"], before)
        active_rows.append(active.sum())
        for array in (result.reward, result.info["steps"], result.final_obs["state"], result.obs["state"]):
            assert not array[~active].any()
        assert not (result.terminated | result.truncated | result.success)[~active].any()
        now = venv.seeds()
        begun += now[(now != before) & (now >= 0)].tolist()
        idle_now = active & (now < 0)
        assert (result.terminated | result.truncated)[idle_now].all()
        assert not result.obs["state"][idle_now].any() and result.final_obs["state"][idle_now].any(axis=(1, 2)).all()
    assert begun == seeds  # slots that end together take the next ones in slot order
    assert active_rows[-1] == 0 and (venv.seeds() == -1).all()


def test_fewer_seeds_than_slots(venv):
    obs = venv.reset([5])
    assert venv.seeds().tolist() == [5, -1, -1]
    assert obs["state"][0].any() and not obs["state"][1:].any()


def test_an_episode_depends_on_its_seed_only(venv):
    actions = np.random.default_rng(8).uniform(-1, 1, (2, TE, DA)).astype(np.float32)
    seen = []
    for slot, others in ((0, 7), (2, 19), (0, 23)):  # another slot, other neighbours, another history of the slot
        seeds = [others, others + 1, others + 2]
        seeds[slot] = 31
        first = venv.reset(seeds)["state"][slot]
        full = np.random.default_rng(others).uniform(-1, 1, (2, N, TE, DA)).astype(np.float32)
        full[:, slot] = actions
        seen.append([first, *(venv.step(chunk).final_obs["state"][slot] for chunk in full)])
    for other in seen[1:]:
        np.testing.assert_array_equal(other, seen[0])


def test_results_are_copies(venv):
    obs = venv.reset(2)
    kept = obs["state"].copy()
    result = venv.step(chunks(1)[0])
    np.testing.assert_array_equal(obs["state"], kept)
    kept = result.final_obs["state"].copy()
    venv.reset(3)
    np.testing.assert_array_equal(result.final_obs["state"], kept)


def test_state_goes_on_mid_episode(venv):
    venv.reset([201, 203, 207, 211])
    actions = chunks(8, seed=6)
    for chunk in actions[:2]:
        venv.step(chunk)
    state = venv.state_dict()
    expected = [venv.step(chunk) for chunk in actions[2:]]
    venv.reset(99)
    obs = venv.load_state_dict(state)
    np.testing.assert_array_equal(obs["state"], state["state"])
    for chunk, wanted in zip(actions[2:], expected, strict=True):
        result = venv.step(chunk)
        np.testing.assert_array_equal(result.obs["state"], wanted.obs["state"])
        np.testing.assert_array_equal(result.final_obs["state"], wanted.final_obs["state"])
        np.testing.assert_array_equal(result.reward, wanted.reward)
        np.testing.assert_array_equal(result.info["seed"], wanted.info["seed"])


def test_state_of_another_size_is_refused(venv):
    venv.reset(1)
    state = venv.state_dict()
    with pytest.raises(EnvError, match="expected shape"):
        venv.load_state_dict({**state, "actions": state["actions"][:2]})


def test_an_environment_that_cannot_be_replayed_is_reported(caplog):
    venv = build(n=1, noise_from_nowhere=True)
    try:
        venv.reset([3])
        with caplog.at_level(logging.WARNING):
            venv.load_state_dict(venv.state_dict())
        assert "not a function of its seed" in caplog.text
    finally:
        venv.close()


def test_wrong_use_is_named(venv):
    with pytest.raises(EnvError, match=re.escape("(3, 5, 2), found (3, 2, 5)")):
        venv.step(np.zeros((N, DA, TE)))
    venv.reset(0)
    chunk = np.zeros((N, TE, DA))
    chunk[1, 0, 0] = np.nan
    with pytest.raises(EnvError, match="slot 1"):
        venv.step(chunk)
    with pytest.raises(EnvError, match="-4"):
        venv.reset([-4])
    with pytest.raises(EnvError, match="act_steps must be at least 1, found 0"):
        build(act_steps=0)


def test_step_before_reset_and_use_after_close():
    venv = build(n=1)
    with pytest.raises(EnvError, match="reset before step"):
        venv.step(np.zeros((1, TE, DA)))
    pids = [link._process.pid for link in venv._links]
    venv.close()
    venv.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(EnvError, match="closed"):
        venv.reset(0)


def fail(match, trouble, timeout_s=30.0, n=2):
    """Run into trouble at the third step of seed 41 in slot 0; every worker must be gone afterwards."""
    venv = build(n=n, trouble=trouble, timeout_s=timeout_s, goal=1e9)
    processes = [link._process for link in venv._links]
    venv.reset([41, 43][:n])
    start = time.monotonic()
    with pytest.raises(WorkerError, match=match) as caught:
        venv.step(np.zeros((n, TE, DA)))
    assert time.monotonic() - start < 10
    assert all(process.poll() is not None for process in processes)
    message = str(caught.value)
    assert "PointMass" in message and "slot 0" in message and "seed 41" in message
    with pytest.raises(EnvError, match="closed"):
        venv.step(np.zeros((n, TE, DA)))
    venv.close()
    return message


def test_an_exception_reaches_the_user_with_its_traceback():
    message = fail("the gripper is stuck", "raise")
    assert "_cause_trouble" in message and "test_process.py" in message and "'step'" in message


def test_a_worker_that_dies_is_reported_with_its_last_words():
    assert "about to fall over" in fail("ended with code 7", "die")


def test_a_worker_that_crashes_is_reported_with_its_stack():
    assert "_cause_trouble" in fail("SIGSEGV", "segfault", n=1)


def test_a_worker_that_hangs_is_ended():
    fail("did not answer 'step' within 0.5 s", "hang", timeout_s=0.5)


def test_an_environment_that_cannot_be_built():
    with pytest.raises(WorkerError, match="NoSuchTask") as caught:
        ProcessVectorEnv([functools.partial(gymnasium.make, "NoSuchTask-v0")], TE, LIMIT)
    assert "'build'" in str(caught.value)


def test_printing_does_not_garble_answers():
    venv = build(n=1, trouble="print", goal=1e9)
    try:
        venv.reset([1])
        assert abs(venv.step(np.zeros((1, TE, DA))).reward[0]) < 100
    finally:
        venv.close()


def test_non_finite_observations_cut_the_episode():
    venv = build(n=1, trouble="nan", goal=1e9)
    try:
        venv.reset([47, 53])
        result = venv.step(np.zeros((1, TE, DA)))
        rows, rewards, _ = reference(47, np.zeros((2, DA)), goal=1e9)
        assert result.info["invalid"] and result.truncated and not result.terminated and result.info["steps"] == 3
        assert result.reward[0] == pytest.approx(rewards.sum(), abs=1e-6)
        np.testing.assert_array_equal(result.final_obs["state"][0], rows[-1])  # the last sound observation
        assert venv.seeds().tolist() == [53] and np.isfinite(result.obs["state"]).all()
    finally:
        venv.close()


def test_success_by_reward_threshold():
    make = functools.partial(PointMass, trouble="silent", goal=1e9)
    rewards = reference(61, np.zeros((TE, DA)), goal=1e9)[1]
    for threshold, expected in ((rewards.max() - 1e-6, True), (rewards.max() + 1e-6, False)):
        venv = ProcessVectorEnv([make], TE, LIMIT, success_reward=float(threshold))
        try:
            venv.reset([61])
            assert venv.step(np.zeros((1, TE, DA))).success.tolist() == [expected]
        finally:
            venv.close()


def test_dict_observations_and_images():
    venv = ProcessVectorEnv([Camera], 3, LIMIT, TO, state_keys=["height", "pose"], image_keys=["front", "wrist"])
    try:
        assert venv.obs_shapes == {"state": (TO, 4), "rgb": (TO, 4, 5, 11)} and venv.action_dim == 4
        venv.reset([1])
        obs = venv.step(np.full((1, 3, 4), 0.125)).obs
        np.testing.assert_array_equal(obs["state"][0, -1], np.float32([0.75, 0.125, 0.5, -0.5]))
        wrist = np.arange(5 * 11 * 3, dtype=np.uint8).reshape(5, 11, 3).transpose(2, 0, 1)
        np.testing.assert_array_equal(obs["rgb"][0, 0], np.concatenate([np.full((1, 5, 11), 9, np.uint8), wrist]))
        assert obs["rgb"].dtype == np.uint8
    finally:
        venv.close()
    with pytest.raises(WorkerError, match="no observation 'depth'"):
        ProcessVectorEnv([Camera], 3, LIMIT, state_keys=["depth"])


@pytest.mark.parametrize("push, ends", [(1.0, (True, False)), (-1.0, (False, True))])
def test_the_older_gym_interface_in_another_interpreter(tmp_path, monkeypatch, push, ends):
    """The interface before Gymnasium (seed(), four results), from a file, with none of this interpreter's paths."""
    monkeypatch.syspath_prepend("/only-for-the-parent")
    monkeypatch.setenv("PYTHONPATH", "/only-for-the-parent")
    file = tmp_path / "old_simulator.py"
    file.write_text(OLD_GYM)
    venv = ProcessVectorEnv([f"{file}:OldGym"], 6, LIMIT, python=sys.executable)
    try:
        obs = [venv.reset([seed])["state"][0, 0] for seed in (2**40 + 77, 78, 2**40 + 77)]
        np.testing.assert_array_equal(obs[0], obs[2])  # the global generator is seeded as well
        assert obs[0][0] == (2**40 + 77) % 2**31 % 1000 and obs[1][0] == 78 and obs[0][1] != obs[1][1]
        result = venv.step(np.full((1, 6, 1), push))
        assert (result.terminated[0], result.truncated[0]) == ends and result.info["steps"] == 4 and result.reward == 4
    finally:
        venv.close()


def test_an_interpreter_that_does_not_exist():
    with pytest.raises(WorkerError, match="/no/such/python.*key `python`"):
        ProcessVectorEnv([PointMass], TE, LIMIT, python="/no/such/python")


def test_the_worker_script_stands_alone_and_parses_as_python_3_8():
    source = Path(WORKER).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    imported |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


def test_environments_must_be_nameable_and_alike():
    with pytest.raises(EnvError, match=r"importable by name.*functools\.partial"):
        ProcessVectorEnv([lambda: PointMass()], TE, LIMIT)
    with pytest.raises(EnvError, match="must be numbers, strings"):
        Factory.of(functools.partial(PointMass, goal=object()))
    with pytest.raises(EnvError, match="'module:name'"):
        Factory.of("gymnasium.make")
    with pytest.raises(EnvError, match=r"one kind of environment.*slot 1"):
        ProcessVectorEnv([PointMass, functools.partial(PointMass, width=5)], TE, LIMIT)
    with pytest.raises(WorkerError, match="Box of floats"):
        ProcessVectorEnv([make_discrete], TE, LIMIT)


def test_a_classic_control_environment():
    n, limit = 2, 200
    venv = ProcessVectorEnv([functools.partial(gymnasium.make, "Pendulum-v1")] * n, TE, max_episode_steps=1000)
    try:
        env = gymnasium.make("Pendulum-v1")
        obs = venv.reset([71, 73, 79])["state"]
        expected, _ = env.reset(seed=73)
        np.testing.assert_array_equal(obs[1, 0], expected)
        for chunk in np.random.default_rng(1).uniform(-2, 2, (limit // TE, n, TE, 1)).astype(np.float32):
            result = venv.step(chunk)
            total = 0.0
            for action in chunk[1]:
                expected, reward, _, truncated, _ = env.step(action)
                total += reward
            assert result.reward[1] == pytest.approx(total, rel=1e-5)
            np.testing.assert_array_equal(result.final_obs["state"][1, 0], expected)
        assert truncated and result.truncated.all() and not result.terminated.any()  # gymnasium's own TimeLimit
        assert venv.seeds().tolist() == [79, -1]
    finally:
        venv.close()


def test_the_shared_file_has_no_name_once_everyone_has_it(monkeypatch):
    paths, make_file = [], process._shared_file

    def recorded(size):
        paths.append(make_file(size))
        return paths[-1]

    monkeypatch.setattr(process, "_shared_file", recorded)
    build(n=1).close()
    assert len(paths) == 1 and not paths[0].exists()
