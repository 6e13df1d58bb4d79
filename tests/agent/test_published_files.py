"""Published checkpoints: loaded strictly, saved back as they were, with base or tuned weights, and nothing in them runs."""

from __future__ import annotations

import json
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from agent import checkpoint, portable
from agent.agent import build
from agent.checkpoint import load_policy
from agent.errors import CheckpointError
from env.normalizer import Normalizer
from tests import published_files as files
from tests.model.test_published_layouts import STRUCTURES, layout
from tests.published_files import DA, DDIM, DO, FINETUNED, NETWORK, PRETRAINED, TA, TUNED, put


def same(one: dict, two: dict) -> bool:
    """Equal keys, in order, and equal numbers."""
    return list(one) == list(two) and all(
        one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in one
    )


def act(policy: torch.nn.Module) -> torch.Tensor:
    """What it does with some observation and noise."""
    g = torch.Generator().manual_seed(7)
    obs = {"state": torch.rand(2, 1, DO, generator=g) * 2 - 1}
    return policy.sample(obs, deterministic=True, noise=torch.randn(2, *policy.noise_shape, generator=g)).trajectories


def test_a_pretrained_file_loads_and_saves_back_as_it_was(tmp_path):
    content = files.pretrained()
    path = put(tmp_path, content)
    for choice, part in ((None, "ema"), ("ema", "ema"), ("model", "model")):
        policy = load_policy(path, {"model": PRETRAINED}, policy_weights=choice)
        assert same(policy.state_dict(), content[part])
    with pytest.raises(CheckpointError, match="policy_weights=finetuned.*pre-trained"):
        load_policy(path, {"model": PRETRAINED}, policy_weights="finetuned")
    with pytest.raises(CheckpointError, match="policy_weights.*base, finetuned.*'tuned'"):
        load_policy(path, {"model": PRETRAINED}, policy_weights="tuned")
    portable.write_published(tmp_path / "back.pt", checkpoint.load(path))
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == ["epoch", "model", "ema"] and back["epoch"] == 3001
    assert same(back["model"], content["model"]) and same(back["ema"], content["ema"])


@pytest.mark.parametrize("ddim", [False, True])
def test_a_finetuned_file_loads_and_saves_back_as_it_was(tmp_path, ddim):
    content = files.finetuned(ddim)
    path = put(tmp_path, content)
    config = {"model": {**FINETUNED, **(DDIM if ddim else {})}}
    policy = load_policy(path, config)
    assert {key: x.shape for key, x in policy.state_dict().items()} == {
        key: x.shape for key, x in content["model"].items()
    }
    mine = {"format": "d2ppo", "kind": "finetune", "itr": 211, "model": policy.state_dict()}
    for payload in (checkpoint.load(path), mine):  # as it came, and after it went through the policy
        portable.write_published(tmp_path / "back.pt", payload)
        back = torch.load(tmp_path / "back.pt", weights_only=True)
        assert list(back) == ["itr", "model"] and back["itr"] == 211
        assert back["model"].keys() == content["model"].keys()
        assert all(torch.equal(back["model"][key], value) for key, value in content["model"].items())  # also infinity


def test_base_and_tuned_weights_of_one_file(tmp_path):
    """Against policies that are put together by hand; given either class, PPO's or the pre-training one."""
    content = files.finetuned()
    path = put(tmp_path, content)

    def by_hand(tuned: str) -> torch.nn.Module:
        mine = load_policy(path, {"model": FINETUNED})
        state = {key.removeprefix(tuned): x for key, x in content["model"].items() if key.startswith(tuned)}
        mine.actor_ft.load_state_dict(state)
        return mine

    base, tuned = act(by_hand("actor.")), act(by_hand("actor_ft."))
    assert (base - tuned).abs().max() > 1e-2
    pre = {"model": PRETRAINED}
    for config in ({"model": FINETUNED}, pre):
        assert torch.equal(act(load_policy(path, config, policy_weights="base")), base)
    for config in ({"model": FINETUNED}, {**pre, "ft_denoising_steps": TUNED}):
        assert torch.equal(act(load_policy(path, config, policy_weights="finetuned")), tuned)
        assert torch.equal(act(load_policy(path, config)), tuned)
    with pytest.raises(CheckpointError, match=r"ft_denoising_steps.*policy_weights=base"):
        load_policy(path, pre)  # never silently the base: the published evaluation did that
    with pytest.raises(CheckpointError, match="policy_weights=ema"):
        load_policy(path, pre, policy_weights="ema")


