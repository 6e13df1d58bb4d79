"""HDF5 files in robomimic's layout, written with h5py alone: what the reader is tested against.

``python -m tests.robomimic_files engine 100 lift_100.hdf5 lift 100`` makes a big one (``engine`` or ``robosuite``, episodes,
file, task, control steps).
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
STEPS = 70
SUITE_NAMES = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare", "transport": "TwoArmTransport"}


def env_args(task: str = "lift", **changes) -> dict:
    """The published env_meta, ``env_kwargs`` changed by ``changes``."""
    args = json.loads((ROOT / "cfg" / "robomimic" / "env_meta" / f"{task}.json").read_text())
    args["env_kwargs"] |= changes
    return args


def write_file(path, demos: list[dict], args: dict, masks: dict[str, list[str]] | None = None) -> Path:
    """``demos``: name, actions, rewards, states, obs {key: array}, model (MJCF)."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for k, demo in enumerate(demos):
            group = data.create_group(demo.get("name", f"demo_{k}"))
            for key in ("actions", "rewards", "states"):
                if key in demo:
                    group.create_dataset(key, data=demo[key])
            done = np.zeros(len(demo["actions"]), np.int64)
            done[-1] = 1
            group.create_dataset("dones", data=done)
            for key, value in demo["obs"].items():
                group.create_dataset(f"obs/{key}", data=value)
                group.create_dataset(f"next_obs/{key}", data=np.concatenate([value[1:], value[-1:]]))
            group.attrs["num_samples"] = len(demo["actions"])
            if "model" in demo:
                group.attrs["model_file"] = demo["model"]
        data.attrs["total"] = sum(len(demo["actions"]) for demo in demos)
        data.attrs["env_args"] = json.dumps(args, indent=4)
        for key, names in (masks or {}).items():
            file.create_dataset(f"mask/{key}", data=np.array(names, dtype="S"))
    return Path(path)


def engine_demos(n: int, task: str = "lift", steps: int = STEPS, seed: int = 0) -> list[dict]:
    """``n`` episodes in the engine, of the scripted expert where the task has one; the models at full precision."""
    from env.engine.library import SOLVED
    from env.engine.pool import Simulations
    from env.registry import EXPERTS, family

    world, rng = family(task), np.random.default_rng(seed)
    starts = np.stack([world.draw(np.random.default_rng((seed, k))) for k in range(n)])
    simulations = Simulations(world, n, n_threads=1)
    simulations.begin(range(n), starts)
    noise = 0.1 if task == "lift" else 1.0
    expert = EXPERTS[task].make(n, np.random.default_rng(seed), noise=noise, retry=True) if task in EXPERTS else None
    motions = np.stack([smooth(rng, steps, world.action_dim) for _ in range(n)])
    log = {"states": [], "actions": [], "full": [], "rewards": []}
    for t in range(steps):
        full = simulations.history[:, 0].copy()
        actions = motions[:, t] if expert is None else expert.act(full)
        states = np.stack([np.concatenate([[d.time], d.qpos, d.qvel]) for d in simulations.data])
        done = simulations.run(np.arange(n), actions[:, None], np.ones(n, np.int64))
        for key, value in (("full", full), ("actions", actions), ("states", states)):
            log[key].append(value)
        log["rewards"].append(((done.bits & SOLVED) != 0).astype(np.float64))
    simulations.close()
    arrays = {key: np.stack(value, axis=1) for key, value in log.items()}
    demos = []
    for k in range(n):
        obs = {key: arrays["full"][k][:, columns] for key, columns in world.layout.items()}
        obs["robot0_joint_pos"] = np.zeros((steps, 7))  # nobody asked for it
        own = {key: arrays[key][k] for key in ("states", "actions", "rewards")}
        demos.append(own | {"obs": obs, "model": model_with(task, world._xml, starts[k])})
    return demos


def robosuite_demos(n: int, task: str = "lift", steps: int = STEPS, seed: int = 0) -> list[dict]:
    """``n`` episodes of genuine robosuite 1.5 as robomimic records them: ``get_xml``, flattened states, robosuite's own
    arrangement of observations. Lift is grasped, the other tasks' arms wander."""
    from env.robomimic.suite import make_suite_env

    arms = 2 if task == "transport" else 1
    env, demos, rng = make_suite_env(SUITE_NAMES[task], ["Panda"] * arms, seed=seed), [], np.random.default_rng(seed)
    for _ in range(n):
        obs, motion = env.reset(), smooth(rng, steps, 7 * arms)
        log, seen = {"states": [], "actions": [], "rewards": []}, {}
        model = env.sim.model.get_xml()
        for t in range(steps):
            action = motion[t]
            if task == "lift":
                action = np.clip(grasp(obs["gripper_to_cube_pos"], t) + 0.05 * rng.standard_normal(7) * (t < 40), -1, 1)
            log["states"].append(env.sim.get_state().flatten())
            log["actions"].append(action)
            for key, value in obs.items():
                if key.startswith("robot") or key == "object-state":
                    seen.setdefault(key.replace("object-state", "object"), []).append(np.atleast_1d(value).copy())
            obs, reward, *_ = env.step(action)
            log["rewards"].append(reward)
        arrays = {key: np.array(value) for key, value in log.items()}
        demos.append(arrays | {"obs": {key: np.array(value) for key, value in seen.items()}, "model": model})
    env.close()
    return demos


