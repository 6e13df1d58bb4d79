"""Self-imitation of a diffusion policy: it explores near what it would do, and is trained on the episodes that went well, beside the demonstrations.

Known as filtered behaviour cloning and expert iteration, and as self-imitation from Oh et al. (arXiv:1806.05635), who weigh by a critic where here
an episode's return decides. No gradient of a return and no value is estimated: the loss is pre-training's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from agent.config import NUMBER
from agent.dataset.transitions import StitchedSequenceQLearningDataset
from agent.errors import UsageError
from agent.finetune.demonstrations import WithDemonstrations
from agent.finetune.off_policy import Replaying
from agent.finetune.replay import Transitions
from agent.finetune.rollout import Rollout
from env.protocol import NpObs
from model.diffusion.actor_critic import follow


class SelfImitation(WithDemonstrations, Replaying):
    """``replay_ratio`` chunks learned from per chunk collected, once ``n_explore_itr`` iterations were only collected.

    Of every minibatch the fraction ``demo_share`` are the demonstrations' chunks, the others those of episodes whose undiscounted return reached
    ``min_return``. Nothing is learned before there is such an episode.

    The policy has the weights' average over minibatches (``average_decay``), as after pre-training: it is what explores, is evaluated and saved. The
    weights themselves, ``learner``, are the algorithm's.

    Raises:
        UsageError: ``demo_share`` or ``average_decay`` is out of range.
    """

    HEADLINE = (("loss", "loss/actor", ".4f"),)
    EXTRA = ("episode_returns",)
    SETTINGS: ClassVar = {
        **Replaying.SETTINGS,
        "n_explore_itr": int,
        "replay_ratio": NUMBER,
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
    ) -> None:
        super().__init__(policy, train, n_envs, generator, offline)
        if not 0 <= train["demo_share"] <= 1:
            raise UsageError(f"train.demo_share: expected a fraction from 0 to 1, found {train['demo_share']}")
        if not 0 <= train["average_decay"] < 1:
            raise UsageError(f"train.average_decay: expected from 0 to below 1, found {train['average_decay']}")
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
        arrays = self.replay.arrays
        return np.flatnonzero(arrays["usable"] & (arrays["episode_returns"] >= self.train["min_return"]))

    def own(self, n: int) -> Transitions:
        """``n`` chunks of the good episodes."""
        g = self.generator
        drawn = torch.randint(len(self.good), (n,), generator=g, device=g.device).cpu().numpy()
        return self.replay.gather(self.good[drawn], self.train["gamma"])

    def learn(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """The minibatches of an iteration."""
        train, self.good = self.train, self.imitated()
        if len(self.good) and iteration >= train["n_explore_itr"]:
            for _ in range(self.n_batches(rollout)):
                batch = self.from_both(round(train["demo_share"] * train["batch_size"]))
                errors = self.policy.regression_errors(batch.obs, batch.actions, self.generator, self.learner)
                self.step("actor", errors.mean())
                follow(self.policy.network, self.learner, 1 - train["average_decay"])
        return {"imitated_chunks": float(len(self.good))}

    def state_dict(self) -> dict[str, Any]:
        """As ``Replaying``, and the weights that learn."""
        return super().state_dict() | {"learner": self.learner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        super().load_state_dict(state)
        self.learner.load_state_dict(state["learner"])
