"""Ticks as a deployment of Lift would record them, made of random numbers: what recordings are tested with.

``python -m tests.env.franka.recorded <folder> <ticks>`` records and then dies without a word.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np

from env.franka.clock import VirtualClock
from env.franka.recording import EpisodeRecorder
from env.franka.types import Event, Frame, GripperState, Observation, RobotState, Tick
from tests.robomimic_files import synthetic_demos

CAMERA, CHUNK, DT = "robot0_eye_in_hand", 4, 0.05
SIZE = (13, 11)  # of the policy's images
CAPTURED = (37, 53, 3)  # of the camera's: odd


def ticks(n: int, seed: int = 0, camera: bool = False) -> list[Tick]:
    """An episode of ``n``: 20 Hz from 100 s on, an inference every 4 ticks that takes 11 ms, observations 3 ms old, cameras 20 ms."""
    rng = np.random.default_rng(seed)
    demo = synthetic_demos("lift", [n], (CAMERA,) if camera else (), SIZE, seed)[0]
    film, found = rng.integers(0, 256, CAPTURED, np.uint8), []
    for k in range(n):
        t, raw = 100.0 + k * DT, {key: value[k] for key, value in demo["obs"].items()}
        robot = RobotState(
            t - 0.002,
            7.0 + k * DT,
            rng.normal(size=7),
            rng.normal(size=7),
            rng.normal(size=3),
            rng.normal(size=4),
            rng.normal(size=6),
        )
        shown = None
        if k % CHUNK == 0:
            values = {"state": rng.uniform(-1, 1, (1, 9)).astype(np.float32)}
            if camera:
                values["rgb"] = np.ascontiguousarray(raw[f"{CAMERA}_image"].transpose(2, 0, 1)[None])
            shown = Observation(values, raw, t - 0.014, 0.02)
        start = 100.0 + k // CHUNK * CHUNK * DT - 0.012
        frames = {CAMERA: Frame(np.roll(film, k, axis=1), t - 0.034, k)} if camera else {}
        found.append(
            Tick(
                k, t, "RUNNING", robot, GripperState(t, 0.06), frames, shown, raw_action=rng.normal(size=7), action=demo["actions"][k],
                reference_position=rng.normal(size=3), reference_quaternion=rng.normal(size=4), t_infer_start=start, t_infer_end=start + 0.011,
                raw=raw,
            )
        )  # fmt: skip
    return found


def record(folder, n: int, seed: int = 0, camera: bool = False, verdict="success", about=None) -> list[Tick]:
    """Record an episode into ``folder``; what went in."""
    recorder, all_ticks = EpisodeRecorder(folder, "lift", VirtualClock(), about), ticks(n, seed, camera)
    for tick in all_ticks:
        recorder.tick(tick)
    recorder.event(Event(100.5, "leash", "limit", 0.04, 0.033))
    recorder.finish(verdict)
    return all_ticks


def main(folder: str, n: str) -> None:
    """Record, give the disk a moment, die."""
    recorder = EpisodeRecorder(folder, "lift", VirtualClock())
    recorder.event(Event(99.0, "runner.RUNNING", "log"))
    for tick in ticks(int(n), camera=True):
        recorder.tick(tick)
        time.sleep(0.005)
    while not recorder._writer._queue.empty():
        time.sleep(0.05)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
