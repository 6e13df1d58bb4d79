"""One fine-tuning iteration of the published Lift setting, end to end: ours against the straightforward published
loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from script.bench.isolated import Isolated
from script.bench.measure import Contestant, Figure, compare
from script.bench.registry import Context, UnavailableError, benchmark

ROOT = Path(__file__).resolve().parents[3]
BAR = 2.5
CONFIG = "robomimic/finetune/lift/ft_ppo_diffusion_mlp"
OBS_DIM, ACTION_DIM = 19, 7


@benchmark(
    "finetune",
    "one PPO iteration of the published Lift setting (50 envs x 300 chunks x 4 steps, K = 20, 10 tuned)",
    repeats=3,
)
def finetune_iteration(context: Context) -> Iterator[Figure]:
    """Rollout, values and log-probs, 10 epochs of updates; each side in a process of its own, from the same weights."""
    from script.bench.reference_loop import scaled
    from script.bench.robosuite_env import workers_for

    settings = scaled(context.scale)
    workers = context.reference_workers or workers_for(settings.n_envs, context.cores)
    if settings.n_envs % workers:
        raise UnavailableError(
            f"--reference-workers: {settings.n_envs} environments do not divide over {workers} processes"
        )
    with (
        Isolated(OurIteration, settings, context.cores, context.seed, context.policy) as ours,
        Isolated(PublishedIteration, settings, workers, context.cores, context.seed, context.policy) as published,
    ):
        sides = {"ours": Side(ours, context.repeats), "published loop": Side(published, context.repeats)}
        samples = context.interleave(
            {name: side.contestant() for name, side in sides.items()}, warm_up=context.scale < 1
        )
    per_hour = {name: 3600 * sample.rates for name, sample in samples.items()}
    steps = settings.control_steps
    size = (
        f"{settings.n_envs} environments x {settings.n_steps} chunks x {settings.act_steps} = {steps:,} control steps"
    )
    threads = (
        f"{sides['published loop'].reports[-1]['sampling_threads']} thread(s) while sampling (the faster of 1 and all)"
    )
    note = f"{size}; published loop: {workers} simulator processes, {threads}"
    figure = compare(
        "Lift iteration",
        "iterations/h",
        per_hour["ours"],
        "published loop",
        per_hour["published loop"],
        bar=BAR,
        note=note,
    )
    figure.tables["seconds per phase (medians)"] = {name: side.medians() for name, side in sides.items()}
    yield figure
    cpu = {name: steps * sample.cpu_rates for name, sample in samples.items()}
    yield compare("Lift iteration", "control steps/CPU s", cpu["ours"], "published loop", cpu["published loop"])


class Side:
    """One process that runs iterations, and what it reported of each."""

    def __init__(self, process: Isolated, repeats: int) -> None:
        self.process, self.repeats = process, repeats
        self.reports: list[dict[str, Any]] = []

    def contestant(self) -> Contestant:
        """One iteration per turn; the CPU clock adds up what the process reports."""

        def run() -> float:
            self.reports.append(self.process.run())
            return 1.0

        return Contestant(run, cpu_clock=lambda: sum(report["cpu"] for report in self.reports))

    def medians(self) -> dict[str, float]:
        """Median seconds of each phase, and of all together, without the warm-up."""
        reports = self.reports[-self.repeats :]
        return {key: float(np.median([report["phases"][key] for report in reports])) for key in reports[-1]["phases"]}


class PublishedIteration:
    """``reference_loop.ReferenceLoop`` with robosuite underneath."""

    def __init__(self, settings: Any, workers: int, cores: int, seed: int, policy: str | None) -> None:
        import torch

        from script.bench.reference_loop import AsyncSimulators, ReferenceLoop

        torch.set_num_threads(cores)
        base, limits = starting_point(policy, seed, settings.act_steps)
        self.simulators = AsyncSimulators(settings.n_envs, workers, seed, limits)
        self.loop = ReferenceLoop(settings, self.simulators, seed, base)
        self.sampling_threads = self.loop.choose_sampling_threads(cores)
        self.simulators.reset()  # builds the simulators

    def run(self) -> dict[str, Any]:
        """One iteration -> phases, CPU seconds, threads while sampling."""
        cpu, started = self.simulators.cpu_seconds(), time.perf_counter()
        phases = dict(self.loop.iteration())
        phases["all"] = time.perf_counter() - started
        return {"phases": phases, "cpu": self.simulators.cpu_seconds() - cpu, "sampling_threads": self.sampling_threads}

    def close(self) -> None:
        """End the simulators."""
        self.simulators.close()


class OurIteration:
    """Our policy, engine, collector and PPO, built from a published configuration (Lift's)."""

    def __init__(self, settings: Any, cores: int, seed: int, policy: str | None, config: str = CONFIG) -> None:
        import tempfile

        import torch

        torch.set_num_threads(cores)
        from agent.finetune.finetune import FinetuneAgent
        from agent.finetune.rollout import Rollout, to_torch

        self.folder = tempfile.TemporaryDirectory(prefix="d2ppo-benchmark-")
        base = (
            Path(policy).expanduser()
            if policy
            else write_base(
                Path(self.folder.name) / "base.pt", seed, settings.act_steps, settings.obs_dim, settings.action_dim
            )
        )
        self.cfg = compose(settings, base, Path(self.folder.name) / "run", seed, cores, config)
        self.agent = FinetuneAgent(self.cfg)
        agent, model = self.agent, self.cfg
        self.first = agent.venv.reset(seed)
        chain = (agent.policy.n_chain_steps + 1, model.horizon_steps, model.action_dim)
        self.rollout = Rollout.allocate(
            settings.n_steps, settings.n_envs, to_torch(self.first, agent.device), chain, agent.device
        )
        self.iterations = 0

    def run(self) -> dict[str, Any]:
        """What ``FinetuneAgent.run`` does per iteration, logging and saving aside -> phases, CPU seconds."""
        from agent.finetune.rollout import EpisodeTracker, collect
        from env.protocol import episode_seed

        agent, cpu, started = self.agent, time.process_time(), time.perf_counter()
        obs = agent.venv.reset(episode_seed(self.cfg.seed, 0, self.iterations))
        reset = time.perf_counter() - started
        firsts = np.ones(self.cfg.env.n_envs, bool)
        tracker = EpisodeTracker.start(self.cfg.env.n_envs)
        _, _, spent = collect(agent.policy, agent.venv, obs, firsts, self.rollout, tracker, agent.generator)
        updated = time.perf_counter()
        agent.algorithm.update(self.rollout, self.iterations)
        ended = time.perf_counter()
        self.iterations += 1
        phases = {
            "simulate": reset + spent["time/simulate"],
            "sample": spent["time/sample"],
            "update": ended - updated,
            "all": ended - started,
        }
        return {"phases": phases, "cpu": time.process_time() - cpu}

    def close(self) -> None:
        """Free the simulations and the temporary run directory."""
        self.agent.venv.close()
        self.agent.eval_env.close()
        self.folder.cleanup()


def compose(settings: Any, base: Path, logdir: Path, seed: int, cores: int, config: str = CONFIG) -> Any:
    """The composed configuration of a published fine-tuning, with the size of ``settings`` and the actor learning from
    the start.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from agent.config import register_resolvers, validate

    register_resolvers()
    pairs = (
        settings.batch_size * settings.ft_denoising_steps
    )  # the configuration counts pairs; as many minibatches as published
    overrides = {
        "base_policy_path": base,
        "logdir": logdir,
        "seed": seed,
        "device": "cpu",
        "wandb": "null",
        "env.n_envs": settings.n_envs,
        "env.n_threads": cores,
        "train.n_steps": settings.n_steps,
        "train.batch_size": pairs,
        "train.n_critic_warmup_itr": 0,
        "train.update_epochs": settings.update_epochs,
        "train.target_kl": "null",
    }
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        cfg = hydra_compose(config, overrides=[f"{key}={value}" for key, value in overrides.items()])
    validate(cfg)
    return cfg


def random_base(seed: int, act_steps: int, obs_dim: int = OBS_DIM, action_dim: int = ACTION_DIM) -> dict[str, Any]:
    """Weights of an untrained denoiser, by published key: what both loops start from unless a policy is given."""
    import torch

    from script.bench.reference_networks import Denoiser

    torch.manual_seed(seed)
    return Denoiser(obs_dim, action_dim, act_steps).state_dict()


def starting_point(policy: str | None, seed: int, act_steps: int) -> tuple[dict[str, Any], Any]:
    """Denoiser weights, and the limits and normalisation of the simulators, from a checkpoint or (None) random and
    the identity.
    """
    from script.bench.robosuite_env import Limits

    limits = Limits(act_steps=act_steps)
    if policy is None:
        return random_base(seed, act_steps), limits
    from agent import checkpoint

    payload = checkpoint.load(policy)
    weights = {
        key.removeprefix("network."): value
        for key, value in checkpoint.weights(payload).items()
        if key.startswith("network.")
    }
    ranges = {key: tuple(map(float, value)) for key, value in (payload.get("normalizer") or {}).items()}
    return weights, replace(limits, **ranges)


def write_base(path: Path, seed: int, act_steps: int, obs_dim: int = OBS_DIM, action_dim: int = ACTION_DIM) -> Path:
    """A pre-training checkpoint with the random weights and a normaliser that changes nothing."""
    from agent import checkpoint
    from env.normalizer import Normalizer

    ones = np.ones(obs_dim, np.float32), np.ones(action_dim, np.float32)
    normalizer = Normalizer(-ones[0], ones[0], -ones[1], ones[1])
    weights = random_base(seed, act_steps, obs_dim, action_dim)
    model = {f"network.{key}": value for key, value in weights.items()}
    checkpoint.save(
        path,
        {
            "kind": "pretrain",
            "epoch": 0,
            "model": model,
            "ema": None,
            "normalizer": normalizer.to_dict(),
            "config": None,
        },
    )
    return path
