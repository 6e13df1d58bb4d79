"""Gymnasium's planar robots (hopper, walker2d, halfcheetah) as a family of the engine: torques in, and run.

Everything is Gymnasium's ``-v4`` or, where asked for, ``-v5``: model, torques, frame skip, reset noise, observation,
reward, termination. ``gymnasium.make("Hopper-v4").reset(seed=s)`` begins in exactly the state of our episode ``s``, and
the same actions lead to the same states (``tests/env/test_gym_parity.py``). What v5 changes for these three: the right
foot of walker2d grips like its left one, and a step that ends an episode earns no ``healthy_reward``. Gymnasium's time
limit is the engine's ``max_episode_steps``: it truncates, it does not terminate.

Observation: ``position`` (the joints' coordinates but for x: m, rad), ``velocity`` (of all joints: m/s, rad/s; clipped
to +-10 for hopper and walker2d). Action: a motor's share of its torque each, [-1, 1]; beyond that the physics clips, the
cost does not. Reward per control step: speed in x (m/s) + ``healthy_reward`` - cost of control. A control step that
leaves the healthy range ends the episode, also in the middle of a chunk. There is no success: returns are what counts.

The models are files of the ``gymnasium`` package (they come with it, without an extra).
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import mujoco
import numpy as np

from env.engine.family import Family
from env.engine.library import (
    CTRL,
    DATA,
    MODEL,
    N_HANDLES,
    QPOS,
    QVEL,
    TERMINATED,
    begin_kernel,
    control_kernel,
    floats,
    integers,
    mj_forward,
    mj_step,
    observe_kernel,
)
from env.errors import EnvError, MissingSimulatorError

VERSIONS = ("v4", "v5")
# A robot is one kinematic tree: looking for the islands of its constraints finds all of them, changes no bit and costs a
# tenth of the time. Releases of mujoco that do not know the flag do not look.
NO_ISLANDS = int(getattr(mujoco.mjtDisableBit, "mjDSBL_ISLAND", 0))
WIDER = 25  # how much the floor of videos is larger than Gymnasium's 80 m
STABLE_LIMIT = 1e6  # m, rad, m/s, rad/s: nothing that Gymnasium would go on with may be cut
FRAME_SKIP, NV, NU, UNHEALTHY_EARNS, N_IDS = range(5)  # ids
(LIMIT, DT, CONTROL_COST, HEALTHY_REWARD, Z_MIN, Z_MAX, ANGLE_MIN, ANGLE_MAX, STATE_MAX, VELOCITY_MAX, N_FACTS) = range(
    11
)  # facts


@control_kernel(__file__)
def _control(handles, memory, ids, facts, action, reward):
    h, numbers, known = integers(handles, N_HANDLES), integers(ids, N_IDS), floats(facts, N_FACTS)
    n = numbers[NV]  # hinges and slides only: as many coordinates as velocities
    qpos, qvel = floats(h[QPOS], n), floats(h[QVEL], n)
    torque, control, cost = floats(action, numbers[NU]), floats(h[CTRL], numbers[NU]), 0.0
    for i in range(numbers[NU]):
        control[i] = torque[i]
        cost += torque[i] * torque[i]
    before = qpos[0]
    for _ in range(numbers[FRAME_SKIP]):
        mj_step(h[MODEL], h[DATA])
    healthy = known[Z_MIN] < qpos[1] < known[Z_MAX] and known[ANGLE_MIN] < qpos[2] < known[ANGLE_MAX]
    for i in range(n):
        healthy &= abs(qvel[i]) < known[STATE_MAX] and (i < 2 or abs(qpos[i]) < known[STATE_MAX])
    earned = (qpos[0] - before) / known[DT]
    if healthy or numbers[UNHEALTHY_EARNS]:
        earned += known[HEALTHY_REWARD]
    floats(reward, 1)[0] = earned - known[CONTROL_COST] * cost
    return 0 if healthy else TERMINATED


@observe_kernel(__file__)
def _observe(handles, memory, ids, facts, obs):
    h, numbers, known = integers(handles, N_HANDLES), integers(ids, N_IDS), floats(facts, N_FACTS)
    n = numbers[NV]
    qpos, qvel, out = floats(h[QPOS], n), floats(h[QVEL], n), floats(obs, 2 * n - 1)
    limit = known[VELOCITY_MAX]
    for i in range(1, n):
        out[i - 1] = qpos[i]
    for i in range(n):
        out[n - 1 + i] = min(max(qvel[i], -limit), limit)


@begin_kernel(__file__)
def _begin(handles, memory, ids, facts, start):
    h, n = integers(handles, N_HANDLES), integers(ids, N_IDS)[NV]
    qpos, qvel, noise = floats(h[QPOS], n), floats(h[QVEL], n), floats(start, 2 * n)
    for i in range(n):
        qpos[i] += noise[i]
        qvel[i] += noise[n + i]
    mj_forward(h[MODEL], h[DATA])


@dataclass(frozen=True)
class Body:
    """What Gymnasium says of one robot; ranges are open intervals."""

    models: tuple[str, str]  # files of v4 and v5
    frame_skip: int  # physics steps per control step
    control_cost: float  # per squared unit of action
    reset_noise: float  # m, rad, m/s, rad/s
    normal_velocities: bool = False  # whether initial velocities are Gaussian (else uniform)
    healthy_reward: float = 0.0
    height: tuple[float, float] = (-math.inf, math.inf)  # m
    angle: tuple[float, float] = (-math.inf, math.inf)  # rad, of the torso
    state: float = math.inf  # m, rad, m/s, rad/s: of everything but x and z
    velocity: float = math.inf  # m/s, rad/s: where observed velocities are clipped


BODIES = {
    "hopper": Body(
        models=("hopper.xml", "hopper.xml"), frame_skip=4, control_cost=1e-3, reset_noise=5e-3, healthy_reward=1.0,
        height=(0.7, math.inf), angle=(-0.2, 0.2), state=100.0, velocity=10.0,
    ),
    "walker2d": Body(
        models=("walker2d.xml", "walker2d_v5.xml"), frame_skip=4, control_cost=1e-3, reset_noise=5e-3,
        healthy_reward=1.0, height=(0.8, 2.0), angle=(-1.0, 1.0), velocity=10.0,
    ),
    "halfcheetah": Body(
        models=("half_cheetah.xml", "half_cheetah.xml"), frame_skip=5, control_cost=0.1, reset_noise=0.1,
        normal_velocities=True,
    ),
}  # fmt: skip


class Locomotion(Family):
    """One of ``BODIES`` in Gymnasium's version ``version`` ("v4" or "v5"); see the module docstring.

    Raises:
        EnvError: an unknown body or version.
        MissingSimulatorError: Gymnasium's model is not where its package keeps it.
    """

    control_kernel, observe_kernel, begin_kernel = _control, _observe, _begin
    solvable: ClassVar[bool] = False  # what counts is the return
    camera: ClassVar[str] = "track"  # for videos, as the following
    visual_geoms: ClassVar[tuple[int, ...]] = (0,)

    def __init__(self, body: str, version: str = "v4") -> None:
        if body not in BODIES:
            raise EnvError(f"unknown robot {body!r}: expected one of {', '.join(BODIES)}")
        if version not in VERSIONS:
            raise EnvError(f"env.version: expected {' or '.join(VERSIONS)} (Gymnasium's), found {version!r}")
        self._body = known = BODIES[body]
        self._path = _asset(known.models[VERSIONS.index(version)])
        self.name = f"{body}-{version}"
        self.model = model = mujoco.MjModel.from_xml_path(self._path)
        model.opt.disableflags |= NO_ISLANDS
        self.action_dim, n = model.nu, model.nv
        self.layout = {"position": slice(0, n - 1), "velocity": slice(n - 1, 2 * n - 1)}
        self.ids = np.array([known.frame_skip, n, model.nu, version == "v4"], np.int64)
        dt = model.opt.timestep * known.frame_skip
        self.control_hz = round(1.0 / dt)
        self.facts = np.array([
            STABLE_LIMIT, dt, known.control_cost, known.healthy_reward, *known.height, *known.angle, known.state,
            known.velocity,
        ])  # fmt: skip

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Noise on coordinates and velocities (2 nv,), in Gymnasium's order from Gymnasium's generator."""
        scale, n = self._body.reset_noise, self.model.nv
        if self._body.normal_velocities:
            return np.concatenate([rng.uniform(-scale, scale, n), scale * rng.standard_normal(n)])
        return rng.uniform(-scale, scale, 2 * n)

    def render_model(self) -> mujoco.MjModel:
        """See ``Family.render_model``: nothing is hidden, and the floor is drawn wider (HalfCheetah runs off Gymnasium's)."""
        model = mujoco.MjModel.from_xml_path(self._path)
        floor = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
        model.geom_size[floor, :2] *= WIDER
        model.mat_texrepeat[model.geom_matid[floor]] *= WIDER  # the pattern keeps its size
        return model


def _asset(name: str) -> str:
    """Path of a model of the installed ``gymnasium`` package, which need not be imported for it."""
    spec = importlib.util.find_spec("gymnasium")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "envs", "mujoco", "assets", name)
        if path.is_file():
            return str(path)
    raise MissingSimulatorError(f"gymnasium >= 1.0 with its model {name} is not installed. Run: pip install gymnasium")
