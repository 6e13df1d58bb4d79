"""How late everything is: from a target to the arm's motion, from a command to the fingers', from a motion to the picture of it.

    python script/measure_latency.py robot=panda robot.ip=172.16.0.2
    python script/measure_latency.py robot.ip=172.16.0.2 camera=opencv camera.source=0      and the camera's; it must see the arm move
    python script/measure_latency.py robot=mujoco                                          a rehearsal on the twin

The arm sways 15 mm to and fro along its y axis for some seconds where it stands, then the fingers close and open by 20 mm. Keep your
hand on the emergency stop; nothing may be in the way. Two signals are compared by cross-correlation: targets with measured positions, and
the arm's speed with how much the pictures change. Fingers: from the command to the first 5 % of the way, the median of several.

    arm       the delay that a policy's chunks must be sent ahead by (asynchronous scheduling)
    gripper   of the fingers, state included
    camera    what to put into camera.latency, where it is given: 0 then, after that

A table, --json FILE, --picture FILE.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from agent.errors import UsageError  # noqa: E402
from agent.files import atomic_write  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.franka.clock import WallClock  # noqa: E402
from env.franka.types import Camera, Clock, Gripper, Robot, RobotFault  # noqa: E402
from script.check_robot import camera_of, parse_settings, parts  # noqa: E402

SWAY, FREQUENCIES = 0.015, (0.37, 0.9)  # m; Hz: two, so that a period's delay is told from none
SERVO = 0.004  # s
STEP, SPEED = 0.02, 0.1  # m, m/s: of the fingers
RESOLUTION = 1e-3  # s
LATEST = 0.6  # s: the longest delay that is looked for
Series = tuple[np.ndarray, np.ndarray]  # times (N,), values (N,)


def delay(cause: Series, effect: Series, latest: float = LATEST) -> tuple[float, float]:
    """Seconds by which ``effect`` follows ``cause``, and their correlation at that delay.

    Both are interpolated at 1 kHz; the effect may also come first, by up to a quarter of ``latest``.

    Raises:
        UsageError: less than three times ``latest`` of common time, or a signal that does not change.
    """
    begin, end = max(cause[0][0], effect[0][0]) + latest, min(cause[0][-1], effect[0][-1]) - latest
    if end - begin < latest:
        raise UsageError(f"too short to compare: {max(0.0, end - begin + 2 * latest):.1f} s of common time")
    grid = np.arange(begin, end, RESOLUTION)
    shifts = np.arange(-round(latest / 4 / RESOLUTION), round(latest / RESOLUTION) + 1)
    wanted = np.interp(grid, *cause)
    if np.ptp(cause[1]) < 1e-12 or np.ptp(effect[1]) < 1e-12:
        raise UsageError("a signal does not change: nothing moved, or the camera does not see it")
    found = np.array([np.corrcoef(wanted, np.interp(grid + k * RESOLUTION, *effect))[0, 1] for k in shifts])
    best = int(found.argmax())
    shift = float(shifts[best])
    if 0 < best < len(shifts) - 1:  # the parabola through the highest three
        a, b, c = found[best - 1 : best + 2]
        shift += 0.5 * (a - c) / (a - 2 * b + c)
    return shift * RESOLUTION, float(found[best])


def sway(t: float, seconds: float) -> tuple[float, float]:
    """Distance (m) and speed (m/s) at ``t``: at rest at both ends."""
    near = min(1.0, t, seconds - t)  # s to the closer end, 1 at most
    rise, rate = np.sin(np.pi / 2 * near) ** 2, 0.0
    if near < 1.0:
        rate = np.pi / 2 * np.sin(np.pi * near) * np.sign(seconds / 2 - t)
    waves = [(np.sin(2 * np.pi * f * t), 2 * np.pi * f * np.cos(2 * np.pi * f * t)) for f in FREQUENCIES]
    value, slope = (SWAY / len(waves) * sum(w[i] for w in waves) for i in (0, 1))
    return rise * value, rise * slope + rate * value


def move(robot: Robot, clock: Clock, seconds: float, look: Callable[[float], None]) -> dict[str, Series]:
    """Sway; the targets' and the measured y, by time. ``look(t)`` is called at each step, for cameras."""
    robot.start()
    start, sent, heard = robot.state(), [], []
    began = clock.now()
    while (t := clock.now() - began) < seconds:
        away, speed = sway(t, seconds)
        target, twist = start.position + [0.0, away, 0.0], np.array([0.0, speed, 0, 0, 0, 0])
        robot.set_target(target, start.quaternion, twist)
        sent.append((clock.now(), away))
        robot.check()
        state = robot.state()
        heard.append((state.t_host, state.position[1] - start.position[1]))
        look(clock.now())
        clock.sleep_until(began + (int(t / SERVO) + 1) * SERVO)
    robot.stop()
    return {"target": _series(sent), "measured": _series(heard)}


def _series(pairs: Sequence[tuple[float, float]]) -> Series:
    """By time, each time once."""
    times, values = np.array(pairs, np.float64).T
    times, first = np.unique(times, return_index=True)
    return times, values[first]


class Watch:
    """How much a camera's pictures change, by the time they are said to have been taken."""

    def __init__(self, camera: Camera) -> None:
        self.camera, self.pairs, self._last = camera, [], None

    def __call__(self, t: float) -> None:
        frame = self.camera.latest()
        if frame is None or (self._last is not None and frame.number == self._last.number):
            return
        small = frame.image[::4, ::4].mean(-1)
        if self._last is not None:
            middle = (frame.t_host + self._last.t_host) / 2  # a difference is of the time between
            self.pairs.append((middle, float(np.abs(small - self._small).mean())))
        self._last, self._small = frame, small


