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

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


def make_reference_lift(seed: int | None = None, lite_physics: bool = True) -> Any:
    """robosuite's own Lift, set up as the engine reproduces it. Right after construction it is in our episode
    ``seed``.
    """
    return suite.make_suite_env("Lift", ["Panda"], seed=seed, lite_physics=lite_physics)


def start_of(suite_env: Any, lift: Lift) -> np.ndarray:
    """``Lift.draw`` of the episode robosuite has just begun, exact but for rounding in the cube's yaw."""
    qpos, at = suite_env.sim.data._data.qpos, lift.ids[-1]
    cube = qpos[suite_env.sim.model._model.jnt_qposadr[suite_env.sim.model._model.body_jntadr[at]] :][:7]
    joints = suite_env.robots[0].part_controllers["right"].initial_joint
    return np.array([*suite_env.cube.size, *joints, *cube[:2], 2.0 * np.arctan2(cube[6], cube[3]) % (2 * np.pi)])


def bind(suite_env: Any, lift: Lift, n: int = 1, n_threads: int = 1) -> Simulations:
    """``n`` engine simulations at the exact state of the episode robosuite has just begun."""
    simulations = Simulations(lift, n, n_threads=n_threads)
    simulations.begin(range(n), np.tile(start_of(suite_env, lift), (n, 1)))
    for i in range(n):
        simulations.data[i].qpos[:] = suite_env.sim.data._data.qpos
        mujoco.mj_forward(simulations.models[i], simulations.data[i])
        simulations.observe(i)
    return simulations


def resynchronise(simulations: Simulations, i: int, suite_env: Any) -> None:
    """Put simulation ``i``, bound to the same episode, into robosuite's present state, controllers included."""
    model, data = suite_env.sim.model._model, suite_env.sim.data._data
    state = np.zeros(mujoco.mj_stateSize(model, _STATE))
    mujoco.mj_getState(model, data, state, _STATE)
    mujoco.mj_setState(simulations.models[i], simulations.data[i], state, _STATE)
    own = simulations.memory[i, 1:]
    own[osc.GRIPPER : osc.GRIPPER + 2] = suite_env.robots[0].gripper["right"].current_action


def advance(simulations: Simulations, actions: np.ndarray) -> np.ndarray:
    """Run all simulations through ``actions (T, 7)``; rewards summed, (n,)."""
    n = simulations.n
    return simulations.run(np.arange(n), np.tile(actions, (n, 1, 1)), np.full(n, len(actions))).reward


def observation(suite_obs: dict[str, np.ndarray]) -> np.ndarray:
    """robosuite 1.5's observation as ours (19,): its keys in our order, and 1.4's sign of gripper minus cube."""
    keys = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "cube_pos", "cube_quat")
    return np.concatenate([*(suite_obs[key] for key in keys), -suite_obs["gripper_to_cube_pos"]])


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
