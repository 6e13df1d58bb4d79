"""Can, Square and Transport against robosuite 1.5.2: from identical states step by step, and from their starts.

``test_parity.py`` does the same for Lift, in more depth.
"""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

pytest.importorskip("robosuite")

from env.engine.pool import Simulations
from env.registry import EXPERTS
from env.robomimic import reference, suite
from env.robomimic.can import Can
from env.robomimic.square import Square
from env.robomimic.transport import Transport

pytestmark = [pytest.mark.robomimic, pytest.mark.slow]
STEPS = {"can": 170, "square": 170, "transport": 130}
ROUNDING = 1e-12
_built = {}


def _pair(kind):
    """robosuite's environment, and the task made of it; one of each for all tests."""
    if kind not in _built:
        env = reference.make_reference(kind, seed=17)
        env.hard_reset = False
        _built[kind] = env, kind(env)
    return _built[kind]


@pytest.fixture(params=[Can, Square, Transport], ids=lambda kind: kind.name)
def pair(request):
    return _pair(request.param)


def test_an_episode_starts_exactly_where_robosuites_does():
    for kind in (Can, Square, Transport):
        env = reference.make_reference(kind, seed=23)
        task = kind(env)
        start = task.draw(np.random.default_rng(23))
        np.testing.assert_array_equal(start, task.start_of(env))
        simulations = Simulations(task, 1)
        simulations.begin([0], start[None])
        np.testing.assert_array_equal(simulations.data[0].qpos, reference.coordinates(env, task.model))
        assert (task.model.nv < env.sim.model._model.nv) == bool(kind.unused)
        env.sim.forward()
        obs = reference.observation(env._get_observations(force_update=True), task.name)
        np.testing.assert_allclose(simulations.history[0, 0], obs, atol=3e-7)  # robosuite rounds poses to float32
        assert len(obs) == {"can": 23, "square": 23, "transport": 59}[task.name]