def test_a_ddim_chain_keeps_its_noise_level_where_a_pre_training_class_is_given(tmp_path):
    path = put(tmp_path, files.finetuned(ddim=True))
    policy = load_policy(path, {"model": {**PRETRAINED, **DDIM}, "ft_denoising_steps": 2})
    assert policy.n_chain_steps == 2 and float(policy.eta({"state": torch.zeros(1, 1, DO)})) == 1.0
    assert torch.equal(act(policy), act(load_policy(path, {"model": {**FINETUNED, **DDIM, "ft_denoising_steps": 2}})))


def test_ddim_and_ddpm_may_change_places_where_a_pre_training_class_is_given(tmp_path):
    for trained, evaluated in ((True, {}), (False, DDIM)):
        path = put(tmp_path, files.finetuned(ddim=trained))
        policy = load_policy(path, {"model": {**PRETRAINED, **evaluated}, "ft_denoising_steps": 2})
        tuned = files.finetuned()["model"]["actor_ft.mlp_mean.layers.0.weight"]
        assert torch.equal(policy.actor_ft.mlp_mean.layers[0].weight, tuned) and act(policy).isfinite().all()


def test_a_baseline_without_a_tuned_copy_gives_its_actor(tmp_path):
    """RWR, AWR, DQL, ...: one network under the names ``network`` and ``actor``, and critics."""
    state = {key: x for key, x in files.finetuned()["model"].items() if not key.startswith("actor_ft.")}
    path = put(tmp_path, {"itr": 5, "model": state})
    policy = load_policy(path, {"model": PRETRAINED})
    assert torch.equal(policy.network.mlp_mean.layers[0].weight, state["actor.mlp_mean.layers.0.weight"])
    with pytest.raises(CheckpointError, match="does not keep"):
        load_policy(path, {"model": PRETRAINED}, policy_weights="base")


def test_gaussian_files(tmp_path):
    """PPO on a Gaussian policy: ``network`` is the tuned one, ``actor`` the base."""
    network = {"_target_": "model.common.mlp_gaussian.Gaussian_MLP", "action_dim": DA, "horizon_steps": TA}
    network |= {"cond_dim": DO, "mlp_dims": [13, 13, 13], "fixed_std": 0.1, "residual_style": True}
    ppo = {"_target_": "model.rl.gaussian_ppo.PPO_Gaussian", "actor": network, "critic": files.CRITIC}
    pre = {"_target_": "model.common.gaussian.GaussianModel", "network": network, "horizon_steps": TA}
    policy = build({**ppo, "horizon_steps": TA})
    with torch.no_grad():
        for parameter in policy.actor_ft.parameters():
            parameter.add_(0.25)
    path = put(tmp_path, {"itr": 7, "model": policy.state_dict()})
    tuned = act(policy.eval())
    base = act(load_policy(path, {"model": pre}, policy_weights="base"))
    assert (base - tuned).abs().max() > 1e-2
    assert torch.equal(act(load_policy(path, {"model": pre})), tuned)
    assert torch.equal(act(load_policy(path, {"model": {**ppo, "horizon_steps": TA}}, policy_weights="base")), base)


def test_the_configuration_beside_a_published_run(tmp_path):
    """Hydra's own copy, as the published code leaves it: unresolved, with classes and arguments of theirs."""
    path = put(tmp_path, files.pretrained())
    folder = tmp_path / ".hydra"
    folder.mkdir()
    model = {
        **PRETRAINED,
        "network": {**NETWORK, "cond_dim": "${eval:'${obs_dim} * ${cond_steps}'}"},
        "device": "cuda:0",
    }
    model |= {"obs_dim": "${obs_dim}"}
    whole = {
        "_target_": "agent.pretrain.train_diffusion_agent.TrainDiffusionAgent",
        **{"logdir": "${oc.env:NO_SUCH_FOLDER}/gym-pretrain/x", "obs_dim": DO, "action_dim": DA, "cond_steps": 1},
        **{"horizon_steps": TA, "train": {"n_epochs": 3}, "model": model},
    }
    OmegaConf.save(OmegaConf.create(whole), folder / "config.yaml")
    policy = load_policy(path)
    assert same(policy.state_dict(), files.pretrained()["ema"]) and policy.config["obs_dim"] == DO
    assert same(load_policy(path, whole).state_dict(), policy.state_dict())
    OmegaConf.save(OmegaConf.create({"model": {"_target_": "os.system", "command": "true"}}), folder / "config.yaml")
    with pytest.raises(CheckpointError, match=r"_target_.*os\.system"):
        load_policy(path)
    with pytest.raises(CheckpointError, match=r"_target_.*os\.system"):  # a single setting on top is no leave to run it
        load_policy(path, overrides={"denoising_steps": 3})
    (folder / "config.yaml").write_text("a: [1, 2")
    with pytest.raises(CheckpointError, match=r"config\.yaml: expected the configuration of a policy"):
        load_policy(path)


