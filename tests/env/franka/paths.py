"""A policy's actions in robosuite, and through a driver: what both make of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from env.franka import dynamics, frames
from env.franka.reference import Caps, Reference, ReferenceSettings
from env.franka.types import Robot

TICK, SERVO = 0.05, 0.004  # s
FREE = ReferenceSettings(caps=Caps())


def moves(seed: int, steps: int) -> np.ndarray:
    """(T, 6): sums of three sines along each axis and about the vertical one; speeds up to a robot's in a demonstration."""
    rng, t = np.random.default_rng(seed), TICK * np.arange(steps)[:, None, None]
    f, phase, size = rng.uniform(0.2, 0.8, (6, 3)), rng.uniform(0, 2 * np.pi, (6, 3)), rng.uniform(0.05, 0.2, (6, 3))
    return (size * np.sin(2 * np.pi * f * t + phase)).sum(-1) * np.array([1, 1, 1, 0, 0, 0.3])


def suite_path(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints (7,) at the start, and the grip site's positions (T, 3) and quaternions (T, 4) after each action; base frame."""
    from env.robomimic.reference import make_reference_lift

    suite = make_reference_lift(0)
    suite.reset()
    start, seen = suite.sim.data._data.qpos[:7].copy(), []
    for a in actions:
        now, *_ = suite.step(np.r_[a, -1.0])
        seen.append((now["robot0_eef_pos"], now["robot0_eef_quat"]))
    base = frames.SUITE_BASE.inverse()
    return start, np.array([base.point(x) for x, _ in seen]), np.array([base.orientation(q) for _, q in seen])


def stream(robot: Robot, actions: np.ndarray, wait: Callable[[float], None]) -> tuple[np.ndarray, np.ndarray]:
    """Follow ``actions`` as a deployment does: 20 Hz into the reference model, its pose at 250 Hz to the robot, which is in control.

    ``wait(seconds)`` lets so much time pass. Measured positions (T, 3) and quaternions (T, 4) after each action.
    """
    state, t, seen = robot.state(), 0.0, []
    reference, suite = Reference(state.position, state.quaternion, FREE), dynamics.SuiteArm(state.q)
    for k, action in enumerate(actions):
        pose = reference.position, reference.quaternion, reference.twist
        reference.couple(*suite.update(*pose, TICK if k else 0.0))
        reference.aim(*reference.goal_of(action))
        while t < (k + 1) * TICK - 1e-9:
            reference.advance(SERVO)
            robot.set_target(reference.position, reference.quaternion, reference.twist)
            wait(SERVO)
            t += SERVO
        robot.check()
        state = robot.state()
        seen.append((state.position, state.quaternion))
    return np.array([x for x, _ in seen]), np.array([q for _, q in seen])


def apart(measured: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Millimetres and degrees between two paths."""
    mm = 1e3 * np.linalg.norm(measured[0] - expected[0], axis=1)
    degrees = np.degrees(frames.angle_between(measured[1], expected[1]))
    return {"mean_mm": mm.mean(), "max_mm": mm.max(), "mean_degrees": degrees.mean(), "max_degrees": degrees.max()}
