"""Many critics as one: independently initialised, evaluated together.

The weights are stacked, one more dimension in front of each, and ``torch.func`` maps the network over it: ten small critics cost little more than one.
The ``state_dict`` has the members one by one, ``0.Q1...``, ``1.Q1...``, as published.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from model.types import Obs


class Ensemble(nn.Module):
    """``n`` critics like ``critic``, which is the first of them.

    Args:
        critic: ``(obs, actions) -> tuple of values (B,)``.
        n: members.

    Raises:
        ValueError: none, or a layer that does not know how to initialise itself.
    """

    def __init__(self, critic: nn.Module, n: int) -> None:
        super().__init__()
        if n < 1:
            raise ValueError(f"n_critics: expected at least 1, found {n}")
        members = [critic, *(reinitialised(critic) for _ in range(n - 1))]
        weights, buffers = stack_module_state(members)
        if buffers:
            raise ValueError(f"critic: expected a network without buffers, found {min(buffers)}")
        self.n = n
        self._plain = {name.replace(".", "/"): name for name in weights}  # a parameter's name may not have dots
        for name, plain in self._plain.items():
            self.register_parameter(name, nn.Parameter(weights[plain].detach().clone()))
        self._template = [copy.deepcopy(critic).to("meta")]  # in a list: it is no part of this module

    def forward(self, obs: Obs, actions: Tensor, members: Tensor | None = None) -> Tensor:
        """Values ``(n, B)`` (twice as many with double critics); of ``members`` (indices) only, where given."""
        weights = {plain: getattr(self, name) for name, plain in self._plain.items()}
        if members is not None:
            weights = {plain: weight[members] for plain, weight in weights.items()}
        values = vmap(lambda w: functional_call(self._template[0], w, (obs, actions)))(weights)
        return values[0] if len(values) == 1 else torch.cat(values)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for i in range(self.n):
            for name, plain in self._plain.items():
                weight = getattr(self, name)[i]
                destination[f"{prefix}{i}.{plain}"] = weight if keep_vars else weight.detach()

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        _, _, missing, unexpected, _ = rest
        wanted = {f"{prefix}{i}.{plain}": (name, i) for i in range(self.n) for name, plain in self._plain.items()}
        missing += [key for key in wanted if key not in state_dict]
        unexpected += [key for key in state_dict if key.startswith(prefix) and key not in wanted]
        with torch.no_grad():
            for key, (name, i) in wanted.items():
                if key in state_dict:
                    getattr(self, name)[i].copy_(state_dict[key])


def reinitialised(network: nn.Module) -> nn.Module:
    """A copy of ``network`` with weights drawn anew.

    Raises:
        ValueError: a layer has parameters of its own and no ``reset_parameters``.
    """
    fresh = copy.deepcopy(network)
    for layer in fresh.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
        elif any(True for _ in layer.parameters(recurse=False)):
            raise ValueError(f"critic: {type(layer).__name__} cannot be initialised anew: it has no reset_parameters")
    return fresh
