"""The mixture policy that PPO trains, from a pre-trained one or from nothing."""

from __future__ import annotations

from model.common.gmm import GMMModel
from model.rl.gaussian_ppo import PPO_Gaussian


class PPO_GMM(PPO_Gaussian, GMMModel):  # noqa: N801 (published name)
    """Tuned network and critic, as in ``PPO_Gaussian``; actions and log-probabilities are those of ``GMMModel``.

    As published, the base is not kept: the ``state_dict`` is ``network.*`` and ``actor_ft.*`` (the same) and ``critic.*``.

    Args:
        actor: a fresh network (``GMM_MLP``, ``GMM_Transformer``).
    """

    keeps_base = False
