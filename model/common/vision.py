"""Eyes for a network: camera images to one feature vector per observation, however often the network then runs on it.

What denoises asks the same question of the same images once per step; what encodes them costs a hundred times more
than what denoises. So the encoder stands apart: ``encode(cond)`` replaces ``"rgb"`` by ``"features"`` and is called
once, the rest works on features.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from model.common.modules import RandomShiftsAug, SpatialEmb, shift_images
from model.common.vit import VitEncoder
from model.types import Obs, ShapeError

CHANNELS = 3  # of one camera at one time


class Vision(nn.Module):
    """Base of the networks that see; their constructors call ``_see``.

    Parameters as published: ``backbone.*``, one for all cameras, then ``compress.*`` for one camera, ``compress1.*`` and
    ``compress2.*`` (which starts as a copy) for two.

    Args (of the constructors):
        backbone: images to tokens, shared by all cameras.
        img_cond_steps: the last so many images are looked at.
        spatial_emb: width of each camera's spatial embedding; 0: one linear layer on all tokens instead.
        visual_feature_dim: its width.
        dropout: of the visual features.
        num_img: cameras.
        augment: shift the images at random in the supervised loss, while training (never anywhere else).
    """

    def _see(
        self,
        backbone: VitEncoder,
        cond_dim: int,
        img_cond_steps: int,
        num_img: int,
        spatial_emb: int,
        visual_feature_dim: int,
        dropout: float,
        augment: bool,
    ) -> int:
        """Make the encoder; returns the width ``F`` of its features."""
        if num_img not in (1, 2):
            raise ValueError(f"num_img: expected one or two cameras, found {num_img}")
        expected = CHANNELS * img_cond_steps
        if backbone.num_channel != expected:
            raise ValueError(
                f"backbone.num_channel: expected 3 x img_cond_steps = {expected}, found {backbone.num_channel}"
            )
        self.backbone, self.num_img, self.img_cond_steps = backbone, num_img, img_cond_steps
        self.spatial_emb, self.augment = spatial_emb, augment
        self.aug = RandomShiftsAug(pad=4)
        if spatial_emb == 0:
            self.compress = nn.Sequential(
                nn.Linear(num_img * backbone.repr_dim, visual_feature_dim),
                nn.LayerNorm(visual_feature_dim),
                nn.Dropout(dropout),
                nn.ReLU(),
            )
            return visual_feature_dim
        first = SpatialEmb(backbone.num_patch, backbone.patch_repr_dim, cond_dim, spatial_emb, dropout)
        if num_img == 1:
            self.compress = first
        else:
            self.compress1, self.compress2 = first, copy.deepcopy(first)
        return num_img * spatial_emb

    def encode(self, cond: Obs) -> Obs:
        """``cond`` with ``"features" (B, F)`` in place of ``"rgb" (B, To, C, H, W)``, differentiable; as it is where that
        was done before.

        Raises:
            ShapeError: no images, or of another number of cameras or time steps than configured.
        """
        if "rgb" not in cond:
            if "features" in cond:
                return cond
            raise ShapeError(
                f"this network looks at images, but the observation has no 'rgb' (it has {', '.join(cond)}). Set "
                "train_dataset.use_img: True in pre-training; in fine-tuning and evaluation take an environment with images "
                "(a configuration whose name ends in _img)"
            )
        images, state = self._cameras(cond["rgb"]), cond["state"].flatten(1)  # (B, cameras, T * 3, H, W)
        tokens = self.backbone(images.flatten(0, 1)).unflatten(0, images.shape[:2])  # (B, cameras, N, D)
        if self.spatial_emb == 0:
            features = self.compress(tokens.flatten(1))
        elif self.num_img == 1:
            features = self.compress(tokens[:, 0], state)
        else:
            features = torch.cat([self.compress1(tokens[:, 0], state), self.compress2(tokens[:, 1], state)], dim=-1)
        return {**{key: value for key, value in cond.items() if key != "rgb"}, "features": features}

    def augmented(self, cond: Obs, generator: torch.Generator | None = None) -> Obs:
        """``cond`` with its images shifted at random, every row by one shift for all its cameras and time steps."""
        return {**cond, "rgb": self.aug(cond["rgb"], generator)} if "rgb" in cond else cond

    def _cameras(self, rgb: Tensor) -> Tensor:
        """``(B, To, cameras * 3, H, W)`` to ``(B, cameras, img_cond_steps * 3, H, W)``: the last images, by camera."""
        steps, channels = self.img_cond_steps, self.num_img * CHANNELS
        if rgb.ndim != 5 or rgb.shape[1] < steps or rgb.shape[2] != channels:
            raise ShapeError(
                f"rgb: expected (B, at least img_cond_steps = {steps}, 3 x num_img = {channels}, H, W), "
                f"found {tuple(rgb.shape)}"
            )
        recent = rgb[:, -steps:].unflatten(2, (self.num_img, CHANNELS))
        return recent.transpose(1, 2).flatten(2, 3)


def encode_obs(network: nn.Module, obs: Obs) -> Obs:
    """``network.encode(obs)`` where it has one, ``obs`` itself where it has none."""
    encode = getattr(network, "encode", None)
    return obs if encode is None else encode(obs)


def shift_obs(obs: Obs, shifts: Tensor | None) -> Obs:
    """``obs`` with its images moved by ``shifts (B, 2)`` whole pixels; as it is for None or without images."""
    return obs if shifts is None or "rgb" not in obs else {**obs, "rgb": shift_images(obs["rgb"], shifts)}
