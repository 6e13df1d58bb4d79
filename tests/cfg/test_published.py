"""Every leaf of the diffusion MLP policies, and every one of Furniture-Bench, against the published configuration of the same name, key by key.

176 of the 463 published files (``tests/published_configs.py``): 51 of robomimic, 25 of locomotion, 15 of D3IL, 85 of Furniture-Bench. Whatever differs here
stands in ``DIFFERENCES`` with its reason, and a difference that no longer exists must be taken out.
"""

from __future__ import annotations

import functools
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent.agent import build
from agent.config import register_resolvers
from tests.published_configs import ABSENT, published

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("lift", "can", "square", "transport")
BODIES = ("hopper", "walker2d", "halfcheetah")
AVOID = ("avoid_m1", "avoid_m2", "avoid_m3")
FURNITURE = tuple(
    f"{name}_{randomness}" for name in ("one_leg", "lamp", "round_table") for randomness in ("low", "med")
)
POLICIES = ("diffusion_mlp", "diffusion_unet", "gaussian_mlp")  # of Furniture-Bench
register_resolvers()


class Difference(NamedTuple):
    """``rows`` (``repository/stage/task/config``, a pattern) differ in ``keys``: there we say ``ours``."""

    rows: str
    keys: str
    ours: object
    why: str


