"""The engine's promises, on a tiny family: seeds, ends inside a chunk, idle slots, exact resume, quarantine."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from env.engine import library, osc
from env.engine.batch import EngineVectorEnv
from env.errors import EnvError, MissingSimulatorError
from env.protocol import VectorEnv, episode_seed
from tests.env.slider import Slider

N, TE = 5, 3


def _venv(n=N, act_steps=TE, limit=1000, ends=1e3, **options):
    return EngineVectorEnv(Slider(ends), n, act_steps, limit, n_threads=options.pop("n_threads", 2), **options)


def _chunk(rng, n=N, act_steps=TE, scale=1.0):
    return scale * rng.standard_normal((n, act_steps, 1))


def _simulate(seed, actions, ends=1e3):
    """The same episode, straight from MuJoCo: rows (position, velocity, accumulated action), from before the first
    step on.
    """
    family = Slider()
    start, model = family.draw(np.random.default_rng(seed)), mujoco.MjModel.from_xml_string(mujoco_xml())
    model.body_mass[1] = start[1]
    data, total = mujoco.MjData(model), 0.0
    mujoco.mj_setConst(model, data)
    mujoco.mj_resetData(model, data)
    data.qpos[0] = start[0]
    rows = [(data.qpos[0], 0.0, 0.0)]
    for action in actions:
        total += action
        data.ctrl[0] = total
        mujoco.mj_step(model, data, nstep=5)
        rows.append((data.qpos[0], data.qvel[0], total))
        if data.qpos[0] > ends:
            break
    return np.array(rows)


def mujoco_xml():
    from tests.env import slider

    return slider._XML


def test_it_is_a_vector_env():
    venv = _venv()
    assert isinstance(venv, VectorEnv)
    assert venv.obs_shapes == {"state": (1, 3)}
    venv.close()
    venv.close()


def test_chunks_give_mujocos_trajectory_exactly():
    venv, rng = _venv(obs_steps=1), np.random.default_rng(0)
    obs = venv.reset(range(40, 40 + N))["state"]
    chunks = [_chunk(rng) for _ in range(4)]
    paths = [_simulate(40 + i, np.concatenate([c[i, :, 0] for c in chunks])) for i in range(N)]
    np.testing.assert_array_equal(obs[:, 0], np.float32([p[0] for p in paths]))
    for k, chunk in enumerate(chunks):
        result = venv.step(chunk)
        end = TE * (k + 1)
        np.testing.assert_array_equal(result.obs["state"][:, 0], np.float32([p[end] for p in paths]))
        expected = [p[end - TE + 1 : end + 1, 0].sum() for p in paths]
        np.testing.assert_allclose(result.reward, expected, rtol=1e-6)
        np.testing.assert_array_equal(result.info["steps"], TE)


def test_an_episode_is_a_function_of_its_seed_and_actions_alone():
    seed, rng = 77, np.random.default_rng(1)
    actions = [rng.standard_normal((TE, 1)) for _ in range(5)]

    def play(n, slot, before, n_threads):
        venv = _venv(n=n, limit=7, n_threads=n_threads)
        seeds = [1000 + k for k in range(n)]
        seeds[slot] = seed
        venv.reset(list(range(500, 500 + n)))
        for k in range(before):  # whatever ran in the slot before
            venv.step(3.0 * np.random.default_rng(k).standard_normal((n, TE, 1)))
        rows = [venv.reset(seeds)["state"][slot]]
        for action in actions[:2]:
            chunk = np.random.default_rng(9).standard_normal((n, TE, 1))
            chunk[slot] = action
            rows.append(venv.step(chunk).obs["state"][slot])
        return np.stack(rows)

    alone = play(1, 0, 0, 1)
    for n, slot, before, n_threads in ((7, 4, 0, 1), (7, 6, 2, 2), (3, 0, 1, 3)):
        np.testing.assert_array_equal(play(n, slot, before, n_threads), alone)


def test_time_runs_out_inside_a_chunk():
    venv = _venv(limit=7)  # 3 + 3 + 1 control steps
    rng = np.random.default_rng(2)
    chunks = [_chunk(rng) for _ in range(4)]
    venv.reset(range(N))
    venv.step(chunks[0])
    result = venv.step(chunks[1])
    assert not result.truncated.any()
    result = venv.step(chunks[2])
    np.testing.assert_array_equal(result.truncated, True)
    np.testing.assert_array_equal(result.terminated, False)
    np.testing.assert_array_equal(result.info["steps"], 1)
    last = _simulate(3, np.concatenate([c[3, :, 0] for c in chunks])[:7])[-1]
    np.testing.assert_array_equal(result.final_obs["state"][3, 0], np.float32(last))


def test_termination_inside_a_chunk_stops_the_slot_there():
    actions = np.full((TE * 40, 1), 0.1)
    path = _simulate(5, actions[:, 0], ends=0.3)
    steps = len(path) - 1
    assert steps % TE, "choose actions that end inside a chunk"
    venv = _venv(n=1, ends=0.3)
    venv.reset([5, 6])
    for _ in range(steps // TE):
        assert not venv.step(actions[None, :TE]).terminated[0]
    result = venv.step(actions[None, :TE])
    assert result.terminated[0] and not result.truncated[0] and not result.success[0]
    assert result.info["steps"][0] == steps % TE
    assert result.info["seed"][0] == 5 and venv.seeds()[0] == 6
    np.testing.assert_array_equal(result.final_obs["state"][0, 0], np.float32(path[-1]))
    np.testing.assert_array_equal(result.obs["state"][0, 0], np.float32(_simulate(6, [])[0]))


def test_success_counts_at_any_control_step_of_the_chunk():
    venv = _venv(n=1, act_steps=120)
    venv.reset([3])
    actions = np.zeros((1, 120, 1))
    actions[0, 0], actions[0, 40] = 1.0, -3.0  # forth beyond 0.5 m and back
    result = venv.step(actions)
    assert result.success[0]
    assert result.obs["state"][0, 0, 0] < 0.5


def test_given_seeds_run_once_each_and_then_slots_go_idle():
    venv = _venv(n=3, limit=TE)
    venv.reset([11, 12, 13, 14])
    rng, seen = np.random.default_rng(0), []
    for expected in ([11, 12, 13], [14, -1, -1]):
        np.testing.assert_array_equal(venv.seeds(), expected)
        result = venv.step(_chunk(rng, 3))
        seen += result.info["seed"][result.truncated].tolist()
        np.testing.assert_array_equal(result.info["active"], np.array(expected) >= 0)
    assert seen == [11, 12, 13, 14]
    np.testing.assert_array_equal(venv.seeds(), -1)
    result = venv.step(_chunk(rng, 3))
    assert not any(field.any() for field in (result.reward, result.truncated, result.success, result.info["steps"]))
    np.testing.assert_array_equal(result.obs["state"], 0.0)
    np.testing.assert_array_equal(venv.reset([7])["state"][1:], 0.0)


def test_an_endless_supply_follows_episode_seed():
    venv = _venv(n=3, limit=TE)
    venv.reset(29)
    for episode in range(3):
        np.testing.assert_array_equal(venv.seeds(), [episode_seed(29, slot, episode) for slot in range(3)])
        venv.step(np.zeros((3, TE, 1)))


def test_history_holds_the_last_control_steps_padded_with_the_first():
    venv, rng = _venv(n=1, act_steps=2, obs_steps=5, obs_keys=["motion", "position"]), np.random.default_rng(0)
    order = [1, 2, 0]
    obs = venv.reset([8])["state"]
    chunks = [_chunk(rng, 1, 2) for _ in range(3)]
    path = _simulate(8, np.concatenate(chunks, axis=1)[0, :, 0])[:, order].astype(np.float32)
    np.testing.assert_array_equal(obs[0], path[[0] * 5])
    np.testing.assert_array_equal(venv.step(chunks[0]).obs["state"][0], path[[0, 0, 0, 1, 2]])
    venv.step(chunks[1])
    np.testing.assert_array_equal(venv.step(chunks[2]).obs["state"][0], path[2:7])


def test_state_dict_continues_to_the_bit_in_another_environment():
    rng = np.random.default_rng(3)
    venv = _venv(limit=8, obs_steps=2)
    venv.reset(31)
    for _ in range(4):
        venv.step(_chunk(rng))
    state, chunks = venv.state_dict(), [_chunk(rng) for _ in range(6)]
    other = _venv(limit=8, obs_steps=2)
    other.reset(range(900, 900 + N))
    other.step(_chunk(rng))
    restored = other.load_state_dict(state)
    for k, chunk in enumerate(chunks):
        a, b = venv.step(chunk), other.step(chunk)
        for name in ("reward", "terminated", "truncated", "success"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=f"{name} of chunk {k}")
        np.testing.assert_array_equal(a.obs["state"], b.obs["state"])
        np.testing.assert_array_equal(venv.seeds(), other.seeds())
        np.testing.assert_array_equal(a.final_obs["state"], b.final_obs["state"])
    np.testing.assert_array_equal(restored["state"].shape, (N, 2, 3))


def test_a_state_of_another_size_or_task_is_refused():
    venv, other = _venv(n=2), _venv(n=3)
    with pytest.raises(EnvError, match="reset"):
        venv.state_dict()
    venv.reset(0)
    other.reset(0)
    with pytest.raises(EnvError, match=r"\(3,\).*\(2,\)"):
        other.load_state_dict(venv.state_dict())
    with pytest.raises(EnvError, match="'lift'"):
        venv.load_state_dict(venv.state_dict() | {"family": "lift"})


@pytest.mark.parametrize(("field", "value"), [("qpos", np.nan), ("qvel", np.inf), ("qvel", 1e6), ("qvel", -1e12)])
def test_an_unstable_simulation_is_cut_counted_and_leaves_the_others_alone(field, value):
    rng = np.random.default_rng(4)
    sick, well = _venv(), _venv()
    for venv in (sick, well):
        venv.reset(51)
    chunks = [_chunk(rng) for _ in range(3)]
    before, _ = (venv.step(chunks[0]) for venv in (sick, well))
    getattr(sick.simulations.data[2], field)[0] = value
    a, b = sick.step(chunks[1]), well.step(chunks[1])
    others = np.arange(N) != 2
    np.testing.assert_array_equal(a.info["invalid"], ~others)
    assert a.truncated[2] and not a.terminated[2] and not a.success[2] and a.reward[2] == 0.0
    np.testing.assert_array_equal(a.final_obs["state"][2], before.obs["state"][2])
    assert sick.invalid_episodes == 1 and well.invalid_episodes == 0
    assert sick.seeds()[2] == episode_seed(51, 2, 1)
    np.testing.assert_array_equal(a.obs["state"][2, 0], np.float32(_simulate(episode_seed(51, 2, 1), [])[0]))
    for x, y in ((a, b), (sick.step(chunks[2]), well.step(chunks[2]))):
        np.testing.assert_array_equal(x.obs["state"][others], y.obs["state"][others])
        np.testing.assert_array_equal(x.reward[others], y.reward[others])
        np.testing.assert_array_equal(x.info["invalid"][others], False)


def test_mujocos_own_warning_cuts_the_episode(tmp_path, monkeypatch):
    """MuJoCo resets a simulation that explodes between two looks at it; its counters tell. And it must not write a
    log file.
    """
    monkeypatch.chdir(tmp_path)
    venv = _venv(n=2)
    venv.reset(0)
    venv.simulations.data[1].qfrc_applied[0] = 1e300
    result = venv.step(np.zeros((2, TE, 1)))
    np.testing.assert_array_equal(result.info["invalid"], [False, True])
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(venv.step(np.zeros((2, TE, 1))).info["invalid"], False)


def test_recordings_hold_every_control_step_of_each_episode():
    venv, rng = _venv(n=3, limit=4), np.random.default_rng(5)
    venv.reset(range(60, 63))
    venv.record([2])
    chunks = [_chunk(rng, 3) for _ in range(2)]
    for chunk in chunks:
        venv.step(chunk)
    (recording,) = venv.recorded()
    path = _simulate(62, np.concatenate([c[2, :, 0] for c in chunks])[:4])
    assert (recording.slot, recording.seed) == (2, 62)
    np.testing.assert_array_equal(recording.qpos[:, 0], path[:, 0])
    assert venv.render_model(recording.start).body_mass[1] == recording.start[1]


@pytest.mark.parametrize("key", ["n", "act_steps", "limit", "obs_steps", "n_threads"])
def test_impossible_sizes_are_refused(key):
    with pytest.raises(EnvError, match="at least 1"):
        _venv(**{key: 0})


def test_bad_input_is_refused_with_what_was_expected():
    venv = _venv()
    with pytest.raises(EnvError, match="call reset"):
        venv.step(np.zeros((N, TE, 1)))
    venv.reset(0)
    with pytest.raises(EnvError, match=r"\(5, act_steps, 1\), found \(5, 3, 2\)"):
        venv.step(np.zeros((N, TE, 2)))
    chunk = np.zeros((N, TE, 1))
    chunk[3, 1] = np.nan
    with pytest.raises(EnvError, match="slot 3"):
        venv.step(chunk)
    with pytest.raises(EnvError, match="found -4"):
        venv.reset([1, -4])
    with pytest.raises(EnvError, match="has no observation.*speed.*position, motion"):
        _venv(obs_keys=["speed"])


def test_read_only_and_float32_actions_are_accepted():
    venv = _venv()
    venv.reset(0)
    for dtype in (np.float32, np.float64):
        chunk = np.zeros((N, TE, 1), dtype)
        chunk.flags.writeable = False
        venv.step(chunk)


@pytest.mark.parametrize(
    ("version", "good"), [("3.2.7", False), ("3.3.0", True), ("3.9.1", True), ("3.10.0", False), ("4.0.0", False)]
)
def test_mujoco_versions_that_do_not_work_are_named(monkeypatch, version, good):
    monkeypatch.setattr(library.mujoco, "__version__", version)
    monkeypatch.setattr(library.metadata, "version", lambda name: library.ROBOSUITE_VERSION)
    if good:
        library.check_versions(robosuite=True)
        return
    with pytest.raises(MissingSimulatorError, match=rf"mujoco {version}.*pip install 'mujoco>=3.3,<3.10'"):
        library.check_versions(robosuite=True)


def test_a_wrong_or_absent_robosuite_is_named(monkeypatch):
    monkeypatch.setattr(library.metadata, "version", lambda name: "1.4.1")
    with pytest.raises(MissingSimulatorError, match=r"robosuite 1.4.1 .*pip install robosuite==1.5.2"):
        library.check_versions(robosuite=True)

    def absent(name):
        raise library.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(library.metadata, "version", absent)
    with pytest.raises(MissingSimulatorError, match="not installed"):
        library.check_versions(robosuite=True)


def test_a_changed_helper_or_mujoco_recompiles_kernels(tmp_path, monkeypatch):
    """Numba's own cache looks at one file only, and would go on running the old controller."""
    task, helper, other = (tmp_path / name for name in ("task.py", "helper.py", "other.py"))
    task.write_text("@control_kernel(__file__)\n")
    helper.write_text("import numba\n")
    before = library._fingerprint(str(task))
    other.write_text("nothing = 'compiled'\n")
    assert library._fingerprint(str(task)) == before
    monkeypatch.setattr(library.mujoco, "__version__", "3.8.1")
    assert library._fingerprint(str(task)) != before
    monkeypatch.undo()
    helper.write_text("import numba  # other\n")
    assert library._fingerprint(str(task)) != before


