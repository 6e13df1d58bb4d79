"""A policy server in a process of its own, which a test may kill: ``python -m tests.env.franka.policy_process <delay in seconds>`` prints
its port and serves ``LinearPolicy``."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from env.franka.observation import ObservationSpec
from env.franka.policy_server import PolicyServer
from env.franka.remote import Greeting
from env.normalizer import Normalizer

DIM, SIZE = 9, (5, 5)
SPEC = ObservationSpec(
    "lift", ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"), ("agentview",), SIZE, 1, 2, "full"
)
NORMALIZER = Normalizer(np.full(DIM, -2.0), np.full(DIM, 3.0), np.full(7, -1.0), np.full(7, 1.0))
GREETING = Greeting(2, 3, 7, 300, SPEC, NORMALIZER, "ab" * 32)


class LinearPolicy:
    """Actions that every number of the observation and the seed changes."""

    act_steps, horizon_steps, action_dim = 2, 3, 7

    def __init__(self, delay: float = 0.0) -> None:
        self.delay, self.seed = delay, 0

    def __call__(self, observation):
        time.sleep(self.delay)
        if observation["state"][0, 0] == 7.0:
            raise RuntimeError("seven is not for me")
        return actions(observation, self.seed)

    def reset(self, seed=None):
        self.seed = seed or 0


def actions(observation, seed: int = 0) -> np.ndarray:
    """``(3, 7)`` float32."""
    weights = np.random.default_rng(1).normal(size=(DIM, 21))
    colours = (
        observation["rgb"].astype(np.float64) * np.arange(observation["rgb"].size).reshape(observation["rgb"].shape)
    ).sum()
    return np.tanh(observation["state"][0] @ weights + colours / 1e7 + seed).reshape(3, 7).astype(np.float32)


def observation(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"state": rng.uniform(-1, 1, (1, DIM)), "rgb": rng.integers(0, 256, (2, 3, *SIZE), np.uint8)}


@contextlib.contextmanager
def served_elsewhere(*args: str):
    """A server that can be killed, ``args`` as on the command line; its process and port."""
    command = [sys.executable, "-m", "tests.env.franka.policy_process", *(args or ("0",))]
    child = subprocess.Popen(command, cwd=Path(__file__).resolve().parents[3], stdout=subprocess.PIPE, text=True)
    try:
        yield child, int(child.stdout.readline())
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


if __name__ == "__main__":
    server = PolicyServer(LinearPolicy(float(sys.argv[1])), GREETING, port=0)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()
