"""Small modules, and helpers around ``nn.Module``, that know nothing of diffusion."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.types import ShapeError, StateDictError

F = TypeVar("F", bound=Callable)


def passes_on(receiver: Callable, *filled: str) -> Callable[[F], F]:
    """Decorator of a function whose ``**settings`` go to ``receiver``: its signature names their arguments, each of them once.

    Configurations are checked against the signatures of constructors (``agent/config.py``).

    Args:
        receiver: who takes the settings; its own ``self`` is not counted.
        filled: arguments that the function fills in itself.
    """

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {"self", *filled, *(p.name for p in named)}
        passed = [p for p in inspect.signature(receiver).parameters.values() if p.name not in taken]
        passed = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in passed]
        function.__signature__ = own.replace(parameters=[*named, *passed])
        return function

    return decorate


def given_noise(
    like: Tensor, shape: tuple[int, ...], noise: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """``(B, *shape)`` standard normal numbers for the rows of ``like (B, ...)``, on its device: ``noise``, or drawn.

    Raises:
        ShapeError: ``noise`` is of another shape.
    """
    shape = (like.shape[0], *shape)
    if noise is None:
        device = like.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device).to(like.device)
    if tuple(noise.shape) != shape:
        raise ShapeError(f"noise: expected (B, {shape[1]}, Ta, Da) = {shape}, found {tuple(noise.shape)}")
    return noise


class SpatialEmb(nn.Module):
    """Tokens and proprioception to one vector: where in the image each of ``D`` token channels responds, given the state.

    Every channel's ``N`` responses, with the state appended, go through one linear layer (``input_proj``); the channels
    are summed, weighted by ``weight (1, D, E)``. Parameters as published.

    Args:
        num_patch: ``N``. patch_dim: ``D``. prop_dim: ``P``, width of the state. proj_dim: ``E``, width of the result.
        dropout: of the result.
    """

    def __init__(self, num_patch: int, patch_dim: int, prop_dim: int, proj_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_patch, self.prop_dim = num_patch, prop_dim
        self.input_proj = nn.Sequential(nn.Linear(num_patch + prop_dim, proj_dim), nn.LayerNorm(proj_dim), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(1, patch_dim, proj_dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, state: Tensor) -> Tensor:
        """``tokens (B, N, D)``, ``state (B, P)`` to ``(B, E)``."""
        # The state is the same for all D channels: its part of the linear layer is computed once, not D times.
        linear, norm, relu = self.input_proj
        by_token, by_state = linear.weight.split([self.num_patch, self.prop_dim], dim=1)
        z = tokens.transpose(1, 2) @ by_token.t() + (state @ by_state.t() + linear.bias)[:, None]
        return self.dropout((self.weight * relu(norm(z))).sum(dim=1))


class RandomShiftsAug(nn.Module):
    """Random shifts of up to ``pad`` whole pixels per axis (DrQ-v2, arXiv:2107.09645); the border is repeated.

    Every row of the batch draws one shift; all its cameras, time steps and channels move together. Any image size, any
    type (uint8 stays uint8).
    """

    def __init__(self, pad: int = 4) -> None:
        super().__init__()
        if pad < 0:
            raise ValueError(f"pad: expected at least 0 pixels, found {pad}")
        self.pad = pad

    def draw(self, n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Shifts ``(n, 2)`` int64, down and right, uniform in ``-pad .. pad``; drawn where ``generator`` lives."""
        source = device if generator is None else generator.device
        return torch.randint(-self.pad, self.pad + 1, (n, 2), generator=generator, device=source).to(device)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``images (B, ..., H, W)``, each row shifted by a draw of its own."""
        return shift_images(images, self.draw(len(images), generator, images.device))


def shift_images(images: Tensor, shifts: Tensor) -> Tensor:
    """Move the content of ``images (B, ..., H, W)`` by whole pixels, ``shifts (B, 2)`` down and right; the border
    is repeated."""
    h, w = images.shape[-2:]
    rows = (torch.arange(h, device=images.device) - shifts[:, :1]).clamp(0, h - 1)
    columns = (torch.arange(w, device=images.device) - shifts[:, 1:]).clamp(0, w - 1)
    source = (rows[:, :, None] * w + columns[:, None]).flatten(1)  # (B, H * W)
    flat = images.reshape(len(images), -1, h * w)
    return flat.gather(2, source[:, None].expand(-1, flat.shape[1], -1)).view(images.shape)


def load_pretrained(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Copy a pre-trained policy's weights, ``network.*`` and nothing else, into ``network``, as ``strict_load`` does.

    Raises:
        StateDictError: a key is missing, unexpected or of another shape.
    """
    foreign = next((key for key in state_dict if not key.startswith("network.")), None)
    if foreign is not None:
        raise StateDictError(
            f"base policy: expected only keys that start with 'network.', found {foreign!r}. "
            "This is not a pre-trained policy; a fine-tuned one is loaded whole, with load_state_dict"
        )
    holder = nn.Module()  # so that error messages show the checkpoint's own keys
    holder.network = network
    strict_load(holder, state_dict, "base policy")


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
