"""The scripted experts: they succeed, vary, repeat themselves by seed, and their servo law turns the right way; what
becomes of their episodes as demonstrations.
"""

from __future__ import annotations

import json
import math
import random

import mujoco
import numpy as np
import pytest

pytest.importorskip("robosuite")

from agent.dataset.demos import read_demos
from env.engine.batch import EngineVectorEnv
from env.registry import EXPERTS, family
from env.robomimic.lift_expert import LiftExpert
from env.robomimic.scripted import Arm, Style, wrap, yaw_of
from env.robomimic.square_expert import _FACES, _PEG, _WRIST, SquareExpert, _SquarePlayer, _twist
from script import collect_demos

pytestmark = pytest.mark.robomimic
N = {"can": 5, "square": 5, "transport": 3}
CALM = Style(speed=1.0, noise=0.0, pause=0.0, slip=0.0)


def _expert(task, n, seed, noise=1.0, retry=True):
    return EXPERTS[task].make(n, np.random.default_rng(seed), noise=noise, retry=retry)


@pytest.fixture(scope="module")
def played():
    """task -> (observations (T, n, Do) of perfect episodes, whether each of them succeeded (n,))."""
    memory = {}

    def play(task):
        if task not in memory:
            n, entry = N[task], EXPERTS[task]
            venv, expert = EngineVectorEnv(family(task), n, 1, entry.steps, n_threads=1), _expert(task, n, 1, noise=0.0)
            obs, seen, won = venv.reset(range(3, 3 + n)), [], np.zeros(n, bool)
            while not won.all() and len(seen) < entry.steps:
                seen.append(obs["state"][:, 0].copy())
                action = expert.act(seen[-1])
                assert np.abs(action).max() <= 1.0
                result = venv.step(action[:, None])
                obs, won = result.obs, won | result.success
            venv.close()
            memory[task] = np.stack(seen), won
        return memory[task]

    return play


@pytest.mark.parametrize("task", N)
def test_a_perfect_expert_always_succeeds(played, task):
    seen, won = played(task)
    assert won.all() and len(seen) < EXPERTS[task].steps * 0.9


@pytest.mark.parametrize("task", N)
def test_actions_are_determined_by_the_seed_and_every_row_has_its_own_style(played, task):
    seen, n = played(task)[0][:, :1].repeat(4, axis=1), 4  # the same episode in every slot
    first, again, other = (_expert(task, n, seed) for seed in (5, 5, 6))
    a, b, c = (np.stack([expert.act(row) for row in seen[:90]]) for expert in (first, again, other))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    for i in range(n):
        for j in range(i):
            assert np.abs(a[:, i] - a[:, j]).max() > 0.1
    assert set(np.unique(a[..., 6])) <= {-1.0, 1.0}  # the gripper


def test_noise_is_a_scale_of_what_is_clumsy():
    styles = [[Style.draw(random.Random(k), noise) for k in range(500)] for noise in (0.0, 1.0, 2.0)]
    assert all(s.noise == s.pause == s.slip == 0.0 for s in styles[0])
    for one, two in zip(*styles[1:]):
        assert two.noise == 2 * one.noise and two.slip == 2 * one.slip and two.speed == one.speed
    assert 0.1 < max(s.noise for s in styles[1]) < 0.12 and min(s.speed for s in styles[1]) < 0.72


def test_only_the_masked_rows_begin_again(played):
    seen = played("can")[0]
    expert, other = _expert("can", N["can"], 8), _expert("can", N["can"], 8)
    for row in seen[:30]:
        expert.act(row), other.act(row)
    expert.reset_rows(np.arange(N["can"]) == 2)
    a, b = (np.stack([e.act(row) for row in seen[30:60]]) for e in (expert, other))
    np.testing.assert_array_equal((a != b).any(axis=(0, 2)), np.arange(N["can"]) == 2)


def test_without_retry_the_plan_ends_after_one_attempt(played):
    row = played("can")[0][0, :1]  # an arm that never moves misses for certain
    for retry in (False, True):
        expert = _expert("can", 1, 3, noise=0.0, retry=retry)
        grasps = np.array([expert.act(row)[0, 6] for _ in range(700)])
        assert ((np.diff(grasps) > 0).sum() > 1) == retry and grasps.max() == 1.0


