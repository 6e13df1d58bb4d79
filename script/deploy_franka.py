"""Run a policy on a Franka, or rehearse it without one.

    python script/deploy_franka.py --config-dir=cfg/real/<task> --config-name=deploy_mujoco checkpoint=FILE episodes=50   # on the twin
    python script/deploy_franka.py --config-dir=cfg/real/<task> --config-name=deploy_franka checkpoint=FILE robot.ip=172.16.0.2 mode=shadow
    ... mode=run speed_scale=0.3        # after a look at the shadow's recording; then speed_scale=1.0

What may be chosen: robot=panda|franky|mujoco|replay  camera=realsense|opencv|mujoco|replay|none  policy=local|remote
scheduler=sync|async|ensemble|rtc  control=soft|stiff  mode=run|shadow. --cfg job prints every setting.

An episode runs while the space bar is held (a dead-man switch); ESC stops, q ends the episode, Ctrl-C all of them, r recovers from a
fault. It is no safety function: keep the hardware emergency stop in your hand. Before the first run: script/check_robot.py and
installation/install_franka.md.

Each episode is recorded in <logdir>/episode_<n>/ (HDF5 in robomimic's layout, films, events, latencies), the result in result.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hydra  # noqa: E402
import numpy as np  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from agent.deployment import LocalPolicy  # noqa: E402
from agent.errors import UsageError  # noqa: E402
from agent.eval.statistics import wilson_interval  # noqa: E402
from agent.files import atomic_write  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.franka.cell import SIMULATED, Cell, make_cell  # noqa: E402
from env.franka.frames import Transform  # noqa: E402
from env.franka.observation import ObservationBuilder  # noqa: E402
from env.franka.operator import AlwaysHeld, KeyboardOperator, stop_on_signals  # noqa: E402
from env.franka.recording import EpisodeRecorder, plain, score_of  # noqa: E402
from env.franka.runner import EpisodeResult, EpisodeRunner  # noqa: E402
from env.franka.safety import SafetyMonitor  # noqa: E402
from env.franka.settings import Settings, read_settings  # noqa: E402
from env.normalizer import Normalizer  # noqa: E402
from script.run import check_readable, explain_unknown_overrides  # noqa: E402

BASE = ROOT / "cfg" / "base" / "real"


@hydra.main(config_path="../cfg/base/real", config_name=None, version_base="1.3")
def _main(cfg: DictConfig) -> None:
    from model.types import NonFiniteError, ShapeError, StateDictError

    try:
        deploy(OmegaConf.to_container(cfg, resolve=True))
    except (UsageError, EnvError, NonFiniteError, ShapeError, StateDictError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)


def deploy(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """All episodes; returns what ``result.json`` holds. Raises ``UsageError``, ``EnvError``."""
    settings = read_settings(cfg)
    policy = make_policy(cfg)
    if policy.spec.task != cfg["task"]:
        raise UsageError(
            f"checkpoint: its policy is for {policy.spec.task}, this configuration for {cfg['task']}: use "
            f"--config-dir=cfg/real/{policy.spec.task}"
        )
    folder = Path(cfg["logdir"]).expanduser()
    with ExitStack() as stack:
        world = Transform(np.array(cfg["world"], np.float64), np.array([0.0, 0.0, 0.0, 1.0]))
        cell = make_cell(cfg["robot"], cfg["camera"], policy.spec, world, cfg["object_pose"])
        stack.callback(cell.close)
        builder = ObservationBuilder(policy.spec, policy.normalizer, cell.world, cell.object_pose, cell.fits)
        steps = settings.steps(policy.max_episode_steps)
        if cfg["robot"]["kind"] == "replay":
            steps = min(steps, len(cell.robot))  # after its end a recording stands still
        if cell.twin is not None and cell.twin.law == "osc":
            episodes = []
            for i in range(cfg["episodes"]):
                episodes.append(simulate(cell, builder, policy, cfg["seed"] + i, steps))
                show(i, cfg["episodes"], episodes[-1])
        else:
            episodes = run(cfg, settings, cell, builder, policy, steps, folder, stack)
    return report(cfg, episodes, folder)


def make_policy(cfg: Mapping[str, Any]) -> Any:
    """The policy of ``cfg.policy``: here or elsewhere."""
    policy = cfg["policy"]
    if policy["kind"] == "remote":
        from env.franka.remote import RemotePolicy

        if policy["url"] is None:
            raise UsageError("policy.url: where the policy is served, such as ws://gpu:8000 (script/serve_policy.py)")
        return RemotePolicy(policy["url"], policy["timeout"])
    if cfg["checkpoint"] is None:
        raise UsageError(
            "checkpoint: give a policy, checkpoint=<run directory>/checkpoint/state_<n>.pt (or policy=remote policy.url=...)"
        )
    path = cfg["normalization_path"]
    normalizer = None if path is None else Normalizer.load(path)
    return LocalPolicy(
        cfg["checkpoint"], device=cfg["device"], ddim_steps=policy["ddim_steps"], act_steps=policy["act_steps"], normalizer=normalizer
    )  # fmt: skip


def run(
    cfg: Mapping[str, Any],
    settings: Settings,
    cell: Cell,
    builder: ObservationBuilder,
    policy: Any,
    steps: int,
    folder: Path,
    stack: ExitStack,
) -> list[dict[str, Any]]:
    """The episodes of a deployment proper."""
    simulated = cfg["robot"]["kind"] in SIMULATED
    if cfg["operator"] == "none" and not simulated:
        raise UsageError(
            f"operator=none: robot={cfg['robot']['kind']} moves only while a person holds the dead-man switch"
        )
    operator = AlwaysHeld() if cfg["operator"] == "none" else stack.enter_context(KeyboardOperator(cell.clock))
    monitor = SafetyMonitor(settings.safety, cell.clock)
    runner = EpisodeRunner(
        cell.robot, cell.gripper, cell.cameras, builder, policy,
        monitor=monitor, operator=operator, clock=cell.clock, settings=settings.runner(steps), control=settings.control,
        schedule=settings.schedule, reference=settings.reference, grip=settings.gripper, world=cell.world,
        unnormalise=policy.normalizer.unnormalize_action, finished=None if cell.twin is None else cell.twin.solved,
    )  # fmt: skip
    stack.callback(runner.close)
    episodes: list[dict[str, Any]] = []
    about = {"configuration": cfg, "checkpoint": cfg["checkpoint"]}
    about["checkpoint_sha256"] = getattr(policy, "checkpoint_sha256", None)  # of one that is served elsewhere
    ended: list[str] = []

    def stop(reason: str) -> None:
        ended.append(reason)
        runner.stop(reason)

    with stop_on_signals(stop):
        runner.connect()
        for i in range(cfg["episodes"]):
            seed = cfg["seed"] + i
            if cell.twin is not None:
                cell.twin.reset(seed)
            recorder = EpisodeRecorder(folder / f"episode_{i:03d}", cfg["task"], cell.clock, {**about, "seed": seed})
            result, said = follow(runner, recorder, seed, simulated)
            episodes.append({**episode_of(seed, result, said), "acted": dict(monitor.counts)})
            show(i, cfg["episodes"], episodes[-1])
            if ended:
                break
    return episodes


def follow(runner: EpisodeRunner, recorder: EpisodeRecorder, seed: int, simulated: bool) -> tuple[EpisodeResult, Any]:
    """One episode, and its verdict: the twin's own rule, else the operator's word."""
    said: list[Any] = []

    def verdict(result: EpisodeResult) -> str | None:
        said.append(
            ("success" if result.success else "failure") if result.success is not None else None if simulated else ask()
        )
        return said[-1]

    return runner.run(recorder, seed, verdict), said[-1]


def ask() -> str:
    """The operator's verdict."""
    while True:
        sys.stdout.write("  success? y, n, or 0 to 100: ")
        sys.stdout.flush()
        answer = sys.stdin.readline().strip().lower()
        try:
            score_of(answer)
            return answer
        except EnvError as error:
            sys.stdout.write(f"  {error}\n")


