"""D3IL's avoiding: constants and motion against the specification, flags and rewards by hand, the engine's promises, and the
adapter of the genuine simulation against a stand-in.
"""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from env.d3il import field, ik, panda
from env.d3il.avoiding import DELAYS, FLAGS, PASSED, TOUCHED, Avoiding, family, judge, raise_flags
from env.engine.batch import EngineVectorEnv
from env.errors import EnvError, MissingSimulatorError
from env.registry import make_vector_env

START = (0.52492847, -0.27973673, 0.12235931)  # where D3IL's hand is after a reset


def world(n: int, act_steps: int = 1, name: str = "avoiding-m5", delay: str = "published", **how) -> EngineVectorEnv:
    return EngineVectorEnv(family(name, delay), n, act_steps, how.pop("max_episode_steps", 100), n_threads=1, **how)


def wander(steps: int, n: int, seed: int = 3) -> np.ndarray:
    """Actions (steps, n, 2) of a hand that goes forward and sideways, through or into the cylinders."""
    rng = np.random.default_rng(seed)
    sway = 0.007 * np.sin(np.arange(steps)[:, None] / 7 + rng.uniform(0, 6, n))
    return np.stack([sway, np.full((steps, n), 0.010)], axis=-1) + rng.normal(0, 0.002, (steps, n, 2))


# ---------------------------------------------------------------------------------------------------------- constants


def test_model_is_the_specified_one():
    model = family("avoiding-m5").model
    assert (model.nq, model.nv, model.nu) == (7, 7, 7)
    assert model.opt.timestep == 1e-3 and model.opt.tolerance == 1e-10 and model.opt.impratio == 3
    assert model.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC and model.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
    masses = [model.body(f"l{i}").mass[0] for i in range(1, 9)]
    assert np.allclose(masses, [2.77281, 2.7996, 2.14603, 2.18807, 3.19545, 1.35761, 0.417345, 0.1])
    assert model.body("hand").mass[0] == 0.670782 and model.body("rod").mass[0] == pytest.approx(0.094, abs=3e-4)
    assert np.array_equal(model.actuator_forcerange[:, 1], [87, 87, 87, 87, 12, 12, 12])
    assert not (model.dof_damping.any() or model.dof_armature.any() or model.dof_frictionloss.any())
    found = {model.geom(i).name: (*model.geom_pos[i], *model.geom_size[i, :2]) for i in range(model.ngeom)}
    rod = found.pop("rod")
    assert np.allclose(rod[2:], [0.075, 0.01, 0.15])
    assert found.keys() == {name for name, *_ in field.CYLINDERS}
    for name, x, y, radius, half in field.CYLINDERS:
        assert found[name] == pytest.approx((x, y, 0.0, radius, half))
    touching = model.geom_contype != 0
    assert touching.sum() == 7  # the rod and six cylinders, which do not move


def test_visible_scene_moves_and_weighs_the_same():
    bare, seen = family("avoiding").model, family("avoiding").render_model()
    assert seen.ngeom > bare.ngeom
    assert seen.nq == bare.nq and np.array_equal(seen.body_mass, bare.body_mass)
    assert ((seen.geom_contype != 0).sum()) == 7
    assert {seen.camera(i).name for i in range(seen.ncam)} == {"field", "above"}


def test_reset_puts_the_hand_where_d3il_does():
    venv = world(2)
    state = venv.reset(0)["state"]
    assert np.allclose(venv.simulations.data[0].site_xpos[0], START, atol=2e-8)
    assert np.allclose(state, np.tile(START[:2], 2), atol=2e-8)
    venv.close()


# ------------------------------------------------------------------------------------------------------------- motion


