"""DDIM's noise level ``eta``, fixed or learned (DPPO, arXiv:2409.00588, appendix on learned noise).

Every class maps an observation to ``eta`` within ``[min_eta, max_eta]``, differentiable in its own parameters:
``(B, 1)``, one level for the whole chunk, or ``(B, Da)``, one per action dimension. Whether it learns is the caller's
choice (``PPODiffusion(learn_eta=...)``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.common.mlp import MLP
from model.types import Obs

LOGIT_LIMIT = 6.0  # tanh(6) = 1 - 1e-5: indistinguishable from the bound, yet with a slope that an optimiser can use


class _LogitEta(nn.Module):
    """``eta = (tanh(logit) + 1) / 2 * (max - min) + min``, exactly ``min`` or ``max`` once ``|logit|`` reaches the
    limit.

    The published code stores an infinite logit when ``base_eta`` equals a bound. Here the logit stays finite:
    infinite ones are replaced on loading, and the gradient at the limit is that of tanh, so a saturated level can
    still be unlearned.
    """

    eta_logit: nn.Parameter

    def __init__(self, n: int | None, base_eta: float, min_eta: float, max_eta: float) -> None:
        super().__init__()
        _check_range(base_eta, min_eta, max_eta)
        width = max_eta - min_eta
        unit = 0.0 if width == 0 else 2 * (base_eta - min_eta) / width - 1
        # a rounded quotient can exceed 1 by one unit in the last place
        logit = math.copysign(LOGIT_LIMIT, unit) if abs(unit) >= math.tanh(LOGIT_LIMIT) else math.atanh(unit)
        self.eta_logit = nn.Parameter(torch.full(() if n is None else (n,), logit))
        self.min_eta = min_eta
        self.max_eta = max_eta

    def level(self) -> Tensor:
        """The noise level, with the shape of the logit."""
        clamped = self.eta_logit + (self.eta_logit.clamp(-LOGIT_LIMIT, LOGIT_LIMIT) - self.eta_logit).detach()
        smooth = (torch.tanh(clamped) + 1) / 2 * (self.max_eta - self.min_eta) + self.min_eta
        exact = torch.where(self.eta_logit >= LOGIT_LIMIT, self.max_eta, smooth.detach())
        exact = torch.where(self.eta_logit <= -LOGIT_LIMIT, self.min_eta, exact)
        return smooth + (exact - smooth.detach())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        key = prefix + "eta_logit"
        if key in state_dict:
            state_dict[key] = torch.nan_to_num(state_dict[key], posinf=LOGIT_LIMIT, neginf=-LOGIT_LIMIT)
        super()._load_from_state_dict(state_dict, prefix, *args)


class EtaFixed(_LogitEta):
    """One level for everything."""

    def __init__(self, base_eta: float = 0.5, min_eta: float = 0.1, max_eta: float = 1.0) -> None:
        super().__init__(None, base_eta, min_eta, max_eta)

    def forward(self, obs: Obs) -> Tensor:
        """``(B, 1)``, the same for every row."""
        return self.level().expand(obs["state"].shape[0], 1)


class EtaAction(_LogitEta):
    """One level per action dimension."""

    def __init__(self, action_dim: int, base_eta: float = 0.5, min_eta: float = 0.1, max_eta: float = 1.0) -> None:
        super().__init__(action_dim, base_eta, min_eta, max_eta)

    def forward(self, obs: Obs) -> Tensor:
        """``(B, Da)``, the same for every row."""
        return self.level().expand(obs["state"].shape[0], -1)


class EtaState(nn.Module):
    """One level per observation: ``clamp(base + tanh(mlp(state)), min, max)``; ``input_dim = To * Do``."""

    def __init__(
        self,
        input_dim: int,
        mlp_dims: Sequence[int],
        activation_type: str = "ReLU",
        out_activation_type: str = "Identity",
        base_eta: float = 0.5,
        min_eta: float = 0.1,
        max_eta: float = 1.0,
        gain: float = 1e-2,
    ) -> None:
        super().__init__()
        _check_range(base_eta, min_eta, max_eta)
        self.mlp_res = _small_mlp([input_dim, *mlp_dims, 1], activation_type, out_activation_type, gain)
        self.base_eta = base_eta
        self.min_eta = min_eta
        self.max_eta = max_eta

    def forward(self, obs: Obs) -> Tensor:
        """``(B, 1)``."""
        return _state_eta(self.mlp_res, obs, self.base_eta).clamp(self.min_eta, self.max_eta)


class EtaStateAction(nn.Module):
    """One level per observation and action dimension; ``input_dim = To * Do``."""

    def __init__(
        self,
        input_dim: int,
        mlp_dims: Sequence[int],
        action_dim: int,
        activation_type: str = "ReLU",
        out_activation_type: str = "Identity",
        base_eta: float = 1.0,
        min_eta: float = 1e-3,
        max_eta: float = 2.0,
        gain: float = 1e-2,
    ) -> None:
        super().__init__()
        _check_range(base_eta, min_eta, max_eta)
        self.mlp_res = _small_mlp([input_dim, *mlp_dims, action_dim], activation_type, out_activation_type, gain)
        self.base_eta = base_eta
        self.min_eta = min_eta
        self.max_eta = max_eta

    def forward(self, obs: Obs) -> Tensor:
        """``(B, Da)``."""
        return _state_eta(self.mlp_res, obs, self.base_eta).clamp(self.min_eta, self.max_eta)


def _check_range(base_eta: float, min_eta: float, max_eta: float) -> None:
    if not 0 <= min_eta <= base_eta <= max_eta:
        raise ValueError(
            f"eta: expected 0 <= min_eta <= base_eta <= max_eta, found min {min_eta}, base {base_eta}, max {max_eta}"
        )


def _small_mlp(dims: Sequence[int], activation_type: str, out_activation_type: str, gain: float) -> MLP:
    """A perceptron that starts near zero: Xavier-normal weights of the given gain, zero biases."""
    mlp = MLP(dims, activation_type=activation_type, out_activation_type=out_activation_type)
    for module in mlp.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight, gain=gain)
            nn.init.zeros_(module.bias)
    return mlp


def _state_eta(mlp: MLP, obs: Mapping[str, Tensor], base_eta: float) -> Tensor:
    if "rgb" in obs:
        raise NotImplementedError(
            "eta: a noise level that depends on the state does not read images; use EtaFixed or EtaAction"
        )
    return base_eta + torch.tanh(mlp(obs["state"].flatten(1)))
