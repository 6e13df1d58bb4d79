"""Calibrated conservative Q-learning (arXiv:2303.05479): the networks of SAC, and how conservative the critic is."""

from __future__ import annotations

import math

from torch import nn

from model.rl.gaussian_sac import SAC_Gaussian


class CalQL_Gaussian(SAC_Gaussian):  # noqa: N801 (published name)
    """Keys as ``SAC_Gaussian``.

    Args:
        cql_min_q_weight: weight of the conservative term.
        cql_clip_diff_min, cql_clip_diff_max: its bounds.
        cql_n_actions: draws of the policy in it, and in the critic's targets.

    The others are explained in ``SAC_Gaussian``.
    """

    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module,
        horizon_steps: int,
        cql_clip_diff_min: float = -math.inf,
        cql_clip_diff_max: float = math.inf,
        cql_min_q_weight: float = 5.0,
        cql_n_actions: int = 10,
        tanh_output: bool = True,
        randn_clip_value: float | None = 10.0,
    ) -> None:
        super().__init__(actor, critic, horizon_steps, tanh_output, randn_clip_value)
        self.cql_clip_diff_min, self.cql_clip_diff_max = cql_clip_diff_min, cql_clip_diff_max
        self.cql_min_q_weight, self.cql_n_actions = cql_min_q_weight, cql_n_actions
