"""Advantage-weighted regression of a diffusion policy from a replay buffer (DAWR in arXiv:2409.00588; Peng et al., arXiv:1910.00177).

The critic regresses on TD(lambda) returns of everything in the buffer, computed anew every iteration; the actor on the buffer's actions, with
the weight ``min(exp(beta A), max)``, ``A`` standardised in every minibatch.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from agent.config import NUMBER
from agent.finetune.gae import generalized_advantage
from agent.finetune.off_policy import PASSES, OffPolicy
from agent.finetune.rollout import Rollout
from agent.finetune.rwr import exponential_weights

ROWS = 10000  # observations that are valued at once


class AWR(OffPolicy):
    """Critic and actor in ``replay_ratio`` passes over a rollout's worth of chunks; the critic's are ``critic_update_ratio`` times fewer."""

    HEADLINE = (("actor loss", "loss/actor", ".4f"), ("critic loss", "loss/critic", ".4f"))
    SETTINGS: ClassVar = {
        **OffPolicy.SETTINGS,
        **PASSES,
        "beta": NUMBER,
        "max_adv_weight": NUMBER,
        "critic_update_ratio": int,
        "gae_lambda": NUMBER,
    }

    def learn(self, rollout: Rollout, iteration: int) -> None:
        """First the critic, then, after the warm-up, the actor with advantages of the new critic."""
        train, n_batches = self.train, self.n_batches(rollout)
        targets, _ = self._returns()
        for _ in range(max(1, n_batches // train["critic_update_ratio"])):
            at = self.replay.draw(train["batch_size"], self.generator)
            error = self.policy.value(self.replay.obs_at(at)) - self._look(targets, at)
            self.step("critic", error.square().mean())
        if iteration < train["n_critic_warmup_itr"]:
            return
        _, advantages = self._returns()
        for _ in range(n_batches):
            batch = self.batch()
            weights = exponential_weights(
                self._look(advantages, batch.index), train["beta"], train["max_adv_weight"], 1e-6
            )
            errors = self.policy.regression_errors(batch.obs, batch.actions, self.generator)
            self.step("actor", (weights * errors).mean())

    def _look(self, values: np.ndarray, at: np.ndarray) -> Tensor:
        return torch.from_numpy(values[at]).to(self.generator.device)

    @torch.no_grad()
    def _returns(self) -> tuple[np.ndarray, np.ndarray]:
        """TD(lambda) returns and advantages of every row of the buffer; of those that are no chunk, nonsense."""
        replay, train = self.replay, self.train
        rows = replay.streams()
        after = replay.successor(rows)
        values = np.zeros(len(replay.arrays["rewards"]), np.float32)
        every = np.unique(np.concatenate([rows.ravel(), after.ravel()]))
        for some in np.array_split(every, -(-len(every) // ROWS)):
            values[some] = self.policy.value(replay.obs_at(some)).cpu().numpy()
        usable, ended = replay.arrays["usable"][rows], replay.arrays["terminated"][rows]
        cut = usable & ~ended & ~replay.arrays["usable"][after]  # what follows is a last observation, or not there yet
        grids = (replay.arrays["rewards"][rows], values[rows], ended | ~usable, cut, values[after])
        advantages, returns = generalized_advantage(*map(torch.from_numpy, grids), train["gamma"], train["gae_lambda"])
        out = np.zeros((2, len(values)), np.float32)
        out[0][rows], out[1][rows] = returns.numpy(), advantages.numpy()
        return out[0], out[1]
