"""What a batch of hidden features is like: how many directions they use, how far apart they are, and whether they tell apart
what is near in the true state.

Collapse, in numbers: similar observations whose features cannot be told apart (``neighbour_distance`` near 0), or features
that use few of the directions they have (``effective_rank`` near 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.dispersive_loss import _fill_diagonal, _squared_distances

MAX_ROWS = 256
NEIGHBOURS = 5


@torch.no_grad()
def feature_diagnostics(features: Tensor, states: Tensor | None = None, max_rows: int = MAX_ROWS) -> dict[str, Tensor]:
    """How spread out a batch of features is; 0-d tensors, nothing is synchronised to the host.

    * ``effective_rank``: exp of the entropy of the normalised singular values of the centred features (Roy & Vetterli
      2007)
    * ``participation_ratio``: ``(sum l)^2 / sum l^2`` over the eigenvalues of their covariance
    * ``distance_mean``, ``distance_min``: over pairs, root mean square per dimension (``sqrt(d^2 / D)``)
    * ``feature_norm``: mean Euclidean norm

    and, with ``states``,

    * ``neighbour_agreement``: which share of a row's ``NEIGHBOURS`` nearest in the state are among its nearest in the features;
      mean over rows. By chance ``NEIGHBOURS / (B - 1)``
    * ``neighbour_distance``: feature distance to the row that is nearest in the state, relative to ``distance_mean``; mean over rows

    Args:
        features: ``(B, ...)`` with ``B >= 2``.
        states: ``(B, ...)`` what the world was like, in comparable units (normalised observations); without it, or for
            fewer than ``NEIGHBOURS + 2`` rows, the last two are left out.
        max_rows: only the first rows count, to keep it cheap (the eigenvalues cost O(rows^3)).

    Raises:
        ValueError: fewer than two rows, or states of another number of rows.
    """
    if features.ndim < 2 or features.shape[0] < 2:
        raise ValueError(f"feature diagnostics: expected features (B >= 2, D), found shape {tuple(features.shape)}")
    z = features.detach().flatten(1)[:max_rows].float()
    n, dim = z.shape
    eigenvalues, tiny = _eigenvalues(z), torch.finfo(z.dtype).tiny
    distance = (_squared_distances(z[None])[0] / dim).sqrt()
    mean = distance.sum() / (n * (n - 1))
    report = {
        "effective_rank": _effective_rank(eigenvalues),
        "participation_ratio": (eigenvalues.sum().square() / eigenvalues.square().sum().clamp(min=tiny)).float(),
        "distance_mean": mean,
        "distance_min": _fill_diagonal(distance, torch.inf).min(),
        "feature_norm": z.norm(dim=1).mean(),
    }
    if states is not None and n >= NEIGHBOURS + 2:
        if len(states) != len(features):
            raise ValueError(f"feature diagnostics: expected {len(features)} states, found {len(states)}")
        own, true = (
            _nearest(distance),
            _nearest(_squared_distances(states.detach().flatten(1)[None, :max_rows].float())[0]),
        )
        report["neighbour_agreement"] = (own[:, :, None] == true[:, None, :]).any(dim=2).float().mean()
        report["neighbour_distance"] = distance.gather(1, true[:, :1]).mean() / mean.clamp(min=tiny)
    return report


@torch.no_grad()
def effective_rank(z: Tensor) -> Tensor:
    """Of rows ``(B, ...)``, centred: how many directions they use, 0-d; see ``feature_diagnostics``."""
    return _effective_rank(_eigenvalues(z.detach().flatten(1).float()))


def _eigenvalues(z: Tensor) -> Tensor:
    """Of the scatter matrix of ``(n, D)``, the smaller of its two forms, in float64: it squares what is small, and in float32 rounding
    would pass for directions of features that all but lie on a line."""
    centred = z.double()
    centred = centred - centred.mean(dim=0)
    return torch.linalg.eigvalsh(centred @ centred.mT if z.shape[0] <= z.shape[1] else centred.mT @ centred).clamp(
        min=0
    )


def _effective_rank(eigenvalues: Tensor) -> Tensor:
    singular = eigenvalues.sqrt()
    p = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    return torch.special.entr(p).sum().exp().float()


def _nearest(distance: Tensor) -> Tensor:
    """Of each row of ``(n, n)`` the indices of the ``NEIGHBOURS`` nearest others, nearest first."""
    return _fill_diagonal(distance, torch.inf).topk(NEIGHBOURS, largest=False).indices
