"""Lift: what an episode draws, what dropping the visible changes (nothing), what is observed and rewarded, and its
expert.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import mujoco
import numpy as np
import pytest

pytest.importorskip("robosuite")

from env.engine.batch import EngineVectorEnv
from env.engine.pool import Simulations
from env.robomimic import suite
from env.robomimic.lift import Lift
from env.robomimic.lift_expert import LiftExpert

pytestmark = pytest.mark.robomimic


@pytest.fixture(scope="module")
def lift():
    return Lift()


def _venv(lift, n=3, act_steps=4, limit=100, **options):
    return EngineVectorEnv(lift, n, act_steps, limit, **options)


def _numbers(model):
    """Every number of a model, by name."""
    arrays = {name: getattr(model, name) for name in dir(model) if isinstance(getattr(model, name, None), np.ndarray)}
    statistics = {
        f"stat.{name}": np.array(getattr(model.stat, name)) for name in ("meaninertia", "meanmass", "extent", "center")
    }
    return {name: a for name, a in (arrays | statistics).items() if a.dtype.kind in "fiub"}


def _patched(lift, *starts):
    model = mujoco.MjModel.from_xml_string(suite.physics_xml(lift._xml))
    for start in starts:
        lift.patch(model, mujoco.MjData(model), start)
    return model


def _draws(lift, *seeds):
    return [lift.draw(np.random.default_rng(seed)) for seed in seeds]


def test_a_patched_model_is_the_compiled_one_to_the_bit(lift):
    for start in _draws(lift, 1, 2, 3):
        root = ElementTree.fromstring(suite.physics_xml(lift._xml))
        (cube,) = (geom for geom in root.iter("geom") if geom.get("name") == "cube_g0")
        cube.set("size", " ".join(repr(float(x)) for x in start[:3]))
        xml = ElementTree.tostring(root, encoding="unicode")
        compiled, patched = _numbers(mujoco.MjModel.from_xml_string(xml)), _numbers(_patched(lift, start))
        np.testing.assert_array_equal(compiled["geom_size"][-1], start[:3])
        assert len(compiled) > 200
        for name, expected in compiled.items():
            np.testing.assert_array_equal(patched[name], expected, err_msg=name)


def test_a_patch_leaves_no_trace_of_the_one_before(lift):
    one, other = _draws(lift, 4, 5)
    fresh, used = _numbers(_patched(lift, other)), _numbers(_patched(lift, one, other))
    for name, expected in fresh.items():
        np.testing.assert_array_equal(used[name], expected, err_msg=name)


def test_physics_is_the_same_without_what_is_only_seen(lift):
    (start,) = _draws(lift, 6)
    full, light, rng = lift.render_model(), _patched(lift, start), np.random.default_rng(0)
    assert light.ngeom < full.ngeom / 3 and light.nmesh < full.nmesh and light.nsensor == 0 and light.nq == full.nq
    data = []
    for model in (full, light):
        lift.patch(model, mujoco.MjData(model), start)
        data.append(mujoco.MjData(model))
        lift.begin(model, data[-1], start, np.zeros(lift.memory_size))
    contacts = 0
    for k in range(1500):
        if k % 50 == 0:
            controls = rng.uniform(-25, 25, light.nu)
        for model, d in zip((full, light), data, strict=True):
            d.ctrl[:] = controls
            mujoco.mj_step(model, d)
        contacts = max(contacts, data[0].ncon)
        np.testing.assert_array_equal(data[0].qpos, data[1].qpos)
        np.testing.assert_array_equal(data[0].qvel, data[1].qvel)
    assert contacts > 4


def test_starts_have_robosuites_distribution(lift):
    draws = np.array(_draws(lift, *range(400)))
    sizes, noise, xy, yaw = (
        draws[:, :3],
        draws[:, 3:10] - lift._home,
        draws[:, 10:12],
        2 * np.arctan2(draws[:, 16], draws[:, 13]),
    )
    assert 0.020 < sizes.min() < 0.0201 and 0.0219 < sizes.max() < 0.022
    assert abs(noise.std() - 0.02) < 0.001 and abs(noise.mean()) < 0.001
    assert -0.03 < xy.min() < -0.0295 and 0.0295 < xy.max() < 0.03
    assert 0 < yaw.min() < 0.1 and 6.2 < yaw.max() < 2 * np.pi


def test_the_published_observation_and_its_sign(lift):
    simulations = Simulations(lift, 1)
    simulations.begin([0], np.array(_draws(lift, 7)))
    model, data, obs = simulations.models[0], simulations.data[0], simulations.history[0, 0]
    eef, cube = data.site("gripper0_right_grip_site").xpos, data.body("cube_main")
    np.testing.assert_array_equal(obs[0:3], eef)
    np.testing.assert_array_equal(obs[3:7], data.body("robot0_right_hand").xquat[[1, 2, 3, 0]])
    np.testing.assert_array_equal(obs[7:9], [0.020833, -0.020833])
    np.testing.assert_array_equal(obs[9:12], cube.xpos)
    np.testing.assert_array_equal(obs[12:16], cube.xquat[[1, 2, 3, 0]])
    np.testing.assert_array_equal(obs[16:19], eef - cube.xpos)  # robosuite 1.4's sign: gripper minus cube
    assert obs[18] > 0.1 and model.nq == 16


def test_observation_keys_come_in_the_order_asked_for(lift):
    keys = ["object", "robot0_gripper_qpos", "robot0_eef_pos"]
    venv, whole = _venv(lift, obs_keys=keys), _venv(lift)
    assert venv.obs_shapes == {"state": (1, 15)}
    columns = [*range(9, 19), 7, 8, 0, 1, 2]
    np.testing.assert_array_equal(venv.reset(3)["state"], whole.reset(3)["state"][:, :, columns])


def test_reward_and_success_are_the_cubes_height(lift):
    venv = _venv(lift, n=2, act_steps=3)
    venv.reset([1, 2])
    data = venv.simulations.data[1]
    data.qpos[11] = 1.0  # the cube, high above the table: it falls for three control steps
    venv.simulations.memory[1, 0] = 0.0
    result = venv.step(np.zeros((2, 3, 7)))
    np.testing.assert_array_equal(result.reward, [0.0, 3.0])
    np.testing.assert_array_equal(result.success, [False, True])
    assert not result.terminated.any()


def test_only_the_sign_of_the_gripper_action_counts(lift):
    venv, actions = _venv(lift, n=3, act_steps=8), np.zeros((3, 8, 7))
    actions[:, :, 6] = [[0.01], [1.0], [-0.5]]
    venv.reset([9, 10, 11])
    venv.simulations.restore([0, 1, 2], np.tile(venv._starts[0], (3, 1)), np.tile(venv.simulations.physics(0), (3, 1)))
    venv.simulations.memory[:] = venv.simulations.memory[0]
    fingers = venv.step(actions).obs["state"][:, 0, 7:9]
    np.testing.assert_array_equal(fingers[0], fingers[1])
    assert fingers[1, 0] < 0.015 < 0.03 < fingers[2, 0]


def test_an_episode_does_not_depend_on_its_neighbours_or_its_slots_past(lift):
    rng = np.random.default_rng(8)
    own, others = rng.uniform(-1, 1, (3, 4, 7)), rng.uniform(-1, 1, (3, 5, 4, 7))
    alone, crowd = _venv(lift, n=1, n_threads=1), _venv(lift, n=5, limit=10, n_threads=2)
    alone.reset([123])
    crowd.reset(range(5))
    for k in range(3):  # past the limit: other episodes, with cubes of other sizes, ran in the slot before
        crowd.step(others[k])
    crowd.reset([7, 8, 9, 123, 10])
    for k in range(2):
        others[k, 3] = own[k]
        a, b = alone.step(own[k][None]), crowd.step(others[k])
        np.testing.assert_array_equal(a.obs["state"][0], b.obs["state"][3])
        np.testing.assert_array_equal(alone.simulations.physics(0), crowd.simulations.physics(3))


def test_state_dict_resumes_lift_to_the_bit(lift):
    rng, grasped = np.random.default_rng(9), 50
    venv, other, expert = _venv(lift, limit=56), _venv(lift, limit=56), LiftExpert(3, rng, noise=0.0)
    obs = venv.reset(17)
    for _ in range(grasped):  # into contact, where the solver's warm start matters
        obs = venv.step(expert.act(obs["state"][:, 0])[:, None]).obs
    assert min(data.ncon for data in venv.simulations.data) > 4
    state = venv.state_dict()
    other.reset(99)
    np.testing.assert_array_equal(other.load_state_dict(state)["state"], obs["state"])
    for k, chunk in enumerate(rng.uniform(-0.3, 0.3, (4, 3, 4, 7))):  # the episodes end inside the second chunk
        a, b = venv.step(chunk), other.step(chunk)
        np.testing.assert_array_equal(a.obs["state"], b.obs["state"], err_msg=f"chunk {k}")
        np.testing.assert_array_equal(a.final_obs["state"], b.final_obs["state"])
        np.testing.assert_array_equal(a.info["steps"], 2 if k == 1 else 4)
        np.testing.assert_array_equal(a.truncated, k == 1)
        np.testing.assert_array_equal(venv.state_dict()["physics"], other.state_dict()["physics"])


def test_a_video_shows_the_recorded_episode(lift):
    venv = _venv(lift, n=2)
    venv.reset([1, 2])
    venv.record([1])
    venv.step(np.full((2, 4, 7), 0.3))
    (recording,) = venv.recorded()
    assert recording.qpos.shape == (5, 16) and recording.seed == 2
    np.testing.assert_array_equal(recording.qpos[-1], venv.render_state(1))
    model = venv.render_model(recording.start)
    np.testing.assert_array_equal(model.geom("cube_g0").size, recording.start[:3])
    np.testing.assert_array_equal(model.geom("cube_g0_vis").size, recording.start[:3])


def _play(venv, expert, seeds):
    """Success of each of the seeds, at the last control step of its episode."""
    obs, solved = venv.reset(seeds), {}
    while (venv.seeds() >= 0).any():
        result = venv.step(expert.act(obs["state"][:, 0])[:, None])
        ended = result.terminated | result.truncated
        solved.update(zip(result.info["seed"][ended].tolist(), result.success[ended].tolist(), strict=True))
        expert.reset_rows(ended)
        obs = result.obs
    assert len(solved) == len(seeds)
    return np.array([solved[seed] for seed in seeds])


def test_the_expert_lifts_every_cube_and_less_reliably_when_disturbed(lift):
    venv = _venv(lift, n=20, act_steps=1)
    clean = _play(venv, LiftExpert(20, np.random.default_rng(0), noise=0.0), range(40))
    noisy = _play(venv, LiftExpert(20, np.random.default_rng(0), noise=1.2), range(20))
    assert clean.mean() >= 0.98
    assert noisy.mean() < clean.mean()


def test_every_row_of_the_expert_has_its_own_style():
    expert, rng = LiftExpert(7, np.random.default_rng(0)), np.random.default_rng(1)
    obs = np.tile(rng.uniform(-0.1, 0.1, 19), (7, 1))
    obs[:, 6] = obs[:, 15] = 1.0
    actions = expert.act(obs)
    assert actions.shape == (7, 7) and len(np.unique(actions[:, 0])) == 7 and np.abs(actions).max() <= 1.0
    kept = expert._style.hover.copy()
    expert._phase[:] = 2
    expert.reset_rows(np.arange(7) == 3)
    np.testing.assert_array_equal(expert._phase, np.where(np.arange(7) == 3, 0, 2))
    np.testing.assert_array_equal(expert._style.hover != kept, np.arange(7) == 3)


def test_robosuite_is_silent_and_leaves_the_process_as_it_was(tmp_path):
    """Its advice about macros and optional packages must not greet every user; nor may it decide how MuJoCo renders."""
    code = "import os, env.robomimic.suite as s; s.make_suite_env('Lift', ['Panda']); print('MUJOCO_GL' in os.environ)"
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MUJOCO_GL")}
    environment["PYTHONPATH"] = os.getcwd()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
    assert logging.root.manager.disable == logging.NOTSET
