"""A checkpoint on a robot: the policy it holds, and all a deployment has to know of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from agent import checkpoint
from agent.agent import read, resolve_device
from agent.errors import CheckpointError
from agent.eval.evaluate import noise_stream
from agent.finetune.rollout import to_torch
from env.engine.renderers import GL
from env.franka.observation import ObservationSpec
from env.normalizer import Normalizer

_IMAGES = "env.wrappers.robomimic_image"


class LocalPolicy:
    """A checkpoint's policy in this process, as ``env.franka.types.Policy``.

    Args:
        path: a checkpoint (``agent.checkpoint.load_policy``).
        config: of a published checkpoint, which carries none.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<i>``.
        ddim_steps: denoise in so many DDIM steps instead of as the checkpoint says.
        act_steps: actions executed of each chunk; None: as in training.

    Attributes: ``spec`` (what it sees), ``normalizer``, ``act_steps``, ``horizon_steps``, ``action_dim``, ``max_episode_steps``.

    Raises:
        CheckpointError: as ``load_policy``; no normaliser; a task or an observation that is not robomimic's; ``act_steps`` or
            ``ddim_steps`` that it cannot do.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
        device: str = "auto",
        ddim_steps: int | None = None,
        act_steps: int | None = None,
        normalizer: Normalizer | None = None,
    ) -> None:
        overrides = None if ddim_steps is None else {"use_ddim": True, "ddim_steps": ddim_steps}
        self._policy = checkpoint.load_policy(path, config, resolve_device(device), overrides=overrides)
        self._device = next(self._policy.parameters()).device
        config = self._policy.config
        self.normalizer = self._policy.normalizer or normalizer
        if self.normalizer is None:
            raise CheckpointError(
                f"{path}: it holds no normaliser (published files do not): give normalization_path=<its npz>"
            )
        self.spec = spec_of(config, self._policy.images, str(path))
        self.horizon_steps, self.action_dim = int(read(config, "horizon_steps")), int(read(config, "action_dim"))
        self.act_steps = int(read(config, "act_steps") if act_steps is None else act_steps)
        if not 1 <= self.act_steps <= self.horizon_steps:
            raise CheckpointError(
                f"act_steps: expected 1 to horizon_steps ({self.horizon_steps}), found {self.act_steps}"
            )
        self.max_episode_steps = int(read(config, "env.max_episode_steps", read(config, "task.max_episode_steps", 300)))
        self.reset(0)

    def reset(self, seed: int | None = None) -> None:
        """A new episode. ``seed`` fixes the sampling noise: the same as in an evaluation of that seed; None: noise as it comes."""
        self._noise = np.random.default_rng() if seed is None else noise_stream(seed)

    def __call__(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """See ``Policy``: (Ta, Da)."""
        noise = torch.from_numpy(self._noise.standard_normal(self._policy.noise_shape, np.float32)[None])
        tensors = to_torch({key: value[None] for key, value in observation.items()}, self._device)
        with torch.no_grad():
            sample = self._policy.sample(tensors, deterministic=True, noise=noise.to(self._device))
        return sample.trajectories[0].cpu().numpy()


def spec_of(config: Mapping[str, Any], images: Mapping[str, Any] | None, where: str) -> ObservationSpec:
    """What the policy of a checkpoint's ``config`` sees.

    Args:
        images: what ``agent.images.of_checkpoint`` says.

    Raises:
        CheckpointError: it is not one of robomimic's tasks.
    """
    task = str(read(config, "env_name", read(config, "env.name", ""))).removesuffix("-img")
    if read(config, "benchmark", read(config, "env.env_type", "robomimic")) != "robomimic":
        raise CheckpointError(f"{where}: a policy for {task!r}; the arm knows robomimic's tasks")
    keys = read(config, f"{_IMAGES}.low_dim_keys", None) or read(config, "task.low_dim_keys", None)
    keys = keys or read(config, "env.wrappers.robomimic_lowdim.low_dim_keys", None)
    if not keys:
        raise CheckpointError(f"{where}: its configuration names no low_dim_keys: what the policy observes is unknown")
    cameras = read(config, f"{_IMAGES}.image_keys", read(config, "task.image_keys", ()))
    shape = read(config, "shape_meta.obs.rgb.shape", (3, 96, 96))
    return ObservationSpec(
        task=task,
        low_dim_keys=tuple(keys),
        cameras=tuple(str(key).removesuffix("_image") for key in cameras),
        image_size=(int(shape[1]), int(shape[2])),
        state_steps=int(read(config, "cond_steps", 1)),
        image_steps=int(read(config, "img_cond_steps", 1)),
        render_quality=(images or {}).get("render_quality"),
        renderer=(images or {}).get("renderer", GL if images else None),
    )
