"""What went well in another run, out of its replay buffer: a policy can be trained on it beside its own experience.

Reinforcement learning that explores well need not act well, and what it learned may be something else than a policy's weights (the start that DSRL
chooses). Its successes are demonstrations (RLDG, Xu et al. 2024, arXiv:2412.09858; of a chain of denoising steps here).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agent import checkpoint
from agent.errors import CheckpointError, UsageError
from env.normalizer import Normalizer
from model.types import Obs

ROWS = 4096  # chunks that are denoised at once


class Experience(NamedTuple):
    """B chunks of the episodes that were good enough."""

    obs: Obs
    actions: Tensor  # (B, Ta, Da), as they were executed
    episodes: int  # they are of
    seen: int  # all that came to an end

    def at(self, index: Tensor) -> tuple[Obs, Tensor]:
        """Observations and chunks at ``index (n,)``."""
        return {key: value[index] for key, value in self.obs.items()}, self.actions[index]


def read_experience(
    path: str | os.PathLike[str],
    min_return: float,
    normalizer: Normalizer,
    chunk_shape: tuple[int, int],
    device: torch.device | str = "cpu",
) -> Experience:
    """The chunks of the episodes of a run whose undiscounted return reached ``min_return``.

    Args:
        path: the run's ``checkpoint/latest.pt``.
        normalizer: of the policy that is to learn from them.
        chunk_shape: ``(Ta, Da)`` of that policy.
        device: where they go.

    Raises:
        CheckpointError: it is no checkpoint, or one without a replay buffer.
        UsageError: its observations, actions or normaliser are others; or it has no such episode.
    """
    payload = checkpoint.load(path)
    state = payload.get("algorithm", {}).get("replay") if payload.get("kind") == "finetune" else None
    if state is None:
        raise CheckpointError(
            f"train.experience_path: {path} has no replay buffer. Give the checkpoint/latest.pt of a run of an off-policy algorithm "
            "(DSRL, SAC, self-imitation, ...)"
        )
    _check(path, payload, state, normalizer, chunk_shape)
    policy = checkpoint.load_policy(path, device=str(device))
    found = list(_episodes(state, payload["config"]["train"].get("scale_reward_factor", 1)))
    good = [(env, rows) for env, rows, total in found if total >= min_return]
    if not good:
        best = max((total for *_, total in found), default=None)
        raise UsageError(
            f"train.min_return: expected that some episode in {path} returned at least {min_return}, found {len(found)} episodes, the best "
            f"returned {best}"
        )
    arrays = state["arrays"]
    pick = lambda x: torch.cat([x[env, rows] for env, rows in good]).to(device)  # noqa: E731
    obs = {name[4:]: pick(x) for name, x in arrays.items() if name.startswith("obs.")}
    return Experience(obs, _executed(policy, obs, pick(arrays["actions"])), len(good), len(found))


def gather_experience(
    paths: str | Sequence[str],
    min_return: float,
    normalizer: Normalizer,
    chunk_shape: tuple[int, int],
    device: torch.device | str = "cpu",
) -> Experience:
    """``read_experience`` of one run or of several."""
    runs = [
        read_experience(path, min_return, normalizer, chunk_shape, device)
        for path in ([paths] if isinstance(paths, str) else paths)
    ]
    obs = {key: torch.cat([run.obs[key] for run in runs]) for key in runs[0].obs}
    actions = torch.cat([run.actions for run in runs])
    return Experience(obs, actions, sum(run.episodes for run in runs), sum(run.seen for run in runs))


def _check(
    path: Any,
    payload: Mapping[str, Any],
    state: Mapping[str, Any],
    normalizer: Normalizer,
    chunk_shape: tuple[int, int],
) -> None:
    theirs, expected = tuple(state["arrays"]["actions"].shape[2:]), tuple(chunk_shape)
    if theirs != expected:
        raise UsageError(
            f"train.experience_path: expected chunks of (horizon_steps, action_dim) = {expected} in {path}, found {theirs}"
        )
    if normalizer != Normalizer.from_dict(payload["normalizer"]):
        raise UsageError(
            f"train.experience_path: {path} is of a policy with another normaliser, so its numbers mean something else. Give a run that began "
            "from the same base policy"
        )


def _episodes(state: Mapping[str, Any], scale: float) -> Iterator[tuple[int, list[int], float]]:
    """Environment, rows and return of every episode that came to an end; not those whose beginning was overwritten."""
    arrays, place, size = state["arrays"], state["place"], state["rows"]
    usable, terminated = arrays["usable"].numpy(), arrays["terminated"].numpy()
    rewards = arrays["rewards"].numpy() / scale
    for env, (written, head) in enumerate(zip(place["written"].tolist(), place["head"].tolist(), strict=True)):
        whole = written < size
        order = range(written) if whole else [(head + k) % size for k in range(1, size)]
        rows: list[int] = []
        for row in order:
            if usable[env, row]:
                rows.append(row)
            if not usable[env, row] or terminated[env, row]:
                if rows and whole:
                    yield env, rows, float(rewards[env, rows].sum())
                rows, whole = [], True


@torch.no_grad()
def _executed(policy: nn.Module, obs: Obs, kept: Tensor) -> Tensor:
    """The chunks that were executed, of what the buffer kept of them: with DSRL the starts."""
    executed = getattr(policy, "executed", None)
    if executed is None:
        return kept
    parts = [slice(k, k + ROWS) for k in range(0, len(kept), ROWS)]
    return torch.cat([executed({key: value[part] for key, value in obs.items()}, kept[part]) for part in parts])
