"""What renderers are compared on: scenes of all task families along an episode, and MuJoCo as it renders by itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from env.engine.camera_renderer import QUALITIES, Appearance, Renderer
from env.engine.cameras import CameraPool, pose_of
from env.registry import EXPERTS, family, make_vector_env
from env.robomimic.env_meta import TASKS

MOMENTS = {
    "lift": 40,
    "can": 60,
    "square": 60,
    "transport": 120,
}  # control step that is shown, of an episode of the expert
OTHERS = {
    "hopper-v2": 30,
    "walker2d-v2": 30,
    "halfcheetah-v2": 60,
    "avoiding": 60,
}  # of random motion; no policy looks at them
STATES = 12  # of an episode
SIZE, LARGE = 96, 192  # pixels: of what policies see, of what people see


@dataclass(frozen=True)
class Scene:
    """``model`` through ``cameras`` (ids), bodies at ``poses (T, nbody, 7)``; geoms of ``groups`` are seen."""

    task: str
    model: mujoco.MjModel
    cameras: Sequence[int]
    size: int
    groups: Sequence[int]
    poses: np.ndarray
    looks: Appearance

    def blank(self) -> np.ndarray:
        """Room for the images of all states: (T, 3 M, H, W)."""
        return np.zeros((len(self.poses), 3 * len(self.cameras), self.size, self.size), np.uint8)


def episode(task: str, seed: int = 4) -> tuple[list[mujoco.MjData], np.ndarray]:
    """``STATES`` simulations on the way to the moment that is shown, which comes last, and the episode's draw."""
    venv = make_vector_env({"name": task, "n_envs": 1, "act_steps": 1, "max_episode_steps": 10**6, "n_threads": 1})
    try:
        obs, steps, rng = venv.reset([seed]), {**MOMENTS, **OTHERS}[task], np.random.default_rng(seed)
        expert = EXPERTS[task].make(1, rng, noise=0.0, retry=True) if task in EXPERTS else None
        keep, seen = set(np.linspace(0, steps, STATES).astype(int).tolist()), []
        for t in range(steps + 1):
            if t in keep:
                seen.append(copy.copy(venv.simulations.data[0]))
            action = expert.act(obs["state"][:, -1]) if expert else rng.uniform(-1, 1, (1, venv.action_dim))
            obs = venv.step(action[:, None]).obs
        return seen, venv.starts()[0]
    finally:
        venv.close()


def scene_of(task: str) -> Scene:
    """Of ``MOMENTS`` as its policies see it, of ``OTHERS`` as its videos show it."""
    seen, start = episode(task)
    if task in MOMENTS:
        pool = CameraPool(family(task), TASKS[task].cameras, (SIZE, SIZE), "faithful", 1, "native")
        poses, looks = np.stack([pose_of(data) for data in seen]), pool.appearance(start)
        return Scene(task, pool.model, pool.cameras, SIZE, (1, 2), poses, looks)
    venv = make_vector_env({"name": task, "n_envs": 1, "act_steps": 1, "max_episode_steps": 1, "n_threads": 1})
    kind, model = venv.family, venv.family.render_model()
    venv.close()
    poses = np.stack([_pose_at(model, data.qpos) for data in seen])
    return Scene(task, model, [model.camera(kind.camera).id], LARGE, kind.visual_geoms, poses, ())


def _pose_at(model: mujoco.MjModel, qpos: np.ndarray) -> np.ndarray:
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    return pose_of(data)


class Mujoco(Renderer):
    """MuJoCo's default rendering: all geoms, whether they show or not, the floor's reflection, shadows, four samples."""

    def __init__(self, scene: Scene, backend: str) -> None:
        model = copy.copy(scene.model)
        model.geom_group[:] = np.where(np.isin(model.geom_group, scene.groups), 1, 3)
        super().__init__(model, list(scene.cameras), (scene.size, scene.size), QUALITIES["faithful"], backend)

    def _look(self, camera: int) -> None:
        self._camera.fixedcamid = camera
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 1
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of grey images, windows of 7 x 7: (K, 3, H, W)."""
    windows = [
        np.lib.stride_tricks.sliding_window_view(x.astype(np.float64).mean(axis=1), (7, 7), axis=(1, 2)) for x in (a, b)
    ]
    ma, mb = (w.mean(axis=(-2, -1)) for w in windows)
    va, vb = (w.var(axis=(-2, -1)) for w in windows)
    covariance = (windows[0] * windows[1]).mean(axis=(-2, -1)) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float((((2 * ma * mb + c1) * (2 * covariance + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())