DIFFERENCES = [
    # ------------------------------------------------------------------------------------ one home, other names
    Difference("*/pretrain/*", "_target_", "agent.pretrain.pretrain.PretrainAgent", "one supervised loop"),
    Difference("*/finetune/*", "_target_", "agent.finetune.finetune.FinetuneAgent", "one fine-tuning loop"),
    Difference("*/eval/*", "_target_", "agent.eval.eval_agent.EvalAgent", "one evaluation"),
    Difference("*", "device", "auto", "no machine is assumed; D2PPO's files ask for cuda:1"),
    Difference("*/pretrain/*", "train_dataset.device", "auto", "as device"),
    Difference("*", "model.device", ABSENT, "a policy is moved, not built on a device"),
    Difference("*", "base_policy_path", None, "the newest that fits; theirs are files of their authors"),
    Difference("*", "model.network_path", ABSENT, "the agent loads base_policy_path"),
    Difference("*/pretrain/*", "env", ABSENT, "named the file to download; env_name says it"),
    Difference("d2ppo/pretrain/*dispersive", "wandb.run", "<now:%H-%M-%S>_{name}", "the name says dispersive"),
    Difference("d2ppo/pretrain/*dispersive_img", "wandb.run", "<now:%H-%M-%S>_{name}", "the name says dispersive"),
    Difference("d2ppo/pretrain/can/pre_diffusion_mlp_dispersive", "wandb.entity", "$WANDB", "an author's account"),
    Difference("*_img", "use_ddim", ABSENT, "model.use_ddim"),
    Difference("*_img", "env.use_image_obs", ABSENT, "env.wrappers.robomimic_image says it"),
    Difference("*/finetune/*_img", "model.eta.*_dim", ABSENT, "EtaFixed knows of no observation"),
    Difference("*/finetune/*_img", "model.eta.mlp_dims", ABSENT, "EtaFixed has no network"),
    # ------------------------------------------------------------- evaluation: the policy comes from its checkpoint
    Difference("*/eval/*_img", "ddim_steps", ABSENT, "model.ddim_steps"),
    Difference("*/eval/*", "n_steps", ABSENT, "n_episodes whole episodes on recorded seeds"),
    Difference("d2ppo/eval/*", "target_episodes", ABSENT, "n_episodes"),
    Difference("d2ppo/eval/*", "*ft_denoising_steps", ABSENT, "the checkpoint says it; theirs says 0"),
    Difference("d2ppo/eval/*", "model._target_", "model.diffusion.diffusion.DiffusionModel", "no such module there"),
    Difference("*/eval/*_img", "model.network.augment", True, "of the pre-training leaf; never applied in evaluation"),
    Difference("d2ppo/eval/*_img", "env.n_envs", 50, "as DPPO; the result does not depend on it"),
    Difference("d2ppo/eval/*_img", "env.save_video", False, "as DPPO: only when asked"),
    Difference("d2ppo/eval/*_img", "render_num", 0, "as DPPO: only when asked"),
    # ------------------------------------------------------------------------------- defects of the published files
    *(
        Difference("d2ppo/pretrain/lift/pre_diffusion_mlp_dispersive", key, 19, "22 does not fit the data")
        for key in ("obs_dim", "model.obs_dim", "model.network.cond_dim")
    ),
    *(
        Difference("dppo/eval/square/eval_diffusion_mlp", key, 4, "chunks of one action do not fit the checkpoint")
        for key in ("horizon_steps", "act_steps", "env.wrappers.multi_step.n_action_steps", "model.*horizon_steps")
    ),
    Difference("dppo/eval/square/eval_diffusion_mlp", "name", "square_eval_diffusion_mlp_ta4_td20", "as above"),
    Difference(
        "dppo/eval/square/eval_diffusion_mlp",
        "logdir",
        "$LOG/robomimic-eval/square_eval_diffusion_mlp_ta4_td20/<now:%Y-%m-%d>_<now:%H-%M-%S>_42",
        "as above",
    ),
    Difference("*/pretrain/transport/*_img", "*shape_meta.obs.rgb.shape", [6, 96, 96], "two cameras; never read"),
    Difference("*/pretrain/transport/*_img", "model.network.backbone.obs_shape", [6, 96, 96], "as above"),
    Difference(
        "*/pretrain/transport/pre_diffusion_mlp_img", "shape_meta.obs.state.shape", [18], "two arms; never read"
    ),
    Difference("*/pretrain/transport/pre_diffusion_mlp_img", "shape_meta.action.shape", [14], "two arms; never read"),
    *(
        Difference("*/eval/halfcheetah-v2/*", key, 4, "chunks of one action do not fit the checkpoint")
        for key in ("horizon_steps", "act_steps", "env.wrappers.multi_step.n_action_steps", "model.*horizon_steps")
    ),
    *(
        Difference(
            "*/eval/halfcheetah-v2/*",
            key,
            f"{before}halfcheetah-medium-v2_eval_diffusion_mlp_ta4_td20{after}",
            "as above",
        )
        for key, before, after in (
            ("name", "", ""),
            ("logdir", "$LOG/gym-eval/", "/<now:%Y-%m-%d>_<now:%H-%M-%S>_42"),
        )
    ),
    Difference(
        "*/avoid_m?/*", "mode", ABSENT, "named the file to download; task.dataset says it (two say what cannot be)"
    ),
    Difference("*/finetune/avoid_m?/*", "env.save_full_observations", ABSENT, "the engine records motion itself"),
    Difference("*/finetune/avoid_m?/*", "*.pass_full_observations", ABSENT, "as above"),
    Difference("*/finetune/avoid_m?/*", "train.plotter.*", ABSENT, "script/avoid_figure.py draws it"),
    Difference("*/finetune/avoid_m?/*", "train.force_train", ABSENT, "evaluation has an environment of its own"),
    Difference("*/finetune/avoid_m?/*", "train.render.num", 0, "was for the plotter"),
    # ----------------------------------------------------------------------------------------------- Furniture-Bench
    *(Difference("*/pretrain/*", key, ABSENT, "task.furniture, task.randomness") for key in ("task", "randomness")),
    *(
        Difference(f"*/{stage}/{task}/*", key, f"$DATA/furniture/{task}/normalization.npz", "theirs is read, too")
        for stage in ("finetune", "eval")
        for task in FURNITURE
        for key in ("normalization_path", "env.specific.normalization_path")
    ),
    *(
        Difference(f"*/finetune/*_{randomness}/ft_ppo_diffusion_*", key, ABSENT, "EtaFixed has no network")
        for randomness in ("low", "med")
        for key in ("use_ddim", "model.eta.*_dim", "model.eta.mlp_dims")
    ),
    *(
        Difference(f"*/eval/*_{randomness}/*", key, ABSENT, "model.use_ddim, model.ddim_steps")
        for randomness in ("low", "med")
        for key in ("use_ddim", "ddim_steps")
    ),
    *(
        Difference(rows, key, ours, "those of one_leg are not theirs")
        for rows in ("d2ppo/eval/lamp_*", "d2ppo/eval/round_table_*")
        for keys, ours in (
            (("obs_dim", "model.obs_dim", "model.network.cond_dim"), 44),
            (("env.max_episode_steps",), 1000),
            (("env.best_reward_threshold_for_success",), 2),
        )
        for key in keys
    ),
    *(
        Difference("d2ppo/pretrain/one_leg_med/*_dispersive", key, 58, "44 does not fit the data")
        for key in ("obs_dim", "model.obs_dim", "model.network.cond_dim")
    ),
    *(
        Difference(f"*/finetune/{task}/*_unet", "model.actor.groupnorm_eps", 1e-5, "as in pre-training")
        for task in ("one_leg_med", "round_table_low")
    ),
    # ------------------------------------------------------------------------- minibatches of (chunk, step) pairs
    Difference("*/finetune/*-v2/ft_ppo_diffusion_mlp", "train.batch_size", 50000, "5000 chunks of 10 steps"),
    Difference("*/finetune/*-v2/ppo_diffusion_mlp", "train.batch_size", 20000, "1000 chunks of 20 steps"),
    # -------------------------------------------------------------------------------- D2PPO against DPPO, confounded
    Difference("d2ppo/pretrain/lift/*_dispersive_img", "train.n_epochs", 2500, "as long as without the loss"),
    Difference("d2ppo/pretrain/square/*_dispersive_img", "train.n_epochs", 4000, "as long as without the loss"),
    Difference("d2ppo/finetune/transport/*_img", "env.n_envs", 50, "as DPPO"),
]


