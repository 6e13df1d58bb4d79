"""Published keys: which had no effect, which mean something else here, which this version refuses.

Keys that are not named here keep their meaning where this project knows them. Any other key was never read by the original, and
is reported as such.
"""

from __future__ import annotations

from typing import Any, NamedTuple

NAMES = {  # said which file to download, or were put together into paths: their job is done once the file is resolved
    "pretrain": ("env", "mode", "task", "randomness", "num_modes"),
    "finetune": ("mode", "task", "randomness", "num_modes", "use_ddim", "ddim_steps"),
    "eval": ("mode", "task", "randomness", "num_modes", "use_ddim", "ddim_steps", "target_episodes"),
}
POLICY_ONLY = ("device", "network_path")  # arguments of every published policy; the agent moves it and loads it

IDLE_ARGUMENTS = {  # accepted by the original's class, and without effect: class -> argument -> why
    "CriticObsAct": {"residual_style": "a misspelt argument: every published critic of actions is a plain network"},
    "EtaFixed": dict.fromkeys(
        ("input_dim", "mlp_dims", "action_dim"), "one number knows neither observation nor network"
    ),
    "PPOExactDiffusion": {
        **dict.fromkeys(("rtol", "atol"), "their names are sde_rtol and sde_atol"),
        "min_logprob_denoising_std": "a likelihood of whole chunks has no such steps",
    },
}
OTHERWISE_ARGUMENTS = {  # had an effect, and is done in another way here: class -> argument -> why
    "PPOExactDiffusion": {
        "sde": "the noise schedule is the SDE",
        "sde_min_beta": "the variances are the schedule's own",
        "sde_eps": "the flow begins at 0",
    },
}
IDLE_VIT = {  # of VitEncoder.cfg
    "patch_size": "the first convolution is 8 wide, whatever it says",
    "stride": "never read",
}
IDLE_TRAIN = {  # agent -> keys of train that it never reads
    "TrainRLPDAgent": ("entropy_temperature", "n_critic_warmup_itr", "replay_ratio"),
    "TrainRWRDiffusionAgent": ("n_critic_warmup_itr",),
}

OTHERWISE = {  # had an effect, and is done in another way here (patterns)
    "env.use_image_obs": "env.wrappers.robomimic_image says it",
    "env.save_full_observations": "the engine records motion by itself",
    "env.wrappers.multi_step.pass_full_observations": "the engine records motion by itself",
    "env.wrappers.robomimic_*.init_state": "episodes begin from seeds",
    "env.wrappers.robomimic_*.render_*": "env.save_video chooses size and camera",
    "train.plotter": "script/avoid_figure.py draws the paths",
    "train.force_train": "evaluation has an environment of its own, so every iteration trains",
    "train.save_trajs": "metrics.jsonl and the checkpoints are what is kept",
    "train.eta_lr_scheduler": "train.eta_lr is constant",
    "train.eta_update_interval": "eta learns with every minibatch",
}
LEARN_AFTER_STEPS = ("SAC", "RLPD", "IBRL")  # algorithms of which an iteration was one step
BUFFER_OF_ROWS = ("AWR", "IDQL", "QSM")  # algorithms whose train.buffer_size counted steps of all environments at once
OTHERWISE_FINETUNE = {"train.log_freq": "every iteration is logged"}


class Refused(NamedTuple):
    """A key that must have the value that means "off"."""

    off: Any
    what: str


REFUSED = {
    "train.ent_coef": Refused(0, "an entropy bonus"),
    "model.ddim_discretize": Refused("uniform", "another spacing of the DDIM steps"),
    "model.use_dispersive_loss_rl": Refused(
        False, "the dispersive loss in fine-tuning under that name (here: train.dispersive_loss_weight)"
    ),
    "model.dispersive_loss_weight_rl": Refused(
        0.1, "the dispersive loss in fine-tuning under that name (here: train.dispersive_loss_weight)"
    ),
    "model.sde_probability_flow": Refused(True, "a likelihood along anything but the probability flow"),
    "env.wrappers.multi_step.reward_agg_method": Refused("sum", "rewards that are not added up over a chunk"),
    "env.wrappers.robomimic_lowdim.clamp_obs": Refused(False, "clipped observations"),
    "env.wrappers.robomimic_image.clamp_obs": Refused(False, "clipped observations"),
}
STRANGERS = {("wandb.entity", "zougw2022-sun-yat-sen-university")}  # an author's own account, left in a published file
