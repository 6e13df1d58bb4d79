"""robosuite and the engine side by side: for parity tests, and for the yardsticks of ``script/benchmark.py``."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from env.engine import osc
from env.engine.driver import replay_controls
from env.engine.library import handles_of
from env.engine.pool import Simulations
from env.robomimic import suite
from env.robomimic.lift import Lift
from env.robomimic.task import SuiteTask

_ARM = ("eef_pos", "eef_quat", "gripper_qpos")


def make_reference(task: SuiteTask | type[SuiteTask], seed: int | None = None, lite_physics: bool = True) -> Any:
    """robosuite's own task, set up as the engine reproduces it. Right after construction it is in our episode ``seed``."""
    return suite.make_suite_env(task.suite_task, task.robots, seed=seed, lite_physics=lite_physics)


def make_reference_lift(seed: int | None = None, lite_physics: bool = True) -> Any:
    """``make_reference`` of Lift."""
    return make_reference(Lift, seed, lite_physics)


def bind(suite_env: Any, task: SuiteTask, n: int = 1, n_threads: int = 1) -> Simulations:
    """``n`` engine simulations at the exact state of the episode robosuite has just begun."""
    simulations = Simulations(task, n, n_threads=n_threads)
    simulations.begin(range(n), np.tile(task.start_of(suite_env), (n, 1)))
    return simulations


def shared_state(model: mujoco.MjModel, whole: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Where the coordinates and the velocities of ``model`` are in ``whole``, which may have more bodies: by joint."""
    qpos, qvel = [], []
    for j in range(model.njnt):
        name = model.joint(j).name
        width, speeds = {0: (7, 6), 1: (4, 3)}.get(int(model.jnt_type[j]), (1, 1))
        there = whole.joint(name)
        qpos += range(int(there.qposadr[0]), int(there.qposadr[0]) + width)
        qvel += range(int(there.dofadr[0]), int(there.dofadr[0]) + speeds)
    return np.array(qpos), np.array(qvel)


def coordinates(suite_env: Any, model: mujoco.MjModel) -> np.ndarray:
    """robosuite's present coordinates of the joints that ``model`` has: (nq,)."""
    return suite_env.sim.data._data.qpos[shared_state(model, suite_env.sim.model._model)[0]]


def resynchronise(simulations: Simulations, i: int, suite_env: Any) -> None:
    """Put simulation ``i``, bound to the same episode, into robosuite's present state, controllers included."""
    data, own = suite_env.sim.data._data, simulations.data[i]
    qpos, qvel = shared_state(simulations.models[i], suite_env.sim.model._model)
    own.time = data.time
    own.qpos[:], own.qvel[:] = data.qpos[qpos], data.qvel[qvel]
    own.qacc_warmstart[:], own.ctrl[:] = data.qacc_warmstart[qvel], data.ctrl
    for arm, robot in enumerate(suite_env.robots):
        memory = simulations.memory[i, 1 + osc.N_ARM_MEMORY * arm :]
        memory[osc.GRIPPER : osc.GRIPPER + 2] = robot.gripper["right"].current_action


def advance(simulations: Simulations, actions: np.ndarray) -> np.ndarray:
    """Run all simulations through ``actions (T, 7)``; rewards summed, (n,)."""
    n = simulations.n
    return simulations.run(np.arange(n), np.tile(actions, (n, 1, 1)), np.full(n, len(actions))).reward


def observation(suite_obs: dict[str, np.ndarray], task: str = "lift") -> np.ndarray:
    """robosuite 1.5's observation as ours: its keys in our order, with robosuite 1.4's meaning (see the tasks)."""
    arms = [suite_obs[f"robot{i}_{key}"] for i in range(1 + (task == "transport")) for key in _ARM]
    if task == "lift":
        return np.concatenate([*arms, suite_obs["cube_pos"], suite_obs["cube_quat"], -suite_obs["gripper_to_cube_pos"]])
    if task == "transport":
        return np.concatenate([*arms, suite_obs["object-state"]])
    from robosuite.utils import transform_utils as transform

    thing = {"can": "Can", "square": "SquareNut"}[task]
    position, quaternion = suite_obs[f"{thing}_pos"], suite_obs[f"{thing}_quat"]
    gripper = transform.pose_inv(transform.pose2mat((suite_obs["robot0_eef_pos"], suite_obs["robot0_eef_quat"])))
    pose = transform.pose_in_A_to_pose_in_B(transform.pose2mat((position, quaternion)), gripper)
    return np.concatenate([*arms, position, quaternion, *transform.mat2pose(pose)])


def record_controls(suite_env: Any, actions: np.ndarray) -> np.ndarray:
    """Actuator controls of every physics substep while robosuite executes ``actions (T, 7)``: (T * substeps, nu)."""
    log = []
    for action in actions:
        for k in range(int(suite_env.control_timestep / suite_env.model_timestep)):
            suite_env.sim.step1()
            suite_env._pre_action(action, k == 0)
            log.append(suite_env.sim.data._data.ctrl.copy())
            suite_env.sim.step2()
    return np.array(log)


def replay(simulations: Simulations, i: int, controls: np.ndarray) -> None:
    """Raw ``mj_step`` of simulation ``i``'s model under recorded ``controls``: what the engine's speed is measured
    against.
    """
    replay_controls(handles_of(simulations.models[i], simulations.data[i]), np.require(controls, np.float64, "CW"))


def smooth_actions(rng: np.random.Generator, n: int, amplitude: float = 1.0) -> np.ndarray:
    """Random but coherent motion (n, 7): an autoregressive walk, clipped a little beyond [-1, 1]."""
    x, out = np.zeros(7), np.zeros((n, 7))
    for t in range(n):
        x = 0.9 * x + 0.45 * rng.standard_normal(7)
        out[t] = np.clip(amplitude * x, -1.2, 1.2)
    return out


def scripted_grasp(obs: np.ndarray, t: int) -> np.ndarray:
    """Action (7,) of a plain grasp-and-lift at control step ``t`` of 70: hover, go down, close, lift."""
    action, to_cube = np.zeros(7), -obs[16:19]
    if t < 30:
        target = np.array([to_cube[0], to_cube[1], to_cube[2] + (0.08 if t < 15 else 0.0)])
        action[:3], action[6] = np.clip(10.0 * target, -1.0, 1.0), -1.0
    else:
        action[2], action[6] = 0.6 * (t >= 40), 1.0
    return action