def test_overrides_do_not_hide_a_stored_class_that_is_not_ours(tmp_path):
    payload = {"kind": "pretrain", "epoch": 1, "model": files.pretrained()["model"]}
    checkpoint.save(tmp_path / "state_1.pt", {**payload, "config": {"model": {"_target_": "os.system"}}})
    with pytest.raises(CheckpointError, match=r"os\.system"):
        load_policy(tmp_path / "state_1.pt", overrides={"use_ddim": True})
    checkpoint.save(tmp_path / "state_2.pt", {**payload, "config": {"model": PRETRAINED}})
    assert load_policy(tmp_path / "state_2.pt", overrides=DDIM).n_steps == 5


@pytest.mark.parametrize(
    "number", [np.float64(1.37e-300), np.float32(0.1), np.int64(-(2**40)), np.uint8(251), np.bool_(True)]
)
def test_numbers_of_numpy_are_read_without_numpy(tmp_path, number):
    path = put(tmp_path, {**files.pretrained(), "epoch": 7, "loss": number})
    loaded = checkpoint.load(path)["loss"]
    assert type(loaded) in (bool, int, float) and loaded == number.item()


@pytest.mark.parametrize(
    "what", [np.datetime64(3, "s"), np.array([object()]), OmegaConf.create({"a": 1}), OrderedDict.fromkeys]
)
def test_other_objects_are_refused_by_name(tmp_path, what):
    path = put(tmp_path, {**files.pretrained(), "cfg": what})
    with pytest.raises(CheckpointError, match=r"state_3001\.pt: .*(refused|damaged)") as caught:
        checkpoint.load(path)
    if OmegaConf.is_config(what):
        assert "omegaconf" in str(caught.value) and "torch.save({key: old[key]" in str(caught.value)


def test_a_flipped_bit_and_a_compressed_archive_are_found(tmp_path):
    path = put(tmp_path, files.pretrained())
    data = bytearray(path.read_bytes())
    place = data.find(files.pretrained()["ema"]["network.mlp_mean.layers.1.l1.weight"].numpy().tobytes())
    data[place + 101] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"state_3001\.pt: damaged.*checksum"):
        checkpoint.load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10_007)
    with pytest.raises(CheckpointError, match="compressed"):
        checkpoint.load(path)
    disks = b"PK\x06\x07" + struct.pack("<LQL", 1, 0, 2)  # the locator of an archive on two disks
    path.write_bytes(disks + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 0, 0, 0, 0, 0))
    with pytest.raises(CheckpointError, match=r"state_3001\.pt: damaged \(zipfiles that span multiple disks"):
        checkpoint.load(path)


def test_safetensors_and_back(tmp_path):
    normalizer = Normalizer(-np.arange(DO), np.arange(DO) + 1, -np.ones(DA), np.ones(DA) * 0.1).to_dict()
    payload = {"kind": "finetune", "itr": 3, "model": files.finetuned()["model"], "normalizer": normalizer}
    payload |= {"config": {"model": FINETUNED, "act_steps": 2}, "extra": {"images": {"cameras": ["front"]}}}
    checkpoint.save(tmp_path / "state_3.pt", payload)
    loaded, out = checkpoint.load(tmp_path / "state_3.pt"), tmp_path / "out"
    portable.write_folder(out, loaded, loaded["model"])
    for path in (out, out / "model.safetensors", out / "config.json"):
        policy = load_policy(path)
        assert torch.equal(act(policy), act(load_policy(tmp_path / "state_3.pt")))
        assert policy.normalizer == Normalizer(**normalizer) and policy.images == {"cameras": ["front"]}
    about = json.loads((out / "config.json").read_text())
    assert about["itr"] == 3 and about["config"]["act_steps"] == 2
    state = checkpoint.load(out)["model"]
    assert state.keys() == loaded["model"].keys() and all(torch.equal(x, loaded["model"][k]) for k, x in state.items())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", None, r"model\.safetensors: expected .* found config\.json"),
        ("model.safetensors", b"\x08", r"model\.safetensors: damaged"),
        ("config.json", b"{", r"config\.json: damaged"),
        ("config.json", b"\xff", r"config\.json: damaged"),
        ("config.json", b"[" * 100_003, r"config\.json: damaged"),
        ("config.json", b"[]", r"config\.json: expected an object"),
        ("config.json", b'{"format": "d2ppo", "kind": "pretrain", "config": 3}', r"config\.json: expected an object"),
        ("config.json", b'{"format": "other", "kind": "pretrain"}', "format 'other'"),
        ("config.json", b'{"format": "d2ppo", "kind": "pretrain", "format_version": "1"}', "version '1'"),
        ("config.json", b'{"format": "d2ppo", "kind": "pretrain", "normalizer": {"obs_min": ["a"]}}', "normalizer"),
        ("config.json", b'{"format": "d2ppo", "kind": "pretrain", "normalizer": 3}', "normalizer"),
    ],
)
def test_a_damaged_folder_names_its_file(tmp_path, name, content, said):
    payload = {"format": "d2ppo", "format_version": 1, "kind": "pretrain", "epoch": 1, "config": {"model": PRETRAINED}}
    portable.write_folder(tmp_path, payload, files.pretrained()["ema"])
    assert checkpoint.load(tmp_path)["kind"] == "pretrain"
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(tmp_path)


