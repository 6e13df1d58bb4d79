"""Dispersive losses: push the hidden features of a batch apart, with neither positive pairs nor a second forward pass.

D2PPO, after Wang & He, "Diffuse and Disperse" (arXiv:2506.09027). For features ``z (B, D)``, ``d_ij`` the distance of
rows ``i`` and ``j``, pairs ``i != j`` (all pairs with ``self_pairs``), covariance ``C`` with denominator ``B - 1``:

=============== =================================================== ====================================================
kind            corrected                                           released (the public D2PPO code, defects included)
=============== =================================================== ====================================================
infonce_l2      ``log mean_ij exp(-d_ij^2 / (D tau))``              not divided by ``D``; self-pairs always
infonce_cosine  ``log mean_ij exp(cos_ij / tau)``                   self-pairs always
hinge           ``mean_ij max(1 - d_ij^2 / D, 0)^2``                not divided by ``D``; self-pairs always
covariance      ``sum_{m != n} C_mn^2``                             the diagonal, too: collapsing the features pays
=============== =================================================== ====================================================

Distances come from the Gram matrix of the centred features, sums of exponentials from ``logsumexp``: memory is
O(B^2), never (B, B, D), and the covariance loss uses whichever of the (D, D) and (B, B) matrices is smaller.

All ``B^2`` inner products cost a large batch as much as a small network does. So training compares within groups of
``group_size`` rows: the mean over pairs ``i != j`` is then an incomplete U-statistic, of the same expectation, since that
does not depend on ``B``, and of nearly the same variance, since every row still takes part. Self-pairs need no
estimate: their share, ``1 / B`` of the whole batch, is added exactly. In groups the covariance is the U-statistic
``mean_{i != j} ((z_i'z_j)^2 - sum_m z_im^2 z_jm^2)``, which estimates the same sum without the bias ``tr(C)^2 / B`` of the
quadratic form. ``released`` knows no groups.

A batch of few rows has few pairs. With a ``queue`` of rows of earlier batches every row of the batch is compared with all
rows of batch and queue; these do not move: no gradient reaches them.

Self-pairs give ``infonce_l2`` a floor, ``-log B``, as in Wang & He. Without them nothing bounds it: on Lift's demonstrations the
last hidden layer's features ran away within 40 epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.module import register_module_forward_hook

KINDS = ("infonce_l2", "infonce_cosine", "hinge", "covariance")
LAYERS = ("early", "mid", "late", "all")
VARIANTS = ("corrected", "released")

_MIN_SQUARED_NORM = 1e-12  # of a row in a cosine: bounds the gradient of a feature that is zero


def dispersive_loss(
    features: Tensor,
    kind: str,
    temperature: float = 0.5,
    self_pairs: bool = True,
    variant: str = "corrected",
    group_size: int | None = None,
    queue: Tensor | None = None,
) -> Tensor:
    """The dispersive loss of one batch of features, 0-d and differentiable.

    Args:
        features: ``(B, ...)``, flattened to ``(B, D)``.
        kind: one of ``KINDS``.
        temperature: ``tau > 0``, of the two infonce kinds.
        self_pairs: count the pairs ``i = j``; ``released`` always does.
        variant: one of ``VARIANTS``.
        group_size: compare only within groups of about this many rows (module docstring); None: all pairs. Nothing is
            grouped where there is a queue.
        queue: ``(Q, D)``, features of earlier batches: pairs ``(i, j)`` are then of a row ``i`` of the batch and any
            ``j`` of batch or queue, the share of self-pairs is ``1 / (B + Q)``, the covariance that of all rows.

    Raises:
        ValueError: an unknown name, a temperature that is not positive, a queue of other features or with
            ``released``, or fewer than two rows (nothing to disperse; only ``released`` answers 0 there, as published).
    """
    _choose("dispersive_loss_type", kind, KINDS)
    _choose("dispersive_loss_variant", variant, VARIANTS)
    if not temperature > 0:
        raise ValueError(f"dispersive_loss_temperature: expected a positive number, found {temperature}")
    if features.ndim < 2:
        raise ValueError(f"dispersive loss: expected features (B, D), found shape {tuple(features.shape)}")
    z = features.flatten(1)
    released = variant == "released"
    if queue is not None and (released or queue.shape[1:] != z.shape[1:]):
        wanted = "none, as published (released)" if released else f"(Q, {z.shape[1]})"
        raise ValueError(f"dispersive_queue: expected {wanted}, found {tuple(queue.shape)}")
    if z.shape[0] + (0 if queue is None else len(queue)) < 2:
        if released:
            return z.sum() * 0
        raise ValueError(
            f"dispersive loss: expected at least two samples in a batch, found {z.shape[0]}; "
            "use a larger batch_size, or drop a last batch of one sample"
        )
    everything = None if queue is None else torch.cat([z, queue.detach()])
    grouped = not released and queue is None and group_size is not None and group_size < z.shape[0]
    if kind == "covariance":
        whole = z if everything is None else everything
        return _covariance_of_pairs(z, group_size) if grouped else _covariance(whole, diagonal=released)
    own = 1 / len(z if everything is None else everything) if self_pairs or released else 0.0
    z = _grouped(z, group_size if grouped else None)
    scale = 1.0 if released else 1 / z.shape[-1]
    if kind == "hinge":
        penalty = F.relu(1 - _squared_distances(z, everything) * scale).square()
        return own + (1 - own) * _fill_diagonal(penalty, 0).sum() / _n_pairs(penalty)
    if kind == "infonce_cosine":
        others, self_value = _log_mean_exp(_cosines(z, everything) / temperature), 1 / temperature
    else:
        others, self_value = _log_mean_exp(_squared_distances(z, everything) * (-scale / temperature)), 0.0
    if not own:
        return others
    return torch.logaddexp(others + math.log1p(-own), others.new_tensor(self_value + math.log(own)))


class _Gram(torch.autograd.Function):
    """``z z'`` for ``z (..., n, D)``, whose gradient takes one matrix product, not the two of ``z @ z.mT``."""

    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z @ z.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return (grad + grad.mT) @ z