class Reference:
    """The control law again, from the specification alone: MuJoCo's kinematics, NumPy's SVD."""

    def __init__(self) -> None:
        self.model = family("avoiding-m5").model
        self.data, self.probe = mujoco.MjData(self.model), mujoco.MjData(self.model)
        self.data.qpos[:] = self.q = np.array(panda.START_JOINTS)
        mujoco.mj_forward(self.model, self.data)
        self.goal, self.clipped = np.array([*self.data.site_xpos[0, :2], 0.12]), 0

    def inverse(self, q: np.ndarray) -> np.ndarray:
        probe, jac, quat = self.probe, np.zeros((6, 7)), np.zeros(4)
        probe.qpos[:] = q
        mujoco.mj_kinematics(self.model, probe)
        mujoco.mj_comPos(self.model, probe)
        mujoco.mj_jacSite(self.model, probe, jac[:3], jac[3:], 0)
        mujoco.mju_mat2Quat(quat, probe.site_xmat[0])
        down = np.array([0.0, 1.0, 0.0, 0.0]) * (1 if quat[1] >= 0 else -1)
        turn = quat[0] * down[1:] - down[0] * quat[1:] - np.cross(down[1:], quat[1:])
        error = np.concatenate([np.clip(self.goal - probe.site_xpos[0], -0.01, 0.01), np.clip(turn, -0.1, 0.1)])
        u, s, v = np.linalg.svd(jac @ jac.T)
        self.clipped += s.min() < 1e-2
        rest = 40 * np.clip([0, 0.174, 0, -0.872, 0, 1.222, 0.785] - q, -0.2, 0.2)
        task = np.linalg.solve(
            (u * np.clip(s, 1e-2, 1e2)) @ v, np.array([200, 200, 800, 30, 30, 30]) * error - jac @ rest
        )
        speed = jac.T @ task + rest
        speed *= min(1.0, 3.0 / np.linalg.norm(speed))
        low, high = (
            [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973],
            [2.8973, 1.7628, 2, -0.0698, 2.8973, 3.7525, 2.8973],
        )
        return np.clip(q + 1e-3 * speed, low, high)

    def step(self, action: np.ndarray) -> np.ndarray:
        self.goal[:2] += action
        for _ in range(35):
            before = self.q
            for _ in range(3):
                self.q = self.inverse(self.q)
            data, kp, kd = self.data, [120, 120, 120, 120, 50, 30, 10], [10, 10, 10, 10, 6, 5, 3]
            data.ctrl[:] = kp * (self.q - data.qpos) + kd * ((self.q - before) / 1e-3 - data.qvel) + data.qfrc_bias
            mujoco.mj_step(self.model, data)
        return data.site_xpos[0, :2].copy()


def test_motion_is_that_of_an_independent_implementation():
    venv, other, moved = world(1, delay="none"), Reference(), []
    venv.reset(0)
    for action in wander(58, 1)[:, 0] + [0.004, 0.0025]:  # to the right of everything, until the arm is stretched
        there = other.step(action)
        moved.append(np.abs(venv.step(action[None, None]).obs["state"][0, 0, 2:] - there).max())
    assert other.clipped > 500, f"{other.clipped}: the clipping of eigenvalues, which matters, was hardly met"
    assert np.max(moved) < 1e-7, moved  # observations are float32
    assert np.allclose(venv.simulations.memory[0, 2:9], other.q, atol=1e-9)
    venv.close()


def test_jacobi_rotations_find_the_eigenvalues():
    rng = np.random.default_rng(5)
    v, a = np.eye(6), np.zeros((6, 6))
    for scale in (1.0, 1.0, 0.01):  # the later ones start from eigenvectors of another matrix
        jac = rng.normal(size=(6, 7)) * scale
        ik.diagonalise(jac, v, a, np.zeros(7))
        assert np.allclose(v @ np.diag(np.diag(a)) @ v.T, jac @ jac.T, atol=1e-12)
        assert np.allclose(v @ v.T, np.eye(6), atol=1e-13)


# ---------------------------------------------------------------------------------------------------- flags and rewards


def memory(flags: tuple[int, ...] = (), touched: bool = False) -> np.ndarray:
    own = np.zeros(Avoiding.memory_size)
    own[[FLAGS + f for f in flags]], own[TOUCHED] = 1.0, touched
    return own


@pytest.mark.parametrize(
    ("x", "y", "flag"),
    [
        (0.499, -0.129, 0), (0.501, -0.071, 1), (0.6, -0.131, None), (0.424, 0.06, 2), (0.426, 0.11, 3), (0.574, 0.08, 3),
        (0.576, 0.08, 4), (0.2, 0.111, None), (0.349, 0.26, 5), (0.351, 0.5, 6), (0.499, 0.26, 6), (0.501, 0.26, 7),
        (0.649, 0.3, 7), (0.651, 0.26, 8), (0.651, 0.259, None), (0.5, -0.1, None),
    ],
)  # fmt: skip
def test_flags_by_hand(x, y, flag):
    own = memory()
    raise_flags(x, y, own)
    assert [f for f in range(9) if own[FLAGS + f]] == ([] if flag is None else [flag])
    assert field.mode_of(np.array([[x, y]])) == tuple(
        flag if flag in row else None for row in ((0, 1), (2, 3, 4), (5, 6, 7, 8))
    )


