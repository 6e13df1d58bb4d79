"""The one fine-tuning loop: evaluate if due, collect, update, log, save. ``train.algorithm`` plugs in; see ``algorithm.py``."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from agent import checkpoint, images
from agent.agent import build, read, resolve_device, seed_everything
from agent.errors import CheckpointError
from agent.eval import EvalResult, evaluate, is_solvable
from agent.eval.video import EPISODES, record_video
from agent.features import diagnose
from agent.finetune import base_policy
from agent.finetune.algorithm import make_algorithm
from agent.finetune.preflight import check_memory
from agent.finetune.rollout import EpisodeTracker, Rollout, collect
from agent.logger import RunLogger, locate_run
from agent.optim import EMA
from agent.plots import learning_curve
from agent.resume import resume_point
from env.protocol import episode_seed
from env.registry import check_task, make_vector_env
from env.robomimic.env_meta import check_configured
from model.common.feature_diagnostics import MAX_ROWS
from model.common.modules import strict_load

log = logging.getLogger(__name__)


class FinetuneAgent:
    """Fine-tunes a pre-trained policy, or trains one from nothing, in a vectorised environment.

    Args:
        cfg: a composed and validated configuration of stage ``finetune``.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.train = cfg, OmegaConf.to_container(cfg.train, resolve=True)
        self.device = torch.device(resolve_device(cfg.device))
        seed_everything(cfg.seed)
        self.generator = torch.Generator(self.device).manual_seed(cfg.seed)
        logdir, resume = locate_run(cfg)
        self.logger = RunLogger(logdir, cfg, resume)
        try:
            self._build(resume_point(logdir, cfg) if resume else None)
        except BaseException:
            self.logger.close()
            raise

    def _build(self, resumed: dict[str, Any] | None) -> None:
        """Policy, worlds and algorithm; from ``resumed``, the run's own checkpoint, if there is one."""
        cfg = self.cfg
        check_task(cfg.env)
        check_configured(read(cfg, "robomimic_env_cfg_path", None), cfg.env)
        self.base_path = Path(resumed["extra"]["base_policy_path"]) if resumed else base_policy.find(cfg)
        payload = resumed or base_policy.read_base(self.base_path)
        images.check(payload, cfg, self.base_path)
        self.images, env_cfg = images.settled(payload, cfg)
        self.normalizer = base_policy.normalizer_of(payload, cfg)
        self.policy = build(cfg.model).to(self.device)
        self.base = self.policy  # what the comparison at the end begins with
        if resumed is None:
            self._load_base(payload)
            log.info("base policy: %s", self.base_path)
        self.venv = make_vector_env(env_cfg, self.normalizer)
        self.eval_env = make_vector_env({**env_cfg, "render": False}, self.normalizer)
        check_memory(self.policy, self.venv, cfg.train.n_steps, self.train, self._chain_shape())
        self.algorithm = make_algorithm(cfg, self.policy, self.train, self.generator, self.normalizer)
        decay = read(cfg, "ema.decay", None)
        self.ema = None if decay is None else EMA(self.policy, decay)
        self.tracker = EpisodeTracker.start(cfg.env.n_envs)
        self.iteration, self.env_steps, self.wall_seconds = 0, 0, 0.0
        self.before: dict[str, Any] | None = None
        self.stopped, self.recent = False, deque(maxlen=cfg.env.n_envs)  # by train.stop_at_return; returns of episodes
        self.obs, self.firsts = None, np.ones(cfg.env.n_envs, bool)
        if resumed:
            self._restore(resumed)
        self.logger.truncate_after("itr", self.iteration if resumed else -1)

    def run(self) -> dict[str, Any]:
        """Train to the end; returns (and writes to ``result.json``) what came out."""
        try:
            with logging_redirect_tqdm():
                return self._run()
        finally:
            self.logger.close()
            for venv in (self.venv, self.eval_env):
                venv.close()

    def _run(self) -> dict[str, Any]:
        rollout: Rollout | None = None
        if self.before is None:
            self.before = self._measure_base()
            self._save(numbered=False)
        n_iterations, last_save, last_tick = self.train["n_train_itr"], time.monotonic(), time.monotonic()
        bar = tqdm(
            total=n_iterations, initial=self.iteration, desc="fine-tune", unit="itr", dynamic_ncols=True, disable=None
        )
        while self.iteration < n_iterations and not self.stopped:
            metrics, collects = {}, self.algorithm.collects(self.iteration)
            if collects:
                self._start_episodes()
                if rollout is None or tuple(rollout.chains.shape[2:]) != self._chain_shape():
                    rollout = self._allocate()
                metrics = self._collect(rollout, bar)
            metrics |= self.algorithm.update(rollout if collects else None, self.iteration)
            self.iteration += 1
            if self.ema:
                self.ema.update()
            if collects and self.iteration % self.train.get("diagnostics_freq", 1) == 0:
                metrics |= self._diagnose(rollout)
            if (
                self.iteration % self.train["val_freq"] == 0 and self.iteration < n_iterations
            ):  # at the end there is a better one
                metrics |= self._evaluate()
            now = time.monotonic()
            self.wall_seconds += now - last_tick
            metrics |= {"env_steps": self.env_steps, "time/wall": self.wall_seconds, "time/iteration": now - last_tick}
            last_tick = now
            self.logger.log("itr", self.iteration, metrics)
            bar.update()
            self._say(metrics)
            self.stopped = self._good_enough()
            last = self.stopped or self.iteration == n_iterations
            numbered = self.iteration % self.train["save_model_freq"] == 0 or last
            if numbered or now - last_save >= self.train["latest_every_s"]:
                self._save(numbered)
                last_save = time.monotonic()
        bar.close()
        return self._finish()

    def _good_enough(self) -> bool:
        """Whether the last ``env.n_envs`` training episodes returned ``train.stop_at_return`` on average, where that is set."""
        wanted = self.train.get("stop_at_return")
        return wanted is not None and len(self.recent) == self.recent.maxlen and float(np.mean(self.recent)) >= wanted

    def _say(self, metrics: dict[str, float]) -> None:
        """One console line per iteration."""
        left = (self.train["n_train_itr"] - self.iteration) * metrics["time/iteration"]
        words = [f"{label} {metrics[key]:{style}}" for label, key, style in self.algorithm.HEADLINE if key in metrics]
        if "train/episode_return" in metrics:
            words.insert(0, f"return {metrics['train/episode_return']:.4g} (exploring)")
            if is_solvable(self.venv):
                words.insert(0, f"success {metrics['train/success_rate']:.3f}")
            words.append(f"{metrics['time/env_steps_per_s']:,.0f} env steps/s")
        log.info(
            "itr %d/%d  %s  %.0f s/itr, %.1f min left",
            self.iteration,
            self.train["n_train_itr"],
            "  ".join(words),
            metrics["time/iteration"],
            left / 60,
        )

    def _load_base(self, payload: dict[str, Any]) -> None:
        """Weights to start from: of a pre-trained policy or one that was tuned by regression, all of another fine-tuned one, or none
        (``base_policy_path=scratch``)."""
        if not payload:
            return
        weights = checkpoint.weights(payload)
        if payload.get("kind") == "finetune" and not checkpoint.is_network(weights):
            strict_load(self.policy, weights, str(self.base_path))
        else:
            try:
                self.policy.load_base(weights)
                self.base = getattr(self.policy, "untuned", lambda: self.policy)()
            except ValueError as error:
                raise CheckpointError(
                    f"base_policy_path: {self.base_path} does not fit model.actor: {error}"
                ) from error

    def _measure_base(self) -> dict[str, Any]:
        """How good the policy is before any reinforcement learning, on the seeds of the final comparison."""
        seed, episodes = self.train["final_eval_seed"], self.train["final_eval_episodes"]
        result = evaluate(self.base, self.eval_env, episodes, seed, progress="base policy")
        log.info("base policy: %s", result)
        self.logger.log("itr", 0, {"env_steps": 0, "time/wall": 0.0, **result.metrics()})
        if self._video_due():
            self._video("itr_0", self.train["render"]["num"], self.base)
        return result.to_dict()

    def _run_evaluation(self, first_seed: int, episodes: int, label: str) -> EvalResult:
        with self._judged():
            return evaluate(self.policy, self.eval_env, episodes, first_seed, progress=label)

    def _judged(self) -> contextlib.AbstractContextManager[None]:
        """Within it the policy has the weights that are evaluated: their average over the iterations where ``ema.decay`` is set."""
        return self.ema.applied() if self.ema else contextlib.nullcontext()

    def _evaluate(self) -> dict[str, float]:
        result = self._run_evaluation(self.train["eval_seed"], self.train["eval_episodes"], "evaluate")
        log.info("itr %d  %s", self.iteration, result)
        if self._video_due():
            self._video(f"itr_{self.iteration}", self.train["render"]["num"])
        return result.metrics()

    def _video_due(self) -> bool:
        """Videos show evaluations: the first one in every ``train.render.freq`` iterations."""
        render, before = self.train["render"], self.iteration - self.train["val_freq"]
        return (
            bool(self.cfg.env.save_video)
            and render["num"] > 0
            and self.iteration // render["freq"] > before // render["freq"]
        )

    def _video(self, name: str, episodes: int, policy: nn.Module | None = None) -> str | None:
        seeds = [self.train["eval_seed"] + k for k in range(episodes)]
        with self._judged():
            return record_video(
                policy or self.policy, self.eval_env, seeds, self.logger.logdir / "render" / f"{name}.mp4"
            )

    def _start_episodes(self) -> None:
        """New episodes at every iteration, or (``env.reset_at_iteration=false``) only at the first."""
        if self.obs is None or self.cfg.env.reset_at_iteration:
            self.obs = self.venv.reset(episode_seed(self.cfg.seed, 0, self.iteration))
            self.firsts = np.ones(self.cfg.env.n_envs, bool)
            self.tracker = EpisodeTracker.start(self.cfg.env.n_envs)

    def _allocate(self) -> Rollout:
        obs = {key: torch.as_tensor(value[:1]) for key, value in self.obs.items()}  # one row: shapes and types
        return Rollout.allocate(self.train["n_steps"], self.cfg.env.n_envs, obs, self._chain_shape(), self.device)

    def _chain_shape(self) -> tuple[int, int, int]:
        return self.policy.n_chain_steps + 1, self.cfg.horizon_steps, self.cfg.action_dim

    def _collect(self, rollout: Rollout, bar: tqdm) -> dict[str, float]:
        started, n_chunks, done = time.perf_counter(), self.train["n_steps"], 0
        per_chunk = self.cfg.env.n_envs * self.cfg.act_steps

        def tick() -> None:
            nonlocal done
            done += 1
            bar.set_postfix_str(
                f"chunk {done}/{n_chunks}, {done * per_chunk / (time.perf_counter() - started):,.0f} env steps/s",
                refresh=False,
            )
            bar.refresh() if done % max(1, n_chunks // 20) == 0 else None

        self.obs, self.firsts, spent = collect(
            self.policy, self.venv, self.obs, self.firsts, rollout, self.tracker, self.generator, tick,
            self.algorithm.act, self.algorithm.observe,
        )  # fmt: skip
        self.env_steps += n_chunks * per_chunk
        self.recent.extend(episode[0] for episode in self.tracker.finished)
        seconds = time.perf_counter() - started
        return {
            **self.tracker.summary(),
            **spent,
            "time/collect": seconds,
            "time/env_steps_per_s": n_chunks * per_chunk / seconds,
        }

    def _diagnose(self, rollout: Rollout) -> dict[str, float]:
        """What hidden features make of the observations of this iteration (``agent.features``). Shifts no random numbers."""
        n = rollout.rewards.numel()
        rows = torch.linspace(0, n - 1, min(n, MAX_ROWS)).long()
        obs = {key: value.flatten(0, 1)[rows.to(value.device)].to(self.device) for key, value in rollout.obs.items()}
        return diagnose(self.policy, obs, torch.Generator(self.device).manual_seed(self.iteration))

    def _save(self, numbered: bool) -> None:
        cfg = self.cfg
        payload = {
            "kind": "finetune",
            "itr": self.iteration,
            "model": self.policy.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "algorithm": self.algorithm.state_dict(),
            "generator": self.generator.get_state(),
            "rng": checkpoint.rng_state(),
            "normalizer": self.normalizer.to_dict(),
            "config": OmegaConf.to_container(cfg, resolve=True),
            "extra": {
                "base_policy_path": str(self.base_path),
                "images": self.images,
                "before": self.before,
                "env_steps": self.env_steps,
                "wall_seconds": self.wall_seconds,
                "tracker": self.tracker.state_dict(),
                "recent_returns": list(self.recent),
                "firsts": torch.as_tensor(self.firsts.copy()),
                "venv": None if cfg.env.reset_at_iteration or self.obs is None else self.venv.state_dict(),
            },
        }
        folder = self.logger.logdir / "checkpoint"
        if numbered:
            light = {key: value for key, value in payload["algorithm"].items() if key != "replay"}
            checkpoint.save(folder / f"state_{self.iteration}.pt", {**payload, "algorithm": light})
        checkpoint.save(folder / "latest.pt", payload)

    def _restore(self, payload: dict[str, Any]) -> None:
        extra = payload["extra"]
        strict_load(self.policy, payload["model"], "the run's own checkpoint")
        if self.ema:
            self.ema.load_state_dict(payload["ema"])
        self.algorithm.load_state_dict(payload["algorithm"])
        self.generator.set_state(payload["generator"])
        checkpoint.set_rng_state(payload["rng"])
        self.iteration, self.env_steps, self.wall_seconds = payload["itr"], extra["env_steps"], extra["wall_seconds"]
        self.before = extra["before"]
        self.tracker.load_state_dict(extra["tracker"])
        self.recent.extend(extra.get("recent_returns", ()))
        self.firsts = extra["firsts"].numpy().copy()
        if extra["venv"] is not None:
            self.obs = self.venv.load_state_dict(extra["venv"])
        log.info("resumed after iteration %d", self.iteration)

    def _finish(self) -> dict[str, Any]:
        """The same recorded seeds before and after, a learning curve, a video, ``result.json``."""
        after = self._run_evaluation(
            self.train["final_eval_seed"], self.train["final_eval_episodes"], "fine-tuned policy"
        )
        log.info("before: %s", EvalResult(**self.before))
        log.info("after:  %s", after)
        logdir = self.logger.logdir
        picture = learning_curve(logdir / "metrics.jsonl", logdir / "learning_curve.png", self.cfg.name, after)
        video = self._video("final", self.train["render"]["num"] or EPISODES)
        result = {
            "before": self.before,
            "after": after.to_dict(),
            "iterations": self.iteration,
            "env_steps": self.env_steps,
            "wall_seconds": self.wall_seconds,
            "base_policy_path": str(self.base_path),
            "checkpoint": str(logdir / "checkpoint" / f"state_{self.iteration}.pt"),
            "learning_curve": str(picture),
            "video": video,
            "images": self.images,
        }
        self.logger.finish(result)
        return result