def test_what_does_not_fit_names_the_key(tmp_path):
    path = put(tmp_path, files.pretrained())
    with pytest.raises(CheckpointError, match=r"state_3001\.pt.*time_embedding\.1\.weight.*\(36, 18\).*\(28, 14\)"):
        load_policy(path, {"model": {**PRETRAINED, "network": {**NETWORK, "time_dim": 18}}})
    with pytest.raises(CheckpointError, match=r"actor\.time_embedding.*missing"):
        load_policy(path, {"model": FINETUNED})


def published_policy(name: str, critic: str | None) -> tuple[dict, dict]:
    """The configuration and the checkpoint of a published network, pre-trained or (with a critic's name) tuned by PPO."""
    structure = STRUCTURES[name]
    network = {"_target_": structure["class"], **structure["arguments"]}
    shapes, kind = dict(layout(name)), structure["class"].rsplit(".", 1)[1].partition("_")[0]
    zeros = lambda prefix, sizes: {prefix + key: torch.zeros(()).expand(size) for key, size in sizes.items()}  # noqa: E731
    model = {"horizon_steps": network.get("horizon_steps", 4)}
    if kind not in ("Gaussian", "GMM"):
        kind = "Diffusion"
        model |= {"obs_dim": network["cond_dim"], "action_dim": network["action_dim"], "denoising_steps": 20}
    if critic is None:
        module = {"Gaussian": "common.gaussian", "GMM": "common.gmm", "Diffusion": "diffusion.diffusion"}[kind]
        state = zeros("network.", shapes)
        return {**model, "_target_": f"model.{module}.{kind}Model", "network": network}, {
            "epoch": 3,
            "model": state,
            "ema": state,
        }
    target = {"Gaussian": "rl.gaussian_ppo.PPO_Gaussian", "GMM": "rl.gmm_ppo.PPO_GMM"}.get(
        kind, "diffusion.diffusion_ppo.PPODiffusion"
    )
    model |= {"_target_": f"model.{target}", "actor": network}
    model["critic"] = {"_target_": STRUCTURES[critic]["class"], **STRUCTURES[critic]["arguments"]}
    parts = ["network.", "actor_ft.", *([] if kind == "GMM" else ["actor."])]
    state = {key: x for prefix in parts for key, x in zeros(prefix, shapes).items()} | zeros(
        "critic.", dict(layout(critic))
    )
    if kind == "Diffusion":
        model |= {"ft_denoising_steps": 5, "use_ddim": True, "ddim_steps": 5}
        state["eta.eta_logit"] = torch.tensor(float("inf"))
    return model, {"itr": 3, "model": state}


def smallest() -> list[str]:
    """Of every class and list of keys, the published network with the fewest parameters."""
    sizes = {name: sum(torch.Size(shape).numel() for _, shape in layout(name)) for name in STRUCTURES}
    actors = [name for name in STRUCTURES if "Critic" not in name]
    kinds = {(STRUCTURES[name]["class"], STRUCTURES[name]["keys"]) for name in actors}
    return sorted(
        min((n for n in actors if (STRUCTURES[n]["class"], STRUCTURES[n]["keys"]) == kind), key=sizes.get)
        for kind in kinds
    )


@pytest.mark.parametrize("tuned", [False, True], ids=["pre-trained", "fine-tuned"])
@pytest.mark.parametrize("name", smallest())
def test_every_published_layout_loads_and_saves_back(tmp_path, name, tuned):
    critic = {False: None, True: "ViTCritic_100" if "Vision" in name else "CriticObs_000"}[tuned]
    model, content = published_policy(name, critic)
    path = put(tmp_path, content)
    policy = load_policy(path, {"model": model})
    payload = {**checkpoint.load(path), "model": policy.state_dict()}
    portable.write_published(tmp_path / "back.pt", payload)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == list(content)
    for key, value in content["model"].items():
        assert back["model"][key].shape == value.shape and back["model"][key].dtype == value.dtype, key
    assert back["model"].keys() == content["model"].keys()
