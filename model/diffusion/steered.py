"""A frozen diffusion policy whose start is chosen: what steering on-policy (``SteeredDiffusion``) and off-policy (``DSRLDiffusion``) share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.common.modules import load_pretrained, passes_on
from model.common.vision import encode_obs
from model.diffusion.diffusion import DiffusionModel
from model.diffusion.process import DiffusionProcess, tabulate_time
from model.types import Obs


class Steered(DiffusionProcess):
    """The frozen denoiser, ``network.*``, sampled with DDIM without noise: an action chunk is a function of the observation and the start.

    Who steers and who criticises look through the frozen denoiser's eyes: of images they see ``[features, state]``, which no
    update changes (``frozen_eyes``).

    Args:
        actor: a fresh denoiser; ``load_base`` fills it.
        start_steps: ``Ts``, rows of the start that differ. Less than ``Ta``, a divisor of it: each row stands for ``Ta / Ts`` steps of the chunk.
        use_ddim: true; there for evaluations that set it for every policy.

    The others are explained in ``DiffusionProcess``.

    Raises:
        ValueError: naming the key that does not fit.
    """

    frozen_eyes = True

    @passes_on(DiffusionProcess.__init__, "randn_clip_value", "start_std")
    def __init__(
        self, actor: nn.Module, start_steps: int, ddim_steps: int = 5, use_ddim: bool = True, **process: Any
    ) -> None:
        if not use_ddim:
            raise ValueError(
                "use_ddim: a chunk is to follow from its start alone, so a steered policy is sampled with DDIM; set it to true"
            )
        super().__init__(use_ddim=True, ddim_steps=ddim_steps, **process)
        if self.horizon_steps % start_steps:
            raise ValueError(
                f"steer.horizon_steps: expected a divisor of horizon_steps = {self.horizon_steps}, found {start_steps}"
            )
        self.repeat = self.horizon_steps // start_steps
        tabulate_time(actor, self.denoising_steps)
        self.network = actor.requires_grad_(False).eval()

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """``(1, Ta, Da)``: only the start is random."""
        return (1, self.horizon_steps, self.action_dim)

    def train(self, mode: bool = True) -> Steered:
        """Like ``nn.Module.train``, but the frozen denoiser stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def load_base(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load pre-trained weights (``network.*``) into the frozen denoiser.

        Raises:
            StateDictError: a key is missing, unexpected or of another shape.
        """
        load_pretrained(self.network, state_dict)

    def untuned(self) -> DiffusionModel:
        """The frozen denoiser as it was pre-trained, which starts from standard normal noise and shares its weights: what a
        comparison before and after starts with."""
        settings = (
            self.predict_epsilon,
            self.denoised_clip_value,
            None,
            self.final_action_clip_value,
            self.eps_clip_value,
        )
        sizes = (self.horizon_steps, self.obs_dim, self.action_dim, self.denoising_steps)
        base = DiffusionModel(self.network, *sizes, *settings, use_ddim=True, ddim_steps=self.n_steps)
        return base.to(next(self.network.parameters()).device).eval()

    @torch.no_grad()
    def encode(self, obs: Obs) -> Obs:
        """``obs`` as the frozen denoiser sees it: images replaced by features; state alone stays as it is."""
        return encode_obs(self.network, obs)

    def denoise(self, obs: Obs, start: Tensor) -> Tensor:
        """The chunk ``(B, Ta, Da)`` that the start ``(B, Ts, Da)`` leads to; ``obs`` encoded."""
        x = self.whole(start)
        for i in range(self.n_steps):
            x = self.finish(self.step_mean_std(self.network, x, i, obs)[0], i)
        return x

    def whole(self, start: Tensor) -> Tensor:
        """Of a start ``(B, Ts, Da)`` all rows, ``(B, Ta, Da)``."""
        return start.repeat_interleave(self.repeat, dim=1)

    def once(self, start: Tensor) -> Tensor:
        """Of a start ``(B, Ta, Da)`` the rows that differ, ``(B, Ts, Da)``."""
        return start[:, :: self.repeat]

    def seen(self, obs: Obs) -> Obs:
        """What who steers and who criticises are given: the encoded observation as one vector under ``"state"``."""
        obs = self.encode(obs)
        if "features" not in obs:
            return obs
        return {"state": torch.cat([obs["features"], obs["state"].flatten(1)], dim=-1)[:, None]}
