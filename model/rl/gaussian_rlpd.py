"""RL with prior data (arXiv:2302.02948): a squashed Gaussian policy and an ensemble of critics."""

from __future__ import annotations

from torch import Tensor, nn

from model.rl.critics import EnsembleCritics
from model.rl.squashed import SquashedGaussian
from model.types import Obs


class RLPD_Gaussian(EnsembleCritics, SquashedGaussian):  # noqa: N801 (published name)
    """Keys ``network.*``, ``critic_networks.<i>.*`` and ``target_networks.<i>.*``.

    Args:
        critic: a critic of an observation and a chunk; the ensemble has ``n_critics`` like it.
        backup_entropy: targets contain the next chunk's entropy.

    The others are explained in ``SquashedGaussian``.
    """

    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module,
        horizon_steps: int,
        n_critics: int = 10,
        backup_entropy: bool = False,
        tanh_output: bool = True,
        randn_clip_value: float | None = 10.0,
    ) -> None:
        SquashedGaussian.__init__(self, actor, horizon_steps, tanh_output, randn_clip_value)
        self.backup_entropy = backup_entropy
        self._criticise(critic, n_critics)

    def actor_value(self, obs: Obs, actions: Tensor) -> Tensor:
        """What the actor maximises, ``(B,)``: the mean of all critics' values."""
        return self.critic_networks(obs, actions).mean(dim=0)
