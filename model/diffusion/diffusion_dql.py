"""Diffusion Q-learning (arXiv:2208.06193): a tuned network and a double critic whose gradient goes through the whole chain."""

from __future__ import annotations

from model.diffusion.actor_critic import ActorCriticDiffusion


class DQLDiffusion(ActorCriticDiffusion):
    """Keys ``network.*``, ``actor.*`` (the same tensors), ``critic.*`` and ``critic_target.*``; arguments as in
    ``ActorCriticDiffusion``. ``denoise`` is differentiable."""
