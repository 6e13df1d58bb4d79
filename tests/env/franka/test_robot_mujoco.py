"""The twin: its own controller against first principles, robosuite's against the engine, and a demonstrator through the whole chain."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

pytest.importorskip("robosuite")

from env.engine.batch import EngineVectorEnv
from env.franka import kinematics
from env.franka.clock import VirtualClock, WallClock
from env.franka.frames import angle_between, exp_quat, quat_multiply
from env.franka.robot_mujoco import MujocoRobot
from env.franka.types import ControlSettings, DeploymentError, Gripper, Robot, RobotFault
from env.registry import family
from env.video import working_backend

pytestmark = pytest.mark.robomimic
STIFF = ControlSettings(stiffness=(600.0, 30.0), collision_force=60.0, collision_torque=60.0)


@pytest.fixture(scope="module")
def clock():
    return VirtualClock()


@pytest.fixture(scope="module")
def lift(clock):
    return MujocoRobot(clock)


def started(robot, seed, settings=STIFF):
    robot.reset(seed)
    robot.configure(settings)
    robot.start()
    return robot.state()


@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_its_osc_law_is_the_simulation_of_training_to_the_bit(task, clock):
    """The same seed, the same actions: the same numbers, and the same verdict."""
    robot = MujocoRobot(clock, task, law="osc")
    venv = EngineVectorEnv(family(task), 1, 1, 50, n_threads=1)
    keys = list(family(task).layout)
    for seed in (2000003, 7):
        robot.reset(seed)
        expected = venv.reset([seed])["state"][0, 0]
        rng = np.random.default_rng(seed)
        for _ in range(23):
            np.testing.assert_array_equal(
                np.concatenate([robot.observe()[k] for k in keys], dtype=np.float32), expected
            )
            action = rng.uniform(-1, 1, 7).astype(np.float32)
            robot.act(action)
            expected = venv.step(action[None, None]).obs["state"][0, 0]
        assert robot.steps == 23 and not robot.solved()
    venv.close()


def test_it_keeps_the_protocols_and_stands_where_the_published_kinematics_say(lift):
    assert isinstance(lift, Robot) and isinstance(lift.gripper, Gripper)
    state = started(lift, 5)
    published = kinematics.grip_site(state.q)
    assert np.linalg.norm(state.position - published.position) < 5e-4
    assert angle_between(state.quaternion, published.quaternion) < 1e-3
    np.testing.assert_allclose(lift.world.position, [-0.56, 0.0, 0.912])
    assert state.quaternion[0] > 0.9  # the sign that policies are trained with


def test_without_a_target_it_stays_against_gravity_and_time_passes_as_the_clock_says(lift, clock):
    before = started(lift, 11)
    clock.sleep_until(clock.now() + 0.987)
    after = lift.state()
    assert after.t_robot - before.t_robot == pytest.approx(0.986, abs=1e-9)  # whole physics steps
    assert np.linalg.norm(after.position - before.position) < 1e-3 and np.abs(after.dq).max() < 0.02
    clock.sleep_until(clock.now() + 0.013)
    assert lift.state().t_robot - before.t_robot == pytest.approx(1.0, abs=1e-9) and lift.steps == 20


def test_on_the_wall_s_clock_it_is_as_fast_as_the_wall():
    robot = MujocoRobot(WallClock())
    begin = started(robot, 3).t_robot
    t = time.monotonic()
    time.sleep(0.2)
    passed = robot.state().t_robot - begin
    assert passed == pytest.approx(time.monotonic() - t, abs=0.05) and passed > 0.19


@pytest.mark.parametrize("stiffness", [600.0, 1500.0])
def test_it_is_a_spring_of_the_stiffness_asked_for(lift, clock, stiffness):
    """A push of 9 N moves it by 9 N / K, and it comes back."""
    before = started(lift, 13, dataclasses.replace(STIFF, stiffness=(stiffness, 30.0)))
    push = np.array([3.0, 8.0, -2.0])
    body = lift.model.site_bodyid[lift._id(0)]
    lift.data.xfrc_applied[body, :3] = push
    offset = lift.data.site_xpos[lift._id(0)] - lift.data.xipos[body]  # the push acts at the body's centre
    lift.data.xfrc_applied[body, 3:] = np.cross(offset, push)
    clock.sleep_until(clock.now() + 3.0)
    moved = lift.state().position - before.position
    lift.data.xfrc_applied[:] = 0.0
    np.testing.assert_allclose(moved, push / stiffness, atol=0.12 * np.linalg.norm(push) / stiffness)
    clock.sleep_until(clock.now() + 3.0)
    assert np.linalg.norm(lift.state().position - before.position) < 1.5e-3


@pytest.mark.parametrize("feedforward", [1.0, 0.0])
def test_it_goes_where_it_is_drawn_and_turns(clock, feedforward):
    """100 mm and 0.3 rad of a steady stream. Without feed-forward it is behind by what damping costs, 2 / sqrt(K) seconds."""
    robot = MujocoRobot(clock, feedforward=feedforward)
    before = started(robot, 17)
    way, turn, lags = np.array([0.03, -0.07, 0.06]), np.array([0.1, -0.2, 0.2]), []
    for share in np.linspace(0, 1, 500):
        clock.sleep_until(clock.now() + 0.004)
        target = before.position + share * way
        quaternion = quat_multiply(exp_quat(share * turn), before.quaternion)
        robot.set_target(target, quaternion, np.concatenate([way, turn]) / 2.0)
        lags.append(np.linalg.norm(robot.state().position - target))
    behind = 2 / np.sqrt(600) * np.linalg.norm(way) / 2.0
    friction = 2.5e-3  # of the joints
    assert (1 - feedforward) * 0.9 * behind < np.mean(lags[250:]) < (1 - feedforward) * behind + friction
    robot.set_target(target, quaternion, np.zeros(6))
    clock.sleep_until(clock.now() + 2.0)
    after = robot.state()
    assert np.linalg.norm(after.position - target) < 2e-3 and angle_between(after.quaternion, quaternion) < 0.02


def press(lift, clock, state, depth):
    """Draw it to ``depth`` metres below the table top, the way there above the table first; where it then is."""
    lift.gripper.goto(0.0, 0.1)
    top = 0.8 - lift.world.position[2]
    for height in (top + 0.05, top - depth):
        goal = np.array([state.position[0] - 0.05, -0.15, height])
        for share in np.linspace(0, 1, 400):
            clock.sleep_until(clock.now() + 0.004)
            lift.set_target((1 - share) * state.position + share * goal, state.quaternion, np.zeros(6))
        clock.sleep_until(clock.now() + 1.0)
        state = lift.state()
        if height > top:
            assert np.linalg.norm(state.wrench[:3]) < 1.5  # the joints' friction
    return state, height


def test_it_feels_what_it_presses_against(lift, clock):
    """The fingertips are 16 mm below the grip site: with a target 2 cm below the table top, the spring's force is what it feels."""
    state, height = press(lift, clock, started(lift, 19), 0.02)
    force = 600.0 * (state.position[2] - height)
    assert force > 10 and state.wrench[2] == pytest.approx(force, rel=0.15) and state.moving
    lift.check()
    lift.stop()
    clock.sleep_until(clock.now() + 0.5)
    assert not lift.state().moving and np.linalg.norm(lift.state().position - state.position) < 0.02


