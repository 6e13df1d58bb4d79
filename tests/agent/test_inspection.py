"""What a file is, from names and shapes alone: against all published layouts, and through the command."""

from __future__ import annotations

import json

import pytest
import torch
from omegaconf import OmegaConf

from agent import checkpoint, inspection
from agent.agent import build
from script import inspect_checkpoint
from tests import published_files as files
from tests.model.test_published_layouts import STRUCTURES, layout
from tests.published_files import DO, FINETUNED, FLAT, TIME, WIDTH, put


@pytest.mark.parametrize("name", STRUCTURES)
def test_class_and_sizes_of_every_published_network(name):
    structure = STRUCTURES[name]
    found, arguments = inspection.network(dict(layout(name))), structure["arguments"]
    published = structure["class"].rsplit(".", 1)[1]
    assert published in found["class"].split(" or ")
    assert found["parameters"] == sum(torch.Size(shape).numel() for _, shape in layout(name))
    if "Transformer" in published or "Unet" in published:
        assert "mlp_dims" not in found
    else:
        assert found["mlp_dims"] == list(arguments["mlp_dims"])
        assert found["residual_style"] == (arguments.get("residual_style", False) and published != "CriticObsAct")
    if "Critic" not in published:
        assert found["observation"] == arguments["cond_dim"]
    if "cameras" in found:
        assert (found["cameras"], found["patches"]) == (arguments.get("num_img", 1), 121)


def test_a_published_file_of_unknown_origin(tmp_path, capsys):
    path = put(tmp_path, files.finetuned(ddim=True))
    inspect_checkpoint.main([str(path), "--json", "--no-configs"])
    (about,) = json.loads(capsys.readouterr().out)
    assert about["of"] == "DPPO or D2PPO" and about["algorithm"] == "PPO (diffusion, DDIM)"
    assert about["step"] == {"itr": 211} and not about["normalizer"] and not about["averaged_weights"]
    sizes = {"class": "DiffusionMLP", "mlp_dims": [WIDTH] * 3, "output": FLAT, "time_dim": TIME, "observation": DO}
    assert sizes.items() <= about["networks"]["network"].items() and set(about["networks"]) == {
        "network",
        "actor_ft",
        "critic",
    }
    assert (
        about["networks"]["critic"]["mlp_dims"] == [17] * 3 and about["configuration"] is None and "fits" not in about
    )


@pytest.mark.parametrize(
    ("parts", "algorithm"),
    [
        ("network actor", "RWR"),
        ("network actor critic", "AWR"),
        ("network actor critic critic_target", "DQL"),
        ("network actor critic critic_target actor_target", "DIPO"),
        ("network actor critic_q target_q critic_v", "IDQL"),
        ("network actor critic_q target_q", "QSM"),
        ("network critic target_critic", "SAC or Cal-QL"),
        ("network critic_networks target_networks base_model", "RLPD"),
        ("network critic_networks target_networks target_actor bc_policy", "IBRL"),
    ],
)
def test_the_algorithm_shows_in_the_names_of_the_parts(tmp_path, parts, algorithm):
    state = {key: x for part in parts.split() for key, x in files.weights(files.NETWORK_SHAPES, 1, f"{part}.").items()}
    about = inspection.inspect(put(tmp_path, {"itr": 1, "model": state}), configs=False)
    assert about["algorithm"] == f"{algorithm} (diffusion)"


def test_whose_it_is(tmp_path):
    place = tmp_path / "robomimic-pretrain" / "lift" / "lift_pre_diffusion_mlp_ta4_td20" / "2024-06-28_14-47-58"
    path = put(place, {**files.pretrained(), "epoch": 5000})
    assert "DPPO, published as robomimic-pretrain/lift/lift_pre" in inspection.inspect(path, configs=False)["of"]
    path = put(tmp_path / "can_pre_diffusion_mlp_dispersive_ta4", files.pretrained())
    assert inspection.inspect(path, configs=False)["of"].startswith("D2PPO")
    checkpoint.save(
        path,
        {
            "kind": "finetune",
            "itr": 3,
            "model": files.finetuned()["model"],
            "config": {"model": FINETUNED, "name": "x"},
        },
    )
    about = inspection.inspect(path, configs=False)
    assert about["of"].startswith("this project") and about["configuration"] == "x"


def test_the_configuration_that_fits(tmp_path, capsys):
    """Hopper's published network, and one width more, which nothing of cfg/ builds."""
    network = {
        "_target_": "model.diffusion.mlp_diffusion.DiffusionMLP",
        "action_dim": 3,
        "horizon_steps": 4,
        "cond_dim": 11,
    }
    for width, fits in ((512, True), (509, False)):
        sized = {**network, "mlp_dims": [width] * 3, "residual_style": True}
        state = {f"network.{key}": value for key, value in build(sized).state_dict().items()}
        path = put(tmp_path / str(width), {"epoch": 1, "model": state, "ema": state})
        inspect_checkpoint.main([str(path)])
        said = capsys.readouterr().out
        assert ("cfg/gym/pretrain/hopper-medium-v2/pre_diffusion_mlp.yaml" in said) is fits
        assert fits or "no configuration of cfg/" in said


def test_an_unreadable_file_does_not_hide_the_others(tmp_path, capsys):
    path = put(tmp_path, files.pretrained())
    (tmp_path / "config.yaml").write_text("a: [")
    (tmp_path / "bad.pt").write_bytes(b"PK")
    with pytest.raises(SystemExit) as stop:
        inspect_checkpoint.main([str(tmp_path / "bad.pt"), str(path), "--no-configs"])
    said = capsys.readouterr().out
    assert stop.value.code == 2 and "bad.pt: damaged" in said and "diffusion pre-training, epoch 3001" in said
    assert "beside it, but not usable" in said
    OmegaConf.save({"env_name": "reach", "model": files.PRETRAINED}, tmp_path / "config.yaml")
    assert inspection.inspect(path, configs=False)["configuration"] == "reach"
