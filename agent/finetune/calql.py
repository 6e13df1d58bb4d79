"""Calibrated conservative Q-learning (Nakamoto et al., arXiv:2303.05479): from demonstrations alone, then with the environment.

    critic:  Q_i(s, a) -> r + discount (max over a' of min Q'(s', a') - alpha log pi(a'|s')),  a' some draws of the policy
             + weight (logsumexp over actions [Q_i(s, .) - log density] - Q_i(s, a))

The actions of the conservative term are uniform ones, of log density ``d log 1/2``, and the policy's, whose values are raised to the return that
the demonstrator (or the finished episode) had from there. Actor and temperature are SAC's.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from agent.finetune.demonstrations import WithDemonstrations
from agent.finetune.off_policy import OffPolicy, squared_errors, td_target
from agent.finetune.replay import Transitions
from agent.finetune.rollout import Rollout
from agent.finetune.sac import SoftActorCritic
from env.protocol import NpObs
from model.diffusion.actor_critic import follow, smallest
from model.types import Obs


class CalQL(WithDemonstrations, SoftActorCritic):
    """Learns once per iteration: ``num_update`` minibatches off line, ``online_utd_ratio`` per collected chunk on line (half of each is
    demonstrations)."""

    EXTRA = ("returns",)
    SETTINGS: ClassVar = {
        **SoftActorCritic.SETTINGS,
        "train_online": bool,
        "num_update": int,
        "online_utd_ratio": int,
        "n_random_actions": int,
    }

    def collects(self, iteration: int) -> bool:
        """Not while it learns from demonstrations alone."""
        return self.train["train_online"]

    def observe(self, rollout: Rollout, step: int, final_obs: NpObs) -> None:
        """Keep the chunks; of episodes that end, their returns. Until then nothing is known of them."""
        OffPolicy.observe(self, rollout, step, final_obs)
        self.steps += 1
        ended = (rollout.terminated[step] | rollout.truncated[step]).cpu().numpy()
        for env in np.flatnonzero(ended):
            at = self.replay.episode_at(int(env))
            following = 0.0
            for k in at[::-1]:
                following = self.replay.arrays["rewards"][k] + self.train["gamma"] * following
                self.replay.arrays["returns"][k] = following

    def remember(self, at: np.ndarray) -> None:
        """Of a running episode no return is known."""
        self.replay.arrays["returns"][at] = -np.inf

    def learn(self, rollout: Rollout | None, iteration: int) -> dict[str, float]:
        """The minibatches of an iteration."""
        size = self.train["batch_size"]
        n, n_offline = self.train["num_update"], size
        if rollout is not None:
            n, n_offline = self.train["online_utd_ratio"] * rollout.rewards.numel(), size // 2
        for _ in range(0 if self.exploring and rollout is not None else n):
            self._learn(self.from_both(n_offline))
        return super().learn(rollout, iteration)

    def _learn(self, batch: Transitions) -> None:
        policy = self.policy
        values = policy.values(batch.obs, batch.actions)
        error = squared_errors(values, self.target(batch))
        conservative = self.conservative(batch, values)
        self.means.add(td=error, conservative=conservative)
        self.step("critic", error + policy.cql_min_q_weight * conservative)
        follow(policy.target_critic, policy.critic, self.train["target_ema_rate"])
        self.learn_actor(batch.obs)

    @torch.no_grad()
    def target(self, batch: Transitions) -> Tensor:
        """``(B,)``."""
        n = self.policy.cql_n_actions
        actions, log_prob = self.policy.sample_with_log_prob(batch.next_obs, self.generator, n)
        value = smallest(self.policy.target_critic, repeated(batch.next_obs, n), actions).view(n, -1)
        best, which = value.max(dim=0)
        return td_target(batch, best - self.alpha * log_prob.view(n, -1).gather(0, which[None])[0])

    def conservative(self, batch: Transitions, values: tuple[Tensor, ...]) -> Tensor:
        """Sum over the critics of how much higher other actions are valued than the batch's, 0-d."""
        policy, n, n_random, b = (
            self.policy,
            self.policy.cql_n_actions,
            self.train["n_random_actions"],
            len(batch.actions),
        )
        d = batch.actions[0].numel()
        shape = (n_random * b, *batch.actions.shape[1:])
        uniform = 2 * torch.rand(shape, generator=self.generator, device=batch.actions.device) - 1
        with torch.no_grad():
            own, log_prob = policy.sample_with_log_prob(batch.obs, self.generator, n)
        total = []
        of_uniform, of_own = (policy.values(repeated(batch.obs, m), a) for m, a in ((n_random, uniform), (n, own)))
        for value, random, mine in zip(values, of_uniform, of_own, strict=True):
            calibrated = torch.maximum(mine.view(n, b), batch.returns[None])
            scores = torch.cat([random.view(n_random, b) - d * math.log(0.5), calibrated - log_prob.view(n, b)])
            gap = (scores.logsumexp(dim=0) - value).clamp(policy.cql_clip_diff_min, policy.cql_clip_diff_max)
            total.append(gap.mean())
        return torch.stack(total).sum()


def repeated(obs: Obs, n: int) -> Obs:
    """All rows once, then again, ``n`` times."""
    return {key: value.repeat(n, *[1] * (value.ndim - 1)) for key, value in obs.items()}
