"""From the expert to a policy to start from: avoiding's data sets share one environment and must not be mixed up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent import checkpoint
from agent.agent import build
from agent.config import register_resolvers
from agent.dataset.demos import read_demos
from agent.errors import CheckpointError
from agent.finetune import base_policy
from env.d3il import field
from env.normalizer import Normalizer
from script import collect_demos, filter_d3il_avoid_data

ROOT = Path(__file__).resolve().parents[2]
register_resolvers()


def composed(leaf: str, log_root: Path):
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        return compose(leaf, overrides=[f"log_root='{log_root}'", "device=cpu"])


def test_collected_demonstrations_are_of_the_modes_asked_for(tmp_path):
    arguments = ["--task", "avoid_m3", "--episodes", "4", "--seed", "5", "--n-envs", "4"]
    for out in ("a", "b"):
        collect_demos.main([*arguments, "--out", str(tmp_path / out)])
    folder = tmp_path / "a" / "d3il" / "avoid_m3"
    arrays, scale = read_demos(folder / "train.npz"), Normalizer.load(folder / "normalization.npz")
    courses = np.split(scale.unnormalize_obs(arrays["states"]), np.cumsum(arrays["traj_lengths"])[:-1])
    assert sorted(field.mode_of(c[:, 2:]) for c in courses) == [(1, 2, 5), (1, 2, 5), (1, 2, 8), (1, 2, 8)]
    assert all(c[-1, 3] > field.GOAL for c in courses)
    assert json.loads((folder / "about.json").read_text())["expert_success_rate"] == 1.0
    again = read_demos(tmp_path / "b" / "d3il" / "avoid_m3" / "train.npz")
    assert all(np.array_equal(arrays[key], again[key]) for key in arrays)
    filter_d3il_avoid_data.main(["--load_path", str(folder), "--subset", "avoid_m3", "--save_dir", str(tmp_path / "c")])
    assert np.array_equal(read_demos(tmp_path / "c" / "train.npz")["traj_lengths"], arrays["traj_lengths"])


def test_there_are_no_images(tmp_path, capsys):
    with pytest.raises(SystemExit):
        collect_demos.main(["--task", "avoid_m1", "--images", "--out", str(tmp_path)])
    assert "--images: avoid_m1 has no policies that look at images" in capsys.readouterr().err


def pretrained(log_root: Path, subset: str, config: str, age: int) -> Path:
    """A checkpoint of pre-training on ``subset``, ``age`` seconds old, with random weights."""
    cfg = composed(f"d3il/pretrain/{subset}/{config}", log_root)
    path = Path(cfg.logdir) / "checkpoint" / "state_7.pt"
    weights = build(cfg.model).state_dict()
    checkpoint.save(path, {"kind": "pretrain", "model": weights, "config": OmegaConf.to_container(cfg, resolve=True)})
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


def test_fine_tuning_starts_from_the_newest_policy_of_its_own_data(tmp_path):
    mine = pretrained(tmp_path, "avoid_m1", "pre_diffusion_mlp", age=50)
    pretrained(tmp_path, "avoid_m2", "pre_diffusion_mlp", age=0)
    older = pretrained(tmp_path, "avoid_m1", "pre_diffusion_mlp_dispersive", age=90)
    assert base_policy.find(composed("d3il/finetune/avoid_m1/ft_ppo_diffusion_mlp", tmp_path)) == mine
    mine.unlink()
    assert base_policy.find(composed("d3il/eval/avoid_m1/eval_diffusion_mlp", tmp_path)) == older
    with pytest.raises(CheckpointError, match=r"cfg/d3il/pretrain/avoid_m3"):
        base_policy.find(composed("d3il/finetune/avoid_m3/ft_ppo_diffusion_mlp", tmp_path))
