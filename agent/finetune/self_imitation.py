"""Self-imitation of a diffusion policy: it explores near what it would do, and is trained on the episodes that went well, beside the demonstrations.

Known as filtered behaviour cloning and expert iteration, and as self-imitation from Oh et al. (arXiv:1806.05635), who weigh by a critic where here
an episode's return decides. No gradient of a return and no value is estimated: the loss is pre-training's.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from agent.config import NUMBER, optional
from agent.dataset.transitions import StitchedSequenceQLearningDataset
from agent.errors import UsageError
from agent.finetune.demonstrations import WithDemonstrations
from agent.finetune.experience import Experience
from agent.finetune.off_policy import Replaying
from agent.finetune.replay import Transitions, mixed
from agent.finetune.rollout import Rollout
from env.protocol import NpObs
from model.diffusion.actor_critic import follow

log = logging.getLogger(__name__)


class SelfImitation(WithDemonstrations, Replaying):
    """Rounds of ``n_explore_itr`` iterations that collect with the policy as the last round left it, and ``n_learn_itr`` that learn.

    What explores does not change while it does: learning at once from what is collected, the policy comes to do what it does anyway, its
    experience narrows, and it forgets how to come back from where it no longer gets.

    A round's learning is one regression from the policy's weights: ``n_batches`` minibatches of the good episodes of all rounds so far, whose
    undiscounted return reached ``min_return``, of those of the runs ``experience_path``, and of the demonstrations, a fraction ``demo_share`` of each.
    The learning rate's schedule counts minibatches. The policy has the weights' average over them (``average_decay``, less at first, as after
    pre-training): it is what is evaluated and saved. The weights themselves, ``learner``, are the algorithm's. Without a good episode a round learns
    nothing.

    Raises:
        UsageError: a setting is out of range.
    """

    HEADLINE = (("good chunks", "imitated_chunks", ",.0f"), ("loss", "loss/actor", ".4f"))
    EXTRA = ("episode_returns",)
    SETTINGS: ClassVar = {
        **Replaying.SETTINGS,
        "n_explore_itr": int,
        "n_learn_itr": int,
        "experience_path": optional((str, list)),
        "n_batches": int,
        "min_return": NUMBER,
        "demo_share": NUMBER,
        "average_decay": NUMBER,
    }

    def __init__(
        self,
        policy: nn.Module,
        train: Mapping[str, Any],
        n_envs: int,
        generator: torch.Generator,
        offline: StitchedSequenceQLearningDataset,
        experience: Experience | None = None,
    ) -> None:
        super().__init__(policy, train, n_envs, generator, offline)
        _check(train, experience is not None)
        self.experience = experience
        if experience is not None:
            log.info(
                "experience: %d chunks of %d good episodes of %d", self.n_given, experience.episodes, experience.seen
            )
        self.learner = copy.deepcopy(policy.network)
        self.good = np.zeros(0, np.int64)  # of the buffer, what is imitated in this iteration
        self.optimize("actor", self.learner.parameters())

    def remember(self, at: np.ndarray) -> None:
        """How a running episode ends is not known."""
        self.replay.arrays["episode_returns"][at] = -np.inf

    def observe(self, rollout: Rollout, step: int, final_obs: NpObs) -> None:
        """Keep the chunks; of episodes that end, what they came to."""
        super().observe(rollout, step, final_obs)
        arrays = self.replay.arrays
        for env in (rollout.terminated[step] | rollout.truncated[step]).nonzero()[:, 0].tolist():
            at = self.replay.episode_at(env)
            arrays["episode_returns"][at] = arrays["rewards"][at].sum()

    def imitated(self) -> np.ndarray:
        """Where the chunks of the good episodes are."""
        if self.replay is None:
            return np.zeros(0, np.int64)
        arrays = self.replay.arrays
        return np.flatnonzero(arrays["usable"] & (arrays["episode_returns"] >= self.train["min_return"]))

    def own(self, n: int) -> Transitions:
        """``n`` chunks of the good episodes, its own and the other run's alike."""
        g, given = self.generator, self.n_given
        drawn = torch.randint(given + len(self.good), (n,), generator=g, device=g.device)
        mine = drawn[drawn >= given].cpu().numpy() - given
        parts = [self.replay.gather(self.good[mine], self.train["gamma"])] if len(mine) else []
        if len(mine) < n:
            obs, actions = self.experience.at(drawn[drawn < given])
            none = torch.zeros(len(actions), device=actions.device)
            parts.append(Transitions(obs, actions, none, none, obs))
        return mixed(*parts) if len(parts) == 2 else parts[0]

    @property
    def n_given(self) -> int:
        """Chunks of the other run's."""
        return 0 if self.experience is None else len(self.experience.actions)

    def collects(self, iteration: int) -> bool:
        """In the first iterations of a round."""
        return self._of_learning(iteration) < 0

    def _of_learning(self, iteration: int) -> int:
        """The how many-th iteration of its round's learning it is, from 0; negative before."""
        return iteration % (self.train["n_explore_itr"] + self.train["n_learn_itr"]) - self.train["n_explore_itr"]

    def learn(self, rollout: Rollout | None, iteration: int) -> dict[str, float]:
        """The minibatches of an iteration."""
        train, at, self.good = self.train, self._of_learning(iteration), self.imitated()
        if at == 0:
            self.learner.load_state_dict(self.policy.network.state_dict())
            self.optimizers["actor"].state.clear()
        n_good = self.n_given + len(self.good)
        if at >= 0 and n_good:
            first, end = (train["n_batches"] * i // train["n_learn_itr"] for i in (at, at + 1))
            for k in range(first, end):
                self._learn(min(train["average_decay"], (1 + k) / (10 + k)))
        return {"imitated_chunks": float(n_good)}

    def _learn(self, decay: float) -> None:
        batch = self.from_both(round(self.train["demo_share"] * self.train["batch_size"]))
        errors = self.policy.regression_errors(batch.obs, batch.actions, self.generator, self.learner)
        self.step("actor", errors.mean())
        self.schedules["actor"].step()
        follow(self.policy.network, self.learner, 1 - decay)

    def anneal(self, iteration: int) -> None:
        """Nothing: the schedule has counted the minibatches."""

    def state_dict(self) -> dict[str, Any]:
        """As ``Replaying``, and the weights that learn."""
        return super().state_dict() | {"learner": self.learner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        super().load_state_dict(state)
        self.learner.load_state_dict(state["learner"])


def _check(train: Mapping[str, Any], given: bool) -> None:
    """Raise ``UsageError`` unless the settings are in range; ``given``: there is another run's experience, so that none need be collected."""
    if not 0 <= train["demo_share"] <= 1:
        raise UsageError(f"train.demo_share: expected a fraction from 0 to 1, found {train['demo_share']}")
    if not 0 <= train["average_decay"] < 1:
        raise UsageError(f"train.average_decay: expected from 0 to below 1, found {train['average_decay']}")
    for key in ("n_learn_itr", "n_batches"):
        if train[key] < 1:
            raise UsageError(f"train.{key}: expected at least 1, found {train[key]}")
    if train["n_explore_itr"] < (0 if given else 1):
        raise UsageError(
            f"train.n_explore_itr: expected at least 1, or 0 with train.experience_path, found {train['n_explore_itr']}"
        )