def test_a_row_is_decided_once():
    own = memory()
    for x in (0.6, 0.4):
        raise_flags(x, -0.1, own)
    assert own[FLAGS : FLAGS + 2].tolist() == [0, 1] and own[PASSED : PASSED + 3].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("x", "y", "flags", "touched", "reward", "solved"),
    [
        (0.3, 0.39, (), False, 0.0, False),
        (0.3, 0.40, (), False, 0.0, False),
        (0.3, 0.41, (), False, 1.0, False),
        (0.3, 0.39, (1, 2, 5), False, 1.0, False),
        (0.3, 0.41, (1, 2, 5), False, 2.0, True),
        (0.3, 0.41, (1, 2, 6), False, 1.0, False),
        (0.3, 0.41, (1, 2, 5), True, -0.1, False),
        (0.19, 0.41, (1, 2, 5), False, -0.1, False),
        (0.81, 0.41, (1, 2, 5), False, -0.1, False),
    ],
)
def test_rewards_by_hand(x, y, flags, touched, reward, solved):
    assert judge(x, y, 5, memory(flags, touched)) == (reward, solved)


def test_without_a_target_crossing_counts():
    assert judge(0.3, 0.41, -1, memory((1, 2, 6))) == (1.0, True)
    assert judge(0.3, 0.39, -1, memory((1, 2, 5))) == (0.0, False)


def test_touching_a_cylinder_costs_for_good():
    venv = world(1)
    venv.reset(0)
    forward = np.full((1, 1, 2), [-0.0015, 0.0125])  # straight into the first cylinder
    rewards = [float(venv.step(forward).reward[0]) for _ in range(30)]
    first = rewards.index(pytest.approx(-0.1))
    assert 8 < first < 20 and set(rewards[:first]) == {0.0} and np.allclose(rewards[first:], -0.1)
    aside = np.full((1, 1, 2), [0.0125, -0.0125])
    assert np.allclose([venv.step(aside).reward[0] for _ in range(15)], -0.1)
    venv.reset(1)
    assert venv.step(forward).reward[0] == 0.0  # the next episode begins anew
    venv.close()


# --------------------------------------------------------------------------------------------------------------- delay


def test_delays_show_the_same_motion_at_different_times():
    actions, seen, rewards = wander(30, 3), {}, {}
    for delay in DELAYS:
        venv = world(3, delay=delay, name="avoiding")
        seen[delay], rewards[delay] = [venv.reset(4)["state"][:, 0]], []
        for action in actions:
            result = venv.step(action[:, None])
            seen[delay].append(result.obs["state"][:, 0])
            rewards[delay].append(result.reward)
        seen[delay] = np.array(seen[delay])
        venv.close()
    old, mixed, new = (seen[delay] for delay in DELAYS)
    assert np.array_equal(old[2:], new[1:-1]) and np.array_equal(old[1], new[0])
    assert np.array_equal(mixed[1:, :, :2], new[1:, :, :2]) and np.array_equal(mixed[1:, :, 2:], old[1:, :, 2:])
    told = np.float32(np.array(START[:2]) + np.cumsum(actions, axis=0))
    assert np.allclose(new[1:, :, :2], told, atol=1e-7)
    assert np.array_equal(rewards["published"][1:], rewards["none"][:-1]) and np.ptp(rewards["none"]) > 0


# -------------------------------------------------------------------------------------------------- promises of the engine


def test_a_chunk_is_its_steps():
    actions = wander(24, 3)
    one, four = world(3), world(3, act_steps=4)
    one.reset(1), four.reset(1)
    for k in range(0, 24, 4):
        singles = [one.step(a[:, None]) for a in actions[k : k + 4]]
        chunk = four.step(np.ascontiguousarray(actions[k : k + 4].swapaxes(0, 1)))
        assert np.array_equal(chunk.obs["state"], singles[-1].obs["state"])
        assert np.allclose(chunk.reward, np.sum([s.reward for s in singles], axis=0), atol=1e-6)
        assert np.array_equal(chunk.success, np.any([s.success for s in singles], axis=0))
    one.close(), four.close()


def test_saved_and_restored_it_goes_on_bit_for_bit():
    actions = wander(26, 2)
    venv, other = world(2), world(2)
    venv.reset(9)
    for a in actions[:14]:
        venv.step(a[:, None])
    state = venv.state_dict()
    other.reset(77)
    for a in actions[:3]:
        other.step(a[:, None])
    other.load_state_dict(state)
    for a in actions[14:]:
        mine, theirs = venv.step(a[:, None]), other.step(a[:, None])
        assert np.array_equal(mine.obs["state"], theirs.obs["state"]) and np.array_equal(mine.reward, theirs.reward)
    assert np.array_equal(venv.simulations.physics(0), other.simulations.physics(0))
    venv.close(), other.close()


