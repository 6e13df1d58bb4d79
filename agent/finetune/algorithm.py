"""What the loop asks of an algorithm, and what PPO asks of a policy.

A new algorithm is one file with a subclass of ``Algorithm``, and one method YAML that names it: ``train.algorithm: package.module.Class``.
The loop is the same for all: evaluate if due, collect (``act``, ``observe``), ``update``, log, save.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from torch import Tensor, nn

from agent.agent import build
from agent.config import PPO
from agent.errors import UsageError
from agent.finetune.experience import gather_experience
from agent.finetune.rollout import Rollout
from env.normalizer import Normalizer
from env.protocol import NpObs
from model.types import Obs, Sample


class Algorithm(ABC):
    """Learns from experience; the loop collects, evaluates, logs and saves.

    Args:
        policy: on its device; what the loop evaluates and saves.
        train: the configuration's ``train`` section.
        n_envs: N of the rollouts.
        generator: of everything that the algorithm draws, on the policy's device.
    """

    SETTINGS: ClassVar[dict[str, Any]]  # keys of ``train`` that it reads besides the loop's own, and their types
    HEADLINE: ClassVar[tuple[tuple[str, str, str], ...]] = ()  # of the console line: label, metric, format
    WHOLE_CHUNKS: ClassVar[bool] = False  # it values chunks of ``horizon_steps`` actions: all of them must be executed

    def __init__(self, policy: nn.Module, train: Mapping[str, Any], n_envs: int, generator: torch.Generator) -> None:
        self.policy, self.train, self.n_envs, self.generator = policy, train, n_envs, generator

    def collects(self, iteration: int) -> bool:
        """Whether ``iteration`` collects a rollout; otherwise it learns from what there is, and the world is for evaluation."""
        return True

    def act(self, obs: Obs, noise: Tensor) -> Sample:
        """Explore: a chunk for each of N observations. ``noise (N, *policy.noise_shape)`` is standard normal."""
        return self.policy.sample(obs, deterministic=False, noise=noise)

    def observe(self, rollout: Rollout, step: int, final_obs: NpObs) -> None:  # noqa: B027 (who learns from whole rollouts need not look on)
        """Called when row ``step`` of the rollout is complete; ``final_obs`` is what each of its N chunks led to."""

    @abstractmethod
    def update(self, rollout: Rollout | None, iteration: int) -> dict[str, float]:
        """Learn; returns what to log. ``rollout`` is None where ``iteration`` collected nothing."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything besides the policy's weights that an exact resume needs. ``"replay"``, if there, is kept in latest.pt only."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""


def make_algorithm(
    cfg: DictConfig, policy: nn.Module, train: Mapping[str, Any], generator: torch.Generator, normalizer: Normalizer
) -> Algorithm:
    """The one that ``train.algorithm`` names, with the transitions of ``offline_dataset`` and the chunks of ``train.experience_path`` if it learns
    from any.

    Raises:
        UsageError: it and the rest of the configuration do not go together.
    """
    kind, extra = get_class(train.get("algorithm", PPO)), {}
    if kind.WHOLE_CHUNKS and cfg.act_steps != cfg.horizon_steps:
        raise UsageError(
            f"act_steps: {kind.__name__} values whole chunks, so all horizon_steps={cfg.horizon_steps} actions must be executed, "
            f"found act_steps={cfg.act_steps}"
        )
    if "offline" in inspect.signature(kind).parameters:
        if not cfg.get("offline_dataset"):
            raise UsageError(f"offline_dataset: {kind.__name__} also learns from demonstrations; give their section")
        extra["offline"] = build(cfg.offline_dataset, device=str(generator.device))
        extra["offline"].check(cfg.obs_dim, cfg.action_dim)
        extra["offline"].check_normalizer(normalizer)
    if "experience" in inspect.signature(kind).parameters and train["experience_path"] is not None:
        chunk = (cfg.horizon_steps, cfg.action_dim)
        extra["experience"] = gather_experience(
            train["experience_path"], train["min_return"], normalizer, chunk, generator.device
        )
    return kind(policy, train, cfg.env.n_envs, generator, **extra)


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
