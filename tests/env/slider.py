"""The smallest family of the engine, for its tests: a mass on a rail with a motor and an integrating controller.

Observation: ``position`` (m), ``motion`` (velocity in m/s, the controller's accumulated action). Reward: the
position. Solved beyond 0.5 m, terminated beyond 1 m. Every episode draws its position and the mass.
"""

from __future__ import annotations

import mujoco
import numpy as np

from env.engine.library import (
    CTRL,
    DATA,
    MODEL,
    N_HANDLES,
    QPOS,
    QVEL,
    SOLVED,
    TERMINATED,
    control_kernel,
    floats,
    integers,
    mj_step,
    observe_kernel,
)

_XML = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <body name="mass">
      <joint name="rail" type="slide" axis="1 0 0" damping="0.3"/>
      <geom name="ball" type="sphere" size="0.1" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="rail"/></actuator>
</mujoco>
"""


@control_kernel(__file__)
def _control(handles, memory, ids, facts, action, reward):
    h = integers(handles, N_HANDLES)
    total = floats(memory, 1)
    total[0] += floats(action, 1)[0]
    floats(h[CTRL], 1)[0] = total[0]
    for _ in range(integers(ids, 1)[0]):
        mj_step(h[MODEL], h[DATA])
    x = floats(h[QPOS], 1)[0]
    floats(reward, 1)[0] = x
    return (SOLVED if x > floats(facts, 3)[1] else 0) + (TERMINATED if x > floats(facts, 3)[2] else 0)


@observe_kernel(__file__)
def _observe(handles, memory, ids, facts, obs):
    h, out = integers(handles, N_HANDLES), floats(obs, 3)
    out[0], out[1], out[2] = floats(h[QPOS], 1)[0], floats(h[QVEL], 1)[0], floats(memory, 1)[0]


class Slider:
    """A ``Family``; ``ends`` lowers or raises the position (m) that terminates an episode."""

    name, action_dim, memory_size, own_models = "slider", 1, 1, True
    control_kernel, observe_kernel = _control, _observe
    layout = {"position": slice(0, 1), "motion": slice(1, 3)}

    def __init__(self, ends: float = 1.0) -> None:
        self.model = mujoco.MjModel.from_xml_string(_XML)
        self.ids, self.facts = np.array([5]), np.array([1e4, 0.5, ends])

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.uniform(-0.2, 0.2), rng.uniform(0.5, 2.0)])

    def patch(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray) -> None:
        model.body_mass[1] = start[1]
        mujoco.mj_setConst(model, data)

    def begin(self, model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray, memory: np.ndarray) -> None:
        data.qpos[0] = start[0]
        memory[0] = 0.0
        mujoco.mj_forward(model, data)

    def render_model(self) -> mujoco.MjModel:
        return mujoco.MjModel.from_xml_string(_XML)
