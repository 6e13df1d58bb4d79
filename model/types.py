"""The legend: every tensor that crosses from one room of the house to another, with its shape.

Letters, here and everywhere in the project:

====== =========================================================================
``B``  batch
``N``  simulated environments
``S``  action chunks per rollout
``K``  fine-tuned denoising steps, or steps of a flow (a Gaussian policy has ``K = 1``)
``To`` observation steps (``cond_steps``)
``Ta`` predicted actions (``horizon_steps``)
``Te`` executed actions (``act_steps``), ``Te <= Ta``
``Do`` observation dimension
``Da`` action dimension
====== =========================================================================

Observations are a mapping: ``{"state": (B, To, Do) float32}`` and, for image policies, also
``{"rgb": (B, To, C, H, W) uint8}`` (``C``: three channels of the first camera, three of the second, ...). Whether a policy
sees images is a matter of keys, not of classes. A network that sees has ``encode``: ``"rgb"`` becomes ``"features" (B, F)``,
once per observation, and everything after it works on that.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Obs = dict[str, Tensor]


class Batch(NamedTuple):
    """Demonstrations as the supervised loss sees them, normalised to [-1, 1]."""

    actions: Tensor  # (B, Ta, Da) float32
    conditions: Obs  # {"state": (B, To, Do)[, "rgb": (B, To, C, H, W)]}


class Losses(NamedTuple):
    """A differentiable total and its named, detached parts (0-d tensors; nothing is synchronised to the host)."""

    total: Tensor
    parts: dict[str, Tensor]


class Sample(NamedTuple):
    """What a policy does in one call."""

    trajectories: Tensor  # (B, Ta, Da) the action chunk, in [-1, 1] units
    chains: Tensor | None = None  # (B, K + 1, Ta, Da) noisiest first, the action chunk last
    log_probs: Tensor | None = None  # (B, K) log p(chains[:, k + 1] | chains[:, k]), mean over (Ta, Da)


class NonFiniteError(ValueError):
    """A tensor that must be finite is not; the message names it."""


class ShapeError(ValueError):
    """A tensor or a network has another shape than the configuration says; the message names expected and found."""


class StateDictError(ValueError):
    """Weights do not fit a network; the message names the first key that is missing, unexpected or of another shape."""
