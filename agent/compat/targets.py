"""Published classes: what each is here.

An algorithm that arrives gets its agent's path in ``AGENTS``; its policy and networks need no entry, they keep their published
names and are found where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

PRETRAIN = "agent.pretrain.pretrain.PretrainAgent"
FINETUNE = "agent.finetune.finetune.FinetuneAgent"
EVAL = "agent.eval.eval_agent.EvalAgent"


class Agent(NamedTuple):
    """A published agent: its stage, our class, and of fine-tuning the module in ``agent/finetune`` and class of the algorithm; the file of
    ``cfg/base/method`` of that module's name has what the original leaves to its code."""

    stage: str
    ours: str
    learner: str = "ppo.PPO"


AGENTS: dict[str, Agent] = {
    "agent.pretrain.train_diffusion_agent.TrainDiffusionAgent": Agent("pretrain", PRETRAIN),
    "agent.pretrain.train_gaussian_agent.TrainGaussianAgent": Agent("pretrain", PRETRAIN),
    **{
        f"agent.finetune.train_ppo_{module}_agent.TrainPPO{name}Agent": Agent("finetune", FINETUNE)
        for module, name in (
            ("diffusion", "Diffusion"),
            ("diffusion_img", "ImgDiffusion"),
            ("gaussian", "Gaussian"),
            ("gaussian_img", "ImgGaussian"),
            ("exact_diffusion", "ExactDiffusion"),
        )
    },
    **{
        f"agent.finetune.train_{name.lower()}_diffusion_agent.Train{name}DiffusionAgent": Agent(
            "finetune", FINETUNE, f"{name.lower()}.{name}"
        )
        for name in ("RWR", "AWR", "DIPO", "DQL", "IDQL", "QSM")
    },
    **{
        f"agent.finetune.train_{name.lower()}_agent.Train{name}Agent": Agent(
            "finetune", FINETUNE, f"{name.lower()}.{name}"
        )
        for name in ("RLPD", "CalQL", "IBRL", "SAC")
    },
    **{
        f"agent.eval.eval_{module}_agent.Eval{name}Agent": Agent("eval", EVAL)
        for module, name in (
            ("diffusion", "Diffusion"),
            ("diffusion_img", "ImgDiffusion"),
            ("gaussian", "Gaussian"),
            ("gaussian_img", "ImgGaussian"),
        )
    },
}

DIFFUSION = "model.diffusion.diffusion.DiffusionModel"
TRANSITIONS = "agent.dataset.transitions.StitchedSequenceQLearningDataset"
MOVED = {  # classes with another path here; all others keep theirs
    "model.diffusion.diffusion_eval.DiffusionEval": DIFFUSION,
    "model.diffusion.diffusion_eval_ft.DiffusionEval": DIFFUSION,
}
GHOSTS = {  # modules that the published code names and does not have
    "model.diffusion.diffusion_eval_ft.DiffusionEval",
    "model.diffusion.unet.VisionUnet1D",
}
# Classes that took **kwargs: an argument they do not know was ignored without a word.
SWALLOWING = {
    *(f"model.common.critic.{name}" for name in ("CriticObs", "CriticObsAct", "ViTCritic")),
    *(f"model.diffusion.eta.{name}" for name in ("EtaFixed", "EtaAction", "EtaState", "EtaStateAction")),
    *("model.common.gmm.GMMModel", "model.rl.gmm_ppo.PPO_GMM", DIFFUSION),
    *MOVED,
    *(
        f"model.diffusion.diffusion_{module}.{name}Diffusion"
        for module, name in (
            ("ppo", "PPO"),
            ("ppo_exact", "PPOExact"),
            ("rwr", "RWR"),
            ("awr", "AWR"),
            ("dipo", "DIPO"),
        )
    ),
    *(f"model.diffusion.diffusion_{name.lower()}.{name}Diffusion" for name in ("DQL", "IDQL", "QSM")),
}
PARTS = ("network", "actor", "critic", "critic_q", "critic_v", "eta")  # arguments that are classes of their own


def is_published(cfg: object) -> bool:
    """Whether a configuration is one of DPPO's or D2PPO's: its ``_target_`` is one of their agents."""
    if not isinstance(cfg, Mapping) or (isinstance(cfg, DictConfig) and OmegaConf.is_interpolation(cfg, "_target_")):
        return False
    target = cfg.get("_target_")
    return isinstance(target, str) and target in AGENTS
