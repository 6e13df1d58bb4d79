"""How far actions stray from their mean: what the Gaussian and mixture networks have in common.

The published state dictionaries hold ``logvar_min`` and ``logvar_max`` (0-d, never trained) beside the parameters, and
``logvar`` where a deviation is learned that does not depend on the observation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Deviation(nn.Module):
    """Base of the networks that predict actions with a deviation; their constructors call ``_bound``.

    Where the deviation comes from:

    * ``fixed_std``: a number.
    * ``fixed_std`` and ``learn_fixed_std``: it starts there and is learned, one per action dimension (and mode), whatever
      the observation: the parameter ``logvar``.
    * neither: the network's own output (``raw``).
    """

    logvar_min: Tensor
    logvar_max: Tensor

    def _bound(
        self,
        action_dim: int,
        horizon_steps: int,
        fixed_std: float | None,
        learn_fixed_std: bool,
        std_min: float,
        std_max: float,
        num_modes: int = 1,
    ) -> None:
        """Check the settings and make the parameters.

        Raises:
            ValueError: naming the argument that does not fit.
        """
        for key, size in (("action_dim", action_dim), ("horizon_steps", horizon_steps), ("num_modes", num_modes)):
            if size < 1:
                raise ValueError(f"{key}: expected at least 1, found {size}")
        if not 0 < std_min < std_max:
            raise ValueError(f"std_min, std_max: expected 0 < std_min < std_max, found {std_min} and {std_max}")
        if fixed_std is None and learn_fixed_std:
            raise ValueError("learn_fixed_std: there is no fixed_std to start from; set it, or learn_fixed_std: False")
        if fixed_std is not None and not fixed_std > 0:
            raise ValueError(f"fixed_std: expected a number above 0, found {fixed_std}")
        self.action_dim, self.horizon_steps, self.num_modes = action_dim, horizon_steps, num_modes
        self.fixed_std = fixed_std
        self.register_buffer("logvar_min", torch.tensor(2 * math.log(std_min)))
        self.register_buffer("logvar_max", torch.tensor(2 * math.log(std_max)))
        if learn_fixed_std:
            self.logvar = nn.Parameter(torch.full((num_modes * action_dim,), 2 * math.log(fixed_std)))

    def _std(self, raw: Tensor | None = None) -> Tensor:
        """Of a learned log-variance ``raw`` (any shape), within the bounds; else of ``logvar (modes * Da,)`` or of ``fixed_std`` (0-d)."""
        if raw is None and not hasattr(self, "logvar"):
            return self.logvar_min.new_tensor(self.fixed_std)
        return (0.5 * (self.logvar if raw is None else raw).clamp(self.logvar_min, self.logvar_max)).exp()

    def _by_mode(self, std: Tensor) -> Tensor:
        """``logvar``'s deviations ``(M * Da,)`` as ``(M, 1, Da)``; others as they are."""
        return std.view(self.num_modes, 1, self.action_dim) if std.ndim == 1 else std