PUBLISHED = {  # repository/stage/task/config
    re.sub(r"/[a-z0-9]+/", "/", row, count=1): flat
    for row, flat in published().items()
    if "/furniture/" in row
    or re.fullmatch(
        r"(pre_diffusion_mlp(_dispersive)?|ft_ppo_diffusion_mlp|eval_diffusion_mlp)(_img)?|ppo_diffusion_mlp",
        row.split("/")[-1],
    )
}


def suite(task: str) -> str:
    return "robomimic" if task in TASKS else "d3il" if task in AVOID else "furniture" if task in FURNITURE else "gym"


@functools.cache
def ours(leaf: str) -> dict[str, object]:
    """The composed leaf, flat; of an evaluation, with the model of the pre-trained policy that it evaluates."""
    benchmark, stage, task, config = leaf.split("/")
    flat = flatten(OmegaConf.to_container(composed(leaf), resolve=True))
    if stage == "eval":
        named = task if task in TASKS else task.replace("-v2", "-medium-v2")  # pre-training is named after its data
        trained = ours(f"{benchmark}/pretrain/{named}/{config.replace('eval', 'pre')}")
        flat = {key: value for key, value in trained.items() if key.startswith("model.")} | flat
    return flat


def composed(leaf: str):
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        return compose(leaf, overrides=["log_root='$LOG'", "data_root='$DATA'", "wandb.entity='$WANDB'"])


def flatten(node: object, path: str = "") -> dict[str, object]:
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, value in node.items() for k, v in flatten(value, f"{path}.{key}".lstrip(".")).items()}


def timeless(value: object) -> object:
    """The clock's own digits, as the published placeholders."""
    if not isinstance(value, str):
        return value
    value = re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", "<now:%Y-%m-%d>_<now:%H-%M-%S>", value)
    return re.sub(r"^\d\d-\d\d-\d\d_", "<now:%H-%M-%S>_", value)


def intended(row: str, key: str) -> Difference | None:
    return next((d for d in DIFFERENCES if fnmatch(row, d.rows) and fnmatch(key, d.keys)), None)


@pytest.mark.parametrize("row", sorted(PUBLISHED))
def test_leaf_says_what_was_published(row):
    _, stage, task, config = row.split("/")
    mine, wrong = ours(f"{suite(task)}/{stage}/{task}/{config}"), []
    for key, theirs in PUBLISHED[row].items():
        difference, found = intended(row, key), timeless(mine.get(key, ABSENT))
        expected = difference.ours if difference else theirs
        if isinstance(expected, str):
            expected = expected.format(name=mine["name"])
        if found != expected:
            wrong.append(f"{key}: published {theirs!r}, expected {expected!r}, found {found!r}")
    assert not wrong, "\n".join(wrong)


def test_every_intended_difference_still_is_one():
    idle = []
    for difference in DIFFERENCES:
        rows = [row for row in PUBLISHED if fnmatch(row, difference.rows)]
        pairs = [(row, key) for row in rows for key in PUBLISHED[row] if intended(row, key) is difference]
        if not any(PUBLISHED[row][key] != difference.ours for row, key in pairs):
            idle.append(difference)
    assert not idle, "\n".join(map(str, idle))


