"""Frames and rotations against SciPy's; kinematics, inertias and the hand's offsets against robosuite's model in MuJoCo."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from env.franka import dynamics, frames, kinematics, limits
from env.franka.clock import VirtualClock, WallClock
from env.franka.types import DeploymentError

RNG = np.random.default_rng(7)
TURNS = Rotation.concatenate(
    [Rotation.random(53, random_state=3), Rotation.from_rotvec(RNG.normal(0, 1e-9, (5, 3))), Rotation.identity(2)]
)


def test_rotations_are_scipys():
    q = TURNS.as_quat()
    assert np.allclose(frames.quat_to_matrix(q), TURNS.as_matrix(), atol=1e-14)
    back = frames.matrix_to_quat(TURNS.as_matrix())
    assert np.allclose(np.abs(np.sum(back * q, -1)), 1, atol=1e-12) and (back[:, 3] >= 0).all()
    assert np.allclose(frames.log_quat(-q), TURNS.as_rotvec(), atol=1e-12)
    assert np.allclose(Rotation.from_quat(frames.exp_quat(TURNS.as_rotvec())).as_matrix(), TURNS.as_matrix())
    v = RNG.normal(size=(60, 3))
    assert np.allclose(frames.quat_rotate(q, v), TURNS.apply(v))
    other = Rotation.random(60, random_state=4)
    product = Rotation.from_quat(frames.quat_multiply(q, other.as_quat()))
    assert np.allclose(product.as_matrix(), (TURNS * other).as_matrix())
    assert np.allclose(frames.angle_between(q, other.as_quat()), (other * TURNS.inv()).magnitude())
    third = frames.slerp(q, other.as_quat(), 1 / 3)
    assert np.allclose(frames.angle_between(q, third) * 3, frames.angle_between(q, other.as_quat()))


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_half_turns_survive(axis):
    """Where w is 0 and the usual formula divides by it."""
    turn = Rotation.from_euler(axis, np.pi)
    assert frames.angle_between(frames.matrix_to_quat(turn.as_matrix()), turn.as_quat()) < 1e-7
    assert np.isclose(np.linalg.norm(frames.log_quat(turn.as_quat())), np.pi)


def test_quaternions_keep_their_sign():
    q = TURNS.as_quat()[0]
    assert np.array_equal(frames.same_sign(-q, q), q) and np.array_equal(frames.same_sign(q, q), q)
    assert frames.same_sign(np.array([0, 0, 0, -1.0]), None)[3] == 1


def test_transforms_compose_and_invert():
    a, b = (frames.Transform(RNG.normal(size=3), TURNS.as_quat()[i]) for i in (0, 1))
    assert np.allclose((a @ b).matrix(), a.matrix() @ b.matrix())
    assert np.allclose((a @ a.inverse()).matrix(), np.eye(4))
    x = RNG.normal(size=(4, 3))
    assert np.allclose(a.point(x), (a.matrix() @ np.c_[x, np.ones(4)].T).T[:, :3])
    assert np.allclose(a.vector(x), a.point(x) - a.position)
    there = frames.flange_to_grip_site(a)
    assert np.allclose(there.matrix(), a.matrix() @ frames.GRIP_SITE_IN_FLANGE)
    assert np.allclose(frames.grip_site_to_flange(there).matrix(), a.matrix())


def test_the_lowest_corner_of_the_fingers_is_found():
    x, y, z = frames.FINGERTIP_HALF_THICKNESS, 0.071 / 2, frames.FINGERTIP_DEPTH
    corners = np.array([[sx * x, sy * y, z] for sx in (-1, 1) for sy in (-1, 1)])
    expected = [turn.apply(corners)[:, 2].min() for turn in TURNS]
    assert np.allclose(frames.lowest_fingertip(TURNS.as_quat(), 0.071), expected)


def test_limits_are_those_of_the_control_unit():
    assert limits.limits_of(5) is limits.PANDA and limits.limits_of(10) is limits.FR3
    assert (limits.PANDA.q_min < limits.PANDA.q_max).all() and (limits.FR3.q_min < limits.FR3.q_max).all()
    with pytest.raises(DeploymentError, match="server version 0"):
        limits.limits_of(0)


def test_virtual_time_passes_only_when_asked_and_in_order():
    clock, seen = VirtualClock(2.0), []
    clock.subscribe(lambda t: seen.append(t))
    clock.at(2.5, lambda: seen.append("b"))
    clock.at(2.5, lambda: seen.append("c"))
    clock.at(2.2, lambda: (seen.append("a"), clock.at(2.3, lambda: seen.append("late"))))
    clock.sleep_until(1.0)
    assert seen == [] and clock.now() == 2.0
    clock.sleep_until(3.0)
    assert seen == [2.2, "a", 2.3, "late", 2.5, "b", "c", 3.0] and clock.now() == 3.0
    clock.at(3.1, lambda: clock.sleep_until(4.0))
    with pytest.raises(RuntimeError, match="inside"):
        clock.sleep_until(3.2)


def test_wall_time_is_monotonic_and_sleeps():
    clock = WallClock()
    start = clock.now()
    clock.sleep_until(start + 0.02)
    clock.sleep_until(start)
    assert 0.02 <= clock.now() - start < 1.0


@pytest.fixture(scope="module")
def lift():
    pytest.importorskip("robosuite")
    from env.robomimic.reference import make_reference_lift

    return make_reference_lift(0)


@pytest.mark.robomimic
def test_kinematics_and_inertias_are_the_models(lift):
    model, data = lift.sim.model._model, lift.sim.data._data
    site, finger = model.site("gripper0_right_grip_site").id, model.body("gripper0_right_leftfinger").id
    base, mass = lift.robots[0].base_pos, np.zeros((model.nv, model.nv))
    jac = np.zeros((6, model.nv))
    for _ in range(5):
        q = np.array([0, 0.2, 0, -2.6, 0, 2.9, 0.785]) + RNG.normal(0, 0.3, 7)
        data.qpos[:9] = *q, 0.0208, -0.0208
        mujoco.mj_forward(model, data)
        pose = kinematics.grip_site(q)
        assert np.allclose(pose.position, data.site_xpos[site] - base, atol=1e-12)
        seen = lift._get_observations(force_update=True)["robot0_eef_quat"]
        assert np.degrees(frames.angle_between(pose.quaternion, seen)) < 0.05
        mujoco.mj_jacSite(model, data, jac[:3], jac[3:], site)
        assert np.allclose(kinematics.jacobian(q), jac[:, :7], atol=1e-12)
        mujoco.mj_fullM(model, mass, data.qM)
        assert np.allclose(dynamics.mass_matrix(q), mass[:7, :7], atol=1e-6)
        # the fingers open along the hand's y
        where = frames.quat_rotate(frames.quat_inverse(pose.quaternion), data.xpos[finger] - data.site_xpos[site])
        assert np.allclose(where[:2], [0, 0.0208], atol=1e-4)


@pytest.mark.robomimic
def test_the_airs_drag_is_mujocos(lift):
    """Of the hand: with the arm's joints at rest but the last, the model's fluid torque there is ours."""
    model, data = lift.sim.model._model, lift.sim.data._data
    data.qpos[:9] = 0.1, 0.2, 0.3, -2.4, 0.2, 2.8, 0.7, 0.0208, -0.0208
    for dq in RNG.normal(0, 0.5, (3, 7)):
        data.qvel[:] = 0
        data.qvel[:7] = dq
        mujoco.mj_forward(model, data)
        q = data.qpos[:7]
        J, turn = kinematics.jacobian(q), kinematics.joint_frames(q)[-1][:3, :3]
        ours = J.T @ dynamics._drag(turn, J @ dq)
        # what is left is the drag of the links, which we leave out
        assert np.abs(ours - data.qfrc_fluid[:7]).max() < 0.06 * np.abs(data.qfrc_fluid[:7]).max()
