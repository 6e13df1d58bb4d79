"""Bringing the arm to rest: against MuJoCo's own dynamics, and of the twin's arm in any direction, by pace of the servo and by driver."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

pytest.importorskip("robosuite")

from env.franka import brake, kinematics
from env.franka.clock import VirtualClock
from env.franka.reference import FIRST_RUN, Caps, Reference, ReferenceSettings
from env.franka.robot_mujoco import MujocoRobot
from env.franka.types import ControlSettings

pytestmark = pytest.mark.robomimic
WAYS = np.array(
    [[0, 0.8, 0, 0, 0, 0], [0.7, 0, 0, 0, 0, 0], [0, 0, 0.8, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0.3],
     [0, 0.3, 0.3, 0.2, 0.1, -0.2], [-0.5, 0.2, 0.3, 0, 0.2, 0]]
)  # fmt: skip
FAST = Caps(velocity=(0.5, 2.0))


@pytest.fixture(scope="module")
def robot():
    return MujocoRobot(VirtualClock())


def test_target_and_posture_together_are_a_brake_in_each_joint(robot):
    """tau = -D dq, up to 25 N m, through a controller as panda_py's: damping of a velocity, and a null space of the pseudo-inverse."""
    robot.reset(3)
    rng, damping = np.random.default_rng(5), (49.0, 15.5)
    for scale in (0.1, 2.0):
        q, dq = robot.state().q + rng.uniform(-0.3, 0.3, 7), scale * rng.standard_normal(7)
        robot.move_joints(q)
        jac = np.zeros((6, robot.model.nv))
        mujoco.mj_jacSite(robot.model, robot.data, jac[:3], jac[3:], robot._id(0))
        J = jac[:, robot._dof]
        twist, posture = brake.opposing(q, dq, damping)
        null = np.eye(7) - J.T @ np.linalg.pinv(J.T)
        torque = J.T @ (np.repeat(damping, 3) * twist) + null @ (brake.POSTURE_STIFFNESS * (posture - q))
        expected = np.clip(-np.array([60, 60, 45, 45, 10, 10, 5]) * dq, -25, 25)
        np.testing.assert_allclose(torque, expected, atol=0.01 * np.abs(expected).max())
    still, rest = brake.opposing(q, np.zeros(7), damping)
    assert not still.any() and (rest == q).all()


def in_motion(robot, way, stiffness, caps):
    """The robot and its reference after 0.7 s at full speed along ``way``; s per servo tick is 4 ms."""
    robot.reset(5)
    robot.configure(ControlSettings(stiffness, collision_force=200.0, collision_torque=200.0))
    robot.start()
    state, clock = robot.state(), robot._clock
    ref = Reference(state.position, state.quaternion, ReferenceSettings(caps=caps))
    for k in range(175):
        if k % 12 == 0:
            ref.aim(*ref.goal_of(np.append(way, 0.0)))
        ref.advance(0.004)
        state = robot.state()
        ref.leash(state.position, state.quaternion, stiffness[0])
        robot.set_target(ref.position, ref.quaternion, ref.twist)
        clock.sleep_until(clock.now() + 0.004)
    return ref


def speeds(robot) -> np.ndarray:
    """Of the hand, m/s and rad/s, and of the fastest joint."""
    state = robot.state()
    twist = kinematics.jacobian(state.q) @ state.dq
    return np.array([np.linalg.norm(twist[:3]), np.linalg.norm(twist[3:]), np.abs(state.dq).max()])


@pytest.mark.parametrize("stop", [False, True], ids=["HOLD", "STOP"])
@pytest.mark.parametrize(
    ("stiffness", "caps", "tick"),
    [((600.0, 30.0), FIRST_RUN, 0.004), ((1500.0, 50.0), FAST, 0.004), ((1500.0, 50.0), FAST, 0.016)],
)
def test_from_any_direction_hand_and_joints_stand_within_a_tenth_of_a_second(robot, stiffness, caps, tick, stop):
    """From up to 0.27 m/s, also with a servo that is four times too slow; and nothing swings back."""
    clock = robot._clock
    for way in WAYS:
        ref = in_motion(robot, way, stiffness, caps)
        began, before, after = clock.now(), speeds(robot), []
        assert before[0] > 0.1
        ref.brake()
        if stop:
            robot.stop()
        while clock.now() < began + 0.5:
            state = robot.state()
            if clock.now() < began + 0.06:
                ref.brake(state.position, state.quaternion)
            ref.advance(tick)
            ref.leash(state.position, state.quaternion, stiffness[0])
            robot.brake(ref.position, ref.quaternion)
            for _ in range(round(tick / 0.004)):
                clock.sleep_until(clock.now() + 0.004)
                after.append((clock.now() - began, *speeds(robot)))
        still = np.array([s[1:] for s in after if s[0] > 0.1]).max(0)
        assert (still < [0.02, 0.05, 0.06]).all(), (way, before.round(3), still.round(4))


def test_an_impedance_by_itself_would_not(robot):
    """What the above is for: a target at rest, and the arm swings on."""
    ref, clock = in_motion(robot, WAYS[0], (600.0, 30.0), FIRST_RUN), robot._clock
    clock.sleep_until(clock.now() + 0.004)
    ref.brake()
    for _ in range(25):
        ref.advance(0.004)
        robot.set_target(ref.position, ref.quaternion, ref.twist)
        clock.sleep_until(clock.now() + 0.004)
    assert speeds(robot)[0] > 0.03