def simulate(cell: Cell, builder: ObservationBuilder, policy: Any, seed: int, steps: int) -> dict[str, Any]:
    """An episode under robosuite's own controller: observation and policy are the deployment's, the rest is the simulation of training."""
    twin = cell.twin
    twin.reset(seed)
    policy.reset(seed)
    builder.reset()
    chunk: list[np.ndarray] = []
    while twin.steps < steps and not twin.solved():
        frames = {name: camera.latest() for name, camera in cell.cameras.items()}
        seen = builder.build(twin.state(), twin.gripper.state(), frames)
        if not chunk:
            actions = np.clip(policy(seen.values)[: policy.act_steps], -1.0, 1.0)
            chunk = list(policy.normalizer.unnormalize_action(actions))
        twin.act(chunk.pop(0))
        cell.clock.sleep_until(cell.clock.now() + 0.05)
    solved = twin.solved()
    return {"seed": seed, "success": solved, "verdict": "success" if solved else "failure", "steps": twin.steps, "state": "IDLE",
            "reason": "solved" if solved else "out of time", "recoveries": 0, "seconds": 0.05 * twin.steps, "timing": {}}  # fmt: skip


def episode_of(seed: int, result: EpisodeResult, said: Any) -> dict[str, Any]:
    """An episode as it stands in ``result.json``."""
    score = score_of(said)
    timing = {
        name: {k: v for k, v in values.items() if not isinstance(v, (list, tuple, dict))}
        for name, values in result.timing.items()
    }
    return {"seed": seed, "success": None if score is None else score >= 0.5, "verdict": said, "steps": result.steps, "state": result.state,
            "reason": result.reason, "recoveries": result.recoveries, "seconds": result.seconds, "timing": timing}  # fmt: skip


