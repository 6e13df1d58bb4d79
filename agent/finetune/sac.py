"""Soft actor-critic (Haarnoja et al., arXiv:1812.05905), learning between the steps of the environments.

    critic:  Q_i(s, a) -> r + discount (min Q'(s', a') - alpha log pi(a'|s')),    discount 0 where the task ended
    actor:   minimises alpha log pi(a|s) - min Q(s, a)
    alpha:   moves until the entropy is ``target_entropy``

Per step of all environments there are ``critic_replay_ratio / batch_size`` minibatches of the critic and ``actor_replay_ratio / batch_size`` of
the actor, which come together every ``batch_size / actor_replay_ratio`` steps, as many at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agent.config import NUMBER, optional
from agent.finetune.off_policy import OffPolicy, squared_errors, td_target
from agent.finetune.replay import Transitions
from agent.finetune.rollout import Rollout
from env.protocol import NpObs
from model.diffusion.actor_critic import follow
from model.types import Obs, Sample


class StepLearner(OffPolicy):
    """Learns after every step of the environments, once ``n_explore_steps`` of them were made with random actions."""

    HEADLINE = (("critic loss", "loss/critic", ".4f"), ("actor loss", "loss/actor", ".4f"))
    SETTINGS: ClassVar = {**OffPolicy.SETTINGS, "n_explore_steps": int, "target_ema_rate": NUMBER}

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], n_envs: int, generator: torch.Generator) -> None:
        super().__init__(policy, train, n_envs, generator)
        self.steps = 0  # of the environments

    @property
    def exploring(self) -> bool:
        """Whether actions are still drawn at random."""
        return self.steps < self.train["n_explore_steps"]

    def act(self, obs: Obs, noise: Tensor) -> Sample:
        """At first uniformly in [-1, 1], then as the policy explores."""
        if not self.exploring:
            return super().act(obs, noise)
        shape = (len(noise), *noise.shape[-2:])
        return Sample(2 * torch.rand(shape, generator=self.generator, device=noise.device) - 1)

    def observe(self, rollout: Rollout, step: int, final_obs: NpObs) -> None:
        """Keep the chunks, and learn."""
        super().observe(rollout, step, final_obs)
        self.steps += 1
        if not self.exploring and len(self.replay):
            self.learn_step()

    def learn_step(self) -> None:
        """What is learned after one step of the environments."""

    def learn(self, rollout: Rollout | None, iteration: int) -> dict[str, float]:
        """Nothing more."""
        return {"replay": float(len(self.replay or ()))}

    def state_dict(self) -> dict[str, Any]:
        """As ``OffPolicy``, and how many steps were made."""
        return super().state_dict() | {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        super().load_state_dict(state)
        self.steps = state["steps"]


class SoftActorCritic(StepLearner):
    """The parts that SAC, RLPD and Cal-QL share: the actor's loss, the temperature.

    ``policy`` has ``sample_with_log_prob``, ``values``, ``target_value`` and ``actor_value``.
    """

    SETTINGS: ClassVar = {
        **StepLearner.SETTINGS,
        "init_temperature": NUMBER,
        "target_entropy": optional(NUMBER),
        "automatic_entropy_tuning": bool,
    }

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], n_envs: int, generator: torch.Generator) -> None:
        super().__init__(policy, train, n_envs, generator)
        start = torch.tensor(math.log(train["init_temperature"]), device=generator.device)
        self.log_alpha = nn.Parameter(start)
        wanted = train["target_entropy"]
        self.target_entropy = -policy.horizon_steps * policy.action_dim if wanted is None else wanted
        self.optimizers["temperature"] = torch.optim.Adam([self.log_alpha], train["critic_lr"], fused=True)

    @property
    def alpha(self) -> Tensor:
        """The temperature, 0-d, not differentiable."""
        return self.log_alpha.detach().exp()

    def soft_target(self, batch: Transitions, entropy: bool = True) -> Tensor:
        """Reward plus discounted soft value of what it led to, ``(B,)``."""
        with torch.no_grad():
            actions, log_prob = self.policy.sample_with_log_prob(batch.next_obs, self.generator)
            value = self.next_value(batch.next_obs, actions)
            return td_target(batch, value - self.alpha * log_prob if entropy else value)

    def next_value(self, obs: Obs, actions: Tensor) -> Tensor:
        """What the slow critics say, ``(B,)``."""
        return self.policy.target_value(obs, actions)

    def learn_actor(self, obs: Obs) -> None:
        """One step of the actor, and one of the temperature."""
        actions, log_prob = self.policy.sample_with_log_prob(obs, self.generator)
        self.step("actor", (self.alpha * log_prob - self.policy.actor_value(obs, actions)).mean())
        if self.train["automatic_entropy_tuning"]:
            gap = log_prob.detach().mean() + self.target_entropy
            self.step("temperature", -self.log_alpha.exp() * gap)

    def learn(self, rollout: Rollout | None, iteration: int) -> dict[str, float]:
        """Nothing more; says how warm it is."""
        return super().learn(rollout, iteration) | {"temperature": float(self.alpha)}

    def state_dict(self) -> dict[str, Any]:
        """As ``StepLearner``, and the temperature."""
        return super().state_dict() | {"log_alpha": self.log_alpha.detach().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        super().load_state_dict(state)
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])


class SAC(SoftActorCritic):
    """See the module."""

    SETTINGS: ClassVar = {**SoftActorCritic.SETTINGS, "critic_replay_ratio": int, "actor_replay_ratio": int}

    def learn_step(self) -> None:
        """Critic and actor, as often as their ratios say."""
        for _ in range(self._due("critic_replay_ratio")):
            self.learn_critic()
        for _ in range(self._due("actor_replay_ratio")):
            self.learn_actor(self.batch().obs)

    def learn_critic(self) -> None:
        """One step of the critic, and the slow one follows."""
        batch = self.batch()
        self.step("critic", squared_errors(self.policy.values(batch.obs, batch.actions), self.soft_target(batch)))
        follow(self.policy.target_critic, self.policy.critic, self.train["target_ema_rate"])

    def _due(self, ratio: str) -> int:
        """Minibatches now: ``ratio / batch_size`` every step, or as many as steps have passed, every so many steps."""
        batch, wanted = self.train["batch_size"], self.train[ratio]
        if wanted >= batch:
            return wanted // batch
        every = batch // wanted
        return every if self.steps % every == 0 else 0
