"""Learning-rate schedule and weight averaging, as published (DPPO; spec 1.4 and 1.13)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from agent.errors import UsageError


def cosine_with_warmup(step: int, cycle_steps: int, warmup_steps: int, max_lr: float, min_lr: float) -> float:
    """Learning rate after ``step`` scheduler steps: linear from ``min_lr`` to ``max_lr``, then half a cosine back;
    again each cycle."""
    k = step % cycle_steps
    if k < warmup_steps:
        return min_lr + (max_lr - min_lr) * k / warmup_steps
    phase = math.pi * (k - warmup_steps) / (cycle_steps - warmup_steps)
    return min_lr + (max_lr - min_lr) * (1.0 + math.cos(phase)) / 2.0


class CosineAnnealingWarmupRestarts:
    """Sets the learning rate of ``optimizer`` by ``cosine_with_warmup``; call ``step()`` once per epoch (or update).

    Args:
        optimizer: every parameter group gets the schedule.
        first_cycle_steps: length of a cycle, in scheduler steps.
        max_lr: peak; None takes each group's own learning rate.
        min_lr: start and end of each cycle.
        warmup_steps: length of the linear rise.

    Raises:
        UsageError: lengths or rates that make no schedule.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        first_cycle_steps: int,
        max_lr: float | None = None,
        min_lr: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        self.optimizer = optimizer
        self.cycle_steps, self.warmup_steps, self.min_lr = int(first_cycle_steps), int(warmup_steps), float(min_lr)
        self.max_lrs = [float(group["lr"]) if max_lr is None else float(max_lr) for group in optimizer.param_groups]
        if self.cycle_steps < 1 or not 0 <= self.warmup_steps < self.cycle_steps:
            raise UsageError(
                "lr_scheduler: expected 0 <= warmup_steps < first_cycle_steps, found "
                f"warmup_steps={warmup_steps}, first_cycle_steps={first_cycle_steps}"
            )
        if not 0.0 <= self.min_lr <= min(self.max_lrs):
            raise UsageError(
                f"lr_scheduler: expected 0 <= min_lr <= learning rate, found min_lr={min_lr}, learning rate "
                f"{self.max_lrs}"
            )
        self.steps = 0
        self._apply()

    @property
    def lr(self) -> float:
        """Learning rate of the first group, as it is now."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """Go on by one."""
        self.steps += 1
        self._apply()

    def state_dict(self) -> dict[str, int]:
        """The number of steps taken; everything else is configuration."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` was taken (load the optimiser first: it brings its own learning rate)."""
        self.steps = int(state["steps"])
        self._apply()

    def _apply(self) -> None:
        for group, max_lr in zip(self.optimizer.param_groups, self.max_lrs, strict=True):
            group["lr"] = cosine_with_warmup(self.steps, self.cycle_steps, self.warmup_steps, max_lr, self.min_lr)


class EMA:
    """Exponential moving average of a model's parameters: ``ema = d * ema + (1 - d) * model``. Buffers are not
    averaged.

    Args:
        model: whose parameters are followed; the average starts as a copy.
        decay: ``d``; 0.995 in every published configuration.
        warmup: let the decay grow as ``min(d, (1 + n) / (10 + n))`` over the first ``n`` updates, so that the average
            of a short run is not its beginning. Meant for one update per step; the published per-epoch average has
            none.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        if not 0.0 <= decay < 1.0:
            raise UsageError(f"ema.decay: expected 0 <= decay < 1, found {decay}")
        self.model, self.decay, self.warmup = model, float(decay), warmup
        self.updates = 0
        self._average = [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def copy(self) -> None:
        """Overwrite the average with the model's present parameters."""
        torch._foreach_copy_(self._average, self._parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average one step towards the model."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        torch._foreach_lerp_(self._average, self._parameters(), 1.0 - decay)
        self.updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The model's ``state_dict`` with averaged parameters: same keys, ready to load into a model. Tensors are
        copies."""
        with self.applied():
            return {key: value.detach().clone() for key, value in self.model.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the average from a ``state_dict`` of this class."""
        for (name, _), average in zip(self.model.named_parameters(), self._average, strict=True):
            average.copy_(state[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged parameters (in place: optimisers stay valid)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _parameters(self) -> list[Any]:
        return [parameter.detach() for parameter in self.model.parameters()]

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.model.parameters(), self._average, strict=True):
            parameter.data, average.data = average.data, parameter.data