def test_torques_are_those_of_the_textbook_formula():
    rng = np.random.default_rng(6)
    half = rng.standard_normal((7, 7))
    mass, jacobian = half @ half.T + np.eye(7), rng.standard_normal((6, 7))
    q, dq, q0, bias = rng.standard_normal((4, 7))
    position, goal = rng.standard_normal((2, 3))
    rotation, goal_rotation = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    kp, out = 150.0, np.zeros(7)
    osc.arm_torques(kp, q, dq, q0, bias, jacobian, mass, position, rotation, goal, goal_rotation, osc.workspace(), out)
    kd, inverse = 2 * np.sqrt(kp), np.linalg.inv(mass)
    velocity = jacobian @ dq
    turn = 0.5 * sum(np.cross(rotation[:, c], goal_rotation[:, c]) for c in range(3))
    force = kp * np.r_[goal - position, turn] - kd * velocity
    inertia = jacobian @ inverse @ jacobian.T
    wrench = np.r_[np.linalg.inv(inertia[:3, :3]) @ force[:3], np.linalg.inv(inertia[3:, 3:]) @ force[3:]]
    null = np.eye(7) - inverse @ jacobian.T @ np.linalg.inv(inertia) @ jacobian
    expected = jacobian.T @ wrench + bias + null.T @ (mass @ (10.0 * (q0 - q) - 2 * np.sqrt(10.0) * dq))
    np.testing.assert_allclose(out, expected, rtol=1e-9)


