"""Furniture-Bench's tasks: observation, action and reward against the specification on poses worked out by hand."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest

from env.engine.batch import EngineVectorEnv
from env.errors import EnvError
from env.furniture import arm, assembly
from env.furniture.facts import ENV_NAMES, FURNITURE, TAG_TO_ROBOT, euler, of_env
from env.furniture.placement import AREA, HOMES, MARGIN, N_FIRST, SPREADS, draw, footprint
from env.furniture.scene import START_JOINTS

IDENTITY = np.eye(3)


def world(name: str, n: int = 1, act_steps: int = 1) -> EngineVectorEnv:
    family = assembly.family(name)
    return EngineVectorEnv(family, n, act_steps, family.furniture.max_episode_steps, n_threads=1)


def put(venv: EngineVectorEnv, part: str, position, rotation, i: int = 0) -> None:
    """Place a part (robot frame) at rest."""
    model, data = venv.family.model, venv.simulations.data[i]
    at = model.joint(part).qposadr[0]
    data.qpos[at : at + 3] = position
    mujoco.mju_mat2Quat(data.qpos[at + 3 : at + 7], np.ascontiguousarray(rotation, float).ravel())
    data.qvel[:] = 0


# -------------------------------------------------------------------------------------------------------------- facts


def test_names_and_numbers_are_the_published_ones():
    expected = {"one_leg": (58, 700, 1, 5), "lamp": (44, 1000, 2, 3), "round_table": (44, 1000, 2, 3)}
    assert {
        n: (f.obs_dim, f.max_episode_steps, f.success_return, len(f.parts)) for n, f in FURNITURE.items()
    } == expected
    assert set(ENV_NAMES) == {f"{n}_{r}_dim" for n in expected for r in ("low", "med")}
    assert of_env("lamp_med_dim") == (FURNITURE["lamp"], "med")
    with pytest.raises(EnvError, match=r"one_leg_low_dim.*found 'one_leg_low'"):
        of_env("one_leg_low")


def test_targets_are_the_published_ones():
    bulb, hood = FURNITURE["lamp"].pairs
    assert bulb.places == ((0.0, -0.0678, 0.0),) and np.allclose(bulb.rotation, np.diag([-1, -1, 1]))
    assert hood.places == ((0.0, -0.088324, 0.0),) and hood.rotation is None
    leg, base = FURNITURE["round_table"].pairs
    s, c = math.sin(math.radians(185)), math.cos(math.radians(185))
    assert np.allclose(leg.rotation, [[c, 0, s], [s, 0, -c], [0, 1, 0]])  # Rz(185) Rx(90)
    assert np.allclose(base.rotation, [[0, -1, 0], [0, 0, 1], [-1, 0, 0]])  # Ry(90) Rx(-90)


# -------------------------------------------------------------------------------------------------------- observation


def test_observation_of_poses_worked_out_by_hand():
    venv = world("one_leg_low_dim")
    venv.reset(3)
    data = venv.simulations.data[0]
    # 90 degrees about the robot's z: in the tag frame (x and y swapped, z down) -90 about its z, after the frames' half turn about x = y
    put(venv, "leg2", (0.4, -0.1, 0.3), [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    data.qpos[7:9] = 0.01, 0.02
    data.qvel[0] = 0.5  # the first joint turns the hand about the robot's z axis
    mujoco.mj_forward(venv.family.model, data)
    venv.simulations.observe(0)
    state = venv.simulations.history[0, 0]
    hand, turn = data.site("ee").xpos, data.site("ee").xmat.reshape(3, 3)
    assert np.allclose(state[:3], hand) and np.allclose(state[3:6], turn[0]) and np.allclose(state[6:9], turn[1])
    assert np.allclose(state[9:12], [-0.5 * hand[1], 0.5 * hand[0], 0.0], atol=1e-9)
    assert np.allclose(state[12:15], [0, 0, 0.5], atol=1e-9)
    assert state[15] == pytest.approx(0.03)
    leg2 = state[16 + 7 * 2 : 16 + 7 * 3]
    assert np.allclose(leg2[:3], [-0.1, 0.4 - 0.3015, -0.3])
    x, y, z, w = leg2[3:]
    in_tag = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    assert np.allclose(in_tag, [[1, 0, 0], [0, -1, 0], [0, 0, -1]])  # x_tag = y_robot is where the leg's x axis points
    assert np.allclose(TAG_TO_ROBOT[1] @ in_tag, [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    shift = data.mocap_pos[0]
    assert np.allclose(state[-7:], [shift[1], shift[0] - 0.3015, -0.015, 1, 0, 0, 0])
    venv.close()


@pytest.mark.parametrize("name", ENV_NAMES)
def test_a_quaternion_has_the_sign_of_the_usual_pose(name):
    venv = world(name, 7)
    state = venv.reset(0)["state"][:, 0]
    for k, part in enumerate(venv.family.furniture.parts):
        usual = np.zeros(4)
        mujoco.mju_mat2Quat(usual, HOMES[part].rotation.ravel().copy())
        found = state[:, 16 + 7 * k + 3 : 16 + 7 * k + 7][:, [3, 0, 1, 2]]
        # up to one sign for all episodes, which is what matters to a policy
        dots = found @ usual
        assert (np.abs(dots) > math.cos(math.radians(47 / 2))).all() and len(np.unique(np.sign(dots))) == 1
    venv.close()


# ------------------------------------------------------------------------------------------------------------- action


def test_six_numbers_are_the_first_two_rows_orthonormalised():
    turn, out = euler(20, -30, 70), np.zeros((3, 3))
    skewed = np.concatenate([2.5 * turn[0], 0.3 * turn[1] - 1.1 * turn[0]])
    assert arm.rotation_from_rows(skewed, out) and np.allclose(out, turn)
    assert not arm.rotation_from_rows(np.zeros(6), out)
    assert not arm.rotation_from_rows(np.array([1.0, 2, 3, 2, 4, 6]), out)  # no plane


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.3, 3.0, math.pi - 1e-9])
def test_rotation_error_is_the_rotation_vector(angle):
    axis, now, out = np.array([2.0, -3.0, 6.0]) / 7, euler(40, 10, -120), np.zeros(3)
    goal = np.zeros(9)
    mujoco.mju_quat2Mat(goal, np.concatenate([[math.cos(angle / 2)], math.sin(angle / 2) * axis]))
    arm.rotation_error(goal.reshape(3, 3) @ now, now, out)
    assert np.allclose(out, angle * axis, atol=1e-7)


def test_one_action_sets_the_joints_that_least_squares_gives():
    venv = world("one_leg_low_dim")
    venv.reset(5)
    model, data = venv.family.model, venv.simulations.data[0]
    mujoco.mj_forward(model, data)
    before, jac = data.qpos[:7].copy(), np.zeros((6, model.nv))
    mujoco.mj_jacSite(model, data, jac[:3], jac[3:], model.site("ee").id)
    hand, turn = data.site("ee").xpos.copy(), data.site("ee").xmat.reshape(3, 3).copy()
    goal = turn @ euler(0, 0, 11)
    action = np.concatenate([hand + [0.03, -0.02, 0.05], goal[0], goal[1], [0.5]])
    error = np.concatenate([[0.03, -0.02, 0.05], turn @ [0, 0, math.radians(11)]])
    step = np.linalg.lstsq(jac[:, :7], error, rcond=None)[0]
    venv.step(action[None, None])
    assert np.allclose(data.ctrl[:7], before + step, atol=1e-9)
    assert np.array_equal(data.ctrl[7:9], [-13, -13])
    much = np.abs(step) > 0.01
    share = ((data.qpos[:7] - before) / step)[much]
    assert much.sum() >= 4 and np.allclose(
        share, 1 - math.exp(-0.5), atol=0.08
    )  # 1000 / 200 per second for 0.1 s: about 39 %
    venv.close()


def test_gripper_ignores_what_is_too_small_and_keeps_its_last_sign():
    venv = world("one_leg_low_dim")
    state = venv.reset(5)["state"][0, 0]
    ctrl = venv.simulations.data[0].ctrl
    for said, expected in ((0.018, 13), (0.02, -13), (-0.018, -13), (0.9, -13), (-0.02, 13)):
        venv.step(np.append(state[:9], said)[None, None])
        assert ctrl[7] == ctrl[8] == expected
    venv.close()


# ------------------------------------------------------------------------------------------------------------- reward


def reward_of(furniture: str, pair: int, position, rotation) -> bool:
    facts = FURNITURE[furniture]
    family = assembly.family(f"{furniture}_low_dim")
    row = family.ids[assembly.PAIR_IDS + assembly.N_PAIR_IDS * pair :]
    fact = family.facts[assembly.PAIR_FACTS + assembly.N_PAIR_FACTS * pair :]
    assert (row[0], row[1]) == (facts.pairs[pair].first, facts.pairs[pair].second)
    return bool(assembly.assembled(row, fact, np.asarray(position, float), np.asarray(rotation, float)))


def test_a_pair_is_assembled_within_5_mm_per_axis_and_a_cosine_of_094():
    at = np.array([0.05625, 0.046875, -0.05625])
    assert reward_of("one_leg", 0, at, IDENTITY)
    for axis in range(3):
        for off, ok in ((0.0049, True), (-0.0049, True), (0.0051, False)):
            assert reward_of("one_leg", 0, at + off * IDENTITY[axis], IDENTITY) == ok
    assert reward_of("one_leg", 0, at + 0.0049, IDENTITY)  # per axis, not the distance
    for degrees, ok in ((19.9, True), (20.0, False), (90, False)):
        assert reward_of("one_leg", 0, at, euler(0, degrees, 0)) == ok
        assert reward_of("one_leg", 0, at, euler(degrees, 0, 0)) == ok
    assert reward_of("one_leg", 0, -at * [1, -1, 1], IDENTITY) and not reward_of("one_leg", 0, -at, IDENTITY)


def test_targets_of_the_other_pairs():
    assert reward_of("lamp", 0, (0, -0.0678, 0), euler(0, 0, 180)) and not reward_of(
        "lamp", 0, (0, -0.0678, 0), IDENTITY
    )
    assert reward_of("lamp", 1, (0.004, -0.0845, 0), euler(77, 5, 3))  # position only
    assert reward_of("round_table", 0, (0, 0, 0.044375), euler(90, 0, 185))
    assert not reward_of("round_table", 0, (0, 0, 0.044375), euler(90, 0, 205.1))
    assert reward_of("round_table", 1, (0, 0.053125, 0), euler(-90, 90, 0))
    assert not reward_of("round_table", 1, (0, 0.053125, 0), euler(-90, 0, 0))


def test_reward_comes_once_is_never_taken_back_and_two_pairs_at_once_give_one():
    venv = world("lamp_low_dim")
    state = venv.reset(1)["state"][0, 0]
    data, hold = venv.simulations.data[0], np.append(state[:9], -1.0)[None, None]
    base_at, base = np.array([0.4, 0.0, 0.3]), euler(90, 0, 0)

    def together(*, bulb: bool, hood: bool) -> float:
        """One step after putting the parts together (or apart), in free fall high above the table."""
        put(venv, "lamp_base", base_at, base)
        put(venv, "lamp_bulb", base_at + base @ [0, -0.0678 if bulb else -0.3, 0], base @ euler(0, 0, 180))
        put(venv, "lamp_hood", base_at + base @ [0, -0.088324 if hood else 0.3, 0], base)
        venv.simulations.memory[0, assembly.PIN] = 0.0
        own, w = venv.simulations.memory[0], assembly.screw.workspace()
        return assembly.judge(data.qpos, venv.family.ids, venv.family.facts, own, w)

    assert together(bulb=False, hood=False) == 0
    assert together(bulb=True, hood=False) == 1
    assert together(bulb=True, hood=False) == 0  # once
    assert together(bulb=False, hood=False) == 0  # not taken back
    assert together(bulb=True, hood=True) == 1 and venv.simulations.memory[0, assembly.GIVEN] == 2
    venv.reset(1)
    assert together(bulb=True, hood=True) == 1 and venv.simulations.memory[0, assembly.GIVEN] == 1  # so never solved
    assert not venv.step(hold).success[0]
    venv.close()


# ------------------------------------------------------------------------------------------------------------- starts


@pytest.mark.parametrize("name", ENV_NAMES)
def test_starts_are_within_the_published_randomness_and_apart(name):
    furniture, randomness = of_env(name)
    spread, rng = SPREADS[randomness], np.random.default_rng(11)
    starts = np.array([draw(furniture, spread, rng) for _ in range(61)])
    limits = {"low": (0.015, 15, 0.02, 5), "med": (0.05, 45, 0.04, 10)}[randomness]
    assert (np.abs(starts[:, :7] - START_JOINTS) <= math.radians(limits[3]) + 1e-12).all()
    assert (np.abs(starts[:, 7:9]) <= limits[2]).all() and (starts[:, 7:9] != 0).all()
    parts = starts[:, N_FIRST:].reshape(61, -1, 3)
    home = np.array([HOMES[part].position[:2] for part in furniture.parts])
    assert (np.abs(parts[:, :, :2] - home) <= limits[0] + 1e-12).all()
    assert (np.abs(parts[:, :, 2]) <= math.radians(limits[1])).all()
    assert (np.ptp(parts[:, :, 0], axis=0) > 0.8 * limits[0]).all()
    if randomness == "med":
        for axis in range(2):
            assert (parts[:, :, axis] >= AREA[axis][0]).all() and (parts[:, :, axis] <= AREA[axis][1]).all()
    for row in parts:
        rooms = [footprint(HOMES[n], *at) for n, at in zip(furniture.parts, row, strict=True)]
        for a in range(len(rooms)):
            for b in range(a):
                pair = rooms[a], rooms[b]
                dx, dy = (abs(rooms[a][i] - rooms[b][i]) - rooms[a][2 + i] - rooms[b][2 + i] for i in range(2))
                assert (
                    math.hypot(max(dx, 0), max(dy, 0))
                    > min(sum(r[4] for r in pair), sum(r[5] for r in pair) or 9) + MARGIN - 1e-12
                )


@pytest.mark.parametrize("furniture", FURNITURE)
def test_parts_at_rest_stay_where_they_were_put(furniture):
    venv = world(f"{furniture}_low_dim", 3)
    first = venv.reset(0)["state"][:, 0]
    raised = np.concatenate([first[:, :9], -np.ones((3, 1))], axis=1)
    raised[:, 2] += 0.1
    for _ in range(10):
        result = venv.step(raised[:, None])
    last = result.obs["state"][:, 0]
    assert np.abs(last[:, 16:] - first[:, 16:]).max() < 1e-3
    assert np.abs(last[:, 2] - first[:, 2] - 0.1).max() < 2e-3 and not result.info["invalid"].any()
    venv.close()


def test_a_video_shows_the_obstacles_where_they_are():
    venv = world("lamp_med_dim")
    venv.reset(5)
    model = venv.render_model(venv.starts()[0])
    seen = mujoco.MjData(model)
    assert np.allclose(seen.mocap_pos[0], venv.simulations.data[0].mocap_pos[0])
    assert not np.allclose(seen.mocap_pos[0, :2], [0.6815, 0.0])
    venv.close()
