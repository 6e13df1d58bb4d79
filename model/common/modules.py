"""Small helpers around ``nn.Module`` that know nothing of diffusion."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from model.types import StateDictError


def strict_load(module: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Copy ``state_dict`` into ``module`` in place (parameters keep their identity); every key and shape must match.

    Args:
        module: the network to fill.
        state_dict: its weights, by published name.
        what: what they are called in the error message, for instance the checkpoint's path.

    Raises:
        StateDictError: naming the first key that differs, what was expected, what was found; nothing was copied then.
    """
    own = module.state_dict()
    for key, tensor in own.items():
        expected = tuple(tensor.shape)
        if key not in state_dict:
            raise StateDictError(
                f"{what}: key {key!r} is missing; expected a tensor of shape {expected}, found {_summary(state_dict)}. "
                "Check that the network in the configuration is the one that was trained"
            )
        found = state_dict[key]
        if not isinstance(found, Tensor):
            raise StateDictError(
                f"{what}: key {key!r}: expected a tensor of shape {expected}, found {type(found).__name__}"
            )
        if tuple(found.shape) != expected:
            raise StateDictError(
                f"{what}: key {key!r}: expected shape {expected}, found {tuple(found.shape)}. "
                "Check the widths (mlp_dims, obs_dim, action_dim, horizon_steps) in the configuration"
            )
    for key, value in state_dict.items():
        if key not in own:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise StateDictError(
                f"{what}: unexpected key {key!r} with shape {shape}; the network has no such parameter. "
                "Check that the network in the configuration is the one that was trained"
            )
    module.load_state_dict(dict(state_dict), strict=True)


def _summary(state_dict: Mapping[str, Tensor]) -> str:
    keys = list(state_dict)
    return f"{len(keys)} keys" + (f" ({', '.join(map(repr, keys[:3]))}, ...)" if keys else "")