def test_observations_of_another_task_are_refused():
    with pytest.raises(ValueError, match=r"CanExpert: observations must have shape \(3, 23\), found \(3, 19\)"):
        _expert("can", 3, 0).act(np.zeros((3, 19)))


# ------------------------------------------------------------------------------------------------ servo law


def _rotation(axis, angle):
    quat = np.zeros(4)
    mujoco.mju_axisAngle2Quat(quat, np.array(axis, float), angle)
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)


def _row(position, w, x, y, z):
    return [*position, x, y, z, w, 0.02, -0.02]


@pytest.mark.parametrize("seed", range(7))
def test_the_turn_that_remains_leads_to_gripper_down_at_the_yaw_tilted_at_the_end_of_reach(seed):
    rng = np.random.default_rng(seed)
    now = rng.normal(size=4)
    now = np.sign(now[1]) * now / np.linalg.norm(now)
    arm = Arm(random.Random(0), CALM, (-0.5, -0.1), 0, _row((0, 0, 0), *now))
    arm.goal, arm.yaw = tuple(rng.uniform(0.1, 0.3, 3)), rng.uniform(-4, 4)
    out = np.array([arm.goal[0] + 0.5, arm.goal[1] + 0.1])
    r = np.linalg.norm(out)
    tilt = np.clip(3.0 * (r - 0.74), 0.0, 0.45)
    goal = _rotation([out[1] / r, -out[0] / r, 0], tilt) @ _rotation([0, 0, 1], arm.yaw) @ np.diag([1.0, -1, -1])
    turn = np.array(arm._turn())
    angle = np.linalg.norm(turn)
    here = np.zeros(9)
    mujoco.mju_quat2Mat(here, now)
    np.testing.assert_allclose(_rotation(turn / angle, angle) @ here.reshape(3, 3), goal, atol=1e-12)
    assert angle <= np.pi + 1e-12
    if tilt > 0.01:  # the fingers (the hand's z axis) point outwards
        assert goal[:2, 2] @ out > 0


def test_an_action_moves_what_remains_within_the_speed_and_smoothly():
    arm = Arm(random.Random(0), CALM, (0.0, 0.0), 0, _row((0.4, 0.0, 1.0), 0, 1, 0, 0))
    first, second = (arm.act((0.41, -0.5, 1.0), 0.0, speed=0.7) for _ in range(2))
    np.testing.assert_allclose(first[:3], 0.6 * np.array([0.2, -0.7, 0.0]), atol=1e-12)
    np.testing.assert_allclose(second[:3], (0.4 * 0.6 + 0.6) * np.array([0.2, -0.7, 0.0]), atol=1e-12)
    np.testing.assert_allclose(first[3:], [0, 0, 0, -1], atol=1e-12)
    arm.act((0.4, 0.0, 1.0), 3.0)
    assert arm.yaw == pytest.approx(0.09)  # ramped, never the shortest way


def test_yaw_is_measured_next_to_the_commanded_one():
    for yaw in (-3.0, 0.4, 2.9, 5.0):
        half = yaw / 2  # gripper down: half a turn about x after the yaw
        arm = Arm(random.Random(0), CALM, (0, 0), 0, _row((0.4, 0, 1), 0, math.cos(half), math.sin(half), 0))
        arm.yaw = yaw + 0.3
        assert arm.heading == pytest.approx(yaw)
        assert wrap(yaw_of(math.cos(half), math.sin(half), 0, 0) - yaw) == pytest.approx(0)


def test_square_is_planned_within_the_wrists_range():
    rng = np.random.default_rng(4)
    for k in range(200):
        phi, (x, y) = rng.uniform(-np.pi, np.pi), rng.uniform([-0.115, 0.11], [-0.11, 0.225])
        row = [*_row((-0.1, 0.0, 1.0), 0, 1, 0, 0), x, y, 0.83, 0, 0, math.sin(phi / 2), math.cos(phi / 2), *[0.0] * 7]
        grasp, turn = _SquarePlayer(random.Random(k), 1.0, True, row).plan()
        assert wrap(2 * (grasp - phi)) == pytest.approx(0, abs=1e-9)  # across the handle
        face = min((f for f, _ in _FACES), key=lambda f: abs(wrap(f - phi - turn)))
        assert wrap(face - phi - turn) == pytest.approx(0, abs=1e-9)
        for twist in (_twist(grasp, x, y, phi), _twist(grasp + turn, *_PEG, face)):
            assert _WRIST[0] <= twist <= _WRIST[1]
    assert issubclass(SquareExpert.player, _SquarePlayer)


