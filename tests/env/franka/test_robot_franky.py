"""The FR3's driver against a stand-in for franky: what is asked of it, and what is made of its answers. ``franky_job.py`` runs the real one."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from env.franka import frames, kinematics
from env.franka.limits import FR3, PANDA
from env.franka.robot_franky import FrankyGripper, FrankyRobot
from env.franka.types import ControlSettings, DeploymentError, Gripper, Robot, RobotFault

HOME = np.array([0.1, 0.2, -0.1, -2.6, 0.05, 2.9, 0.8])
STILL = np.zeros(6)


class ControlException(Exception):  # noqa: N818  franky's name
    pass


class NetworkException(Exception):  # noqa: N818
    pass


class Arm:
    """The robot: still, unless ``died`` says what ended its control."""

    urdf = '<robot name="fr3">'

    def __init__(self, ip, realtime_config=None):
        self.time, self.q, self.mode, self.died, self.said = 0, HOME.copy(), "Idle", None, []
        self.is_in_control, self.model_urdf = False, type(self).urdf
        if ip == "10.0.0.5":
            raise NetworkException("libfranka: Incompatible library version (server version: 5, library version: 10).")

    @property
    def state(self):
        self.time += 1
        site = kinematics.grip_site(self.q).matrix()
        ee = site @ np.linalg.inv(frames.GRIP_SITE_IN_NOMINAL)  # Desk's stock hand
        matrix = lambda m: types.SimpleNamespace(matrix=m)  # noqa: E731
        return types.SimpleNamespace(
            time=types.SimpleNamespace(to_msec=lambda: self.time),
            q=self.q,
            dq=np.zeros(7),
            O_T_EE=matrix(ee),
            F_T_EE=matrix(frames.NOMINAL_IN_FLANGE),
            O_F_ext_hat_K=np.array([0, 0, 7.0, 0, 0, 0]),
            control_command_success_rate=0.97,
            robot_mode=f"RobotMode.{self.mode}",
            current_errors="[]",
        )

    def die(self, error):
        self.died, self.is_in_control, self.mode = error, False, "Reflex"

    def join_motion(self, timeout):
        if self.died:
            raise self.died

    def move(self, motion):
        self.q = np.array(motion)

    def recover_from_errors(self):
        self.said.append("recover")
        self.mode, self.died = "Idle", None

    def __getattr__(self, name):
        return lambda *arguments: self.said.append((name, *arguments))


class Tracker:
    def __init__(self, robot, **options):
        self.robot, self.options, self.targets = robot, options, []
        robot.is_in_control = True

    def set_target(self, pose, twist):
        self.targets.append((*pose, *twist))

    def stop(self, motion):
        self.robot.join_motion(0)
        self.robot.is_in_control = False


class Hand:
    max_width = 0.08

    def __init__(self, ip):
        self.width = 0.08

    def move(self, width, speed):
        if speed > 1:
            raise ControlException("libfranka gripper: Command aborted!")
        self.width = width
        return True

    def grasp(self, width, speed, force, inner, outer):
        return inner >= 0.08 and outer >= 0.08

    @property
    def state(self):
        return types.SimpleNamespace(width=self.width, is_grasped=False)


@pytest.fixture(autouse=True)
def franky(monkeypatch):
    stand_in = types.ModuleType("franky")
    stand_in.Robot, stand_in.CartesianImpedanceTracker, stand_in.Gripper = Arm, Tracker, Hand
    stand_in.ControlException, stand_in.NetworkException = ControlException, NetworkException
    stand_in.RealtimeConfig = types.SimpleNamespace(Ignore=0)
    stand_in.Affine = stand_in.Twist = lambda a, b: (a, b)
    stand_in.PostureTask = lambda q, stiffness: (q, stiffness)
    stand_in.TorqueStopMotion = dict
    stand_in.JointState = lambda q: q
    stand_in.JointWaypoint = lambda state: state
    stand_in.JointWaypointMotion = lambda points: points[0]
    monkeypatch.setitem(sys.modules, "franky", stand_in)
    return stand_in


@pytest.fixture
def robot():
    arm = FrankyRobot("172.16.0.2")
    arm.connect()
    return arm


def test_it_keeps_the_protocol_and_says_where_it_is(robot):
    assert isinstance(robot, Robot) and isinstance(FrankyGripper("172.16.0.2"), Gripper)
    state, site = robot.state(), kinematics.grip_site(HOME)
    np.testing.assert_allclose(state.position, site.position, atol=1e-12)
    assert frames.angle_between(state.quaternion, site.quaternion) < 1e-7
    assert state.wrench[2] == -7.0 and state.t_robot == pytest.approx(robot.state().t_robot - 0.001)


@pytest.mark.parametrize(("urdf", "limits"), [('<robot name="fr3">', FR3), ('<robot name="panda">', PANDA)])
def test_limits_are_those_of_the_arm_that_is_there(monkeypatch, urdf, limits):
    monkeypatch.setattr(Arm, "urdf", urdf)
    arm = FrankyRobot("172.16.0.2")
    arm.connect()
    assert arm.limits is limits


def test_targets_are_the_end_effectors_with_its_own_velocity(robot):
    robot.configure(ControlSettings(stiffness=(900.0, 40.0), damping_ratio=0.7, nullspace_q=HOME))
    robot.start()
    options = robot.controller.options
    assert (options["translational_stiffness"], options["rotational_stiffness"]) == (900.0, 40.0)
    np.testing.assert_allclose(options["damping"], [42.0] * 3 + [1.4 * np.sqrt(40.0)] * 3)
    np.testing.assert_array_equal(options["posture_task"][0], HOME)
    site, twist = kinematics.grip_site(HOME), np.array([0.1, 0.0, -0.2, 0.0, 0.5, 0.3])
    robot.set_target(site.position, site.quaternion, twist)
    position, quaternion, linear, angular = robot.controller.targets[-1]
    lever = frames.quat_rotate(site.quaternion, np.array([0.0, 0.0, 0.0069]))
    np.testing.assert_allclose(position, site.position + lever, atol=1e-12)
    assert frames.angle_between(quaternion, site.quaternion) < 1e-7
    np.testing.assert_allclose(linear, twist[:3] + np.cross(twist[3:], lever), atol=1e-12)
    np.testing.assert_allclose(angular, twist[3:])
    with pytest.raises(ValueError, match="finite"):
        robot.set_target(site.position * np.nan, site.quaternion, twist)
    assert len(robot.controller.targets) == 1
    robot.stop()
    robot.check()


def test_control_that_dies_is_told_and_recovered_from_by_permission_only(robot):
    robot.start()
    robot.check()
    last = robot.state()
    robot.vendor.die(ControlException('motion aborted by reflex! ["cartesian_reflex"]'))
    assert robot.state() is last  # nothing is asked of a robot that may have gone
    with pytest.raises(RobotFault, match="cartesian_reflex") as caught:
        robot.check()
    assert caught.value.kind == "reflex" and caught.value.recoverable
    robot.set_target(last.position, last.quaternion, STILL)
    robot.stop()
    with pytest.raises(RobotFault):
        robot.start()
    assert "recover" not in robot.vendor.said
    assert robot.recover() and robot.vendor.said.count("recover") == 1
    robot.start()
    robot.check()
    robot.vendor.die(None)  # without a word
    with pytest.raises(RobotFault, match="by itself"):
        robot.check()


def test_joints_are_moved_within_the_limits_of_an_fr3(robot):
    goal = HOME + 0.02
    robot.move_joints(goal, 0.25)
    np.testing.assert_allclose(robot.state().q, goal)
    assert robot.vendor.relative_dynamics_factor == 0.25
    with pytest.raises(ValueError, match="limits"):
        robot.move_joints(np.array([0, 0, 0, -2.6, 0, 0.3, 0]))  # a Panda could


def test_what_is_missing_or_wrong_is_named(monkeypatch, franky):
    with pytest.raises(DeploymentError, match=r"server version is 5, franky-control speaks 10.*panda-python"):
        FrankyRobot("10.0.0.5").connect()
    del franky.CartesianImpedanceTracker
    with pytest.raises(DeploymentError, match="2 or later"):
        FrankyRobot("172.16.0.2")
    monkeypatch.setitem(sys.modules, "franky", None)
    with pytest.raises(DeploymentError, match="fr3"):
        FrankyRobot("172.16.0.2")


def test_the_gripper():
    hand = FrankyGripper("172.16.0.2")
    hand.goto(1.0, 0.1)
    assert hand.state().width == 0.08 and hand.grasp(20.0, 0.1)
    hand.goto(0.03, 0.1)
    assert hand.state().width == 0.03
    hand.goto(0.05, 2.0)  # another command ended it: no fault
    with pytest.raises(ValueError, match="width"):
        hand.goto(float("nan"), 0.1)
