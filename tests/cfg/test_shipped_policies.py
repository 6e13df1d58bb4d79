"""Every pre-trained policy in ``assets/policies`` is one that the fine-tuning leaves of its name start from, as those leaves stand."""

import pytest
import torch

from agent import checkpoint, images
from agent.agent import build
from agent.finetune.base_policy import _fits, normalizer_of
from tests.cfg.test_configs import ROOT, composed

FOLDERS = sorted(p for p in (ROOT / "assets" / "policies").iterdir() if p.is_dir())


def leaf_of(name: str, method: str) -> str:
    task, img = name.removesuffix("_img"), "_img" if name.endswith("_img") else ""
    (leaf,) = (ROOT / "cfg").glob(f"*/finetune/{task}/{method}{img}.yaml")
    return str(leaf.relative_to(ROOT / "cfg"))


@pytest.mark.parametrize("method", ["two_cores", "two_cores_steer"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_the_leaves_of_its_name_start_from_it(folder, method):
    payload, cfg = checkpoint.load(folder), composed(leaf_of(folder.name, method))
    assert _fits(payload["config"], cfg) and images.mismatch(images.of_checkpoint(payload), cfg) is None
    policy = build(cfg.model)
    weights = checkpoint.weights(payload)
    policy.load_base(weights)  # strict: every key, every shape
    normalizer = normalizer_of(payload, cfg)
    assert len(normalizer.obs_min) == cfg.obs_dim and len(normalizer.action_min) == cfg.action_dim
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_they_are_there():
    assert {p.name for p in FOLDERS} >= {"square_img", "transport_img"}