def _grouped(z: Tensor, size: int | None) -> Tensor:
    """``(B, D)`` to ``(G, n, D)``, ``G = B // size``.

    A group is every ``G``-th row, so that ordered batches are mixed; a remainder of fewer than ``G`` rows stays out.
    """
    n_groups = 1 if size is None else max(1, z.shape[0] // size)
    n = z.shape[0] // n_groups
    if n * n_groups != z.shape[0]:
        z = z[: n * n_groups]
    return z.reshape(n, n_groups, -1).transpose(0, 1)


def _squared_distances(z: Tensor, everything: Tensor | None = None) -> Tensor:
    """Of rows ``(G, n, D)`` within their group, ``(G, n, n)``, exactly 0 on the diagonal; or to all of ``everything (m, D)``,
    whose first ``n`` rows they are, ``(1, n, m)``.

    Centred first: distances do not see a shift, but float32 cancellation does.
    """
    centre = (z if everything is None else everything).mean(dim=-2, keepdim=True).detach()
    if everything is None:
        gram = _Gram.apply(z - centre)
        norm = gram.diagonal(dim1=-2, dim2=-1)
        return (norm[:, :, None] + norm[:, None, :] - 2 * gram).clamp(min=0)
    z, everything = z - centre, everything - centre
    norms = z.square().sum(dim=-1)[..., None] + everything.square().sum(dim=-1)
    return (norms - 2 * z @ everything.mT).clamp(min=0)


def _cosines(z: Tensor, everything: Tensor | None = None) -> Tensor:
    """As ``_squared_distances``; 0 where a row is 0."""
    if everything is not None:
        return _unit(z) @ _unit(everything).mT
    gram = _Gram.apply(z)
    inverse = gram.diagonal(dim1=-2, dim2=-1).clamp(min=_MIN_SQUARED_NORM).rsqrt()
    return gram * inverse[:, :, None] * inverse[:, None, :]


def _unit(z: Tensor) -> Tensor:
    return z * z.square().sum(dim=-1, keepdim=True).clamp(min=_MIN_SQUARED_NORM).rsqrt()


def _fill_diagonal(matrix: Tensor, value: float) -> Tensor:
    """A copy of ``(..., n, m)`` with a constant on its diagonal."""
    return matrix.masked_fill(torch.eye(*matrix.shape[-2:], dtype=torch.bool, device=matrix.device), value)


def _n_pairs(matrix: Tensor) -> int:
    """How many entries of ``(G, n, m)`` are beside the diagonal."""
    return matrix.shape[0] * matrix.shape[1] * (matrix.shape[2] - 1)


def _log_mean_exp(logits: Tensor) -> Tensor:
    """Over the pairs ``i != j`` of ``(G, n, m)``."""
    return _fill_diagonal(logits, -math.inf).logsumexp(dim=(0, 1, 2)) - math.log(_n_pairs(logits))


def _covariance(z: Tensor, diagonal: bool) -> Tensor:
    n, dim = z.shape
    z = z - z.mean(dim=0).detach()  # centring is a projection that the product below repeats: its gradient is the same
    if dim <= n:
        cov = _Gram.apply(z.mT) / (n - 1)
        return (cov if diagonal else _fill_diagonal(cov, 0)).square().sum()
    total = (_Gram.apply(z) / (n - 1)).square().sum()  # |Z'Z|_F = |ZZ'|_F
    return total if diagonal else total - (z.square().sum(dim=0) / (n - 1)).square().sum()


def _covariance_of_pairs(z: Tensor, size: int) -> Tensor:
    """The U-statistic of the module docstring, over pairs within groups."""
    z = _grouped(z - z.mean(dim=0), size)
    products = _Gram.apply(z).square() - _Gram.apply(z.square())
    return _fill_diagonal(products, 0).sum() / _n_pairs(products)


@contextmanager
def record_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that receives the outputs of the given modules as they run inside the ``with`` block.

    No module is ever touched: one process-wide forward hook looks for the given modules and leaves with the block,
    also on an exception. So a network copied inside the block carries nothing along, and nothing can be left behind.
    """
    wanted = {id(module) for module in modules}
    outputs: list[Tensor] = []

    def record(module: nn.Module, inputs: object, output: Tensor) -> None:
        if id(module) in wanted:
            outputs.append(output)

    handle = register_module_forward_hook(record)
    try:
        yield outputs
    finally:
        handle.remove()


def pick(hidden_layers: Sequence[nn.Module], layer: str, network: str = "the network") -> list[nn.Module]:
    """The hidden layers a setting means: first quarter, middle, last quarter, or all of them.

    Of three layers, early, mid and late are exactly the first, second and third.

    Args:
        hidden_layers: as a network declares them, never its output.
        layer: one of ``LAYERS``.
        network: its name, for the error message.

    Raises:
        ValueError: an unknown setting, or fewer than three hidden layers (early, mid and late would coincide).
    """
    _choose("dispersive_loss_layer", layer, LAYERS)
    n = len(hidden_layers)
    if n < 3:
        raise ValueError(
            f"dispersive_loss_layer: {network} has {n} hidden layers, a dispersive loss needs at least three; "
            "give it three or more mlp_dims, or set use_dispersive_loss: False"
        )
    if layer == "all":
        return list(hidden_layers)
    return [hidden_layers[{"early": n // 4, "mid": n // 2, "late": 3 * n // 4}[layer]]]


def pick_released(network: nn.Module, layer: str) -> list[nn.Module]:
    """What the public D2PPO code hooks, for most settings the network's output; only for ``variant="released"``.

    It indexes the entries of ``mlp_mean`` (output layer and output activation among them). Its activations are shared
    by the whole process, so where the chosen entry is the output's Identity and there is an observation encoder, the
    encoder's Identity fires first and is what is measured.

    Raises:
        ValueError: the network has no perceptron ``mlp_mean`` (the published code then silently does nothing).
    """
    _choose("dispersive_loss_layer", layer, LAYERS)
    mlp = getattr(network, "mlp_mean", None)
    entries = list(getattr(mlp, "moduleList", None) or getattr(mlp, "layers", None) or ())
    if not entries:
        raise ValueError(
            "dispersive_loss_variant: 'released' needs a network with an `mlp_mean` perceptron, "
            f"found {type(network).__name__}; use 'corrected'"
        )
    encoder = getattr(network, "cond_mlp", None)
    shared = encoder is not None and isinstance(entries[-1], nn.Identity)
    n = len(entries)
    if layer == "all":
        return [encoder, *entries] if shared else entries
    chosen = entries[{"early": n // 4, "mid": n // 2, "late": 3 * n // 4}[layer]]
    return [encoder] if shared and chosen is entries[-1] else [chosen]


@dataclass(frozen=True)
class DispersiveLoss:
    """The settings of the regulariser, checked; called with recorded features it returns their mean loss (0-d).

    ``kind``, ``temperature``, ``self_pairs``, ``variant``, ``group_size``: see ``dispersive_loss``. ``layer``: one of
    ``LAYERS``.
    """

    kind: str = "infonce_l2"
    temperature: float = 0.5
    layer: str = "early"
    variant: str = "corrected"
    self_pairs: bool = True
    group_size: int | None = 32

    def __post_init__(self) -> None:
        _choose("dispersive_loss_type", self.kind, KINDS)
        _choose("dispersive_loss_layer", self.layer, LAYERS)
        _choose("dispersive_loss_variant", self.variant, VARIANTS)
        if not self.temperature > 0:
            raise ValueError(f"dispersive_loss_temperature: expected a positive number, found {self.temperature}")
        if self.group_size is not None and self.group_size < 2:
            raise ValueError(f"dispersive_loss_group_size: expected at least 2, or null, found {self.group_size}")

    def modules(self, network: nn.Module) -> list[nn.Module]:
        """The modules of ``network`` whose outputs to record; ``ValueError`` if it declares too few hidden layers."""
        if self.variant == "released":
            return pick_released(network, self.layer)
        return pick(getattr(network, "hidden_layers", ()), self.layer, type(network).__name__)

    def __call__(self, features: Sequence[Tensor], queues: Sequence[Tensor | None] = ()) -> Tensor:
        """The mean over ``features``, each ``(B, ...)``, with each one's queue ``(Q, D)`` where there are queues;
        ``ValueError`` if nothing was recorded."""
        if not features:
            raise ValueError("dispersive loss: no features were recorded; the network must run inside record_outputs")
        settings = (self.kind, self.temperature, self.self_pairs, self.variant, self.group_size)
        with torch.autocast(features[0].device.type, enabled=False):  # a difference of large squares: not in bfloat16
            losses = [
                dispersive_loss(z.float() if z.dtype == torch.bfloat16 else z, *settings, queue)
                for z, queue in zip(features, queues or [None] * len(features), strict=True)
            ]
        return torch.stack(losses).mean()

    def floor(self, n: int) -> float:
        """The lowest value for a batch of ``n`` features of any width; ``-inf`` where there is none.

        ``infonce_l2``: ``-log n`` with self-pairs, unbounded without. ``infonce_cosine``: features on a simplex, all
        cosines ``-1 / (n - 1)`` (attained if ``D >= n - 1``). ``hinge``: ``1 / n`` with self-pairs, else 0.
        ``covariance``: 0.
        """
        self_pairs = self.self_pairs or self.variant == "released"
        if self.kind == "infonce_l2":
            return -math.log(n) if self_pairs else -math.inf
        if self.kind == "infonce_cosine":
            apart = -1 / ((n - 1) * self.temperature)
            if not self_pairs:
                return apart
            own = 1 / self.temperature
            return own + math.log1p((n - 1) * math.exp(apart - own)) - math.log(n)
        return 1 / n if self.kind == "hinge" and self_pairs else 0.0

    def ceiling(self) -> float:
        """Its value where all features coincide; NaN for ``covariance``, which cannot tell that from features far apart."""
        return {"infonce_l2": 0.0, "infonce_cosine": 1 / self.temperature, "hinge": 1.0}.get(self.kind, math.nan)

    def saturation(self, loss: Tensor, n: int) -> Tensor:
        """Where between all features alike (0) and as far apart as the loss can tell (1) a batch of ``n`` rows is; NaN where
        there is no floor. Near 1 the gradient vanishes, or only makes the features larger."""
        return (self.ceiling() - loss) / (self.ceiling() - self.floor(n))


def _choose(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{key}: expected one of {', '.join(known)}; found {value!r}")
