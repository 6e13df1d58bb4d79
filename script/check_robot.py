"""Go or no go: whether this machine, its packages, the network, the robot, the hand and the cameras are ready for a deployment.

    python script/check_robot.py                                             without a robot: this machine and its packages
    python script/check_robot.py robot=panda robot.ip=172.16.0.2             and the robot, which does not move
    python script/check_robot.py robot.ip=172.16.0.2 camera=realsense        and a camera; camera.<setting>=... as in cfg/base/real/camera
    ... --control        also holds the arm under control for 2 s where it stands, and counts what is lost; hand on the emergency stop
    ... --json           the same for programs

Changes nothing. Exit status 1 where something forbids a run. It is a look before the first run, and no safety function.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from agent.errors import UsageError  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.franka import driver, kinematics  # noqa: E402
from env.franka.clock import WallClock  # noqa: E402
from env.franka.types import Camera, Clock, Gripper, Robot, RobotFault  # noqa: E402
from script.doctor import guarded, table  # noqa: E402
from script.doctor_checks import BAD, NOTE, OK, WARN, Finding  # noqa: E402

GUIDE = "installation/install_franka.md"
PACKAGES = {"panda": ("panda-python", "panda_py"), "franky": ("franky-control", "franky")}
CAMERAS = {"realsense": ("pyrealsense2", "pyrealsense2"), "opencv": ("opencv-python", "cv2")}
PINGS, PING_PERIOD = 20, 0.2  # s; what a user without special rights may do
RTT_MEAN, RTT_MAX = 0.5, 1.0  # ms: a command's way there and back is part of the robot's millisecond
MEMLOCK = 102400 * 1024  # bytes
MARGIN = 0.2  # rad from a joint's limit
CONTROL_SECONDS, SUCCESS_OK, SUCCESS_BAD = 2.0, 0.95, 0.9


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """``key=value`` words. Raises ``UsageError`` for others."""
    settings = {"robot": "panda"}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not (key in ("robot", "robot.ip", "camera") or key.startswith("camera.")):
            raise UsageError(f"{word!r}: expected robot=..., robot.ip=..., camera=... or camera.<setting>=...")
        settings[key] = value
    return settings


# -------------------------------------------------------------------------------------------------- this machine


def kernel(root: Path = Path("/")) -> list[Finding]:
    """A real-time kernel, and the right to use it."""
    flag = root / "sys/kernel/realtime"
    live = (flag.exists() and flag.read_text().strip() == "1") or "PREEMPT_RT" in platform.version()
    found = [Finding("machine", "real-time kernel", OK, platform.release())]
    if not live:
        said = f"{platform.release()} is not one: the robot is mostly kept, but a delay of 20 ms stops it"
        found = [Finding("machine", "real-time kernel", WARN, said, f"a PREEMPT_RT kernel; see {GUIDE}")]
    group = f"the realtime group's limits; see {GUIDE}"
    priority, memory = (resource.getrlimit(r)[0] for r in (resource.RLIMIT_RTPRIO, resource.RLIMIT_MEMLOCK))
    enough = priority == resource.RLIM_INFINITY or priority >= 99
    found.append(
        Finding("machine", "rtprio", OK if enough else WARN, f"{priority}; 99 wanted", "" if enough else group)
    )
    enough = memory == resource.RLIM_INFINITY or memory >= MEMLOCK
    said = "unlimited" if memory == resource.RLIM_INFINITY else f"{memory // 1024} kB; {MEMLOCK // 1024} wanted"
    found.append(Finding("machine", "memlock", OK if enough else WARN, said, "" if enough else group))
    return found


def processor(root: Path = Path("/")) -> list[Finding]:
    """Cores, load, and whether the clock rate is kept up."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    busy = load > 0.5 * cores
    mend = "close other programs: the robot needs a core of its own" if busy else ""
    found = [Finding("machine", "cores", WARN if busy else OK, f"{cores}; load {load:.1f}", mend)]
    governor = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    if governor.exists():
        name = governor.read_text().strip()
        fast = name == "performance"
        mend = "" if fast else "cpupower frequency-set -g performance"
        found.append(Finding("machine", "clock rate", OK if fast else NOTE, f"governor {name}", mend))
    return found


def package(kind: str, table_of: dict[str, tuple[str, str]]) -> list[Finding]:
    """The package of a robot or a camera."""
    if kind not in table_of:
        raise UsageError(f"expected one of {', '.join(table_of)}, found {kind!r}")
    name, module = table_of[kind]
    if importlib.util.find_spec(module) is None:
        extra = "real,fr3" if kind == "franky" else "real"
        return [Finding("packages", name, BAD, "not installed", f"pip install -c constraints.txt -e .[{extra}]")]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # by another name, such as opencv-python-headless
        version = "installed"
    return [Finding("packages", name, OK, f"{version}, with numpy {np.__version__}")]


# ---------------------------------------------------------------------------------------------------- the network