def show(i: int, n: int, episode: Mapping[str, Any]) -> None:
    """A line per episode."""
    verdict = "-" if episode["success"] is None else "success" if episode["success"] else "failure"
    sys.stdout.write(
        f"episode {i + 1:>3}/{n}  seed {episode['seed']}  {verdict:<7}  {episode['steps']:>4} steps  {episode['seconds']:6.1f} s  "
        f"{episode['state']}: {episode['reason']}\n"
    )
    sys.stdout.flush()


def report(cfg: Mapping[str, Any], episodes: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The result as a table, and as ``result.json``."""
    judged = [e["success"] for e in episodes if e["success"] is not None]
    low, high = wilson_interval(sum(judged), len(judged))
    rate = sum(judged) / len(judged) if judged else float("nan")
    acted: dict[str, int] = {}
    for episode in episodes:
        for name, count in (episode.get("acted") or {}).items():
            acted[name] = acted.get(name, 0) + count
    result = {
        "task": cfg["task"], "robot": cfg["robot"]["kind"], "mode": cfg["mode"], "checkpoint": cfg["checkpoint"],
        "success_rate": rate, "success_interval": [low, high], "episodes": episodes, "acted": acted,
    }  # fmt: skip
    with atomic_write(folder / "result.json") as file:
        file.write(json.dumps(plain(result), indent=1).encode())
    rows = (
        [("success", f"{rate:.3f} [{low:.3f}, {high:.3f}]  ({sum(judged)} of {len(judged)} judged episodes)")]
        if judged
        else []
    )
    ends: dict[str, int] = {}
    for episode in episodes:
        end = f"{episode['state']}: {episode['reason']}"
        ends[end] = ends.get(end, 0) + 1
    rows += [("ended", ", ".join(f"{end} x{count}" for end, count in sorted(ends.items(), key=lambda e: -e[1])))]
    rows += [
        (
            "acted",
            ", ".join(f"{name} x{count}" for name, count in sorted(acted.items()) if not name.startswith("runner."))
            or "nothing",
        )
    ]
    rows += [("recorded", str(folder))]
    sys.stdout.write(f"\n{cfg['task']} on {cfg['robot']['kind']} ({cfg['mode']}, speed {cfg['speed_scale']:g})\n")
    sys.stdout.write("".join(f"  {name:<9} {text}\n" for name, text in rows))
    return result


def main() -> None:
    """Entry point; exit code 2 for a mistake a person can mend."""
    argv = sys.argv[1:]
    if not argv or (argv[0] in {"-h", "--help"} and len(argv) == 1):
        leaves = sorted((ROOT / "cfg" / "real").glob("*/*.yaml"))
        listing = "\n".join(f"  --config-dir={p.parent.relative_to(ROOT)} --config-name={p.stem}" for p in leaves)
        sys.stdout.write(f"{__doc__}\nConfigurations:\n{listing}\n")
        sys.exit(0 if argv else 2)
    try:
        check_readable(argv, BASE)
        _main()
    except UsageError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)
    except SystemExit as stop:
        if stop.code not in (0, None, 2, 130):
            explain_unknown_overrides(argv, BASE)
        raise


if __name__ == "__main__":
    main()