def test_the_same_object_wherever_the_generator_stands(pair):
    """Many draws, rejections included, against robosuite's own sampler."""
    env, task = pair
    for seed in range(40):
        start = task.draw(np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        task._draw_extra(rng)
        for _ in env.robots:
            rng.standard_normal(7)
        sampler = env.placement_initializer
        for part in [sampler, *sampler.samplers.values()]:
            part.rng = rng
        for thing in env.model.mujoco_objects:
            thing.rng = rng
        placed = sampler.sample()
        name = task.objects[-1]
        np.testing.assert_array_equal(start[-7:-4], placed[name][0])
        np.testing.assert_array_equal(start[-4:], placed[name][1])


def _own_step(task, simulations, nudged, action):
    """How far one control step takes a simulation from its own copy that begins 1e-15 rad away."""
    own, other = simulations.data[0], nudged.data[0]
    size = mujoco.mj_stateSize(task.model, mujoco.mjtState.mjSTATE_INTEGRATION)
    state = np.zeros(size)
    mujoco.mj_getState(simulations.models[0], own, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_setState(nudged.models[0], other, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    other.qpos[0] += 1e-15
    nudged.memory[:] = simulations.memory
    reference.advance(nudged, action[None])


@pytest.mark.parametrize("kind", [Can, Square, Transport], ids=lambda kind: kind.name)
@pytest.mark.parametrize("lean", [True, False])
def test_one_control_step_from_identical_states(kind, lean):
    """Random motion, then the expert into contact: coordinates, observations, rewards.

    A firm grasp is chaotic within one control step: the constraint solver stops at a tolerance, and a difference in the
    last bit decides whether it takes one iteration more. So differences are judged against the simulation's own, started
    1e-15 rad away.
    """
    if lean and not kind.unused:
        pytest.skip("robosuite simulates nothing that this task does not use")
    env, _ = _pair(kind)
    task = kind(env, leave_out_unused=lean)
    differences, own, obs_differences, rewards = [], [], [], []
    rng = np.random.default_rng(5)
    for episode in range(2):
        obs = reference.observation(env.reset(), task.name)
        simulations, nudged = reference.bind(env, task), reference.bind(env, task)
        expert = EXPERTS[task.name].make(1, np.random.default_rng(episode), noise=1.0, retry=True)
        for t in range(STEPS[task.name]):
            if t:
                reference.resynchronise(simulations, 0, env)
            action = expert.act(obs[None])[0] if episode else np.clip(rng.normal(0, 0.6, task.action_dim), -1.2, 1.2)
            _own_step(task, simulations, nudged, action)
            raw, reward, *_ = env.step(action)
            obs = reference.observation(raw, task.name)
            rewards.append((reward, reference.advance(simulations, action[None])[0]))
            ours = simulations.data[0].qpos
            differences.append(np.abs(reference.coordinates(env, task.model) - ours).max())
            own.append(np.abs(nudged.data[0].qpos - ours).max())
            obs_differences.append(np.abs(_upright(obs, task) - _upright(simulations.history[0, 0], task)).max())
    assert np.median(differences) <= 1e-12
    for share in (90, 95, 99):
        assert np.percentile(differences, share) <= 10.0 * max(np.percentile(own, share), 1e-10), share
    assert np.median(obs_differences) <= 3e-7  # robosuite rounds relative poses to float32
    theirs, ours = np.array(rewards).T
    np.testing.assert_array_equal(ours, theirs)
    assert task.name == "transport" or theirs.max() == 1.0


def _upright(obs, task):
    """Quaternions that robosuite derives from matrices have a sign that rounding decides near w = 0: fix it by x."""
    obs = obs.copy()
    for at in {"can": [19], "square": [19], "transport": [21, 28, 35]}[task.name]:
        quaternion = obs[at : at + 4]
        if abs(quaternion[3]) < 1e-4:
            quaternion *= np.sign(quaternion[np.argmax(np.abs(quaternion))])
    return obs


def test_free_running_drift_is_within_ten_times_the_engines_own(pair):
    env, task = pair[0], type(pair[1])(pair[0], leave_out_unused=False)
    obs = reference.observation(env.reset(), task.name)
    simulations, nudged = reference.bind(env, task), reference.bind(env, task, 2)
    for i, nudge in enumerate((1e-15, -1e-15)):
        nudged.data[i].qpos[:7] += nudge
        mujoco.mj_forward(nudged.models[i], nudged.data[i])
    expert = EXPERTS[task.name].make(1, np.random.default_rng(3), noise=1.0, retry=True)
    drift, own = 0.0, 0.0
    for _ in range(60):
        action = expert.act(obs[None])[0]
        obs = reference.observation(env.step(action)[0], task.name)
        reference.advance(simulations, action[None])
        reference.advance(nudged, action[None])
        ours = simulations.data[0].qpos
        drift = max(drift, np.abs(reference.coordinates(env, task.model) - ours).max())
        own = max(own, *(np.abs(d.qpos - ours).max() for d in nudged.data))
    assert drift <= 10.0 * max(own, ROUNDING)


def test_a_patched_hammer_is_the_compiled_one_to_the_bit():
    """Masses, sizes, bounding volumes and all derived numbers; and again after another hammer."""
    env = reference.make_reference(Transport, seed=29)
    task = Transport(env)
    start = task.start_of(env)
    compiled = mujoco.MjModel.from_xml_string(suite.physics_xml(suite.full_xml(env)))
    patched = mujoco.MjModel.from_xml_string(suite.physics_xml(Transport()._xml))
    for one in (task.draw(np.random.default_rng(1)), start):
        task.patch(patched, mujoco.MjData(patched), one)
    for name in dir(compiled):
        values = getattr(compiled, name)
        if isinstance(values, np.ndarray) and values.dtype.kind in "fiu" and name != "names":
            np.testing.assert_array_equal(getattr(patched, name), values, err_msg=name)