def speed_of(measured: Series) -> Series:
    """Absolute speed, smoothed over 20 ms."""
    times, values = measured
    grid = np.arange(times[0], times[-1], RESOLUTION)
    speed = np.abs(np.gradient(np.interp(grid, times, values), RESOLUTION))
    return grid, np.convolve(speed, np.ones(20) / 20, mode="same")


def fingers(gripper: Gripper, clock: Clock, times: int) -> list[float]:
    """Seconds from a command to the first 5 % of the way, for each of ``times`` strokes."""
    found = []
    gripper.goto(gripper.max_width, SPEED)
    clock.sleep_until(clock.now() + 0.5)
    for k in range(times):
        begin = gripper.state().width
        goal = gripper.max_width - (STEP if k % 2 == 0 else 0.0)
        stroke = threading.Thread(target=gripper.goto, args=(goal, SPEED))
        sent = clock.now()
        stroke.start()
        while clock.now() - sent < 3.0:
            state = gripper.state()
            if abs(state.width - begin) > 0.05 * abs(goal - begin):
                found.append(state.t_host - sent)
                break
            clock.sleep_until(clock.now() + 0.002)
        stroke.join(5.0)
        clock.sleep_until(clock.now() + 0.4)
    return found


def measure(robot: Robot, gripper: Gripper | None, camera: Camera | None, clock: Clock, args: Any) -> dict[str, Any]:
    """Everything there is, in milliseconds, with the signals to draw."""
    watch = None if camera is None else Watch(camera)
    signals = move(robot, clock, args.seconds, (lambda t: None) if watch is None else watch)
    late, like = delay(signals["target"], signals["measured"])
    result: dict[str, Any] = {"arm": {"ms": 1e3 * late, "correlation": like}}
    if watch is not None:
        signals["speed"], signals["change"] = speed_of(signals["measured"]), _series(watch.pairs)
        late, like = delay(signals["speed"], signals["change"])
        result["camera"] = {"ms": 1e3 * late, "correlation": like}
    if gripper is not None:
        strokes = [1e3 * s for s in fingers(gripper, clock, args.strokes)]
        result["gripper"] = {"ms": float(np.median(strokes)) if strokes else None, "each": strokes}
    return {"latency": result, "signals": signals}


def draw(found: dict[str, Any], path: Path) -> None:
    """The signals, one pair above the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    signals = found["signals"]
    pairs = [p for p in (("target", "measured", "arm"), ("speed", "change", "camera")) if p[0] in signals]
    figure = Figure(figsize=(9, 3 * len(pairs)), layout="constrained")
    FigureCanvasAgg(figure)
    began = signals["target"][0][0]
    for axis, (cause, effect, name) in zip(figure.subplots(len(pairs), squeeze=False)[:, 0], pairs):
        for key in (cause, effect):
            times, values = signals[key]
            axis.plot(times - began, values / np.abs(values).max(), lw=1, label=key)
        late = found["latency"][name]
        axis.set(title=f"{name}: {late['ms']:.0f} ms (correlation {late['correlation']:.2f})", xlabel="s")
        axis.legend(loc="upper right", frameon=False)
    with open(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)


def report(latency: dict[str, Any]) -> str:
    """The table."""
    lines = []
    for name, entry in latency.items():
        value = "not seen" if entry["ms"] is None else f"{entry['ms']:6.1f} ms"
        if "correlation" in entry:
            doubt = "" if entry["correlation"] > 0.7 else "   too low to be trusted"
            value += f"   correlation {entry['correlation']:.2f}{doubt}"
        elif entry["each"]:
            value += f"   of {len(entry['each'])}: {', '.join(f'{s:.0f}' for s in entry['each'])}"
        lines.append(f"{name:<9}{value}")
    return "\n".join(lines)


def agreed(kind: str, yes: bool) -> bool:
    """Whether a person says that the arm may move."""
    if yes or kind == "mujoco":
        return True
    if not sys.stdin.isatty():
        raise UsageError(
            "the arm will move: type yes at a terminal, or give --yes with your hand on the emergency stop"
        )
    return input("The arm will sway by 15 mm, the fingers move by 20 mm. Hand on the emergency stop? yes/no: ") == "yes"


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="robot, robot.ip, camera, camera.<setting>")
    parser.add_argument("--seconds", type=float, default=8.0, help="of swaying (default 8)")
    parser.add_argument("--strokes", type=int, default=6, help="of the fingers (default 6; 0: leave them alone)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--picture", type=Path, help="draw the signals here")
    parser.add_argument("--yes", action="store_true", help="do not ask; your hand is on the emergency stop")
    args = parser.parse_args(argv)
    try:
        settings = parse_settings(args.settings)
        if not agreed(settings["robot"], args.yes):
            return 1
        clock = WallClock()
        with ExitStack() as stack:
            robot, hand = parts(settings["robot"], settings.get("robot.ip"), clock)
            stack.callback(robot.close)
            robot.connect()
            gripper = hand() if args.strokes else None
            if gripper is not None and hasattr(gripper, "close"):
                stack.callback(gripper.close)
            camera = camera_of(settings, clock) if "camera" in settings else None
            if camera is not None:
                stack.callback(camera.close)
                camera.start()
            found = measure(robot, gripper, camera, clock, args)
    except (UsageError, EnvError, RobotFault) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(report(found["latency"]) + "\n")
    if args.json:
        with atomic_write(args.json) as file:
            file.write(json.dumps(found["latency"], indent=2).encode() + b"\n")
    if args.picture:
        draw(found, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
