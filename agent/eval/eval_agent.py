"""Evaluate one checkpoint and write ``result.json``."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf

from agent import checkpoint, images
from agent.agent import read, resolve_device, seed_everything
from agent.eval.evaluate import evaluate
from agent.eval.video import EPISODES, record_video
from agent.finetune import base_policy
from agent.logger import RunLogger, locate_run
from env.registry import check_task, make_vector_env
from env.robomimic.env_meta import check_configured

log = logging.getLogger(__name__)


class EvalAgent:
    """Runs the episodes of ``n_episodes`` recorded seeds.

    Args:
        cfg: a composed and validated configuration of stage ``eval``. The policy is rebuilt from the checkpoint's own configuration;
            ``cfg.model`` may override single settings of it (``model.use_ddim=true model.ddim_steps=5``), or describe all of a published one's.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        device = resolve_device(cfg.device)
        seed_everything(cfg.seed)
        check_task(cfg.env)
        check_configured(read(cfg, "robomimic_env_cfg_path", None), cfg.env)
        self.path = base_policy.find(cfg)
        payload = checkpoint.load(self.path)
        images.check(payload, cfg, self.path)
        self.images, env_cfg = images.settled(payload, cfg)
        overrides = OmegaConf.to_container(cfg.model, resolve=True)
        whole = None  # the checkpoint's own configuration, unless this one says all about the policy
        if "_target_" in overrides:
            whole, overrides = OmegaConf.to_container(cfg, resolve=True), None
        self.policy = checkpoint.load_policy(self.path, whole, device, cfg.policy_weights, overrides)
        self.logger = RunLogger(*locate_run(cfg)[:1], cfg, locate_run(cfg)[1])
        self.venv = make_vector_env(env_cfg, base_policy.normalizer_of(payload, cfg))

    def run(self) -> dict[str, Any]:
        """Evaluate; returns what ``result.json`` holds."""
        cfg = self.cfg
        log.info("checkpoint: %s", self.path)
        result = evaluate(
            self.policy, self.venv, cfg.n_episodes, cfg.eval_seed, deterministic=cfg.deterministic, progress="evaluate"
        )
        log.info("%s", result)
        self.logger.log("itr", 0, result.metrics())
        video = None
        if cfg.env.save_video or cfg.render_num > 0:
            seeds = result.seeds[: cfg.render_num or EPISODES]
            video = record_video(self.policy, self.venv, seeds, self.logger.logdir / "render" / "episodes.mp4")
        out = {**result.to_dict(), "checkpoint": str(self.path), "video": video, "images": self.images}
        self.logger.finish(out)
        self.venv.close()
        return out
