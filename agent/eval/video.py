"""A video of a policy at work, on recorded seeds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from agent.eval.evaluate import evaluate
from env.protocol import VectorEnv
from env.video import render_video, renderer_available

log = logging.getLogger(__name__)

CONTROL_HZ = 20.0
VISUAL_GEOMS = (1,)  # robosuite: group 0 collides, group 1 is seen
CAMERA, SIZE = "agentview", (320, 320)


def record_video(policy: nn.Module, venv: VectorEnv, seeds: Sequence[int], path: Path) -> str | None:
    """Run the episodes of ``seeds`` one after another in one video (MP4 and GIF).

    Returns:
        the GIF's path; None where nothing can render here (said once in the log, with what to install) or the environment keeps no motion.
    """
    if not hasattr(venv, "record"):
        log.warning("no video: %s does not record its motion", type(venv).__name__)
        return None
    available, advice = renderer_available()
    if not available:
        log.warning("no video: %s", advice)
        return None
    slots = range(min(len(seeds), venv.n_envs))
    venv.record(list(slots))
    evaluate(policy, venv, seeds=seeds)
    episodes = sorted(venv.recorded(), key=lambda episode: list(seeds).index(episode.seed))
    venv.record([])
    # One model for all: what differs between episodes (the size of a cube by a millimetre) is not worth a second video.
    model = venv.render_model(episodes[0].start)
    qpos = np.concatenate([e.qpos for e in episodes])
    files = render_video(model, qpos, path, CAMERA, *SIZE, fps=CONTROL_HZ, geom_groups=VISUAL_GEOMS)
    return str(files[-1]) if files else None