def network(ip: str) -> list[Finding]:
    """How long a message is on its way."""
    if shutil.which("ping") is None:
        return [Finding("network", "ping", NOTE, "there is no ping on this machine", "apt-get install iputils-ping")]
    command = ["ping", "-c", str(PINGS), "-i", str(PING_PERIOD), "-s", "1200", "-q", ip]
    limit = PINGS * PING_PERIOD + 12
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    return [_ping(done.stdout + done.stderr, ip)]


def _ping(said: str, ip: str) -> Finding:
    lost = re.search(r"([\d.]+)% packet loss", said)
    times = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)", said)
    if not lost or not times:
        line = (said.strip().splitlines() or ["no answer"])[-1]
        return Finding(
            "network", "ping", BAD, f"{ip} does not answer: {line}", f"address, cable, firewall; see {GUIDE}"
        )
    least, mean, most = map(float, times.groups())
    text = f"{least:.3f} / {mean:.3f} / {most:.3f} ms (least, mean, most of {PINGS}), {lost[1]} % lost"
    if float(lost[1]) > 0 or mean > RTT_MEAN or most > RTT_MAX:
        mend = f"a cable straight into the control unit, no switch, no power saving of the network card; see {GUIDE}"
        return Finding(
            "network", "ping", WARN, f"{text}; under {RTT_MEAN} in the mean and {RTT_MAX} at most wanted", mend
        )
    return Finding("network", "ping", OK, text)


# ------------------------------------------------------------------------------------------------------ the robot


def arm(robot: Robot, control: bool) -> list[Finding]:
    """Connection, state and pose; with ``control``, what is lost in two seconds."""
    try:
        robot.connect()
    except EnvError as error:
        return [Finding("robot", "connection", BAD, str(error), f"see {GUIDE}")]
    found = [Finding("robot", "connection", OK, f"{robot.name}: server version and package fit")]
    try:
        found += _condition(robot)
        if control and all(f.status != BAD for f in found):
            found += _control(robot)
    except RobotFault as fault:
        found.append(Finding("robot", "control", BAD, str(fault), "find out why before anything else"))
    finally:
        robot.close()
    return found


def _condition(robot: Robot) -> list[Finding]:
    state, found = robot.state(), []
    try:
        robot.check()
        found.append(Finding("robot", "condition", OK, "no fault"))
    except RobotFault as fault:
        mend = "look at the robot, release the button, and recover in its web page"
        found.append(Finding("robot", "condition", BAD, str(fault), mend))
    margin = np.minimum(state.q - robot.limits.q_min, robot.limits.q_max - state.q)
    joint = int(margin.argmin())
    status = BAD if margin[joint] <= 0 else WARN if margin[joint] < MARGIN else OK
    mend = "guide the arm away from its limits by hand" if status != OK else ""
    said = f"{np.round(state.q, 3).tolist()}; joint {joint + 1} is {margin[joint]:.2f} rad from its limit"
    found.append(Finding("robot", "joints", status, said, mend))
    wrong = 1e3 * float(np.linalg.norm(state.position - kinematics.grip_site(state.q).position))
    said = f"grip site at {np.round(state.position, 3).tolist()} m, {wrong:.1f} mm from where the joints put it"
    mend = "" if wrong < 5 else "choose the Franka hand as end effector in the robot's web page"
    found.append(Finding("robot", "pose", OK if wrong < 5 else BAD, said, mend))
    push = float(np.linalg.norm(state.wrench[:3]))
    mend = "" if push < 5 else "is something touching it, or held? end effector and load in the robot's web page"
    found.append(Finding("robot", "force at rest", OK if push < 5 else WARN, f"{push:.1f} N", mend))
    return found