def test_beyond_its_thresholds_it_stops_by_itself_until_it_is_recovered(lift, clock):
    careful = ControlSettings(stiffness=(600.0, 30.0), collision_force=13.0, collision_torque=60.0)
    state, _ = press(lift, clock, started(lift, 19, careful), 0.03)
    assert not state.moving and state.wrench[2] < 20.0  # 24 N were it not to stop
    for _ in range(2):
        with pytest.raises(RobotFault, match="reflex: 1[3-9] N") as caught:
            lift.check()
    assert caught.value.kind == "reflex" and caught.value.recoverable
    with pytest.raises(RobotFault):
        lift.start()
    lift.set_target(state.position + 0.1, state.quaternion, np.zeros(6))
    clock.sleep_until(clock.now() + 0.5)
    assert np.linalg.norm(lift.state().position - state.position) < 2e-3
    assert lift.recover()
    lift.start()
    lift.check()


def test_fingers_move_at_the_speed_asked_for_and_hold_the_cube(lift, clock):
    started(lift, 23)
    hand = lift.gripper
    assert hand.state().width == pytest.approx(0.0416, abs=1e-3)  # half open, as robosuite begins
    hand.goto(0.08, 0.05)
    clock.sleep_until(clock.now() + 0.4)
    width = hand.state().width
    clock.sleep_until(clock.now() + 0.2)
    assert hand.state().moving and hand.state().width - width == pytest.approx(0.05 * 0.2, abs=5e-4)
    clock.sleep_until(clock.now() + 1.0)
    assert not hand.state().moving and hand.state().width == pytest.approx(0.08, abs=2.2e-3)  # friction
    where, how = lift.object_pose()
    assert np.linalg.norm(how) == pytest.approx(1.0) and 0.3 < where[0] < 0.8
    at = lift.model.jnt_qposadr[lift.model.body_jntadr[lift._objects[0]]]
    lift.data.qpos[at : at + 3] = lift.data.site_xpos[lift._id(0)]  # the cube, between the fingers
    lift.data.qpos[at + 3 : at + 7] = lift.data.xquat[lift._id(1)]
    gravity = lift.model.opt.gravity.copy()
    lift.model.opt.gravity[:] = 0.0  # until it is held
    assert hand.grasp(20.0, 0.2)
    clock.sleep_until(clock.now() + 0.7)
    assert hand.state().moving is False
    lift.model.opt.gravity[:] = gravity
    clock.sleep_until(clock.now() + 1.0)
    assert hand.state().grasped and 0.035 < hand.state().width < 0.046
    assert lift.solved()  # it is far above the table: the task's own rule