# ---------------------------------------------------------------------------------------- Lift's retry, demonstrations


def test_lifts_expert_goes_back_when_it_has_missed_if_asked_to():
    obs = np.zeros((2, 19))
    obs[:, 6] = obs[:, 15] = 1.0
    obs[:, 11] = [0.82, 0.95]  # a cube left on the table, a cube lifted
    phases = []
    for retry in (False, True):
        expert = LiftExpert(2, np.random.default_rng(0), retry=retry)
        expert._phase[:], expert._count[:] = 3, 16
        expert.act(obs + 0.0)
        phases.append(expert._phase.tolist())
    assert phases[0] == [3, 3] and phases[1][0] < 3 and phases[1][1] == 3


def test_demonstrations_are_kept_in_the_order_they_began():
    takes = collect_demos.Takes(n=3, wanted=3)
    for slot, value in enumerate((10, 20, 30)):
        takes.add(slot, value)
    takes.end(1, 1, True)  # the second episode is quicker than the first: it has to wait
    assert (takes.kept, takes.tried) == ([], 0)
    takes.add(1, 40)
    takes.end(0, 0, False)
    assert (takes.kept, takes.tried, takes.won) == ([[(20,)]], 2, 1)
    takes.end(1, 3, True)
    takes.add(2, 31)
    takes.end(2, 2, True)
    assert takes.complete and takes.kept == [[(20,)], [(30,), (31,)], [(40,)]] and takes.tried == 4


def test_an_episode_that_is_skipped_gives_way_to_the_next_and_leaves_the_others_alone():
    venv, same, fresh = (EngineVectorEnv(family("lift"), 2, 1, 5, n_threads=1) for _ in range(3))
    chunk = np.full((2, 1, 7), 0.2)
    for env, seeds in ((venv, [11, 12, 13]), (same, [11, 12]), (fresh, [13, 13])):
        start = env.reset(seeds)["state"]
    venv.step(chunk), same.step(chunk)
    skipped = venv.skip([1])["state"]
    np.testing.assert_array_equal(skipped[1], start[1])
    np.testing.assert_array_equal(venv.seeds(), [11, 13])
    for _ in range(4):
        result, expected = venv.step(chunk), same.step(chunk)
        np.testing.assert_array_equal(result.final_obs["state"][0], expected.final_obs["state"][0])
    np.testing.assert_array_equal(result.truncated, [True, False])  # the new one has a step left
    np.testing.assert_array_equal(venv.seeds(), [-1, 13])
    np.testing.assert_array_equal(venv.skip([1])["state"], 0.0)  # no seed is left: idle
    np.testing.assert_array_equal(venv.seeds(), [-1, -1])


def test_a_demonstration_ends_some_steps_after_its_first_success(tmp_path):
    lengths = []
    for n_envs in (3, 5):
        out = tmp_path / str(n_envs)
        arguments = ["--task=lift", "--until-success", "--episodes=9", "--noise=0.1", "--steps=150", f"--out={out}"]
        collect_demos.main([*arguments, f"--n-envs={n_envs}"])
        folder = out / "robomimic" / "lift"
        demos, about = read_demos(folder / "train.npz"), json.loads((folder / "about.json").read_text())
        ends = np.cumsum(demos["traj_lengths"])
        after = [
            end - np.flatnonzero(demos["rewards"][begin:end])[0] - begin - 1 for begin, end in zip([0, *ends], ends)
        ]
        assert 5 <= min(after) < max(after) <= 10
        assert about["arguments"]["until_success"] is True and about["episodes"] == 9
        lengths.append(demos["traj_lengths"])
    assert len(set(lengths[0])) > 3 and max(lengths[0]) < 150
