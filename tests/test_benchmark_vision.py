"""The straightforward image network of the benchmark: the same numbers as ours, at the cost it is there to show."""

from __future__ import annotations

import pytest
import torch

from model.common.modules import shift_images
from script.bench import reference_vision
from script.bench.registry import Context, discover
from script.bench.rows import vision


@pytest.fixture(scope="module")
def pair():
    return vision.networks(3)


def test_both_networks_compute_the_same(pair):
    ours, theirs = pair
    obs = vision.observations(5, 0)
    x, t = vision.uniform(5, 1), torch.tensor([0, 7, 99, 3, 50])
    torch.testing.assert_close(ours(x, t, obs), theirs(x, t, vision.as_floats(obs)), rtol=1e-4, atol=1e-5)


def test_both_policies_sample_the_same_and_only_one_encodes_per_step(pair):
    obs, calls = vision.observations(2, 0), []
    for make in (vision.make_pretrained, vision.make_finetuned):
        policies = make(*pair)
        noise, chunks = torch.randn(2, *policies[0].noise_shape), []
        for policy, rgb in zip(policies, (obs, vision.as_floats(obs)), strict=True):
            network = getattr(policy, "actor_ft", policy.network)
            handle = network.backbone.register_forward_hook(lambda *_: calls.append(None))
            chunks.append(policy.sample(rgb, noise=noise).trajectories)
            handle.remove()
            assert len(calls) == (1 if policy is policies[0] else vision.DDIM)
            calls.clear()
        torch.testing.assert_close(*chunks, rtol=1e-3, atol=1e-4)


def test_the_straightforward_shift_is_a_shift(monkeypatch):
    images = vision.observations(3, 0)["rgb"][:, 0]
    monkeypatch.setattr(torch, "randint", lambda *a, **k: torch.tensor([[0, 8], [4, 4], [5, 1]]).view(3, 1, 1, 2))
    moved = reference_vision.random_shift(images.float())
    expected = shift_images(images, torch.tensor([[-4, 4], [0, 0], [3, -1]]))  # columns first there, rows first here
    torch.testing.assert_close(moved, expected.float(), rtol=0, atol=0.05)


def test_the_rows_are_registered_and_yield(monkeypatch):
    assert "vision" in discover()
    monkeypatch.setattr(vision, "BATCH", 3)
    monkeypatch.setattr(vision, "N_ENVS", 2)
    figures = list(vision.vision(Context(repeats=1, scale=0.05)))
    assert [figure.bar for figure in figures if figure.bar] == [3.0] * 4 + [4.0]
    assert figures[-1].ratio == 4.0
    assert {figure.repeats for figure in figures} == {1}