def _control(robot: Robot) -> list[Finding]:
    robot.start()
    start, rates, ages, end = robot.state(), [], [], time.monotonic() + CONTROL_SECONDS
    while time.monotonic() < end:
        robot.set_target(start.position, start.quaternion, np.zeros(6))
        robot.check()
        state = robot.state()
        rates.append(state.success_rate)
        ages.append(time.monotonic() - state.t_host)
        time.sleep(0.004)
    robot.stop()
    worst = min(rates[len(rates) // 4 :])  # it starts from nothing
    status = OK if worst >= SUCCESS_OK else WARN if worst >= SUCCESS_BAD else BAD
    moved = 1e3 * float(np.linalg.norm(robot.state().position - start.position))
    said = f"success rate {worst:.2f} at worst, states {1e3 * max(ages):.1f} ms old at most, moved {moved:.1f} mm"
    return [Finding("robot", "control", status, said, "" if status == OK else f"network and kernel; see {GUIDE}")]


def hand(make: Callable[[], Gripper]) -> list[Finding]:
    """The gripper answers, and has been homed."""
    try:
        gripper = make()
    except EnvError as error:
        return [Finding("robot", "hand", BAD, str(error), "home the hand in the robot's web page")]
    try:
        width = gripper.state().width
        return [Finding("robot", "hand", OK, f"open {1e3 * width:.0f} of {1e3 * gripper.max_width:.0f} mm")]
    finally:
        gripper.close()


# ----------------------------------------------------------------------------------------------------- the camera


def camera_of(settings: dict[str, str], clock: Clock) -> Camera:
    """The camera of ``settings``, not yet started."""
    from omegaconf import OmegaConf

    from env.franka.camera import make_camera

    words = [f"{k.removeprefix('camera.')}={v}" for k, v in settings.items() if k.startswith("camera.")]
    return make_camera(settings["camera"], "camera", clock, **OmegaConf.to_container(OmegaConf.from_dotlist(words)))


def camera(settings: dict[str, str], seconds: float = 3.0) -> list[Finding]:
    """It gives pictures, as often as it should, and each of them is new."""
    kind = settings["camera"]
    device = camera_of(settings, WallClock())
    try:
        device.start()
        seen, began = {}, time.monotonic()
        while time.monotonic() - began < seconds:
            frame = device.latest()
            if frame is not None and frame.number not in seen:
                seen[frame.number] = (time.monotonic() - frame.t_host, frame.image.shape, int(frame.image.std()))
            time.sleep(0.002)
    except EnvError as error:
        return [Finding("camera", kind, BAD, str(error), f"see {GUIDE}")]
    finally:
        device.close()
    if not seen:
        return [
            Finding("camera", kind, BAD, f"no picture within {seconds:g} s", "unplug it and plug it in again, USB 3")
        ]
    ages, shapes, contrast = zip(*seen.values())
    rate = len(seen) / seconds
    said = f"{shapes[0][1]}x{shapes[0][0]}, {rate:.0f} pictures a second, {1e3 * np.median(ages):.0f} ms old"
    if rate < 15 or max(contrast) < 3:
        what = "too few" if rate < 15 else "all of one colour"
        return [Finding("camera", kind, WARN, f"{said}: {what}", "exposure, light, lens cap, USB 3")]
    return [Finding("camera", kind, OK, said)]


# ---------------------------------------------------------------------------------------------------------- report


def examine(settings: dict[str, str], control: bool = False) -> list[Finding]:
    """All findings."""
    kind, ip = settings["robot"], settings.get("robot.ip")
    found = guarded("kernel", kernel) + guarded("processor", processor) + package(kind, PACKAGES)
    if "camera" in settings:
        found += package(settings["camera"], CAMERAS)
    if ip is None:
        said = "none looked at: no robot.ip was given"
        found.append(Finding("robot", "robot", NOTE, said, "python script/check_robot.py robot.ip=172.16.0.2"))
    else:
        found += guarded("network", lambda: network(ip))
        if all(f.status != BAD for f in found if f.section == "packages"):
            robot, gripper = parts(kind, ip, WallClock())
            found += guarded("robot", lambda: arm(robot, control)) + guarded("hand", lambda: hand(gripper))
    if "camera" in settings and all(f.status != BAD for f in found if f.section == "packages"):
        found += guarded("camera", lambda: camera(settings))
    return found


def parts(kind: str, ip: str | None, clock: Clock) -> tuple[Any, Callable[[], Any]]:
    """The arm, not yet connected, and what makes its hand. ``mujoco``: the twin's."""
    if kind == "mujoco":
        from env.franka.robot_mujoco import MujocoRobot

        twin = MujocoRobot(clock)
        twin.reset(0)
        return twin, lambda: twin.gripper
    if ip is None:
        raise UsageError("robot.ip=...: the control unit's address is needed, such as 172.16.0.2")
    if kind == "panda":
        from env.franka.gripper_panda import PandaGripper as Hand
        from env.franka.robot_panda import PandaRobot as Arm
    else:
        from env.franka.robot_franky import FrankyGripper as Hand
        from env.franka.robot_franky import FrankyRobot as Arm
    return Arm(ip, clock.now), lambda: Hand(ip, clock.now)


def verdict(findings: Sequence[Finding], settings: dict[str, str]) -> str:
    """One line."""
    bad, warned = ([f.item for f in findings if f.status == status] for status in (BAD, WARN))
    if bad:
        return f"NO GO: {', '.join(bad)}."
    limits = f", with care: {', '.join(warned)}" if warned else ""
    if "robot.ip" not in settings:
        return f"No robot was looked at. This machine is fit{limits}."
    return f"GO{limits}. First with mode=shadow, then speed_scale=0.3: see {GUIDE}."


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    servers = "\n".join(f"    {n}: libfranka {a}; {b}; {c}" for n, (a, b, c) in driver.SERVERS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"server versions of control units, and what to install:\n{servers}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="robot, robot.ip, camera, camera.<setting>")
    parser.add_argument("--control", action="store_true", help="hold the arm under control for 2 s")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    try:
        settings = parse_settings(args.settings)
        findings = examine(settings, args.control)
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    broken = any(f.status == BAD for f in findings)
    if args.json:
        report = {"go": not broken and "robot.ip" in settings, "findings": [f.as_dict() for f in findings]}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        sys.stdout.write(f"{table(findings, colour)}\n\n{verdict(findings, settings)}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
