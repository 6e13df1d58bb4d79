"""The engine against robosuite 1.5.2, from the same state and the same actions.

Contact is chaotic: robosuite, restarted 1e-15 rad away, drifts apart from itself by up to centimetres. So parity is
judged per control step from identical states, and, running freely, against robosuite's own drift in the same episode
under the same actions (the larger of two nudges).
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("robosuite")

from env.engine import osc
from env.robomimic import reference
from env.robomimic.lift import Lift

pytestmark = [pytest.mark.robomimic, pytest.mark.slow]
ROUNDING = 1e-12  # below this a difference is rounding, not drift
RANDOM_EPISODES, GRASP_EPISODES, NUDGED_GRASPS = 4, 20, 4


@pytest.fixture(scope="module")
def suite_env():
    return reference.make_reference_lift(seed=3)


def _reset(suite_env, recompile):
    """robosuite draws another cube only by recompiling, which takes long: a few of the episodes suffice."""
    suite_env.hard_reset = recompile
    return suite_env.reset()


@pytest.fixture(scope="module")
def lift(suite_env):
    return Lift(suite_env)


@pytest.fixture(scope="module")
def episodes(suite_env, lift):
    """Free-running episodes of robosuite and the engine side by side."""
    done = []
    for k in range(RANDOM_EPISODES):
        actions = reference.smooth_actions(np.random.default_rng(k), 100, amplitude=(0.5, 1.0)[k % 2])
        done.append(_free_run(suite_env, lift, lambda obs, t, a=actions: a[t], 100, nudged=True))
    policy = reference.scripted_grasp
    return done + [_free_run(suite_env, lift, policy, 70, nudged=k < NUDGED_GRASPS) for k in range(GRASP_EPISODES)]


def _free_run(suite_env, lift, policy, n_steps, nudged):
    _reset(suite_env, recompile=policy is not reference.scripted_grasp)
    start, simulations = suite_env.sim.data._data.qpos.copy(), reference.bind(suite_env, lift)
    joints = simulations.memory[0, 1 : 1 + osc.N_JOINTS].copy()
    actions, path, drift, obs_error, rewards = [], [], 0.0, 0.0, []
    for t in range(n_steps):
        actions.append(policy(simulations.history[0, 0], t))
        obs, reward, *_ = suite_env.step(actions[-1])
        rewards.append((reward, reference.advance(simulations, actions[-1][None])[0]))
        path.append(suite_env.sim.data._data.qpos.copy())
        drift = max(drift, np.abs(path[-1] - simulations.data[0].qpos).max())
        obs_error = max(obs_error, np.abs(reference.observation(obs) - simulations.history[0, 0]).max())
    own = (
        max(_own_drift(suite_env, start, joints, actions, path, nudge) for nudge in (1e-15, -1e-15))
        if nudged
        else np.nan
    )
    return {
        "drift": drift,
        "own": own,
        "obs": obs_error,
        "rewards": np.array(rewards),
        "grasp": policy is reference.scripted_grasp,
    }


def _own_drift(suite_env, start, joints, actions, path, nudge):
    """How far robosuite gets from ``path`` when its joints start ``nudge`` rad away: the same episode once more."""
    home, robot = suite_env.robots[0].init_qpos.copy(), suite_env.robots[0]
    suite_env.sim.reset()
    suite_env.deterministic_reset, robot.init_qpos = True, joints
    suite_env._reset_internal()
    suite_env.deterministic_reset, robot.init_qpos = False, home
    robot.gripper["right"].current_action = np.zeros(2)
    data = suite_env.sim.data._data
    data.qpos[:] = start
    data.qpos[:7] += nudge
    suite_env.sim.forward()
    own = 0.0
    for action, there in zip(actions, path, strict=True):
        suite_env.step(action)
        own = max(own, np.abs(data.qpos - there).max())
    return own


def test_free_running_drift_is_within_ten_times_robosuites_own(episodes):
    compared = [(e["drift"], e["own"]) for e in episodes if np.isfinite(e["own"])]
    assert len(compared) == RANDOM_EPISODES + NUDGED_GRASPS
    for drift, own in compared:
        assert drift <= 10.0 * max(own, ROUNDING)


def test_success_flags_and_rewards_are_equal_at_every_step(episodes):
    for episode in episodes:
        theirs, ours = episode["rewards"].T
        np.testing.assert_array_equal(ours, theirs)


def test_scripted_grasps_lift_the_cube_in_both(episodes):
    final = [e["rewards"][-1] for e in episodes if e["grasp"]]
    assert len(final) == GRASP_EPISODES
    np.testing.assert_array_equal(final, 1.0)


def test_observations_are_equal_up_to_the_documented_sign(episodes):
    errors = np.array([e["obs"] for e in episodes])
    drifts = np.array([e["drift"] for e in episodes])
    assert np.median(errors) <= 1e-12
    assert (errors <= 10.0 * np.maximum(drifts, ROUNDING)).all()  # never worse than the state itself


def test_one_control_step_from_identical_states(suite_env, lift):
    differences, obs_differences = [], []
    for k in range(26):
        grasping = k >= 10
        obs, n_steps = _reset(suite_env, recompile=k % 5 == 0), 70 if grasping else 100
        simulations = reference.bind(suite_env, lift)
        actions = reference.smooth_actions(np.random.default_rng(100 + k), n_steps)
        for t in range(n_steps):
            if t:
                reference.resynchronise(simulations, 0, suite_env)
            action = reference.scripted_grasp(reference.observation(obs), t) if grasping else actions[t]
            obs, reward, *_ = suite_env.step(action)
            assert reference.advance(simulations, action[None])[0] == reward
            differences.append(np.abs(suite_env.sim.data._data.qpos - simulations.data[0].qpos).max())
            obs_differences.append(np.abs(reference.observation(obs) - simulations.history[0, 0]).max())
    assert len(differences) >= 2000
    for values in (differences, obs_differences):
        assert np.median(values) <= 1e-12
        assert np.percentile(values, 95) <= 1e-9


def test_an_episode_starts_exactly_where_robosuites_does(suite_env, lift):
    """Same seed, same cube, same joints, same pose, same first observation; to the bit."""
    from env.engine.pool import Simulations

    simulations = Simulations(lift, 1)
    for seed in (11, 12):
        suite_env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        obs = _reset(suite_env, recompile=True)
        simulations.begin([0], lift.draw(np.random.default_rng(seed))[None])
        np.testing.assert_array_equal(simulations.data[0].qpos, suite_env.sim.data._data.qpos)
        np.testing.assert_array_equal(simulations.history[0, 0], reference.observation(obs))
        ours, theirs = simulations.models[0], suite_env.sim.model._model
        for field in ("body_mass", "body_inertia", "body_invweight0", "dof_invweight0"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


def test_the_first_substep_uses_the_mass_matrix_of_shut_fingers(suite_env, lift):
    _reset(suite_env, recompile=False)
    right, wrong = reference.bind(suite_env, lift), reference.bind(suite_env, lift)
    wrong.memory[0, osc.STALE] = 0.0
    action = reference.smooth_actions(np.random.default_rng(0), 20)[-1:]
    suite_env.step(action[0])
    for simulations in (right, wrong):
        reference.advance(simulations, action)
    qpos = suite_env.sim.data._data.qpos
    assert np.abs(right.data[0].qpos - qpos).max() < 1e-13
    assert np.abs(wrong.data[0].qpos - qpos).max() > 1e-9


def test_the_rotation_delta_has_robosuites_rounding():
    import numba
    from robosuite.utils.transform_utils import axisangle2quat, quat2mat

    @numba.njit
    def rotation(v):
        out = np.zeros((3, 3))
        osc.rotation_delta(v, out)
        return out

    rng = np.random.default_rng(0)
    for v in (np.zeros(3), *(0.3 * rng.standard_normal((101, 3)))):
        np.testing.assert_array_equal(rotation(v), quat2mat(axisangle2quat(v)))
