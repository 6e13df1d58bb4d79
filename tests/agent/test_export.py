"""Exported samplers do what an evaluation does: torch.export and ONNX, all policies' kinds, the command and its verdict."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from agent import checkpoint, export
from agent.agent import build
from agent.errors import UsageError
from env.normalizer import Normalizer
from script import export_policy
from tests import published_files as files
from tests.published_files import CRITIC, DA, DDIM, DO, FINETUNED, NETWORK, PRETRAINED, TA, put

SCALE = Normalizer(-np.arange(1, DO + 1), np.arange(DO) * 0.1, -np.arange(1, DA + 1), np.array([3.0, 0.01, 7.0]))
VIT = {"patch_size": 5, "depth": 1, "embed_dim": 14, "num_heads": 2}
SEEING = {
    "_target_": "model.diffusion.mlp_diffusion.VisionDiffusionMLP",
    "backbone": {"_target_": "model.common.vit.VitEncoder", "obs_shape": [6, 19, 23], "num_channel": 6, "cfg": VIT},
    **{"action_dim": DA, "horizon_steps": TA, "cond_dim": 2 * DO, "mlp_dims": [13] * 3, "residual_style": True},
    **{"img_cond_steps": 2, "num_img": 2, "spatial_emb": 5},
}
GAUSSIAN = {
    "_target_": "model.common.gaussian.GaussianModel",
    "network": {
        "_target_": "model.common.mlp_gaussian.Gaussian_MLP",
        **{"action_dim": DA, "horizon_steps": TA, "cond_dim": DO, "mlp_dims": [13] * 3, "fixed_std": 0.1},
    },
    "horizon_steps": TA,
}
FLOW = {
    "_target_": "model.flow.flow_ppo.PPOFlow",
    **{"actor": {**NETWORK, "time_dim": 16}, "critic": CRITIC, "horizon_steps": TA, "obs_dim": DO, "action_dim": DA},
    "noise": {"_target_": "model.flow.flow_ppo.NoiseNet", "cond_dim": DO, "horizon_steps": TA, "action_dim": DA},
    **{"sampling_steps": 3, "average_velocity": True},
}
SEEING_DDIM = {**PRETRAINED, "network": SEEING, "use_ddim": True, "ddim_steps": 2}


def policy(node: dict, scale: Normalizer | None = SCALE) -> torch.nn.Module:
    torch.manual_seed(3)
    made = build(node).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    made.normalizer, made.config = scale, {"obs_dim": DO}
    return made


@pytest.mark.parametrize(
    ("node", "steps"),
    [
        (PRETRAINED, 1),
        ({**PRETRAINED, **DDIM}, 1),
        ({**FINETUNED, **DDIM, "denoised_clip_value": None, "final_action_clip_value": 0.7}, 1),
        (GAUSSIAN, 1),
        (FLOW, 1),
        ({**PRETRAINED, "network": SEEING, **DDIM}, 2),
    ],
    ids=["DDPM", "DDIM", "fine-tuned", "Gaussian", "flow", "images"],
)
def test_the_sampler_is_what_an_evaluation_does(node, steps):
    """Before any exporter sees it."""
    for scale in (SCALE, None):
        made = policy(node, scale)
        sampler = export.Sampler(made, steps)
        inputs = sampler.inputs(3, 1)
        assert list(inputs) == (["state", "noise", "rgb"] if steps == 2 else ["state", "noise"])
        mine, here = sampler(**inputs).numpy(), export.in_evaluation(made)(inputs)
        assert mine.dtype == here.dtype == np.float32 and np.ptp(mine) > 0.5
        np.testing.assert_allclose(mine, here, rtol=0, atol=3e-6)
        assert torch.is_grad_enabled() and all(not p.requires_grad for p in sampler.parameters())


def test_inputs_cover_what_the_normaliser_covers():
    sampler = export.Sampler(policy(PRETRAINED))
    state = sampler.inputs(1009, 0)["state"].numpy()
    assert (state >= SCALE.obs_min - 1e-5).all() and (state <= SCALE.obs_max + 1e-5).all()
    assert (np.ptp(state, axis=(0, 1)) > 0.97 * (SCALE.obs_max - SCALE.obs_min)).all()


@pytest.mark.parametrize(("node", "steps"), [(SEEING_DDIM, 2), (FLOW, 1)], ids=["images", "flow"])
def test_torch_export_agrees_and_a_difference_is_seen(node, steps, tmp_path):
    made = policy(node)
    sampler = export.Sampler(made, steps)
    run = export.torch_module(export.export_torch(sampler, tmp_path / "p.pt2"))
    here = export.in_evaluation(made)
    assert export.largest_difference(run, here, sampler, 29) <= 1e-5
    shifted = lambda inputs: here(inputs) + np.float32([0, 1e-4, 0])  # noqa: E731  1e-4 of a range of 2.01
    assert export.largest_difference(shifted, here, sampler, 29) == pytest.approx(1e-4 / 1.005, rel=1e-2)


def test_onnx_from_the_command_line_with_published_weights(tmp_path, capsys):
    path = put(tmp_path, files.pretrained())
    SCALE.save(tmp_path / "normalization.npz")
    (tmp_path / "config.yaml").write_text(json.dumps({"model": PRETRAINED, "act_steps": 2, "env_name": "reach"}))
    arguments = ["--to", "onnx", str(path), "--normalization", str(tmp_path / "normalization.npz"), "--json"]
    export_policy.main([*arguments, "--ddim-steps", "3", "--repeats", "11", "--out", str(tmp_path / "p.onnx")])
    report = json.loads(capsys.readouterr().out)
    assert report["difference"] <= 1e-5 and report["units"] == "task" and report["act_steps"] == 2
    assert [row["repeats"] for row in report["latency"]] == [11, 11] and all(
        row["cpu"] > 0 for row in report["latency"]
    )
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "p.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["env_name"] == "reach"
    assert [x.name for x in session.get_inputs()] == ["state", "noise"] and session.get_outputs()[0].name == "actions"
    inputs = {"state": np.zeros((5, 1, DO), np.float32), "noise": np.zeros((5, 4, TA, DA), np.float32)}
    assert session.run(None, inputs)[0].shape == (5, TA, DA)


def test_other_formats_from_the_command_line(tmp_path, capsys):
    payload = {"kind": "finetune", "itr": 3, "model": files.finetuned()["model"], "normalizer": SCALE.to_dict()}
    path = tmp_path / "state_3.pt"
    checkpoint.save(path, payload | {"config": {"model": FINETUNED, "obs_dim": DO}})
    export_policy.main(["--to", "safetensors", str(path)])
    export_policy.main(["--to", "published", str(path)])
    said = capsys.readouterr().out
    back = checkpoint.load_policy(tmp_path / "state_3")
    assert str(tmp_path / "state_3") in said and back.normalizer == SCALE
    assert list(torch.load(tmp_path / "state_3_published.pt", weights_only=True)) == ["itr", "model"]
    assert Normalizer.load(tmp_path / "normalization.npz") == SCALE
    export_policy.main(["--to", "published", str(tmp_path / "state_3"), "--out", str(tmp_path / "again.pt")])
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("state_3_published.pt", "again.pt"))
    assert one["itr"] == two["itr"] and all(torch.equal(x, two["model"][key]) for key, x in one["model"].items())


def test_mistakes_are_said(tmp_path, capsys, monkeypatch):
    path = put(tmp_path, files.pretrained())
    for arguments, said in (
        (["--to", "onnx", str(tmp_path / "none.pt")], "no such checkpoint"),
        (["--to", "onnx", str(path)], "carries no configuration"),
        (["--to", "safetensors", str(path), "--config", str(path)], "expected the configuration of a policy"),
    ):
        with pytest.raises(SystemExit) as stop:
            export_policy.main(arguments)
        assert stop.value.code == 2 and said in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"onnxscript is not installed.*\[export\]"):
        export.export_onnx(export.Sampler(policy(PRETRAINED)), tmp_path / "p.onnx")


def test_an_export_that_differs_fails_unless_float32_cannot_tell(tmp_path, capsys, monkeypatch):
    """The verdict, with runs that differ by a known amount from a policy whose rounding is known."""
    path = put(tmp_path, files.pretrained())
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"model": PRETRAINED}))
    monkeypatch.setattr(export, "export_torch", lambda *_: None)
    arguments = ["--to", "torch_export", str(path), "--repeats", "0"]

    def difference(by: float) -> None:
        policy = checkpoint.load_policy(path)
        monkeypatch.setattr(
            export, "torch_module", lambda _: lambda inputs: export.in_evaluation(policy)(inputs) + np.float64(by)
        )

    difference(9e-6)
    export_policy.main(arguments)
    assert "agrees" in capsys.readouterr().out
    difference(1.1e-5)  # with these random weights DDPM's first step magnifies rounding a thousandfold
    export_policy.main(arguments)
    assert "up to twice that is allowed" in capsys.readouterr().out
    difference(1e-3)
    with pytest.raises(SystemExit) as stop:
        export_policy.main(arguments)
    assert stop.value.code == 1 and "DOES NOT AGREE" in capsys.readouterr().out
