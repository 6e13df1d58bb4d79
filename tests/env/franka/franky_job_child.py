"""What ``franky_job.py`` runs in franky's environment: the simulated control unit in one process, the driver in another."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from env.franka.robot_franky import FrankyGripper, FrankyRobot
from env.franka.types import ControlSettings, DeploymentError, Gripper, Robot, RobotFault
from tests.env.franka import paths


def simulate() -> None:
    """Be the robot until the input ends."""
    from franky_sim import SimulationServer
    from franky_sim.mujoco_simulator import MujocoSimulator

    with MujocoSimulator(enable_visualization=False) as sim:
        robot = sim.add_robot()
        with SimulationServer(sim) as server:
            server.run_async()
            sys.stdout.write(f"ready {robot.hostname}\n")
            sys.stdout.flush()
            sys.stdin.readline()


def raises(kind: type[Exception], call: Callable[[], object]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


def drive(host: str, file: str, unplug: Callable[[], None]) -> dict:
    """Everything the bar asks for, in order; ``unplug()`` ends the simulation."""
    with np.load(file, allow_pickle=False) as data:
        given = {key: data[key] for key in data.files}
    robot = FrankyRobot(host)
    robot.connect()
    held = {"keeps the protocol": isinstance(robot, Robot)}
    robot.configure(ControlSettings())
    robot.move_joints(given["start"], 0.3)
    held["joints are where they were sent"] = bool(np.abs(robot.state().q - given["start"]).max() < 0.01)
    robot.start()
    offset = given["positions"][0] - robot.state().position
    time.sleep(0.2)
    began, clock = time.perf_counter(), [robot.state().t_robot]
    first = clock[0]

    def wait(seconds: float) -> None:
        clock[0] += seconds  # of the simulation, which a busy machine slows down
        while robot.state().t_robot < clock[0]:
            time.sleep(0.0005)

    measured = paths.stream(robot, given["actions"], wait)
    slow = (time.perf_counter() - began) / (robot.state().t_robot - first)
    figures: dict = paths.apart(measured, (given["positions"], given["quaternions"]))
    figures |= {"success_rate": robot.state().success_rate, "start_mm": 1e3 * float(np.linalg.norm(offset))}
    figures["times_slower_than_real"] = slow
    place = robot.state()
    nothing = np.full(3, np.nan)
    held["no number is refused"] = raises(ValueError, lambda: robot.set_target(nothing, place.quaternion, np.zeros(6)))
    robot.check()
    began = time.perf_counter()
    robot.stop()
    robot.stop()
    figures["stop_s"] = time.perf_counter() - began
    held["no target without control"] = raises(
        DeploymentError, lambda: robot.set_target(place.position, place.quaternion, np.zeros(6))
    )
    gripper = FrankyGripper(host)
    held["gripper keeps the protocol"] = isinstance(gripper, Gripper)
    gripper.goto(0.03, 0.1)
    held["gripper moves"] = abs(gripper.state().width - 0.03) < 0.002
    place = robot.state()
    robot.start()
    time.sleep(0.3)
    held["starts again where it is"] = bool(np.linalg.norm(robot.state().position - place.position) < 0.02)
    unplug()
    began = time.perf_counter()
    fault = None
    while fault is None and time.perf_counter() - began < 10.0:
        time.sleep(0.01)
        robot.state()
        with contextlib.suppress(RobotFault):
            robot.check()
            continue
        fault = robot._fault
    figures["loss_seen_s"] = time.perf_counter() - began
    held["loss is told"] = fault is not None and fault.kind in ("network", "driver") and not fault.recoverable
    robot.stop()
    held["no recovery of what is gone"] = not robot.recover()
    robot.close()
    return {**figures, "held": held}


def main() -> None:
    """Entry point: ``franky_job_child.py <path.npz>``, or ``simulate``."""
    if sys.argv[1] == "simulate":
        simulate()
        return
    child = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, "simulate"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        for line in child.stdout:
            if line.startswith("ready"):
                break
        sys.stdout.write(json.dumps(drive(line.split()[1], sys.argv[1], child.kill)) + "\n")
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    main()
