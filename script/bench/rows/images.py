"""Simulation speed with camera images: our engine, which draws once per chunk, against robosuite, which draws every control step."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from script.bench.measure import Contestant, Figure, compare
from script.bench.registry import Context, UnavailableError, benchmark

ACT_STEPS = 4
N_SIMULATIONS = 16
CONTROL_STEPS = {"lift": 72, "can": 48, "square": 48, "transport": 24}  # of one turn
BARS = {("lift", "faithful"): 10.0, ("lift", "balanced"): 25.0}
WAYS = (("faithful", "gl"), ("balanced", "gl"), ("fast", "gl"), ("balanced", "native"))  # quality and renderer


@benchmark(
    "images",
    "control steps/s with 96 x 96 images at act_steps 4, all four tasks, against robosuite in AsyncVectorEnv rendering every step",
    repeats=5,
)
def images_against_robosuite(context: Context) -> Iterator[Figure]:
    """Both go through motions of the scripted experts, ours with 16 simulations, robosuite with one per core."""
    from env.engine.camera_gl import choose_backend
    from env.video import RenderError

    try:
        backend = choose_backend()
    except RenderError as error:
        raise UnavailableError(str(error)) from error
    os.environ.setdefault("MUJOCO_GL", backend)  # for the workers; LP_NUM_THREADS=0, which helps them too, is set
    for task, steps in CONTROL_STEPS.items():
        yield from _task(context, task, max(ACT_STEPS, round(steps * context.scale) // ACT_STEPS * ACT_STEPS))


def _task(context: Context, task: str, steps: int) -> Iterator[Figure]:
    chunks = record_motion(task, steps, context.seed)
    theirs = RobosuiteSide(task, chunks, context.cores)
    ours = {way: EngineSide(task, chunks, *way, context.cores) for way in WAYS}
    sides = {name: Contestant(side.run, side.reset) for name, side in ours.items()}
    sides["robosuite"] = Contestant(theirs.run, theirs.reset, theirs.cpu_seconds)
    try:
        samples = context.interleave(sides)
    finally:
        for side in (theirs, *ours.values()):
            side.close()
    yardstick = samples["robosuite"]
    name = f"robosuite rendering every step, {context.cores} workers"
    for quality, renderer in WAYS:
        mine, bar = samples[quality, renderer], BARS.get((task, quality))
        row = f"{task}, {quality}, {renderer}, {context.cores} threads"
        yield compare(row, "control steps/s", mine.rates, name, yardstick.rates, bar=bar)
        yield compare(row, "control steps/CPU s", mine.cpu_rates, name, yardstick.cpu_rates, bar=bar)


def config(task: str, n_envs: int, act_steps: int, **changes: Any) -> dict[str, Any]:
    """An ``env`` section as ``env.registry.make_vector_env`` takes it."""
    return {"name": task, "n_envs": n_envs, "act_steps": act_steps, "max_episode_steps": 10**6, **changes}


def record_motion(task: str, steps: int, seed: int) -> np.ndarray:
    """Actions of the scripted expert, or of coherent random motion for a task without one: (T / 4, n, 4, Da)."""
    from env.registry import EXPERTS, make_vector_env

    venv = make_vector_env(config(task, N_SIMULATIONS, 1))
    rng = np.random.default_rng(seed)
    try:
        obs, actions = venv.reset(seed), np.zeros((N_SIMULATIONS, steps, venv.action_dim), np.float32)
        if task in EXPERTS:
            expert = EXPERTS[task].make(N_SIMULATIONS, rng, noise=EXPERTS[task].noise, retry=True)
            for t in range(steps):
                actions[:, t] = expert.act(obs["state"][:, -1])
                obs = venv.step(actions[:, t : t + 1]).obs
        else:
            actions += np.repeat(rng.uniform(-0.5, 0.5, (N_SIMULATIONS, steps // 8 + 1, venv.action_dim)), 8, axis=1)[
                :, :steps
            ]
    finally:
        venv.close()
    return np.ascontiguousarray(actions.reshape(N_SIMULATIONS, -1, ACT_STEPS, actions.shape[2]).swapaxes(0, 1))


class EngineSide:
    """Our engine with images of one quality by one renderer, going through ``chunks (T / 4, n, 4, Da)``."""

    def __init__(self, task: str, chunks: np.ndarray, quality: str, renderer: str, threads: int) -> None:
        from env.registry import make_vector_env
        from env.robomimic.env_meta import TASKS

        wrapper = {
            "image_keys": [f"{camera}_image" for camera in TASKS[task].cameras],
            "low_dim_keys": list(TASKS[task].obs_dims(use_object=False)),
        }
        extra = {
            "n_threads": threads,
            "render_quality": quality,
            "renderer": renderer,
            "wrappers": {"robomimic_image": wrapper},
        }
        self.chunks = chunks
        self.venv = make_vector_env(config(task, chunks.shape[1], ACT_STEPS, **extra))

    def reset(self) -> None:
        """Start the episodes again."""
        self.venv.reset(0)

    def run(self) -> float:
        """All chunks -> control steps done."""
        for chunk in self.chunks:
            self.venv.step(chunk)
        return float(np.prod(self.chunks.shape[:3]))

    def close(self) -> None:
        """Free threads and contexts."""
        self.venv.close()


class RobosuiteSide:
    """robosuite with one environment in each of ``workers`` processes, going through the first ``workers`` motions."""

    def __init__(self, task: str, chunks: np.ndarray, workers: int) -> None:
        from env.robomimic.env_meta import TASKS
        from script.bench.robosuite_images import make_vector

        facts = TASKS[task]
        self.chunks = chunks[:, :workers]
        self.venv = make_vector(
            workers,
            task=facts.suite_name,
            robots=facts.arms,
            cameras=list(facts.cameras),
            action_dim=facts.action_dim,
            act_steps=ACT_STEPS,
        )

    def reset(self) -> None:
        """New episodes."""
        self.venv.reset()

    def run(self) -> float:
        """All chunks -> control steps done."""
        for chunk in self.chunks:
            self.venv.step(chunk)
        return float(np.prod(self.chunks.shape[:3]))

    def cpu_seconds(self) -> float:
        """CPU seconds of the workers and of this process."""
        return time.process_time() + sum(self.venv.call("cpu_seconds"))

    def close(self) -> None:
        """End the workers."""
        self.venv.close()
