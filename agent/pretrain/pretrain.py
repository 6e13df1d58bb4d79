"""Supervised pre-training: one loop for every policy that has ``loss(batch, generator) -> Losses``.

An epoch is: all batches (AdamW), schedule, average, validation if due, log, save. The published recipe (spec 1.4)
averages weights and moves the learning rate once per epoch; both can do so per step. A run that is killed goes on
exactly where its last checkpoint was taken: weights, averages, optimiser, schedule and every random number generator
are in it, and metrics beyond it are cut.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from agent import checkpoint, images, memory
from agent.agent import build, read, resolve_device, seed_everything
from agent.dataset.normalization import existing, load_normalizer
from agent.download import ensure
from agent.errors import DatasetError, UsageError
from agent.logger import CHECKPOINTS, RunLogger, locate_run
from agent.metrics import RunningMean
from agent.optim import EMA, CosineAnnealingWarmupRestarts
from agent.pretrain.diagnostics import Diagnostics
from agent.pretrain.plot import loss_curve
from agent.pretrain.settings import PretrainSettings, settle_precision
from agent.resume import resume_point
from env.normalizer import Normalizer
from model.common.dispersion import Dispersion
from model.common.feature_diagnostics import MAX_ROWS
from model.common.modules import strict_load
from model.types import Batch, NonFiniteError

log = logging.getLogger(__name__)

_SPLIT, _ORDER, _NOISE, _VALIDATION, _DIAGNOSTICS = range(5)  # what random numbers are drawn for


class PretrainAgent:
    """Trains ``cfg.model`` on ``cfg.train_dataset``; see ``cfg/base/stage/pretrain.yaml`` for the keys.

    Args:
        cfg: a composed configuration of stage ``pretrain``.

    Raises:
        UsageError: settings, demonstrations, normaliser or run directory that do not do; names the key or the file.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.settings = cfg, PretrainSettings.from_config(cfg)
        settings = self.settings
        self.device = resolve_device(read(cfg, "device", "auto"))
        self.precision = settle_precision(settings.precision, self.device)
        seed_everything(settings.seed)
        if dataset_path := read(cfg, "train_dataset.dataset_path", None):
            ensure(dataset_path)
        self.dataset = build(
            cfg.train_dataset, device=resolve_device(read(cfg, "train_dataset.device", None) or self.device)
        )
        self.dataset.check(read(cfg, "obs_dim"), read(cfg, "action_dim"))
        self.normalizer = _load_normalizer(cfg)
        self.train_rows, self.val_rows = self.dataset.split(settings.train_split, _generator(settings.seed, _SPLIT))
        if settings.batch_size > len(self.train_rows):
            raise UsageError(
                f"train.batch_size: {settings.batch_size} is more than the {len(self.train_rows)} chunks to train on "
                f"({self.dataset.path}). Lower it, collect more demonstrations, or hold out fewer (train.train_split)"
            )
        self.policy = build(cfg.model).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.schedule = CosineAnnealingWarmupRestarts(
            self.optimizer,
            settings.first_cycle_steps,
            min_lr=settings.min_lr,
            warmup_steps=settings.warmup_steps,
        )
        self.ema = EMA(self.policy, settings.ema_decay, warmup=settings.ema_per == "step")
        self.order = _generator(settings.seed, _ORDER)
        self.noise = _generator(settings.seed, _NOISE, self.device)
        self.epoch, self.wall_seconds, self.diagnostics = 0, 0.0, Diagnostics(self.policy)
        self.images = None
        if self.dataset.images is not None:
            self.images = images.of_demonstrations(self.dataset.path)
            self._check_memory()
        logdir, resume = locate_run(cfg)
        self.logger = RunLogger(logdir, cfg, resume)
        if resume:
            try:
                self._restore(logdir)
            except BaseException:
                self.logger.close()
                raise

    def _check_memory(self) -> None:
        """Say what the run needs besides the demonstrations, which are loaded; raise ``UsageError`` where that is not free."""
        some, noise = self.train_rows[:2], _generator(self.settings.seed, _DIAGNOSTICS, self.device)
        kept = memory.saved_bytes(lambda: self.policy.loss(self._batch(some), noise).total, self.policy.parameters())
        parts = {
            "network, optimiser, average": memory.training_bytes(self.policy) * 5 // 4,
            "a batch": kept * self.settings.batch_size // len(some),
        }
        log.info("demonstrations: %.2f GiB in memory", self.dataset.n_bytes / memory.GIB)
        memory.preflight(parts, ["train.batch_size"], self.device)

    def run(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            What is also written to ``result.json``: last losses, the final checkpoint, sizes, time.

        Raises:
            NonFiniteError: a loss became NaN or infinite; the last checkpoint is intact.
            CheckpointError, RunDirError: something cannot be written.
        """
        settings, started, last_save = self.settings, time.monotonic() - self.wall_seconds, time.monotonic()
        bar = tqdm(
            total=settings.n_epochs,
            initial=self.epoch,
            desc="pre-train",
            unit="epoch",
            dynamic_ncols=True,
            disable=None,
        )
        try:
            with logging_redirect_tqdm(), bar:
                while self.epoch < settings.n_epochs:
                    metrics = self._train_epoch()
                    self.wall_seconds = time.monotonic() - started
                    self._report(metrics, bar)
                    numbered = self._due(settings.save_model_freq)
                    if numbered or time.monotonic() - last_save >= settings.latest_every_s:
                        self._save(numbered)
                        last_save = time.monotonic()
            return self._finish()
        finally:
            self.logger.close()

    def _train_epoch(self) -> dict[str, float]:
        """One pass over the training chunks and what follows it; returns the epoch's metrics."""
        settings, means, started = self.settings, RunningMean(), time.perf_counter()
        lr, rows = self.schedule.lr, self.train_rows
        self.policy.train()
        for chosen in _batches(rows[torch.randperm(len(rows), generator=self.order)], settings.batch_size):
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                losses = self.policy.loss(self._batch(chosen), self.noise)
            self.optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            self.optimizer.step()
            means.add({"loss": losses.total, **losses.parts}, weight=len(chosen))
            if settings.schedule_per == "step":
                self.schedule.step()
            if settings.ema_per == "step":
                self.ema.update()
        train = means.compute()
        self._check_finite(train)
        self.epoch += 1
        self._after_epoch()
        seconds = time.perf_counter() - started
        metrics = {f"train/{name}": value for name, value in train.items()} | {"train/lr": lr}
        if len(self.val_rows) and self._due(settings.val_freq):
            metrics |= self._validate()
        if self.epoch == 1 or self._due(settings.diagnostics_freq) or self.diagnostics.undecided:
            metrics |= self._diagnose()
        return metrics | {"time/epoch": seconds, "time/samples_per_s": len(rows) / seconds}

    def _after_epoch(self) -> None:
        """Learning rate and average where they go by epochs.

        Published: before ``epoch_start_ema`` the average is overwritten every ``update_ema_freq`` epochs. Here it is
        overwritten every epoch, so that a short run's average is not its random initialisation.
        """
        settings = self.settings
        if settings.schedule_per == "epoch":
            self.schedule.step()
        if settings.ema_per == "epoch":
            if self.epoch < settings.epoch_start_ema:
                self.ema.copy()
            elif self.epoch % settings.update_ema_freq == 0:
                self.ema.update()

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Every part of the loss on the held-out trajectories, of the trained and of the averaged weights, always
        with the same noise."""
        metrics = {}
        self.policy.eval()
        for prefix, averaged in (("val", False), ("val_ema", True)):
            means, noise = RunningMean(), _generator(self.settings.seed, _VALIDATION, self.device)
            if averaged:
                with self.ema.applied():
                    self._add_losses(means, noise)
            else:
                self._add_losses(means, noise)
            metrics |= {f"{prefix}/{name}": value for name, value in means.compute().items()}
        return metrics

    def _add_losses(self, means: RunningMean, noise: torch.Generator) -> None:
        for chosen in _batches(self.val_rows, self.settings.batch_size):
            losses = self.policy.loss(self._batch(chosen), noise)
            means.add({"loss": losses.total, **losses.parts}, weight=len(chosen))

    def _diagnose(self) -> dict[str, float]:
        """What features and regulariser are like on one batch (``agent.pretrain.diagnostics``). Shifts no random numbers."""
        generator = _generator(self.settings.seed, _DIAGNOSTICS, "cpu", self.epoch)
        n = max(self.settings.batch_size, MAX_ROWS)
        rows = self.train_rows[torch.randperm(len(self.train_rows), generator=generator)[:n]]
        noise = _generator(self.settings.seed, _DIAGNOSTICS, self.device, self.epoch)
        with torch.random.fork_rng(devices=[self.device] if self.device != "cpu" else []):
            return self.diagnostics(self._batch(rows), self.settings.batch_size, noise)

    def _report(self, metrics: dict[str, float], bar: tqdm) -> None:
        bar.update()
        bar.set_postfix_str(f"loss {metrics['train/loss']:.4f}", refresh=False)
        if self._due(self.settings.log_freq):
            self.logger.log("epoch", self.epoch, {**metrics, "time/wall": self.wall_seconds})
        if bar.disable and self._due(max(1, self.settings.n_epochs // 20)):  # no terminal: a line now and then
            log.info("epoch %d/%d: loss %.4f, %.0f s", self.epoch, bar.total, metrics["train/loss"], self.wall_seconds)

    def _check_finite(self, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"training stopped: {name!r} is {value} in epoch {self.epoch + 1}. The last checkpoint in "
                    f"{self.logger.logdir / CHECKPOINTS} is intact. Try a lower train.learning_rate"
                )

    def _due(self, every: int) -> bool:
        return self.epoch % every == 0 or self.epoch == self.settings.n_epochs

    def _batch(self, rows: Tensor) -> Batch:
        """Chunks on the policy's device; the data may lie elsewhere (images need not fit on the GPU)."""
        batch = self.dataset.batch(rows)
        conditions = {key: value.to(self.device, non_blocking=True) for key, value in batch.conditions.items()}
        return Batch(batch.actions.to(self.device, non_blocking=True), conditions)

    def _save(self, numbered: bool) -> None:
        """Write ``latest.pt``, and ``state_<epoch>.pt`` with it where that is due."""
        payload = {
            "kind": "pretrain",
            "epoch": self.epoch,
            "model": self.policy.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "rng": checkpoint.rng_state(),
            "normalizer": None if self.normalizer is None else self.normalizer.to_dict(),
            "config": OmegaConf.to_container(self.cfg, resolve=True),
            "extra": {
                "order": self.order.get_state(),
                "noise": self.noise.get_state(),
                "ema_updates": self.ema.updates,
                "images": self.images,
                "wall_seconds": self.wall_seconds,
                "dispersion": None if self._dispersion is None else self._dispersion.state_dict(),
            },
        }
        if numbered:
            checkpoint.save(self._path(), payload)
        checkpoint.save(self.logger.logdir / CHECKPOINTS / "latest.pt", payload)

    @property
    def _dispersion(self) -> Dispersion | None:
        return getattr(self.policy, "dispersion", None)

    def _path(self) -> Path:
        return self.logger.logdir / CHECKPOINTS / f"state_{self.epoch}.pt"

    def _restore(self, logdir: Path) -> None:
        """Take up the run in ``logdir``; one that was killed before its first checkpoint begins again."""
        payload = resume_point(logdir, self.cfg)
        if payload is not None:
            extra = payload["extra"]
            strict_load(self.policy, payload["model"], f"resume: {logdir}")
            self.ema.load_state_dict(payload["ema"])
            self.ema.updates = extra["ema_updates"]
            self.optimizer.load_state_dict(payload["optimizer"])
            self.schedule.load_state_dict(payload["scheduler"])
            self.order.set_state(extra["order"])
            self.noise.set_state(extra["noise"])
            self.epoch, self.wall_seconds = payload["epoch"], extra["wall_seconds"]
            checkpoint.set_rng_state(payload["rng"])
            if self._dispersion is not None and extra.get(
                "dispersion"
            ):  # absent in older runs, whose settings were all fixed
                self._dispersion.load_state_dict(extra["dispersion"])
        dropped = self.logger.truncate_after("epoch", self.epoch)
        log.info("going on after epoch %d (%d later rows of metrics dropped)", self.epoch, dropped)

    def _finish(self) -> dict[str, Any]:
        rows = [row for row in self.logger.rows() if "train/loss" in row]
        last = rows[-1] if rows else {}
        if not self._path().exists():  # resumed with fewer n_epochs than were trained
            self._save(numbered=True)
        picture = loss_curve(rows, self.logger.logdir / "loss.png", read(self.cfg, "name", "pre-training"))
        result = {
            "epochs": self.epoch,
            "losses": {key: value for key, value in last.items() if key.startswith(("train/", "val"))},
            "checkpoint": str(self._path()),
            "loss_curve": None if picture is None else str(picture),
            "n_trajectories": self.dataset.n_trajectories,
            "n_train_chunks": len(self.train_rows),
            "n_val_chunks": len(self.val_rows),
            "n_parameters": sum(parameter.numel() for parameter in self.policy.parameters()),
            "wall_seconds": self.wall_seconds,
            "precision": self.precision,
            "images": self.images,
        }
        self.logger.finish(result)
        log.info("trained %d epochs in %.0f s; checkpoint %s", self.epoch, self.wall_seconds, result["checkpoint"])
        return result


def _load_normalizer(cfg: DictConfig) -> Normalizer | None:
    """The statistics the demonstrations were normalised with; they go into every checkpoint. None with
    ``normalization_path: null``."""
    path = read(cfg, "normalization_path", None)
    if path is None:
        return None
    path = existing(path)
    ensure(path)
    if not path.is_file():
        raise DatasetError(
            f"normalization_path: {path} does not exist. `python script/collect_demos.py --task <task>` writes it "
            "beside the demonstrations; "
            "with data from elsewhere give the file that belongs to them, or null if there is none"
        )
    normalizer = load_normalizer(path)
    for key, found in (("obs_dim", normalizer.obs_dim), ("action_dim", normalizer.action_dim)):
        if read(cfg, key) != found:
            raise DatasetError(
                f"normalization_path: {path} has {found} columns, expected {key}={read(cfg, key)}: it belongs to "
                "another task"
            )
    return normalizer


def _generator(seed: int, purpose: int, device: str = "cpu", step: int = 0) -> torch.Generator:
    """Random numbers for one purpose, unrelated to those for another one or another step."""
    (state,) = np.random.SeedSequence((seed, purpose, step)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def _batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    """``rows`` in batches of ``size``; the last one holds what remains. A single remaining sample joins the batch
    before it: alone it has no pair to be dispersed from, and its gradient is mostly noise."""
    pieces = list(rows.split(size))
    if len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    yield from pieces