def test_what_is_refused(lift, clock):
    started(lift, 29)
    state = lift.state()
    with pytest.raises(ValueError, match="finite"):
        lift.set_target(np.array([np.nan, 0, 0]), state.quaternion, np.zeros(6))
    with pytest.raises(DeploymentError, match=r"robot\.law=osc"):
        lift.act(np.zeros(7))
    with pytest.raises(DeploymentError, match="transport"):
        MujocoRobot(clock, "transport")
    with pytest.raises(DeploymentError, match=r"robot\.law"):
        MujocoRobot(clock, law="pid")
    lift.data.qpos[0] = np.nan
    clock.sleep_until(clock.now() + 0.01)
    with pytest.raises(RobotFault, match="unstable"):
        lift.check()
    assert not lift.recover()
    lift.reset(1)
    lift.check()


@pytest.mark.mujoco
@pytest.mark.skipif(working_backend()[0] is None, reason=f"no OpenGL: {working_backend()[1]}")
def test_its_cameras_give_the_images_of_training(clock):
    robot = MujocoRobot(clock, law="osc")
    venv = EngineVectorEnv(
        family("lift"), 1, 3, 50, n_threads=1, cameras=["robot0_eye_in_hand"], image_size=(48, 48), renderer="gl"
    )
    view = robot.view("robot0_eye_in_hand", (48, 48), "balanced", "gl")
    try:
        for seed in (3, 2000011):  # cubes of different sizes
            robot.reset(seed)
            expected = venv.reset([seed])["rgb"][0, 0]
            np.testing.assert_array_equal(view(), expected.transpose(1, 2, 0))
            chunk = np.random.default_rng(seed).uniform(-1, 1, (3, 7)).astype(np.float32)
            for action in chunk:
                robot.act(action)
            before, expected = expected, venv.step(chunk[None]).obs["rgb"][0, 0]
            assert (before != expected).mean() > 0.1
            np.testing.assert_array_equal(view(), expected.transpose(1, 2, 0))
    finally:
        view.close()
        venv.close()
