"""What the loop asks of an algorithm, and what PPO asks of a policy. A new algorithm is one file beside ``ppo.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from agent.finetune.rollout import Rollout
from model.types import Obs, Sample


class Algorithm(Protocol):
    """Learns from rollouts; the loop collects, evaluates, logs and saves."""

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Learn from one rollout; returns what to log."""

    def state_dict(self) -> dict[str, Any]:
        """Everything besides the policy's weights that an exact resume needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""


class ChainPolicy(Protocol):
    """A policy (an ``nn.Module``) whose action chunk is the end of a chain of ``K`` random steps, every one of them an action to PPO.

    ``PPODiffusion`` has as many steps as denoising steps are tuned; ``PPO_Gaussian`` has one. Letters as in ``model/types.py``; a
    ``step`` is a position in the chain, 0 .. K - 1, the last one ending in the chunk.
    """

    n_chain_steps: int  # K
    noise_shape: tuple[int, ...]  # standard normal numbers that one row of ``sample`` consumes
    norm_adv: bool  # standardise the advantages
    clip_advantage_lower_quantile: float
    clip_advantage_upper_quantile: float
    clip_vloss_coef: float | None

    def load_base(self, state_dict: Mapping[str, Tensor]) -> None:
        """Start from a pre-trained policy's weights."""

    def sample(self, obs: Obs, deterministic: bool, noise: Tensor) -> Sample:
        """Act; unless deterministic, with ``chains (B, K + 1, Ta, Da)`` and ``log_probs (B, K)``, those of ``chain_log_probs``."""

    def log_prob(self, obs: Obs, x: Tensor, x_next: Tensor, step: Tensor) -> Tensor:
        """(B,) of single steps ``x -> x_next (B, Ta, Da)`` at ``step (B,)``, differentiable. Images may come encoded."""

    def chain_log_probs(self, obs: Obs, chains: Tensor) -> Tensor:
        """(B, K) of whole chains."""

    def value(self, obs: Obs) -> Tensor:
        """(B,), differentiable."""

    def clip_range(self, step: Tensor) -> Tensor:
        """PPO's clip range at ``step (B,)``, (B,)."""

    def denoising_discount(self, step: Tensor) -> Tensor:
        """What an advantage counts at ``step (B,)``, (B,)."""

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """Of the actor's optimiser; likewise ``critic_parameters`` and ``eta_parameters`` (the noise level's; may be empty). A policy
        that sees images also has ``encode(obs) -> obs``."""
