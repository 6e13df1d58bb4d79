"""The observation that a deployment builds is the one of training: from the twin's state alone, for all tasks with one arm."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from env.franka.frames import SUITE_BASE, Transform, exp_quat, quat_multiply
from env.franka.observation import STATE_KEYS, ObservationBuilder, ObservationSpec
from env.franka.types import DeploymentError, Frame, GripperState, RobotState
from env.normalizer import Normalizer

RNG = np.random.default_rng(5)
POSE = (np.array([0.5, 0.1, -0.08]), np.array([0.0, 0.0, 0.6, 0.8]))


def normalizer(n, k=7):
    low = RNG.uniform(-2, -1, n)
    return Normalizer(low, low + RNG.uniform(1, 3, n), -np.ones(k), np.ones(k))


def state(position=(0.4, 0.0, 0.1), quaternion=(1.0, 0.0, 0.0, 0.0), t=3.0):
    return RobotState(t, t, np.zeros(7), np.zeros(7), np.array(position), np.array(quaternion), np.zeros(6))


@pytest.mark.robomimic
@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_every_key_is_training_s(task):
    pytest.importorskip("robosuite")
    from env.franka.clock import VirtualClock
    from env.franka.robot_mujoco import MujocoRobot

    robot = MujocoRobot(VirtualClock(), task, law="osc")
    sizes = {
        "robot0_eef_pos": 3,
        "robot0_eef_quat": 4,
        "robot0_gripper_qpos": 2,
        "object": 10 if task == "lift" else 14,
    }
    scale = normalizer(sum(sizes.values()))
    builder = ObservationBuilder(ObservationSpec(task, STATE_KEYS), scale, robot.world, robot.object_pose)
    for seed in (3, 2000001):
        robot.reset(seed)
        builder.reset()
        for k in range(17):
            seen, expected = builder.build(robot.state(), robot.gripper.state(), {}), robot.observe()
            assert list(expected) == list(STATE_KEYS)
            for key, size in sizes.items():
                assert seen.raw[key].shape == (size,)
                mine, its = seen.raw[key], expected[key]
                if key == "robot0_gripper_qpos":  # a real hand says how far its fingers are apart, not where each is
                    assert mine[0] == -mine[1]
                    mine, its = np.diff(mine), np.diff(its)
                np.testing.assert_allclose(mine, its, rtol=0, atol=1e-9, err_msg=f"{k} {key}")
            columns = np.concatenate([seen.raw[key] for key in STATE_KEYS])
            np.testing.assert_array_equal(seen.values["state"], scale.normalize_obs(columns)[None])
            robot.act(np.concatenate([RNG.uniform(-1, 1, 6), [-1.0]]))


def test_signs_of_an_episode_begin_as_in_training_and_never_jump():
    spec = ObservationSpec("lift", STATE_KEYS)
    poses = []
    builder = ObservationBuilder(spec, normalizer(19), SUITE_BASE, lambda: poses[-1])
    q = np.array([0.99, 0.1, -0.05, -0.02])
    q /= np.linalg.norm(q)
    for episode in (1.0, -1.0):  # what the robot and the estimator say: either sign, at will
        builder.reset()
        for sign in (episode, 1.0, -1.0, -1.0):
            poses.append((POSE[0], -sign * POSE[1]))
            seen = builder.build(state(quaternion=sign * q), GripperState(3.0, 0.04), {}).raw
            np.testing.assert_allclose(seen["robot0_eef_quat"], q)
            np.testing.assert_allclose(seen["object"][3:7], POSE[1])
            np.testing.assert_allclose(seen["object"][7:], seen["robot0_eef_pos"] - seen["object"][:3])
    turned = [exp_quat(np.array([0.0, 0.0, a])) for a in np.arange(0.3, 7.0, 0.5)]
    builder.reset()
    seen = []
    for r in turned:  # more than a full turn of the object: its sign follows, past z = 0
        poses.append((POSE[0], r))
        seen.append(builder.build(state(), GripperState(3.0, 0.04), {}).raw["object"][3:7])
    assert (np.einsum("ij,ij->i", seen[1:], seen[:-1]) > 0.9).all() and seen[-1][2] < 0


def test_the_base_s_place_in_the_world_is_applied_to_all_of_it():
    yaw = np.array([0.0, 0.0, np.sin(0.35), np.cos(0.35)])
    world = Transform(np.array([-0.5, 0.2, 0.9]), yaw)
    at_home = ObservationBuilder(ObservationSpec("can", STATE_KEYS), normalizer(23), SUITE_BASE, lambda: POSE)
    moved = ObservationBuilder(ObservationSpec("can", STATE_KEYS), normalizer(23), world, lambda: POSE)
    q = np.array([0.97, 0.2, 0.1, 0.05])
    q /= np.linalg.norm(q)
    a, b = (builder.build(state((0.4, 0.1, 0.2), q), GripperState(0.0, 0.031), {}).raw for builder in (at_home, moved))
    np.testing.assert_allclose(b["robot0_eef_quat"], quat_multiply(yaw, q), atol=1e-12)
    np.testing.assert_allclose(b["robot0_eef_pos"][:2], world.point(np.array([0.4, 0.1, 0.2]))[:2])
    np.testing.assert_allclose(a["object"][7:], b["object"][7:], atol=1e-12)  # in the gripper's frame nothing changes
    np.testing.assert_allclose(a["robot0_gripper_qpos"], [0.0155, -0.0155])


def test_history_is_padded_with_the_earliest_and_images_go_through_their_fit():
    spec = ObservationSpec("lift", STATE_KEYS[:3], ("left", "right"), (3, 5), state_steps=3, image_steps=2)
    scale = normalizer(9)
    builder = ObservationBuilder(spec, scale, fit={"right": lambda image: image[::2, ::2]})
    seen = []
    for k in range(4):
        left, right = np.full((3, 5, 3), k, np.uint8), RNG.integers(0, 255, (6, 10, 3), np.uint8)
        frames = {"left": Frame(left, 2.9, k), "right": Frame(right, 2.6, k), "other": Frame(left, 0.0, k)}
        seen.append(builder.build(state((0.1 * k, 0, 0)), GripperState(3.0, 0.02), frames))
    x = [scale.unnormalize_obs(s.values["state"])[:, 0] + 0.56 for s in seen]
    np.testing.assert_allclose(x, [[0, 0, 0], [0, 0, 0.1], [0, 0.1, 0.2], [0.1, 0.2, 0.3]], atol=1e-5)
    assert seen[-1].values["rgb"].shape == (2, 6, 3, 5) and seen[-1].values["rgb"].dtype == np.uint8
    assert seen[-1].values["rgb"][:, 0].max(axis=(1, 2)).tolist() == [2, 3]
    np.testing.assert_array_equal(seen[-1].values["rgb"][-1, 3:].transpose(1, 2, 0), right[::2, ::2])
    np.testing.assert_array_equal(seen[-1].raw["right_image"], right[::2, ::2])
    assert seen[-1].camera_age == pytest.approx(0.4) and seen[0].values["rgb"][0].shape == (6, 3, 5)
    builder.reset()
    again = builder.build(state((0.7, 0, 0)), GripperState(3.0, 0.02), frames)
    assert np.ptp(again.values["state"], axis=0).max() == 0.0


def test_what_is_refused():
    spec = ObservationSpec("lift", STATE_KEYS)
    with pytest.raises(DeploymentError, match="object_pose=<package"):
        ObservationBuilder(spec, normalizer(19))
    with pytest.raises(DeploymentError, match=r"18 observation columns.*have 19"):
        ObservationBuilder(spec, normalizer(18), object_pose=lambda: POSE)
    with pytest.raises(DeploymentError, match="robot1_eef_pos"):
        ObservationBuilder(dataclasses.replace(spec, low_dim_keys=("robot1_eef_pos",)), normalizer(3))
    seeing = ObservationBuilder(ObservationSpec("lift", STATE_KEYS[:3], ("wrist",), (3, 5)), normalizer(9))
    with pytest.raises(DeploymentError, match="'wrist', which has no picture"):
        seeing.build(state(), GripperState(0.0, 0.02), {})
    with pytest.raises(DeploymentError, match=r"\(3, 5\).*\(5, 3, 3\)"):
        seeing.build(state(), GripperState(0.0, 0.02), {"wrist": Frame(np.zeros((5, 3, 3), np.uint8), 0.0, 0)})
    with pytest.raises(DeploymentError, match="gripper"):
        seeing.build(state(), None, {})
