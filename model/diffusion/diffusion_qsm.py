"""Q-score matching (arXiv:2312.11752): the denoiser's score is matched with the critic's gradient in the action."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from model.diffusion.actor_critic import ActorCriticDiffusion, frozen_copy


class QSMDiffusion(ActorCriticDiffusion):
    """Keys ``network.*``, ``actor.*`` (the same tensors), ``critic_q.*`` and ``target_q.*``; arguments as in ``ActorCriticDiffusion``.

    Raises:
        ValueError: the network does not predict the noise, which is what the score is.
    """

    def _judge(self, critic: nn.Module) -> None:
        if not self.predict_epsilon:
            raise ValueError("predict_epsilon: QSM matches the score, which is the noise; set it to True")
        self.critic_q, self.target_q = critic, frozen_copy(critic)

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What the critic's optimiser trains."""
        return self.critic_q.parameters()
