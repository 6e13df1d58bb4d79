"""Imitation-bootstrapped RL (arXiv:2311.02198): two policies propose, an ensemble of critics decides."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from model.common.gaussian import GaussianModel
from model.common.modules import load_pretrained
from model.diffusion.actor_critic import frozen_copy
from model.rl.critics import EnsembleCritics
from model.types import Obs, Sample


class IBRL_Gaussian(EnsembleCritics, GaussianModel):  # noqa: N801 (published name)
    """Keys ``network.*``, ``target_actor.*``, ``bc_policy.*``, ``critic_networks.<i>.*`` and ``target_networks.<i>.*``.

    Args:
        actor: a Gaussian network of fixed deviation. ``load_base`` fills it and ``bc_policy``, which stays as it is.
        critic: a critic of an observation and a chunk; the ensemble has ``n_critics`` like it.
        soft_action_sample: exploring, draw between the two proposals with chances ``softmax(beta Q)``; else take the better one.
        soft_action_sample_beta: ``beta``.
        tanh_output: squash actions.

    The others are explained in ``GaussianModel``.
    """

    n_chain_steps = 0  # K: off-policy
    n_draws = 2  # the actor's, and a block of which one number draws lots

    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module,
        horizon_steps: int,
        n_critics: int = 5,
        soft_action_sample: bool = False,
        soft_action_sample_beta: float = 10.0,
        tanh_output: bool = False,
        randn_clip_value: float | None = 10.0,
    ) -> None:
        GaussianModel.__init__(self, actor, horizon_steps, randn_clip_value)
        self.soft_action_sample, self.soft_action_sample_beta = soft_action_sample, soft_action_sample_beta
        self.tanh_output = tanh_output
        self.target_actor, self.bc_policy = frozen_copy(actor), copy.deepcopy(actor).requires_grad_(False)
        self._criticise(critic, n_critics)
        self.train()

    def train(self, mode: bool = True) -> IBRL_Gaussian:
        """Like ``nn.Module.train``, but what is not trained stays in evaluation mode (no dropout)."""
        super().train(mode)
        self.target_actor.eval()
        self.bc_policy.eval()
        return self

    def load_base(self, state_dict: Mapping[str, Tensor]) -> None:
        """All three policies start from a pre-trained one, ``network.*``.

        Raises:
            StateDictError: a key is missing, unexpected or of another shape.
        """
        load_pretrained(self.network, state_dict)
        for policy in (self.bc_policy, self.target_actor):
            policy.load_state_dict(self.network.state_dict())

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What the actor's optimiser trains."""
        return self.network.parameters()

    def propose(self, network: nn.Module, obs: Obs, z: Tensor | None = None) -> Tensor:
        """The mean action of ``network``, or with standard normal ``z (B, Ta, Da)`` a draw, ``(B, Ta, Da)``."""
        mean, std = network(obs)
        x = mean if z is None else mean + std * self.bounded(z)
        return x.tanh() if self.tanh_output else x

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = True,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Sample:
        """The cloned policy's action or the tuned one's, whichever the critics prefer.

        Args:
            deterministic: both means, and the better one; else the tuned one explores, and see ``soft_action_sample``.
            noise: ``(B, *noise_shape)`` standard normal numbers; None draws them from ``generator``.
        """
        cloned = self.propose(self.bc_policy, obs)
        noise = self.noise(cloned, noise, generator)
        both = torch.stack([cloned, self.propose(self.network, obs, None if deterministic else noise[:, 0])])
        q = torch.stack([self.critic_networks(obs, actions).amin(dim=0) for actions in both])
        if self.soft_action_sample and not deterministic:
            chance = (self.soft_action_sample_beta * (q[1] - q[0])).sigmoid()  # softmax of two
            tuned = torch.special.ndtr(noise[:, 1, 0, 0]) < chance
        else:
            tuned = q[1] > q[0]
        return Sample(torch.where(tuned[:, None, None], both[1], both[0]))
