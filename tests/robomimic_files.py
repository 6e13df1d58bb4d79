"""HDF5 files in robomimic's layout, written with h5py alone: what the reader is tested against.

``python -m tests.robomimic_files engine 100 lift_100.hdf5`` makes a big one (``engine`` or ``robosuite``).
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


def lift_obs(full: np.ndarray) -> dict[str, np.ndarray]:
    """Our Lift observations (T, 19) under robomimic's keys, with some that nobody asked for."""
    columns = {"robot0_eef_pos": (0, 3), "robot0_eef_quat": (3, 7), "robot0_gripper_qpos": (7, 9), "object": (9, 19)}
    return {key: full[:, a:b] for key, (a, b) in columns.items()} | {"robot0_joint_pos": np.zeros((len(full), 7))}


def engine_demos(n: int, steps: int = STEPS, seed: int = 0) -> list[dict]:
    """``n`` Lift episodes of the scripted expert in the engine, the model at full precision."""
    from env.engine.library import SOLVED
    from env.engine.pool import Simulations
    from env.robomimic.lift import Lift
    from env.robomimic.lift_expert import LiftExpert

    family, demos = Lift(), []
    starts = np.stack([family.draw(np.random.default_rng((seed, k))) for k in range(n)])
    simulations = Simulations(family, n, n_threads=1)
    simulations.begin(range(n), starts)
    expert = LiftExpert(n, np.random.default_rng(seed), noise=0.1)
    log = {"states": [], "actions": [], "obs": [], "rewards": []}
    for _ in range(steps):
        obs = simulations.history[:, 0].copy()
        actions = expert.act(obs)
        log["obs"].append(obs)
        log["actions"].append(actions)
        log["states"].append(np.stack([np.concatenate([[d.time], d.qpos, d.qvel]) for d in simulations.data]))
        done = simulations.run(np.arange(n), actions[:, None], np.ones(n, np.int64))
        log["rewards"].append(((done.bits & SOLVED) != 0).astype(np.float64))
    arrays = {key: np.stack(value, axis=1) for key, value in log.items()}
    for k in range(n):
        own = {key: arrays[key][k] for key in ("states", "actions", "rewards")}
        demos.append(own | {"obs": lift_obs(arrays["obs"][k]), "model": model_with_cube(family._xml, starts[k, :3])})
    return demos


def robosuite_demos(n: int, steps: int = STEPS, seed: int = 0) -> list[dict]:
    """``n`` Lift episodes of genuine robosuite under a plain grasp, as robomimic records them: ``get_xml``, flattened
    states, observations as robosuite 1.5 gives them."""
    from env.robomimic import reference

    env, demos = reference.make_reference_lift(seed=seed), []
    rng = np.random.default_rng(seed)
    for k in range(n):
        obs = env.reset() if k else env._get_observations(force_update=True)
        demo = {"states": [], "actions": [], "rewards": [], "full": [], "model": env.sim.model.get_xml()}
        for t in range(steps):
            action = np.clip(reference.scripted_grasp(reference.observation(obs), t), -1, 1)
            action[:6] += 0.05 * rng.standard_normal(6)
            action = np.clip(action, -1, 1)
            full = reference.observation(obs)
            full[16:] *= -1.0  # 1.5's own sign
            for key, value in (("states", env.sim.get_state().flatten()), ("actions", action), ("full", full)):
                demo[key].append(value)
            obs, reward, *_ = env.step(action)
            demo["rewards"].append(reward)
        arrays = {key: np.array(demo[key]) for key in ("states", "actions", "rewards", "full")}
        demos.append(arrays | {"obs": lift_obs(arrays.pop("full")), "model": demo["model"]})
    env.close()
    return demos


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


def model_with_cube(xml: str, size: np.ndarray) -> str:
    """The MJCF with another cube."""
    root = ElementTree.fromstring(xml)
    for geom in root.iter("geom"):
        if geom.get("name", "").startswith("cube_g0"):
            geom.set("size", " ".join(repr(float(x)) for x in size))
    return ElementTree.tostring(root, encoding="unicode")


def main(argv: list[str]) -> None:
    """Entry point: engine | robosuite, how many, file."""
    kind, n, path = argv[0], int(argv[1]), argv[2]
    demos = {"engine": engine_demos, "robosuite": robosuite_demos}[kind](n)
    args = env_args()
    if kind == "robosuite":
        args["env_version"] = "1.5.2"
        args["env_kwargs"]["controller_configs"]["input_ref_frame"] = "world"
    write_file(path, demos, args)


if __name__ == "__main__":
    main(sys.argv[1:])
