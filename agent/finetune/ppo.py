"""PPO over the denoising chain (DPPO, Ren et al. 2024; PPO, Schulman et al. 2017).

Every denoising step of the K fine-tuned ones is an action of a two-layer decision process. Its advantage is the environment's, of the
action chunk that the chain ends in, discounted by ``gamma_denoising ** (K - 1 - k)``: the noisier the step, the smaller its say. Minibatches
are drawn over (chunk, denoising step) *pairs*. A Gaussian policy is the case K = 1: the objective knows of a policy only ``log_prob``,
``value``, ``clip_range`` and ``denoising_discount``.

Images
------
Each observation of a minibatch is encoded once (``policy.encode``), however many of its denoising steps are in it. For image policies a
minibatch is therefore made of whole chains (``train.whole_chains``): ``batch_size / K`` observations instead of nearly ``batch_size``.

``train.augment`` shifts the images at random, as published: one shift per observation and rollout, for actor and critic, in all epochs. The
policy acted on images that were not shifted, so its recorded log-probabilities are no yardstick for the shifted ones (in the published code the
ratio differs from 1 before anything was learned). Here the old log-probabilities are those of the policy before the update *on the same shifted
images*: the ratio is exactly 1 at first, and from then on measures nothing but what the update did.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agent.config import NUMBER, optimizer_settings, optional
from agent.errors import UsageError
from agent.finetune.algorithm import Algorithm
from agent.finetune.gae import generalized_advantage
from agent.finetune.minibatch import Data, Losses, encode_once, look, share, take
from agent.finetune.objective import clipped_objective, value_objective
from agent.finetune.regularise import SETTINGS as REGULARISERS
from agent.finetune.regularise import Regulariser
from agent.finetune.reward_scaling import RunningRewardScaler
from agent.finetune.rollout import Rollout
from agent.finetune.signal import gradient_signal
from agent.metrics import explained_variance
from agent.optim import CosineAnnealingWarmupRestarts
from model.common.modules import RandomShiftsAug
from model.types import Obs

log = logging.getLogger(__name__)

# What an episode is worth that the time limit cut: its last observation's value, or nothing.
TIME_LIMITS = ("bootstrap", "terminal")
VALUE_ROWS = 10000  # state observations that are scored at once without gradients
IMAGE_ROWS = 256  # image observations, unless train.logprob_batch_size says otherwise
RATIO_TOLERANCE = 1e-3  # of |log ratio| before the first update: float32 rounding between batch sizes, nothing more
GPU_IMAGE_TOLERANCE = 1e-2  # cuDNN may choose TF32 for one batch size and float32 for another


def tuned_steps(policy: nn.Module) -> int:
    """How many denoising steps of it are tuned, each a step of its chain or (exact likelihoods) not."""
    return getattr(policy, "ft_denoising_steps", policy.n_chain_steps)


class PPO(Algorithm):
    """Clipped policy optimisation and a value regression, on two optimisers; ``policy`` has the interface of ``ChainPolicy``."""

    HEADLINE = (("kl", "approx_kl", ".4f"), ("explained variance", "explained_variance", ".2f"))
    SETTINGS: ClassVar = {
        "gae_lambda": NUMBER,
        "value_lambda": optional(NUMBER),
        "gradient_signal": bool,
        "n_critic_warmup_itr": int,
        **optimizer_settings("actor"),
        **optimizer_settings("critic"),
        "eta_lr": NUMBER,
        "eta_weight_decay": NUMBER,
        "reward_scale_running": bool,
        "reward_scale_const": NUMBER,
        "time_limit": str,
        "augment": bool,
        "batch_size": int,
        "grad_accumulate": int,
        "whole_chains": optional(bool),
        "logprob_batch_size": int,
        "update_epochs": int,
        "vf_coef": NUMBER,
        "ft_denoising_steps_d": int,
        "ft_denoising_steps_t": int,
        "target_kl": optional(NUMBER),
        "max_grad_norm": optional(NUMBER),
        **REGULARISERS,
    }

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], n_envs: int, generator: torch.Generator) -> None:
        super().__init__(policy, train, n_envs, generator)
        self.actor_optimizer = torch.optim.AdamW(
            policy.actor_parameters(), train["actor_lr"], weight_decay=train["actor_weight_decay"]
        )
        self.critic_optimizer = torch.optim.AdamW(
            policy.critic_parameters(), train["critic_lr"], weight_decay=train["critic_weight_decay"]
        )
        eta = list(policy.eta_parameters())
        self.eta_optimizer = (
            torch.optim.AdamW(eta, train["eta_lr"], weight_decay=train["eta_weight_decay"]) if eta else None
        )
        self.actor_schedule = CosineAnnealingWarmupRestarts(
            self.actor_optimizer, max_lr=train["actor_lr"], **train["actor_lr_scheduler"]
        )
        self.critic_schedule = CosineAnnealingWarmupRestarts(
            self.critic_optimizer, max_lr=train["critic_lr"], **train["critic_lr_scheduler"]
        )
        if train.get("time_limit", TIME_LIMITS[0]) not in TIME_LIMITS:
            raise UsageError(f"train.time_limit: expected {' or '.join(TIME_LIMITS)}, found {train['time_limit']!r}")
        if train.get("ft_denoising_steps_d") and not hasattr(policy, "tune_last"):
            raise UsageError(
                f"train.ft_denoising_steps_d: {type(policy).__name__} has no denoising steps to freeze; set it to 0"
            )
        self.scaler = RunningRewardScaler(n_envs, train["gamma"]) if train["reward_scale_running"] else None
        self.regulariser = Regulariser(policy, train, generator)
        self.shifts = RandomShiftsAug(pad=4)
        self.checked_ratio, self.warned_of_steps = False, False

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Learn from one rollout.

        Raises:
            UsageError: if no simulation of the rollout stayed stable, or a loss is not finite.
            RuntimeError: if the importance ratio is not 1 before the first update (a defect of the policy, never of the data).
        """
        started = time.perf_counter()
        rows = rollout.valid.flatten().nonzero()[:, 0]
        if not len(rows):
            raise UsageError("every simulation went unstable: nothing to learn from (actions out of range?)")
        obs = {key: value.flatten(0, 1) for key, value in rollout.obs.items()}
        obs = encode_once(self.policy, obs, self._rows_at_once(obs), rollout.chains.device)
        metrics = {} if self.checked_ratio else self._check_ratio(rollout, obs, rows)
        shifts = self._draw_shifts(obs, rollout)
        rewards = self.scaler(rollout.rewards, rollout.firsts) if self.scaler else rollout.rewards
        estimate, values = self._estimator(rollout, obs, shifts, rewards * self.train["reward_scale_const"])
        own = self.train.get("value_lambda")
        advantages, returns = (x.flatten() for x in estimate(self.train["gae_lambda"]))
        returns = returns if own is None else estimate(own)[1].flatten()
        advantages = self._normalise(advantages, rows)
        learn_actor = iteration >= self.train["n_critic_warmup_itr"]
        data = Data(obs, shifts, rollout.chains.flatten(0, 1), rollout.log_probs.flatten(0, 1))
        if self.train.get("gradient_signal"):
            metrics |= gradient_signal(
                self.policy,
                data,
                rows,
                self.n_envs,
                lambda decay: estimate(decay)[0].flatten(),
                self._rows_at_once(obs),
            )
        if learn_actor and shifts is not None:
            data.log_probs = self._log_probs(data, rows)
        metrics |= self._epochs(data, rows, advantages, returns, values.flatten(), learn_actor)
        metrics |= {
            "explained_variance": float(explained_variance(values.flatten()[rows], returns[rows])),
            "values/mean": float(values.flatten()[rows].mean()),
            "returns/mean": float(returns[rows].mean()),
            "actor_lr": self.actor_optimizer.param_groups[0]["lr"],
            "critic_lr": self.critic_optimizer.param_groups[0]["lr"],
        }
        if learn_actor:
            self.actor_schedule.step()
        self.critic_schedule.step()
        self._tune_fewer_steps(iteration + 1)
        return metrics | {"time/update": time.perf_counter() - started}

    def _tune_fewer_steps(self, iteration: int) -> None:
        """Every ``ft_denoising_steps_t`` iterations ``ft_denoising_steps_d`` fewer, down to one; the optimiser goes on."""
        every, fewer = (self.train.get(f"ft_denoising_steps_{key}") or 0 for key in "td")
        if every and fewer and iteration % every == 0 and tuned_steps(self.policy) > 1:
            self.policy.tune_last(max(1, tuned_steps(self.policy) - fewer))

    def _check_ratio(self, rollout: Rollout, obs: Obs, rows: Tensor) -> dict[str, float]:
        """The policy that acted and the policy that learns are the same: every importance ratio is 1 before the first update."""
        self.checked_ratio = True
        some = rows[torch.linspace(0, len(rows) - 1, min(len(rows), 512), device=rows.device).long()]
        n_steps = rollout.log_probs.shape[2]
        with torch.no_grad():
            new = self.policy.chain_log_probs(take(obs, some), rollout.chains.flatten(0, 1)[some])
        worst = float((new - rollout.log_probs.view(-1, n_steps)[some]).abs().max())
        if not worst < (GPU_IMAGE_TOLERANCE if "rgb" in obs and new.is_cuda else RATIO_TOLERANCE):
            raise RuntimeError(
                f"self-check failed: before the first update the importance ratio must be 1, but |log ratio| reaches {worst:.2e}; "
                "sampling and scoring of this policy disagree"
            )
        return {"self_check/max_abs_log_ratio": worst}

    def _draw_shifts(self, obs: Obs, rollout: Rollout) -> Tensor | None:
        """Of every observation's images, (S * N, 2) pixels; None without images or ``train.augment``."""
        if "rgb" not in obs or not self.train.get("augment", False):
            return None
        return self.shifts.draw(len(obs["rgb"]), self.generator, rollout.chains.device)

    def _log_probs(self, data: Data, rows: Tensor) -> Tensor:
        """(S * N, K) of the policy as it is, on the observations as the update will see them."""
        out = torch.zeros_like(data.log_probs)
        with torch.no_grad():
            for some in rows.split(self._rows_at_once(data.obs)):
                out[some] = self.policy.chain_log_probs(data.look(some), data.chains[some])
        return out

    def _rows_at_once(self, obs: Obs) -> int:
        return (self.train.get("logprob_batch_size") or IMAGE_ROWS) if "rgb" in obs else VALUE_ROWS

    def _estimator(
        self, rollout: Rollout, obs: Obs, shifts: Tensor | None, rewards: Tensor
    ) -> tuple[Callable[[float], tuple[Tensor, Tensor]], Tensor]:
        """What makes advantages and returns, (S, N) each, of a trace decay; and values, (S, N). What bootstraps was never shifted, as
        published."""
        shape, device = rewards.shape, rewards.device
        everything = torch.arange(rewards.numel(), device=device)
        with torch.no_grad():
            values = torch.cat(
                [self.policy.value(look(obs, i, shifts)) for i in everything.split(self._rows_at_once(obs))]
            ).view(shape)
            final = torch.zeros(shape, device=device).flatten()
            for index, last in rollout.final_obs:
                final[index.to(device)] = self.policy.value({key: value.to(device) for key, value in last.items()})
        final = final.view(shape)
        if self.train.get("time_limit", TIME_LIMITS[0]) == "terminal":
            final = final.masked_fill(rollout.truncated, 0.0)
        ends = (rollout.terminated, rollout.truncated)
        return lambda decay: generalized_advantage(rewards, values, *ends, final, self.train["gamma"], decay), values

    def _normalise(self, advantages: Tensor, rows: Tensor) -> Tensor:
        """Standardised over the valid chunks of the whole rollout, then clamped to the policy's quantiles."""
        policy, valid = self.policy, advantages[rows]
        if policy.norm_adv:
            advantages = (advantages - valid.mean()) / (valid.std() + 1e-8)
        lower, upper = policy.clip_advantage_lower_quantile, policy.clip_advantage_upper_quantile
        if lower > 0 or upper < 1:
            valid = advantages[rows]
            advantages = advantages.clamp(torch.quantile(valid, lower), torch.quantile(valid, upper))
        return advantages

    def _epochs(
        self, data: Data, rows: Tensor, advantages: Tensor, returns: Tensor, values: Tensor, learn_actor: bool
    ) -> dict[str, float]:
        """``update_epochs`` passes over all pairs (actor) and all chunks (critic), in equally many minibatches; an optimiser step
        per ``grad_accumulate`` of them (what remains at the end of an epoch makes a smaller step)."""
        train, losses, stopped = self.train, Losses(), not learn_actor
        for _ in range(train["update_epochs"]):
            pairs, chunks = self._minibatches(data, rows)
            every = train.get("grad_accumulate") or 1
            for start in range(0, len(pairs), every):
                if not stopped:
                    kl = self._learn_actor(data, rows, pairs[start : start + every], advantages, losses)
                    stopped = train["target_kl"] is not None and bool(kl > train["target_kl"])
                    if stopped:
                        planned = math.ceil(len(pairs) / every) * train["update_epochs"]
                        self._warn_of_large_steps(float(kl), losses.updates, planned)
                self._learn_critic(data, rows, chunks[start : start + every], returns, values, losses)
        metrics = losses.means()
        if not math.isfinite(metrics["loss/value"]) or (losses.policy and not math.isfinite(metrics["loss/policy"])):
            raise UsageError(
                f"a loss is not finite ({metrics}); nothing was saved after this. Lower train.actor_lr or train.critic_lr"
            )
        metrics |= self.regulariser.read()
        return metrics | {"updates": float(losses.updates), "kl_stopped": float(stopped and learn_actor)}

    def _warn_of_large_steps(self, kl: float, updates: int, planned: int) -> None:
        """Once a run: what a tenth of the steps has undone (seen: success 0.43, 0.10, none) ``target_kl`` does not bring back."""
        if not self.warned_of_steps and updates <= planned / 10:
            self.warned_of_steps = True
            log.warning(
                f"train.target_kl: {updates} of {planned} actor updates moved the policy by a KL divergence of {kl:.3f}: lower "
                f"train.actor_lr (now {self.actor_optimizer.param_groups[0]['lr']:g}) or raise train.actor_lr_scheduler.warmup_steps"
            )

    def _minibatches(self, data: Data, rows: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Pairs (chunk * K + step) and chunks (both index ``rows``), shuffled and divided into equally many parts."""
        n_steps = data.log_probs.shape[1]
        n_pairs = len(rows) * n_steps
        n_batches = max(1, round(n_pairs / self.train["batch_size"]))
        whole = self.train.get("whole_chains")
        if "rgb" in data.obs if whole is None else whole:
            n_batches = min(n_batches, len(rows))
            first = self._shuffled(len(rows), rows.device)[:, None] * n_steps
            every = (first + torch.arange(n_steps, device=rows.device)).tensor_split(n_batches)
            pairs = tuple(pair.flatten() for pair in every)
        else:
            pairs = self._shuffled(n_pairs, rows.device).tensor_split(n_batches)
        return pairs, self._shuffled(len(rows), rows.device).tensor_split(n_batches)

    def _shuffled(self, n: int, device: torch.device) -> Tensor:
        return torch.randperm(n, generator=self.generator, device=device)

    def _learn_actor(
        self, data: Data, rows: Tensor, pairs: tuple[Tensor, ...], advantages: Tensor, losses: Losses
    ) -> Tensor:
        """One optimiser step on the mean over all of ``pairs``, one minibatch in memory at a time; returns the KL divergence."""
        n_steps, total, kls = data.log_probs.shape[1], sum(map(len, pairs)), []
        self._zero(self.actor_optimizer, self.eta_optimizer)
        for pair in pairs:
            row, step = rows[pair // n_steps], pair % n_steps
            with self.regulariser.recording() as features:
                new = self._log_prob(data, row, step)
            weighted = advantages[row] * self.policy.denoising_discount(step)
            loss, kl, clipped = clipped_objective(
                new - data.log_probs[row, step], weighted, self.policy.clip_range(step)
            )
            more = self.regulariser.loss(data, row, step, features)
            self.regulariser.compare(loss)
            share(loss if more is None else loss + more, len(pair), total).backward()
            losses.policy.append(loss.detach())
            losses.kl.append(kl)
            losses.clipped.append(clipped)
            kls.append(share(kl, len(pair), total))
        self._step(self.actor_optimizer, self.train["max_grad_norm"])
        if self.eta_optimizer is not None:
            self.eta_optimizer.step()
        losses.updates += 1
        return kls[0] if len(kls) == 1 else torch.stack(kls).sum()

    def _log_prob(self, data: Data, row: Tensor, step: Tensor) -> Tensor:
        """(B,) of pairs; rows that occur more than once are encoded once."""
        if "rgb" in data.obs:
            seen, inverse = torch.unique(row, return_inverse=True)
            obs = {key: value[inverse] for key, value in self.policy.encode(data.look(seen)).items()}
        else:
            obs = data.look(row)
        return self.policy.log_prob(obs, data.chains[row, step], data.chains[row, step + 1], step)

    def _learn_critic(
        self, data: Data, rows: Tensor, chunks: tuple[Tensor, ...], returns: Tensor, values: Tensor, losses: Losses
    ) -> None:
        total = sum(map(len, chunks))
        if not total:
            return
        self._zero(self.critic_optimizer)
        for chunk in chunks:
            if not len(chunk):
                continue
            row = rows[chunk]
            loss = value_objective(
                self.policy.value(data.look(row)), returns[row], values[row], self.policy.clip_vloss_coef
            )
            share(self.train["vf_coef"] * loss, len(chunk), total).backward()
            losses.value.append(loss.detach())
        self._step(self.critic_optimizer, None)

    @staticmethod
    def _zero(*optimizers: torch.optim.Optimizer | None) -> None:
        for optimizer in optimizers:
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> None:
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_grad_norm)
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Optimisers, schedules, reward scaler."""
        return {
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "eta_optimizer": self.eta_optimizer.state_dict() if self.eta_optimizer else None,
            "actor_schedule": self.actor_schedule.state_dict(),
            "critic_schedule": self.critic_schedule.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "checked_ratio": self.checked_ratio,
            "n_chain_steps": tuned_steps(self.policy),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        for name in ("actor_optimizer", "critic_optimizer", "actor_schedule", "critic_schedule"):
            getattr(self, name).load_state_dict(state[name])
        if self.eta_optimizer:
            self.eta_optimizer.load_state_dict(state["eta_optimizer"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        self.checked_ratio = state["checked_ratio"]
        if state.get("n_chain_steps", tuned_steps(self.policy)) != tuned_steps(self.policy):
            self.policy.set_chain_steps(state["n_chain_steps"])
