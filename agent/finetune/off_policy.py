"""What the algorithms share that learn from a replay buffer: the buffer, optimisers with schedules, and an update of many minibatches."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agent.config import NUMBER, optimizer_settings, optional
from agent.errors import CheckpointError
from agent.finetune.algorithm import Algorithm
from agent.finetune.minibatch import Means
from agent.finetune.replay import ReplayBuffer, Transitions
from agent.finetune.rollout import Rollout
from agent.optim import CosineAnnealingWarmupRestarts
from env.protocol import NpObs

PASSES = {"n_critic_warmup_itr": int, "replay_ratio": NUMBER}  # settings of those that learn once per iteration
CONSTANT = {"first_cycle_steps": 1, "warmup_steps": 0}  # a schedule that is none


class Learner(Algorithm):
    """Optimisers with schedules, and the state they need to go on.

    Subclasses call ``optimize`` for each of their optimisers and ``step`` for each of their losses.
    """

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], n_envs: int, generator: torch.Generator) -> None:
        super().__init__(policy, train, n_envs, generator)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.schedules: dict[str, CosineAnnealingWarmupRestarts] = {}
        self.means = Means()

    def optimize(self, name: str, parameters: Iterable[nn.Parameter], prefix: str | None = None) -> None:
        """An optimiser by the settings ``<prefix>_lr``, ``<prefix>_weight_decay``, ``<prefix>_lr_scheduler`` (empty: without it)."""
        start = f"{name}_" if prefix is None else prefix
        lr, decay = self.train[f"{start}lr"], self.train.get(f"{start}weight_decay", 0)
        self.optimizers[name] = torch.optim.AdamW(parameters, lr, weight_decay=decay, fused=True)
        schedule = self.train.get(f"{start}lr_scheduler") or {**CONSTANT, "min_lr": lr}
        self.schedules[name] = CosineAnnealingWarmupRestarts(self.optimizers[name], max_lr=lr, **schedule)

    def step(self, name: str, loss: Tensor) -> None:
        """One step of the optimiser ``name``, and the loss into the log."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient  # only of these: the loss of an actor also passes through a critic
        if self.train.get("max_grad_norm") is not None:
            nn.utils.clip_grad_norm_(parameters, self.train["max_grad_norm"])
        optimizer.step()
        self.means.add(**{name: loss})

    def update(self, rollout: Rollout | None, iteration: int) -> dict[str, float]:
        """Learn from what there is; returns the means of the losses, learning rates and what ``learn`` adds.

        Raises:
            UsageError: a loss is not finite.
        """
        started = time.perf_counter()
        metrics = self.learn(rollout, iteration) or {}
        metrics |= self.means.read() | {f"{name}_lr": schedule.lr for name, schedule in self.schedules.items()}
        self.anneal(iteration)
        return metrics | {"time/update": time.perf_counter() - started}

    def anneal(self, iteration: int) -> None:
        """The schedules go on by one, the actor's not before it learns."""
        for name, schedule in self.schedules.items():
            if name != "actor" or iteration >= self.train.get("n_critic_warmup_itr", 0):
                schedule.step()

    @abstractmethod
    def learn(self, rollout: Rollout | None, iteration: int) -> dict[str, float] | None:
        """The update itself."""

    def state_dict(self) -> dict[str, Any]:
        """Optimisers and schedules."""
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "schedules": {name: schedule.state_dict() for name, schedule in self.schedules.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, schedule in self.schedules.items():
            schedule.load_state_dict(state["schedules"][name])


class Replaying(Learner):
    """Every chunk goes into a replay buffer; ``learn`` takes minibatches from it. Subclasses call ``optimize``."""

    WHOLE_CHUNKS = True
    SETTINGS: ClassVar = {
        **optimizer_settings("actor"),
        "buffer_size": int,
        "batch_size": int,
        "max_grad_norm": optional(NUMBER),
    }
    EXTRA: tuple[str, ...] = ()  # of every chunk also kept: "improved" (actions), "returns" or "episode_returns"

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], n_envs: int, generator: torch.Generator) -> None:
        super().__init__(policy, train, n_envs, generator)
        self.replay: ReplayBuffer | None = None

    def observe(self, rollout: Rollout, step: int, final_obs: NpObs) -> None:
        """Keep the chunks of one row."""
        obs, actions = {key: value[step] for key, value in rollout.obs.items()}, rollout.chains[step][:, -1]
        if self.replay is None:
            self.replay = self._allocate(obs, tuple(actions.shape[1:]))
        rewards = rollout.rewards[step] * self.train.get("scale_reward_factor", 1)
        flags = [getattr(rollout, name)[step] for name in ("terminated", "truncated", "firsts", "valid")]
        self.remember(self.replay.add(obs, actions, rewards, *flags, final_obs))

    def remember(self, at: Any) -> None:
        """Called with where the chunks of a row were put, (N,)."""
        if "improved" in self.EXTRA:
            self.replay.arrays["improved"][at] = self.replay.arrays["actions"][at]

    def _allocate(self, obs: dict[str, Tensor], chunk_shape: tuple[int, ...]) -> ReplayBuffer:
        shapes = {"improved": chunk_shape, "returns": (), "episode_returns": ()}
        extra = {name: shapes[name] for name in self.EXTRA}
        return ReplayBuffer(self.train["buffer_size"], self.n_envs, obs, chunk_shape, extra, self.generator.device)

    def n_batches(self, rollout: Rollout) -> int:
        """Minibatches of an iteration: ``replay_ratio`` times as many chunks as were collected."""
        return max(1, int(rollout.rewards.numel() / self.train["batch_size"] * self.train["replay_ratio"]))

    def state_dict(self) -> dict[str, Any]:
        """Optimisers, schedules, replay buffer."""
        return super().state_dict() | {"replay": self.replay.state_dict() if self.replay is not None else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``.

        Raises:
            CheckpointError: it was saved without its replay buffer.
        """
        super().load_state_dict(state)
        if "replay" not in state:
            raise CheckpointError(
                "resume: only checkpoint/latest.pt holds the replay buffer, and it is gone. Pass the checkpoint as base_policy_path "
                "of a new run"
            )
        if state["replay"] is not None:
            rows = {name: x[:, 0] for name, x in state["replay"]["arrays"].items()}
            obs = {name[4:]: row for name, row in rows.items() if name.startswith("obs.")}
            self.replay = self._allocate(obs, tuple(rows["actions"].shape[1:]))
            self.replay.load_state_dict(state["replay"])


class OffPolicy(Replaying):
    """``Replaying``, with an actor and a critic that learns from rewards."""

    SETTINGS: ClassVar = {
        **Replaying.SETTINGS,
        **optimizer_settings("critic"),
        "n_step_returns": int,
        "scale_reward_factor": NUMBER,
    }

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], n_envs: int, generator: torch.Generator) -> None:
        super().__init__(policy, train, n_envs, generator)
        self.optimize("actor", policy.actor_parameters())
        self.optimize("critic", policy.critic_parameters())

    def batch(self) -> Transitions:
        """A minibatch."""
        return self.own(self.train["batch_size"])

    def own(self, n: int) -> Transitions:
        """``n`` of the buffer's chunks."""
        return self.replay.sample(n, self.generator, self.train["gamma"], self.train["n_step_returns"])


def td_target(batch: Transitions, next_values: Tensor) -> Tensor:
    """Reward plus discounted value of what it led to, ``(B,)``."""
    return batch.rewards + batch.discounts * next_values


def squared_errors(values: Iterable[Tensor], target: Tensor) -> Tensor:
    """Sum over the critics of the mean squared error, 0-d."""
    return torch.stack([(value - target).square().mean() for value in values]).sum()
