"""What minibatches are taken from, and what becomes of their losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from agent.errors import UsageError
from model.common.vision import shift_obs
from model.types import Obs


@dataclass
class Data:
    """What minibatches are taken from; M = S * N chunks."""

    obs: Obs  # (M, ...)
    shifts: Tensor | None  # (M, 2)
    chains: Tensor  # (M, K + 1, Ta, Da)
    log_probs: Tensor  # (M, K) that the ratio is relative to

    def look(self, rows: Tensor) -> Obs:
        """Observations as the learner sees them."""
        return look(self.obs, rows, self.shifts)


@dataclass
class Losses:
    """Of every minibatch, 0-d tensors; nothing waits for them before the end."""

    policy: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    clipped: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    updates: int = 0  # optimiser steps of the actor

    def means(self) -> dict[str, float]:
        """Over the minibatches; NaN where there were none."""
        named = {
            "loss/policy": self.policy,
            "approx_kl": self.kl,
            "clip_fraction": self.clipped,
            "loss/value": self.value,
        }
        return {key: float(torch.stack(x).mean()) if x else math.nan for key, x in named.items()}


def share(loss: Tensor, n: int, total: int) -> Tensor:
    """The part of a mean over ``total`` that a mean over ``n`` of them contributes."""
    return loss if n == total else loss * (n / total)


def take(obs: Obs, rows: Tensor) -> Obs:
    """Rows of every observation key, on the device of ``rows`` (images are stored on the host, and sent as uint8)."""
    return {key: value[rows.to(value.device)].to(rows.device) for key, value in obs.items()}


def look(obs: Obs, rows: Tensor, shifts: Tensor | None) -> Obs:
    """``take``, with images moved by their ``shifts (M, 2)``."""
    return shift_obs(take(obs, rows), None if shifts is None else shifts[rows])


def encode_once(policy: nn.Module, obs: Obs, rows_at_once: int, device: torch.device) -> Obs:
    """``obs (M, ...)``; of a policy whose eyes no update changes (``frozen_eyes``) with features for images, once for all epochs."""
    if "rgb" not in obs or not getattr(policy, "frozen_eyes", False):
        return obs
    rows = torch.arange(len(obs["rgb"]), device=device).split(rows_at_once)
    parts = [policy.encode(take(obs, some)) for some in rows]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


class Means:
    """Numbers of many minibatches, by name, 0-d tensors; nothing waits for them before ``read``."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Tensor]] = {}

    def add(self, **values: Tensor) -> None:
        """Of one more minibatch."""
        for name, value in values.items():
            self.seen.setdefault(name, []).append(value.detach())

    def read(self) -> dict[str, float]:
        """Means since the last time.

        Raises:
            UsageError: one is not finite.
        """
        means = {f"loss/{name}": float(torch.stack(values).mean()) for name, values in self.seen.items()}
        self.seen.clear()
        if not all(map(math.isfinite, means.values())):
            raise UsageError(f"a loss is not finite ({means}); nothing was saved after this. Lower the learning rates")
        return means
