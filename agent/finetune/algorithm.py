"""What the loop asks of an algorithm. A new one is one file beside ``ppo.py``."""

from __future__ import annotations

from typing import Any, Protocol

from agent.finetune.rollout import Rollout


class Algorithm(Protocol):
    """Learns from rollouts; the loop collects, evaluates, logs and saves."""

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Learn from one rollout; returns what to log."""

    def state_dict(self) -> dict[str, Any]:
        """Everything besides the policy's weights that an exact resume needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