def grasp(to_cube: np.ndarray, t: int) -> np.ndarray:
    """Hover, go down, close, lift: 70 control steps."""
    action = np.zeros(7)
    action[:3] = np.clip(10.0 * (to_cube + [0, 0, 0.08 * (t < 15)]), -1, 1) * (t < 30)
    action[2] += 0.6 * (t >= 40)
    action[6] = -1.0 if t < 30 else 1.0
    return action


def smooth(rng: np.random.Generator, steps: int, dim: int) -> np.ndarray:
    """Coherent random motion (steps, dim) in [-1, 1]."""
    x, out = np.zeros(dim), np.zeros((steps, dim))
    for t in range(steps):
        x = 0.9 * x + 0.2 * rng.standard_normal(dim)
        out[t] = np.clip(x, -1, 1)
    return out


def synthetic_demos(
    task: str, lengths: list[int], cameras: tuple[str, ...] = (), size: tuple[int, int] = (13, 11), seed: int = 0
) -> list[dict]:
    """Demonstrations of random but consistent numbers, ``object`` as robosuite 1.4 arranges it; images too."""
    from scipy.spatial.transform import Rotation

    rng, demos = np.random.default_rng(seed), []
    arms, extra = (2, 41) if task == "transport" else (1, 10 if task == "lift" else 14)
    for n in lengths:
        obs = {}
        for i in range(arms):
            obs[f"robot{i}_eef_pos"] = rng.uniform(0.1, 1.1, (n, 3))
            obs[f"robot{i}_eef_quat"] = Rotation.random(n, random_state=int(rng.integers(2**31))).as_quat()
            obs[f"robot{i}_gripper_qpos"] = rng.uniform(-0.04, 0.04, (n, 2))
        position = rng.uniform(0.1, 1.1, (n, 3))
        turn, hand = Rotation.random(n, random_state=5), Rotation.from_quat(obs["robot0_eef_quat"])
        offset = position - obs["robot0_eef_pos"]
        if task == "lift":
            parts = [position, turn.as_quat(), -offset]
        elif task == "transport":
            parts = [rng.uniform(-1, 1, (n, extra))]
        else:
            parts = [position, turn.as_quat(), hand.inv().apply(offset), (hand.inv() * turn).as_quat(canonical=True)]
        obs["object"] = np.concatenate(parts, axis=1)
        for camera in cameras:
            obs[f"{camera}_image"] = rng.integers(0, 256, (n, *size, 3), np.uint8)
        demos.append(
            {"actions": rng.uniform(-1, 1, (n, 7 * arms)), "rewards": (np.arange(n) > n // 2) * 1.0, "obs": obs}
        )
    return demos


def model_with(task: str, xml: str, start: np.ndarray) -> str:
    """The MJCF of the episode that began with ``start``."""
    sizes = {}
    if task == "lift":
        sizes = {"cube_g0": start[:3], "cube_g0_vis": start[:3]}
    elif task == "transport":
        sizes = {"payload_head": start[0] * np.array([2.0, 1.0, 1.0])}
    root = ElementTree.fromstring(xml)
    for geom in root.iter("geom"):
        if geom.get("name") in sizes:
            geom.set("size", " ".join(repr(float(x)) for x in sizes[geom.get("name")]))
    return ElementTree.tostring(root, encoding="unicode")


def suite_args(task: str = "lift") -> dict:
    """``env_args`` of robosuite 1.5 with the controller in the world's frame."""
    args = env_args(task) | {"env_version": "1.5.2"}
    args["env_kwargs"]["controller_configs"]["input_ref_frame"] = "world"
    return args


def main(argv: list[str]) -> None:
    """Entry point: engine | robosuite, how many, file[, task, steps]."""
    kind, n, path, task, *steps = argv[0], int(argv[1]), argv[2], *(argv[3:] or ["lift"])
    make, args = {"engine": (engine_demos, env_args), "robosuite": (robosuite_demos, suite_args)}[kind]
    write_file(path, make(n, task, *map(int, steps)), args(task))


if __name__ == "__main__":
    main(sys.argv[1:])
