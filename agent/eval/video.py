"""A video of a policy at work, on recorded seeds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from agent.eval.evaluate import evaluate
from env.protocol import StepResult, VectorEnv
from env.video_grid import Episode, render_grid

log = logging.getLogger(__name__)

EPISODES = 4  # of a video, where nobody says how many
CONTROL_HZ = 20.0  # as the following: where a task says nothing else
VISUAL_GEOMS = (1,)  # robosuite: group 0 collides, group 1 is seen
CAMERA = "agentview"


def record_video(policy: nn.Module, venv: VectorEnv, seeds: Sequence[int], path: Path) -> str | None:
    """Run the episodes of ``seeds`` and show them side by side in one video (MP4 and GIF; ``env/video_grid.py``).

    Returns:
        the GIF's path; None where it cannot be drawn or written, or the environment keeps no motion (the log says so).
    """
    if not hasattr(venv, "record"):
        log.warning("no video: %s does not record its motion", type(venv).__name__)
        return None
    watched = _Watched(venv)
    venv.record(list(range(min(len(seeds), venv.n_envs))))
    evaluate(policy, watched, seeds=seeds)
    recorded = sorted(venv.recorded(), key=lambda episode: list(seeds).index(episode.seed))
    venv.record([])
    # One model for all: what differs between episodes (the size of a cube by a millimetre) is not worth a second video.
    model = venv.render_model(recorded[0].start)
    task = getattr(venv, "family", None)
    scores = watched.returns if not getattr(task, "solvable", True) else {}
    episodes = [Episode(e.seed, e.qpos, watched.solved_at.get(e.seed), scores.get(e.seed)) for e in recorded]
    camera, geoms = getattr(task, "camera", CAMERA), getattr(task, "visual_geoms", VISUAL_GEOMS)
    files = render_grid(model, episodes, path, camera, getattr(task, "control_hz", CONTROL_HZ), geoms)
    return str(files[-1]) if files else None


class _Watched:
    """A ``VectorEnv`` that notes after how many control steps each episode was first seen solved (``solved_at``, by seed; to a chunk),
    and its return so far (``returns``).
    """

    def __init__(self, venv: VectorEnv) -> None:
        self._venv, self._steps = venv, {}
        self.solved_at: dict[int, int] = {}
        self.returns: dict[int, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._venv, name)

    def step(self, chunk: np.ndarray) -> StepResult:
        """See ``VectorEnv.step``."""
        result = self._venv.step(chunk)
        for i in np.flatnonzero(result.info["active"]):
            seed = int(result.info["seed"][i])
            self._steps[seed] = self._steps.get(seed, 0) + int(result.info["steps"][i])
            self.returns[seed] = self.returns.get(seed, 0.0) + float(result.reward[i])
            if result.success[i]:
                self.solved_at.setdefault(seed, self._steps[seed])
        return result
