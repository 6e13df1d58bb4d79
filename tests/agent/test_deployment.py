"""A checkpoint on a robot says what an evaluation of it says, and knows what it sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent.deployment import LocalPolicy
from agent.errors import CheckpointError, UsageError
from agent.eval import evaluate
from env.normalizer import NormalizedVectorEnv, Normalizer
from tests.agent import deployable

KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return deployable.lift(tmp_path_factory.mktemp("policy") / "state_1.pt")


def test_it_knows_what_the_checkpoint_was_trained_on(path, tmp_path):
    policy = LocalPolicy(path, device="cpu")
    assert (policy.act_steps, policy.horizon_steps, policy.action_dim, policy.max_episode_steps) == (4, 4, 7, 300)
    assert policy.spec.task == "lift" and policy.spec.low_dim_keys == KEYS and policy.spec.cameras == ()
    assert policy.spec.render_quality is policy.spec.renderer is None and policy.normalizer == deployable.SCALE
    seeing = deployable.write(
        tmp_path / "state_1.pt",
        "robomimic/pretrain/lift/pre_diffusion_mlp_img",
        *("cond_steps=2", "img_cond_steps=2", "denoising_steps=5", "model.network.mlp_dims=[17,17,17]"),
        scale=Normalizer(-np.ones(9), np.ones(9), -np.ones(7), np.ones(7)),
        extra={"images": {"render_quality": "fast", "cameras": ["robot0_eye_in_hand"], "image_size": [96, 96]}},
    )
    spec = LocalPolicy(seeing, device="cpu").spec
    assert spec.cameras == ("robot0_eye_in_hand",) and spec.image_size == (96, 96) and spec.low_dim_keys == KEYS[:3]
    assert (spec.state_steps, spec.image_steps, spec.render_quality, spec.renderer) == (2, 2, "fast", "gl")


class Asked:
    """A ``VectorEnv`` of one state that keeps what it is told."""

    n_envs, act_steps, action_dim, max_episode_steps = 1, 4, 7, 12
    obs_shapes = {"state": (1, 19)}

    def __init__(self):
        self.seed, self.told, self.rng = -1, [], np.random.default_rng(0)

    def seeds(self):
        return np.array([self.seed])

    def reset(self, seeds):
        self.seed = seeds[0]
        return self.obs()

    def obs(self):
        self.shown = self.rng.uniform(-1, 1, (1, 1, 19)).astype(np.float32)
        return {"state": self.shown}

    def step(self, chunk):
        from env.protocol import StepResult

        self.told.append((self.shown[0], chunk[0].copy()))
        over = np.array([len(self.told) == 3])
        info = {"active": np.array([True]), "steps": np.array([4]), "invalid": ~np.array([True])}
        self.seed = -1 if over[0] else self.seed
        return StepResult(self.obs(), np.zeros(1), ~np.array([True]), over, {"state": self.shown}, over, info)


def test_it_says_what_an_evaluation_of_the_same_seed_says(path):
    policy, venv = LocalPolicy(path, device="cpu"), Asked()
    evaluate(policy._policy, NormalizedVectorEnv(venv, policy.normalizer), seeds=[2000005])
    for _ in range(2):  # and again, after a reset
        policy.reset(2000005)
        for shown, told in venv.told:
            said = policy({"state": policy.normalizer.normalize_obs(shown)})
            assert said.shape == (4, 7) and np.abs(said).max() <= 1.0
            np.testing.assert_allclose(policy.normalizer.unnormalize_action(said), told, atol=1e-6)
    policy.reset(2000006)
    other = policy({"state": policy.normalizer.normalize_obs(venv.told[0][0])})
    assert np.abs(policy.normalizer.unnormalize_action(other) - venv.told[0][1]).max() > 0.01
    assert len(venv.told) == 3 and torch.is_grad_enabled()


def test_fewer_denoising_steps_and_other_chunks(path):
    quick = LocalPolicy(path, device="cpu", ddim_steps=2, act_steps=3)
    assert quick.act_steps == 3
    shown = {"state": np.full((1, 19), 0.1, np.float32)}
    quick.reset(3)
    whole = LocalPolicy(path, device="cpu")
    whole.reset(3)
    assert np.abs(quick(shown) - whole(shown)).max() > 1e-3


def test_what_is_refused(path, tmp_path):
    with pytest.raises(CheckpointError, match=r"act_steps: expected 1 to horizon_steps \(4\), found 5"):
        LocalPolicy(path, device="cpu", act_steps=5)
    with pytest.raises(UsageError, match="device"):
        LocalPolicy(path, device="tpu")
    bare = deployable.lift(tmp_path / "bare.pt", scale=None)
    with pytest.raises(CheckpointError, match="normalization_path"):
        LocalPolicy(bare, device="cpu")
    assert LocalPolicy(bare, device="cpu", normalizer=deployable.SCALE).normalizer == deployable.SCALE
    hopper = deployable.write(
        tmp_path / "hopper.pt",
        "gym/pretrain/hopper-medium-v2/pre_diffusion_mlp",
        scale=Normalizer(-np.ones(11), np.ones(11), -np.ones(3), np.ones(3)),
    )
    with pytest.raises(CheckpointError, match="robomimic"):
        LocalPolicy(hopper, device="cpu")
