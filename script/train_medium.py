"""Train a "medium" behaviour policy for locomotion, from nothing, and ship it as a small safetensors file.

    python script/train_medium.py --task hopper
    python script/train_medium.py --task halfcheetah --target 4000 --seed 1 --out assets/gym_medium train.n_train_itr=400

Three steps: the bounds of a normaliser, measured on random actions (mean +- one standard deviation: the policy sees standardised
observations); PPO of a Gaussian policy in the ordinary loop (cfg/gym/finetune/<task>-v2/medium.yaml, base_policy_path=scratch), stopped as
soon as its noisy training episodes return --target on average; an evaluation of what came out. Interrupted? Run it again: it goes on.
D4RL's medium data come from a policy of its own (SAC, stopped early): this is another policy, and its data are other data.

What is shipped, all of seed 0: hopper and walker2d at their targets; halfcheetah at iteration 450 of 500 (--iteration=450: at its target it
was better than medium). Each file's metadata say how good it was measured to be.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from agent import checkpoint  # noqa: E402
from agent.behaviour import save_behaviour  # noqa: E402
from agent.config import register_resolvers, validate  # noqa: E402
from agent.eval import evaluate  # noqa: E402
from agent.finetune.finetune import FinetuneAgent  # noqa: E402
from env.normalizer import Normalizer  # noqa: E402
from env.registry import make_vector_env  # noqa: E402

TARGETS = {"hopper": 1500, "walker2d": 2900, "halfcheetah": 4700}  # about what D4RL's medium data return
EPISODES = 40  # of the final evaluation
FIRST_SEED = 3_000_000  # seeds nothing else uses
SMALLEST_STD = 1e-2  # of an observation that hardly moves (m, rad, m/s, rad/s)


class _Agent(FinetuneAgent):
    """The ordinary loop, without the video at its end."""

    def _video(self, name: str, episodes: int) -> str | None:
        return None


def measure(env: dict[str, object], seed: int, n_envs: int = 100, n_steps: int = 200) -> Normalizer:
    """Bounds of observations, mean +- standard deviation under uniformly random actions, and of actions, [-1, 1]."""
    venv = make_vector_env({**env, "n_envs": n_envs, "act_steps": 1})
    rng, states = np.random.default_rng((seed, 11)), []
    obs = venv.reset(seed)
    for _ in range(n_steps):
        states.append(obs["state"][:, -1].copy())
        obs = venv.step(rng.uniform(-1, 1, (n_envs, 1, venv.action_dim)).astype(np.float32)).obs
    venv.close()
    every = np.concatenate(states).astype(np.float64)
    mean, std, ones = every.mean(0), np.maximum(every.std(0), SMALLEST_STD), np.ones(venv.action_dim)
    return Normalizer(mean - std, mean + std, -ones, ones)


def configuration(task: str, logdir: Path, overrides: list[str]) -> DictConfig:
    """The leaf of ``task``, validated."""
    register_resolvers()
    given = [f"logdir={logdir}", f"normalization_path={logdir / 'normalization.npz'}", "wandb=null", *overrides]
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        cfg = compose(f"gym/finetune/{task}-v2/medium", overrides=given)
    validate(cfg)
    return cfg


def export(cfg: DictConfig, source: Path, path: Path) -> dict[str, object]:
    """Evaluate the policy of checkpoint ``source``, noisy as it collects and deterministic, and write it to ``path``; returns what is
    known of it."""
    policy, extra = checkpoint.load_policy(source), checkpoint.load(source)["extra"]
    venv = make_vector_env(OmegaConf.to_container(cfg.env, resolve=True), policy.normalizer)
    noisy, best = (evaluate(policy, venv, EPISODES, FIRST_SEED, deterministic=d) for d in (False, True))
    venv.close()
    about = {
        "task": cfg.env_name, "what": "a medium behaviour policy of this project, not D4RL's",
        "trained": "PPO from random weights: script/train_medium.py, cfg/base/method/gym_medium.yaml",
        "seed": cfg.seed, "env_steps": extra["env_steps"], "seconds": round(extra["wall_seconds"], 1),
        "episodes": EPISODES, "first_seed": FIRST_SEED,
        "return_noisy": noisy.mean_return, "return_noisy_interval": noisy.return_interval,
        "length_noisy": float(np.mean(noisy.lengths)),
        "return_deterministic": best.mean_return, "return_deterministic_interval": best.return_interval,
        "versions": checkpoint.versions(),
    }  # fmt: skip
    network = {k: v for k, v in OmegaConf.to_container(cfg.model.actor, resolve=True).items() if k != "_target_"}
    save_behaviour(path, policy, network, policy.normalizer, about)
    return about


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=sorted(TARGETS))
    parser.add_argument("--target", type=float, help=f"noisy return to stop at (default {TARGETS})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(ROOT / "assets" / "gym_medium"), help="folder of <task>.safetensors")
    parser.add_argument("--logdir", help="run directory (default <log>/gym-medium/<task>_<seed>)")
    parser.add_argument(
        "--iteration", type=int, help="ship this numbered checkpoint of the run, which is not trained further"
    )
    parser.add_argument("overrides", nargs="*", help="key=value, of the configuration")
    args = parser.parse_args(argv)
    logs = Path(os.environ.get("DPPO_LOG_DIR", "log")) / "gym-medium" / f"{args.task}_{args.seed}"
    logdir = Path(args.logdir or logs).absolute()
    target = TARGETS[args.task] if args.target is None else args.target
    cfg = configuration(
        args.task, logdir, [f"seed={args.seed}", f"train.stop_at_return={target}", "resume=true", *args.overrides]
    )
    if not (logdir / "normalization.npz").exists():
        measure(OmegaConf.to_container(cfg.env, resolve=True), args.seed).save(logdir / "normalization.npz")
    torch.set_num_threads(1)
    numbered = logdir / "checkpoint" / f"state_{args.iteration}.pt"
    source = Path(_Agent(cfg).run()["checkpoint"]) if args.iteration is None else numbered
    path = Path(args.out).expanduser() / f"{args.task}.safetensors"
    about = export(cfg, source, path)
    low, high = about["return_noisy_interval"]
    sys.stdout.write(
        f"{path}\n{path.stat().st_size:,} bytes; {EPISODES} episodes: noisy {about['return_noisy']:.0f} [{low:.0f}, {high:.0f}], "
        f"deterministic {about['return_deterministic']:.0f}; {about['env_steps']:,} control steps in {about['seconds']:.0f} s\n"
    )


if __name__ == "__main__":
    main()
