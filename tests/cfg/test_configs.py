"""Every leaf composes, resolves, validates and is short; the published commands work; a typo names the nearest key."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent.config import register_resolvers, unknown_key, validate
from agent.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
LEAVES = sorted(
    p.relative_to(ROOT / "cfg")
    for p in (ROOT / "cfg").glob("*/*/*/*.yaml")
    if p.relative_to(ROOT / "cfg").parts[0] != "base"
)
register_resolvers()


def composed(leaf: Path | str, *overrides: str):
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        return compose(str(leaf).removesuffix(".yaml"), overrides=list(overrides))


LIFT = {
    "pre": "robomimic/pretrain/lift/pre_diffusion_mlp_dispersive",
    "ft": "robomimic/finetune/lift/ft_ppo_diffusion_mlp",
    "eval": "robomimic/eval/lift/eval_diffusion_mlp",
}


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_leaf(leaf):
    text = (ROOT / "cfg" / leaf).read_text()
    assert text.startswith("# @package _global_\n")
    assert sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines()) <= 15
    cfg = composed(leaf)
    validate(cfg)
    assert "render" not in cfg.get("env", {})  # +env.render=True must stay possible
    # Cal-QL's pre-training is learning off line, in the loop that later goes on on line.
    assert cfg.stage == ("finetune" if leaf.stem == "calql_mlp_offline" else leaf.parts[1])


def test_no_group_can_shadow_a_value_and_no_leaf_stands_at_the_top():
    folders = {
        p.name for p in (ROOT / "cfg").rglob("*") if p.is_dir() and "base" not in p.relative_to(ROOT / "cfg").parts[:-1]
    }
    assert not folders & {"wandb", "env", "train", "model"}
    assert not list((ROOT / "cfg").glob("*.yaml"))


def test_published_values_of_lift():
    cfg = composed(LIFT["ft"])
    expected = {
        "env.n_envs": 50, "env.max_episode_steps": 300, "train.n_steps": 300, "train.n_train_itr": 300, "train.gamma": 0.999,
        "train.actor_lr": 1e-5, "train.critic_lr": 1e-3, "train.update_epochs": 10, "train.batch_size": 7500, "train.target_kl": 1,
        "model.clip_ploss_coef": 0.01, "model.clip_ploss_coef_base": 0.001, "model.clip_ploss_coef_rate": 3, "model.randn_clip_value": 3,
        "model.gamma_denoising": 0.99, "model.min_sampling_denoising_std": 0.1, "model.actor.mlp_dims": [512] * 3, "model.actor.time_dim": 16,
        "model.critic.mlp_dims": [256] * 3, "denoising_steps": 20, "ft_denoising_steps": 10, "name": "lift_ft_diffusion_mlp_ta4_td20_tdf10",
        "wandb.project": "robomimic-lift-finetune",
    }  # fmt: skip
    assert {key: OmegaConf.select(cfg, key) for key in expected} == expected
    cfg = composed(LIFT["pre"])
    assert cfg.name == "lift_pre_diffusion_mlp_dispersive_ta4_td20_dw0.5_dlearly"
    assert cfg.model.use_dispersive_loss
    assert cfg.model.dispersive_loss_type == "infonce_l2"
    assert cfg.train.n_epochs == 8000
    assert cfg.train.lr_scheduler.first_cycle_steps == 10000


def test_overrides_that_users_type_take_effect():
    cfg = composed(
        LIFT["ft"], "wandb=null", "env.n_envs=4", "train.n_steps=40", "+env.render=True", "env.save_video=True", "train.render.freq=5", "train.render.num=1",
        "base_policy_path=x.pt", "model.use_ddim=True", "model.ddim_steps=3", "ft_denoising_steps=3", "seed=7", "device=cpu", "env.max_episode_steps=100",
    )  # fmt: skip
    validate(cfg)
    assert cfg.wandb is None
    assert cfg.env.wrappers.multi_step.max_episode_steps == 100
    assert cfg.model.ft_denoising_steps == 3
    assert "tdf3" in cfg.name
    validate(composed(LIFT["ft"], "++env.render=True"))
    cfg = composed(
        LIFT["pre"], "dispersive_loss_weight=0.3", "model.dispersive_loss_layer=late", "+train_dataset.use_img=false"
    )
    validate(cfg)
    assert cfg.model.dispersive_loss_weight == 0.3
    assert cfg.name.endswith("_dw0.3_dllate")


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("+train.n_epoch=5", "train.n_epochs"),
        ("+train.lr_scheduler.warmup_step=5", "train.lr_scheduler.warmup_steps"),
        ("+model.network.mlp_dim=[3]", "model.network.mlp_dims"),
        ("+model.dispersive_los_weight=1", "model.dispersive_loss_weight"),
        ("+wandb.projekt=x", "wandb.project"),
        ("+sead=1", "seed"),
    ],
)
def test_a_typo_in_yaml_names_the_nearest_key(typo, nearest):
    with pytest.raises(UsageError, match=re.escape(f"did you mean '{nearest}'")):
        validate(composed(LIFT["pre"], typo))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.n_epochs=many", "train.n_epochs: expected int, found 'many'"),
        ("train.n_epochs=0", "train.n_epochs: expected at least 1"),
        ("train.n_epochs=1.5", "train.n_epochs: expected int"),
        ("model._target_=model.nowhere.Net", "cannot import"),
        (
            "model._target_=subprocess.Popen",
            "model._target_: expected a class of this project or of a package of yours, found 'subprocess.Popen'",
        ),
        (
            "_target_=os.system",
            "_target_: expected a class of this project or of a package of yours, found 'os.system'",
        ),
        ("seed=${nowhere}", "nowhere"),
    ],
)
def test_a_value_of_the_wrong_kind(override, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        validate(composed(LIFT["pre"], override))


def test_n_envs_zero():
    with pytest.raises(UsageError, match=r"env\.n_envs: expected at least 1, found 0"):
        validate(composed(LIFT["ft"], "env.n_envs=0"))


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "script/run.py", *args], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_command_line_typo_names_the_nearest_key():
    done = run(
        "--config-name=pre_diffusion_mlp", "--config-dir=cfg/robomimic/pretrain/lift", "train.n_epoch=5", "wandb=null"
    )
    assert done.returncode != 0
    assert "did you mean 'train.n_epochs'" in done.stderr


README_COMMANDS = [  # of both published READMEs, for the tasks and policies that exist here
    *(
        ("script/run.py", "pre_diffusion_mlp_dispersive_img", f"cfg/robomimic/pretrain/{task}")
        for task in ("lift", "can", "square", "transport")
    ),
    *(
        ("script/run.py", "ft_ppo_diffusion_mlp_img", f"cfg/robomimic/finetune/{task}")
        for task in ("lift", "can", "square", "transport")
    ),
    ("script/train.py", "pre_diffusion_mlp", "cfg/robomimic/pretrain/can"),
    ("script/train.py", "ft_ppo_diffusion_mlp", "cfg/robomimic/finetune/can"),
]


@pytest.mark.parametrize("command", README_COMMANDS[::3], ids=" ".join)
def test_commands_of_the_published_readmes(command):
    script, name, folder = command
    done = subprocess.run(
        [sys.executable, script, f"--config-name={name}", f"--config-dir={folder}", "--cfg", "job", "--resolve"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"env_name: {folder.split('/')[-1]}" in done.stdout


@pytest.mark.parametrize("command", README_COMMANDS, ids=" ".join)
def test_configurations_of_the_published_readmes(command):
    _, name, folder = command
    cfg = composed(f"{folder.removeprefix('cfg/')}/{name}", "wandb=null")
    validate(cfg)
    assert cfg.env_name == folder.split("/")[-1]


def test_overrides_of_image_policies_take_effect():
    cfg = composed(
        "robomimic/finetune/transport/ft_ppo_diffusion_mlp_img",
        "cond_steps=3", "img_cond_steps=2", "env.render_quality=fast", "ft_denoising_steps=4",
        "task.image_keys=[agentview_image,sideview_image,frontview_image]", "model.eta.base_eta=0.5",
    )  # fmt: skip
    validate(cfg)
    assert cfg.model.actor.cond_dim == cfg.model.critic.cond_dim == 54
    assert cfg.model.actor.backbone.num_channel == 6 == 3 * cfg.env.img_cond_steps
    assert cfg.model.actor.num_img == cfg.model.critic.num_img == 3
    assert list(cfg.env.wrappers.robomimic_image.shape_meta.obs.rgb.shape) == [9, 96, 96]
    assert cfg.model.ddim_steps == 4
    with pytest.raises(UsageError, match=re.escape("did you mean 'env.render_quality'")):
        validate(composed("robomimic/eval/can/eval_diffusion_mlp_img", "+env.render_qualty=fast"))
    with pytest.raises(UsageError, match=r"train\.render\.freq: expected at least 1"):
        validate(composed(LIFT["ft"], "train.render.freq=0"))


def test_help_lists_the_configurations():
    done = run("--help")
    assert done.returncode == 0
    listed = {line.strip() for line in done.stdout.splitlines()}
    assert not {f"--config-dir=cfg/{leaf.parent} --config-name={leaf.stem}" for leaf in LEAVES} - listed


def test_nearest_key():
    assert unknown_key("train.n_epoch", ["train.n_epochs", "seed"]).endswith("did you mean 'train.n_epochs'?")