def test_an_episode_does_not_depend_on_slot_or_predecessor():
    actions = wander(20, 1)
    venv = world(2, max_episode_steps=20)
    venv.reset(0)
    both = [np.repeat(a[:, None], 2, axis=0) for a in actions]
    runs = np.array([[venv.step(a).final_obs["state"][:, 0] for a in both] for _ in range(2)])
    assert np.array_equal(runs[0, :, 0], runs[0, :, 1]) and np.array_equal(runs[0], runs[1])
    venv.close()


def test_wild_actions_stay_finite_or_are_cut():
    venv = world(2)
    venv.reset(0)
    for _ in range(10):
        result = venv.step(np.array([[[0.5, 0.5]], [[-0.5, -0.5]]]))
    assert np.isfinite(result.obs["state"]).all() and np.isfinite(result.reward).all()
    venv.close()


# ---------------------------------------------------------------------------------------------------------- construction


def config(**more) -> dict[str, object]:
    return {"name": "avoiding-m5", "n_envs": 2, "act_steps": 4, "max_episode_steps": 100, "n_threads": 1} | more


def test_registry_builds_every_target():
    for flag in (5, 6, 7, 8):
        venv = make_vector_env(config(name=f"avoiding-m{flag}"))
        assert venv.family.name == f"avoiding-m{flag}" and venv.obs_shapes == {"state": (1, 4)} and venv.action_dim == 2
        venv.close()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"observation_delay": "late"}, "observation_delay.*published, demonstrations, none.*'late'"),
        ({"simulator": "isaac"}, "simulator.*engine or d3il.*'isaac'"),
        ({"name": "avoiding-m4"}, "avoiding-m4.*did you mean"),
    ],
)
def test_wrong_settings_are_named(more, message):
    with pytest.raises(EnvError, match=message):
        make_vector_env(config(**more))


def test_wrong_targets_are_named():
    with pytest.raises(EnvError, match="0 to 8, found 9"):
        Avoiding(9)


STAND_IN = '''
import numpy as np

class Box:
    def __init__(self, n):
        self.shape, self.dtype = (n,), np.dtype("float32")

class Controller:
    def __init__(self):
        self.old = 0.0
    def reset(self):
        self.old = 0.0

class ObstacleAvoidanceM5Env:
    """gym's older interface, d3il's habits: np.NAN, memory between episodes, a delay."""
    def __init__(self):
        self.nothing = np.NAN
        self.observation_space, self.action_space, self.controller = Box(4), Box(2), Controller()
    def seed(self, seed=None):
        return [seed]
    def reset(self):
        self.xy = np.array([0.525 + self.controller.old, -0.28])
        return np.hstack([self.xy, self.xy])
    def step(self, action):
        old, self.xy = self.xy, self.xy + action
        self.controller.old = 1.0
        return np.hstack([old, old]), 2.0 if old[1] > 0.4 else 0.0, True, {"mode_encoding": np.zeros(9)}
'''


def test_genuine_simulation_runs_through_its_adapter(tmp_path, monkeypatch):
    for name, source in {
        "gym_avoiding/__init__.py": "",
        "gym_avoiding/envs.py": STAND_IN,
        "d3il_sim/__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    venv = make_vector_env(config(simulator="d3il", max_episode_steps=80))
    first = venv.reset(3)["state"][:, 0]
    assert np.allclose(first, [0.525, -0.28, 0.525, -0.28])
    results = [venv.step(np.full((2, 4, 2), [0.0, 0.0125])) for _ in range(20)]
    assert [bool(r.success[0]) for r in results].index(True) == 13  # 55 steps of 12.5 mm pass 0.4, seen one later
    assert not any(r.terminated.any() for r in results) and results[-1].truncated.all()
    assert np.allclose(results[-1].obs["state"][:, 0], first)  # what an episode leaves behind does not reach the next
    venv.close()
    with pytest.raises(EnvError, match="published"):
        make_vector_env(config(simulator="d3il", observation_delay="none"))


def test_without_d3il_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr("env.d3il.genuine.PACKAGES", ("gym_avoiding_of_nobody",))
    with pytest.raises(MissingSimulatorError, match=r"gym_avoiding_of_nobody.*install_d3il\.md.*engine"):
        make_vector_env(config(simulator="d3il"))
