"""PPO over the denoising chain (DPPO, Ren et al. 2024; PPO, Schulman et al. 2017).

Every denoising step of the K fine-tuned ones is an action of a two-layer decision process. Its advantage is the environment's, of the
action chunk that the chain ends in, discounted by ``gamma_denoising ** (K - 1 - k)``: the noisier the step, the smaller its say. Minibatches
are drawn over (chunk, denoising step) *pairs*. A Gaussian policy is the case K = 1: the objective knows of a policy only ``log_prob``,
``value``, ``clip_range`` and ``denoising_discount``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agent.errors import UsageError
from agent.finetune.gae import generalized_advantage
from agent.finetune.reward_scaling import RunningRewardScaler
from agent.finetune.rollout import Rollout
from agent.metrics import explained_variance
from agent.optim import CosineAnnealingWarmupRestarts
from model.types import Obs

RATIO_TOLERANCE = 1e-3  # of |log ratio| before the first update: float32 rounding between batch sizes, nothing more


def clipped_objective(log_ratio: Tensor, advantages: Tensor, clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped surrogate (PPO, eq. 7), to be minimised.

    Args:
        log_ratio: (B,) new minus old log-probability.
        advantages: (B,).
        clip: (B,) or scalar epsilon.

    Returns:
        loss, approximate KL divergence ``E[(r - 1) - log r]`` (Schulman 2020) and clipped fraction, all 0-d; the last two detached.
    """
    ratio = log_ratio.exp()
    loss = -torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    with torch.no_grad():
        approx_kl = (ratio - 1 - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > clip).float().mean()
    return loss, approx_kl, clip_fraction


def value_objective(values: Tensor, returns: Tensor, old_values: Tensor, clip: float | None) -> Tensor:
    """Half the mean squared error of (B,) values; with ``clip``, pessimistic about moves of more than ``clip`` from the old ones."""
    loss = (values - returns).square()
    if clip is not None:
        kept = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (kept - returns).square())
    return 0.5 * loss.mean()


