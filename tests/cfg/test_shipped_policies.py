"""Every pre-trained policy in ``assets/policies`` is one that the fine-tuning leaves of its name start from, as those leaves stand."""

import pytest
import torch

from agent import checkpoint, images
from agent.agent import build
from agent.finetune.base_policy import _fits, normalizer_of
from tests.cfg.test_configs import ROOT, composed

FOLDERS = sorted(p for p in (ROOT / "assets" / "policies").iterdir() if p.is_dir())


def leaves_of(name: str) -> list[str]:
    task, img = name.removesuffix("_img"), "_img" if name.endswith("_img") else ""
    methods = ("two_cores", "two_cores_steer")
    if task == "transport_100":  # of fewer demonstrations: tuned through the chain
        task, methods = "transport", ("two_cores",)
    found = [path for method in methods for path in (ROOT / "cfg").glob(f"*/finetune/{task}/{method}{img}.yaml")]
    assert any(methods[-1] in path.name for path in found), name
    return [str(path.relative_to(ROOT / "cfg")) for path in found]


@pytest.mark.parametrize(
    ("folder", "leaf"), [(folder, leaf) for folder in FOLDERS for leaf in leaves_of(folder.name)], ids=str
)
def test_the_leaves_of_its_name_start_from_it(folder, leaf):
    payload, cfg = checkpoint.load(folder), composed(leaf)
    assert _fits(payload["config"], cfg) and images.mismatch(images.of_checkpoint(payload), cfg) is None
    policy = build(cfg.model)
    weights = checkpoint.weights(payload)
    policy.load_base(weights)  # strict: every key, every shape
    normalizer = normalizer_of(payload, cfg)
    assert len(normalizer.obs_min) == cfg.obs_dim and len(normalizer.action_min) == cfg.action_dim
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_they_are_there():
    assert {p.name for p in FOLDERS} >= {
        "square_img",
        "transport_img",
        "transport",
        "transport_100",
        "one_leg_low",
        "lamp_low",
        "round_table_low",
    }
