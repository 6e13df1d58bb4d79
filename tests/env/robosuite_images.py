"""robosuite's own images of an episode, for comparison; run in a process of its own (two OpenGL users in one disturb each other).

    python robosuite_images.py <task> <camera,...> <seed> <actions.npy (T, Da)> <every> <out.npz>

Writes ``images (K, 3 M, H, W)``, upright, of the start and after every ``every``-th control step.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from env.robomimic import suite

ROBOTS = {"TwoArmTransport": ["Panda", "Panda"]}


def record(task: str, cameras: list[str], seed: int, actions: np.ndarray, every: int) -> np.ndarray:
    """Images of robosuite's episode ``seed``."""
    env = suite.make_suite_env(task, ROBOTS.get(task, ["Panda"]), seed=seed, cameras=cameras)
    env.sim.forward()  # construction leaves out two things that reset() does: this one
    env.visualize({part: False for part in env._visualizations})  # and this one

    def upright(observation: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([observation[f"{camera}_image"][::-1].transpose(2, 0, 1) for camera in cameras])

    images = [upright(env._get_observations(force_update=True))]
    for t, action in enumerate(actions):
        observation, *_ = env.step(action)
        if (t + 1) % every == 0:
            images.append(upright(observation))
    return np.stack(images)


if __name__ == "__main__":
    task, cameras, seed, actions, every, target = sys.argv[1:]
    np.savez(target, images=record(task, cameras.split(","), int(seed), np.load(actions), int(every)))
    sys.stdout.flush()
    os._exit(0)  # robosuite's contexts are freed in whatever order the interpreter likes