class PPO:
    """Clipped policy optimisation and a value regression, on two optimisers.

    Args:
        policy: a ``PPODiffusion`` (or another policy of the same interface) on its device.
        train: the configuration's ``train`` section.
        n_envs: N of the rollouts.
        generator: of the minibatches, on the policy's device.
    """

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], n_envs: int, generator: torch.Generator) -> None:
        self.policy, self.train, self.generator = policy, train, generator
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
        self.scaler = RunningRewardScaler(n_envs, train["gamma"]) if train["reward_scale_running"] else None
        self.checked_ratio = False

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Learn from one rollout.

        Raises:
            UsageError: if no simulation of the rollout stayed stable, or a loss is not finite.
            RuntimeError: if the importance ratio is not 1 before the first update (a defect of the policy, never of the data).
        """
        started = time.perf_counter()
        rows = rollout.valid.flatten().nonzero()[:, 0]
        if not len(rows):
            raise UsageError(
                "every simulation of this rollout went unstable: nothing to learn from (actions out of range?)"
            )
        obs = {key: value.flatten(0, 1) for key, value in rollout.obs.items()}
        metrics = {} if self.checked_ratio else self._check_ratio(rollout, obs, rows)
        rewards = self.scaler(rollout.rewards, rollout.firsts) if self.scaler else rollout.rewards
        advantages, returns, values = self._advantages(rollout, obs, rewards * self.train["reward_scale_const"])
        advantages = self._normalise(advantages.flatten(), rows)
        returns = returns.flatten()
        learn_actor = iteration >= self.train["n_critic_warmup_itr"]
        metrics |= self._epochs(rollout, obs, rows, advantages, returns, values.flatten(), learn_actor)
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
        return metrics | {"time/update": time.perf_counter() - started}

    def _check_ratio(self, rollout: Rollout, obs: Obs, rows: Tensor) -> dict[str, float]:
        """The policy that acted and the policy that learns are the same: every importance ratio is 1 before the first update."""
        self.checked_ratio = True
        some = rows[torch.linspace(0, len(rows) - 1, min(len(rows), 512), device=rows.device).long()]
        n_steps = rollout.log_probs.shape[2]
        with torch.no_grad():
            new = self.policy.chain_log_probs(_take(obs, some), rollout.chains.flatten(0, 1)[some])
        worst = float((new - rollout.log_probs.view(-1, n_steps)[some]).abs().max())
        if not worst < RATIO_TOLERANCE:
            raise RuntimeError(
                f"self-check failed: before the first update the importance ratio must be 1, but |log ratio| reaches {worst:.2e}; "
                "sampling and scoring of this policy disagree"
            )
        return {"self_check/max_abs_log_ratio": worst}

    def _advantages(self, rollout: Rollout, obs: Obs, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advantages, returns and values, (S, N) each."""
        shape = rewards.shape
        with torch.no_grad():
            values = torch.cat(
                [self.policy.value(_take(obs, i)) for i in _splits(len(rewards.flatten()), rewards.device)]
            ).view(shape)
            final = torch.zeros(shape, device=values.device).flatten()
            for index, last in rollout.final_obs:
                final[index.to(values.device)] = self.policy.value(
                    {key: value.to(values.device) for key, value in last.items()}
                )
        train = self.train
        advantages, returns = generalized_advantage(
            rewards,
            values,
            rollout.terminated,
            rollout.truncated,
            final.view(shape),
            train["gamma"],
            train["gae_lambda"],
        )
        return advantages, returns, values

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
        self,
        rollout: Rollout,
        obs: Obs,
        rows: Tensor,
        advantages: Tensor,
        returns: Tensor,
        values: Tensor,
        learn_actor: bool,
    ) -> dict[str, float]:
        """``update_epochs`` passes over all pairs (actor) and all chunks (critic), in equally many minibatches."""
        train, n_steps = self.train, rollout.log_probs.shape[2]
        chains, old = rollout.chains.flatten(0, 1), rollout.log_probs.view(-1, n_steps)
        n_pairs = len(rows) * n_steps
        n_batches = max(1, round(n_pairs / train["batch_size"]))
        policy_losses, kls, clip_fractions, value_losses = [], [], [], []
        stopped = not learn_actor
        for _ in range(train["update_epochs"]):
            pairs = torch.randperm(n_pairs, generator=self.generator, device=rows.device).tensor_split(n_batches)
            chunks = torch.randperm(len(rows), generator=self.generator, device=rows.device).tensor_split(n_batches)
            for pair, chunk in zip(pairs, chunks, strict=True):
                if not stopped:
                    row, step = rows[pair // n_steps], pair % n_steps
                    new = self.policy.log_prob(_take(obs, row), chains[row, step], chains[row, step + 1], step)
                    weighted = advantages[row] * self.policy.denoising_discount(step)
                    loss, kl, clipped = clipped_objective(new - old[row, step], weighted, self.policy.clip_range(step))
                    self._step_actor(loss)
                    policy_losses.append(loss.detach())
                    kls.append(kl)
                    clip_fractions.append(clipped)
                    stopped = train["target_kl"] is not None and bool(kl > train["target_kl"])
                if len(chunk):
                    row = rows[chunk]
                    value_loss = value_objective(
                        self.policy.value(_take(obs, row)), returns[row], values[row], self.policy.clip_vloss_coef
                    )
                    self._step(train["vf_coef"] * value_loss, self.critic_optimizer, None)
                    value_losses.append(value_loss.detach())
        means = {
            "loss/policy": policy_losses,
            "approx_kl": kls,
            "clip_fraction": clip_fractions,
            "loss/value": value_losses,
        }
        metrics = {key: float(torch.stack(x).mean()) if x else math.nan for key, x in means.items()}
        if not math.isfinite(metrics["loss/value"]) or (policy_losses and not math.isfinite(metrics["loss/policy"])):
            raise UsageError(
                f"a loss is not finite ({metrics}); nothing was saved after this. Lower train.actor_lr or train.critic_lr"
            )
        return metrics | {"updates": float(len(policy_losses)), "kl_stopped": float(stopped and learn_actor)}

    def _step_actor(self, loss: Tensor) -> None:
        if self.eta_optimizer is None:
            self._step(loss, self.actor_optimizer, self.train["max_grad_norm"])
            return
        self.eta_optimizer.zero_grad(set_to_none=True)
        self._step(loss, self.actor_optimizer, self.train["max_grad_norm"])
        self.eta_optimizer.step()

    @staticmethod
    def _step(loss: Tensor, optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
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


def _take(obs: Obs, rows: Tensor) -> Obs:
    """Rows of every observation key, on the device of ``rows`` (images are stored on the host)."""
    return {key: value[rows.to(value.device)].to(rows.device) for key, value in obs.items()}


def _splits(n: int, device: torch.device, size: int = 10000) -> tuple[Tensor, ...]:
    return torch.arange(n, device=device).split(size)