def test_a_singular_arm_gets_finite_torques():
    rng = np.random.default_rng(7)
    jacobian = rng.standard_normal((6, 7))
    jacobian[2] = jacobian[1]  # one direction twice: no inverse
    out, eye = np.full(7, np.nan), np.eye(3)
    osc.arm_torques(
        150.0, *np.zeros((4, 7)), jacobian, np.eye(7), np.zeros(3), eye, np.ones(3), eye, osc.workspace(), out
    )
    assert np.isfinite(out).all() and 0 < np.abs(out).max() < 1e4


def test_a_solved_task_ends_its_episode_if_asked_to():
    """The slider counts as solved beyond 0.5 m; nothing else ends an episode here."""
    whole, short = (EngineVectorEnv(Slider(1e3), 3, 5, 400, end_on_success=end) for end in (False, True))
    for venv in (whole, short):
        venv.reset([11, 12, 13])
    push = np.ones((3, 5, 1))
    seen = {}
    for _ in range(80):
        one, other = whole.step(push), short.step(push)
        for i in np.flatnonzero(other.terminated & other.info["active"]):
            assert other.success[i] and one.success[i] and other.info["seed"][i] == 11 + i
            assert other.final_obs["state"][i, -1, 0] > 0.5  # the first step beyond
            seen[i] = int(other.info["steps"][i])
        assert not (other.success & ~other.terminated).any()
        if len(seen) == 3:
            break
    assert set(seen) == {0, 1, 2} and min(seen.values()) >= 1
    np.testing.assert_array_equal(whole.seeds(), [11, 12, 13])