def test_every_task_has_every_configuration():
    names = {
        "pretrain": [f"pre_diffusion_mlp{kind}{obs}" for kind in ("", "_dispersive") for obs in ("", "_img")],
        "finetune": ["ft_ppo_diffusion_mlp", "ft_ppo_diffusion_mlp_img"],
        "eval": ["eval_diffusion_mlp", "eval_diffusion_mlp_img"],
    }
    wanted = {f"{stage}/{task}/{name}" for stage, leaves in names.items() for task in TASKS for name in leaves}
    gym = {
        f"{stage}/{body}{data}-v2/{name}"
        for body in BODIES
        for stage, data, leaves in (
            ("pretrain", "-medium", ["pre_diffusion_mlp", "pre_diffusion_mlp_dispersive"]),
            ("finetune", "", ["ft_ppo_diffusion_mlp", "ppo_diffusion_mlp"]),
            ("eval", "", ["eval_diffusion_mlp"]),
        )
        for name in leaves
    }
    never = {"eval/walker2d-v2/eval_diffusion_mlp"}  # here all the same
    d3il = {
        f"{stage}/{task}/{name}"
        for task in AVOID
        for stage, leaves in (
            ("pretrain", ["pre_diffusion_mlp", "pre_diffusion_mlp_dispersive"]),
            ("finetune", ["ft_ppo_diffusion_mlp"]),
            ("eval", ["eval_diffusion_mlp"]),
        )
        for name in leaves
    }
    never |= {leaf for leaf in d3il if leaf.startswith("eval")}
    furniture = {
        f"{stage}/{task}/{name}"
        for task in FURNITURE
        for stage, names in (
            ("pretrain", [f"pre_{name}" for name in POLICIES] + ["pre_diffusion_mlp_dispersive"]),
            ("finetune", [f"ft_ppo_{name}" for name in POLICIES]),
            ("eval", [f"eval_{name}" for name in POLICIES]),
        )
        for name in names
    }
    never |= {leaf for leaf in furniture if leaf.startswith("eval") and not leaf.endswith("eval_diffusion_mlp")}
    assert (wanted | gym | d3il | furniture) - never == {row.split("/", 1)[1] for row in PUBLISHED}
    leaves = [f"robomimic/{leaf}" for leaf in wanted] + [f"gym/{leaf}" for leaf in gym]
    leaves += [f"d3il/{leaf}" for leaf in d3il] + [f"furniture/{leaf}" for leaf in furniture]
    missing = [leaf for leaf in sorted(leaves) if not (ROOT / "cfg" / f"{leaf}.yaml").is_file()]
    assert not missing


@pytest.mark.parametrize(
    ("task", "obs"),
    [(task, obs) for task in TASKS for obs in ("", "_img")]
    + [(f"{body}-medium-v2", "") for body in BODIES]
    + [(task, "") for task in (*AVOID, *FURNITURE)],
)
def test_the_dispersive_loss_is_all_that_sets_its_leaves_apart(task, obs):
    plain, dispersive = (
        ours(f"{suite(task)}/pretrain/{task}/pre_diffusion_mlp{kind}{obs}") for kind in ("", "_dispersive")
    )
    differ = {
        key for key in plain.keys() | dispersive.keys() if timeless(plain.get(key)) != timeless(dispersive.get(key))
    }
    assert "model.use_dispersive_loss" in differ
    assert not {key for key in differ if "dispersive_loss" not in key} - {
        "name",
        "logdir",
        "wandb.run",
        "wandb.project",
    }


@pytest.mark.parametrize(
    ("leaf", "actor", "critic"),
    [
        ("hopper-v2/ft_ppo_diffusion_mlp", 553_020, 134_913),
        ("walker2d-v2/ft_ppo_diffusion_mlp", 568_392, 136_449),
        ("halfcheetah-v2/ppo_diffusion_mlp", 549_942, 136_449),
        ("avoid_m1/ft_ppo_diffusion_mlp", 545_336, 133_121),
        ("one_leg_low/ft_ppo_diffusion_mlp", 6_640_368, 556_033),
        ("lamp_med/ft_ppo_diffusion_unet", 6_806_170, 548_865),
        ("lift/ft_ppo_diffusion_mlp", 573_516, 136_961),
        ("can/ft_ppo_diffusion_mlp", 575_564, 137_985),
        ("square/ft_ppo_diffusion_mlp", 2_305_212, 137_985),
        ("transport/ft_ppo_diffusion_mlp", 2_427_088, 147_201),
        ("lift/ft_ppo_diffusion_mlp_img", 1_064_956, 586_881),
        ("can/ft_ppo_diffusion_mlp_img", 1_064_956, 586_881),
        ("square/ft_ppo_diffusion_mlp_img", 1_778_684, 586_881),
        ("transport/ft_ppo_diffusion_mlp_img", 2_048_720, 657_665),
    ],
)
def test_networks_have_the_published_number_of_parameters(leaf, actor, critic):
    model = composed(f"{suite(leaf.split('/')[0])}/finetune/{leaf}").model
    found = [sum(p.numel() for p in build(part).parameters()) for part in (model.actor, model.critic)]
    assert found == [actor, critic]
