"""PPO on images: what is stored, what is encoded how often, the ratio under augmentation, accumulated gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent.finetune import ppo as ppo_module
from agent.finetune.ppo import PPO
from agent.finetune.rollout import EpisodeTracker, Rollout, collect, threads_for
from model.common.critic import ViTCritic
from model.common.vit import VitEncoder
from model.diffusion.diffusion_ppo import PPODiffusion
from model.diffusion.mlp_diffusion import VisionDiffusionMLP
from tests.agent.test_ppo import TRAIN, make_policy
from tests.agent.test_ppo import make_rollout as make_state_rollout
from tests.point_mass import PointMass

SIZE, N, S, K = (19, 23), 5, 7, 3
CFG = {"patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2}


def policy(cameras: int = 1) -> PPODiffusion:
    torch.manual_seed(0)
    eyes = [VitEncoder([3 * cameras, *SIZE], CFG) for _ in range(2)]
    actor = VisionDiffusionMLP(
        eyes[0], 2, 2, 2, time_dim=8, mlp_dims=[31, 31, 31], spatial_emb=11, num_img=cameras, residual_style=True
    )
    critic = ViTCritic(eyes[1], 2, [29, 29, 29], spatial_emb=13, num_img=cameras, residual_style=True)
    return PPODiffusion(
        actor, critic, horizon_steps=2, obs_dim=2, action_dim=2, denoising_steps=5, ft_denoising_steps=K
    )


def experience(policy: PPODiffusion, cameras: int = 1, venv: PointMass | None = None) -> Rollout:
    venv = venv or PointMass(N, 2, 11, image_size=SIZE, cameras=cameras)
    obs = venv.reset(0)
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    rollout = Rollout.allocate(S, N, tensors, (K + 1, 2, 2), "cpu")
    collect(policy, venv, obs, np.ones(N, bool), rollout, EpisodeTracker.start(N), torch.Generator().manual_seed(0))
    return rollout


def learner(policy: PPODiffusion, **train) -> PPO:
    return PPO(policy, {**TRAIN, "batch_size": 30, **train}, N, torch.Generator().manual_seed(1))


@pytest.fixture
def encodings(monkeypatch):
    """(encoder, images) of every call of a ViT."""
    calls = []
    forward = VitEncoder.forward

    def counted(self, images, flatten=False):
        calls.append((self, len(images)))
        return forward(self, images, flatten)

    monkeypatch.setattr(VitEncoder, "forward", counted)
    return calls


def test_a_rollout_keeps_bytes_and_copies_them_before_the_world_moves():
    class Redraws(PointMass):
        """Draws every image into the same memory."""

        def _obs(self):
            obs = super()._obs()
            if not hasattr(self, "canvas"):
                self.canvas = obs["rgb"].copy()
            self.canvas[:] = obs["rgb"]
            return {**obs, "rgb": self.canvas}

    one = experience(policy(2), 2)
    assert one.obs["rgb"].dtype == torch.uint8
    assert one.obs["rgb"].shape == (S, N, 1, 6, *SIZE)
    assert one.obs["rgb"].device.type == "cpu"
    assert len(one.obs["rgb"].flatten(0, 1).unique(dim=0)) > S  # the point moves
    two = experience(policy(2), venv=Redraws(N, 2, 11, image_size=SIZE, cameras=2))
    assert torch.equal(one.obs["rgb"], two.obs["rgb"])
    needed = Rollout.bytes_for(S, N, {"state": (1, 2), "rgb": (1, 6, *SIZE)}, (K + 1, 2, 2))
    assert sum(needed.values()) == one.n_bytes
    assert needed["images"] == S * N * 6 * SIZE[0] * SIZE[1]


@pytest.mark.parametrize(("augment", "whole"), [(False, None), (True, None), (False, False)])
def test_each_observation_of_a_minibatch_is_encoded_once(encodings, augment, whole):
    actor = policy()
    rollout = experience(actor)
    encodings.clear()
    learner(actor, augment=augment, whole_chains=whole, update_epochs=2).update(rollout, 0)
    by_actor = [n for encoder, n in encodings if encoder is actor.actor_ft.backbone]
    by_critic = [n for encoder, n in encodings if encoder is actor.critic.backbone]
    assert not [n for encoder, n in encodings if encoder is actor.network.backbone]  # the frozen base learns nothing
    chunks, minibatches = S * N, round(S * N * K / 30)
    check = [chunks]  # the self-check of the ratio
    old = [chunks] if augment else []
    if whole is None:
        assert by_actor == check + old + [
            len(x) for _ in range(2) for x in torch.arange(chunks).tensor_split(minibatches)
        ]
    else:
        assert len(by_actor) == 1 + 2 * minibatches
        assert max(by_actor[1:]) < 30  # of 30 pairs, some share their observation
    bootstrap = sum(len(index) for index, _ in rollout.final_obs)
    assert sum(by_critic) == chunks + bootstrap + 2 * chunks


def test_the_ratio_is_one_before_the_first_update_with_augmentation_too(monkeypatch):
    actor = policy()
    with torch.no_grad():
        actor.actor_ft.mlp_mean.layers[-2].weight.mul_(8)  # what it sees matters
    rollout = experience(actor)
    ratios = []
    objective = ppo_module.clipped_objective

    def recorded(log_ratio, advantages, clip):
        ratios.append(float(log_ratio.detach().abs().max()))
        return objective(log_ratio, advantages, clip)

    monkeypatch.setattr(ppo_module, "clipped_objective", recorded)
    images = rollout.obs["rgb"].clone()
    metrics = learner(actor, augment=True).update(rollout, 0)
    assert metrics["self_check/max_abs_log_ratio"] < 1e-4
    assert ratios[0] < 1e-4
    assert max(ratios[1:]) > 1e-3  # and it moves
    assert torch.equal(rollout.obs["rgb"], images)  # nothing was shifted in place

    # With the recorded log-probabilities (the published way) it would not be 1.
    fresh = policy()
    with torch.no_grad():
        fresh.actor_ft.mlp_mean.layers[-2].weight.mul_(8)
    algorithm = learner(fresh, augment=True)
    monkeypatch.setattr(algorithm, "_log_probs", lambda data, rows: data.log_probs)
    ratios.clear()
    algorithm.update(experience(fresh), 0)
    assert ratios[0] > 1e-2


def test_shifts_are_drawn_once_per_observation_and_rollout(monkeypatch):
    actor = policy()
    rollout, drawn, seen = experience(actor), [], []
    algorithm = learner(actor, augment=True, update_epochs=2)
    draw = algorithm.shifts.draw
    monkeypatch.setattr(algorithm.shifts, "draw", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    encode = actor.encode
    monkeypatch.setattr(
        actor, "encode", lambda obs: seen.append(obs["rgb"]) or encode(obs) if "rgb" in obs else encode(obs)
    )
    algorithm.update(rollout, 1)
    assert [x.shape for x in drawn] == [(S * N, 2)]
    pictures = torch.cat(seen[1:]).flatten(1).unique(dim=0)  # without the self-check of the ratio
    assert len(pictures) <= S * N  # the same in both epochs, and for the old log-probabilities
    assert not torch.equal(torch.cat(seen[1:2]), rollout.obs["rgb"].flatten(0, 1))


def steps_taken(state: bool = False, **train) -> tuple[list[torch.Tensor], dict[str, float]]:
    """By how much plain gradient descent moved every parameter in one epoch."""
    actor = make_policy() if state else policy()
    rollout = make_state_rollout(actor, PointMass(N, 2, 11), S)[0] if state else experience(actor)
    algorithm = learner(actor, update_epochs=1, max_grad_norm=None, **train)
    algorithm.actor_optimizer = torch.optim.SGD(actor.actor_parameters(), 0.01)
    algorithm.critic_optimizer = torch.optim.SGD(actor.critic_parameters(), 0.01)
    before = [p.detach().clone() for p in actor.parameters() if p.requires_grad]
    metrics = algorithm.update(rollout, 0)
    after = [p.detach() for p in actor.parameters() if p.requires_grad]
    return [b - a for a, b in zip(before, after, strict=True)], metrics


@pytest.mark.parametrize("state", [False, True])
def test_accumulated_gradients_are_those_of_the_whole(state):
    # 105 pairs of 35 chunks: one minibatch; or 4 of unequal size, one step
    whole, one = steps_taken(state, batch_size=105)
    parts, four = steps_taken(state, batch_size=27, grad_accumulate=4)
    assert one["updates"] == four["updates"] == 1
    assert sum(float(step.norm()) for step in whole) > 1e-3
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    separate, every = steps_taken(state, batch_size=27)
    assert every["updates"] == 4
    assert any(not torch.allclose(a, b, rtol=0.1, atol=1e-5) for a, b in zip(whole, separate, strict=True))


def gradients(**train) -> list[torch.Tensor]:
    """Of the actor at every optimiser step of one epoch, flat; the steps themselves are of length zero."""
    actor, found = make_policy(), []
    rollout, _ = make_state_rollout(actor, PointMass(N, 2, 11), S)
    algorithm = learner(actor, update_epochs=1, **train)
    algorithm.actor_optimizer = torch.optim.SGD(actor.actor_parameters(), 0.0)
    algorithm.actor_optimizer.register_step_pre_hook(
        lambda *_: found.append(torch.cat([p.grad.flatten().clone() for p in actor.actor_ft.parameters()]))
    )
    algorithm.update(rollout, 0)
    return found


def test_no_gradient_leaks_into_the_next_step():
    (whole,) = gradients(batch_size=105, max_grad_norm=None)
    first, second = gradients(batch_size=35, grad_accumulate=2, max_grad_norm=None)  # 70 and 35 of the same pairs
    torch.testing.assert_close((70 * first + 35 * second) / 105, whole, rtol=1e-3, atol=1e-6)
    assert float(whole.norm()) > 1e-3


def test_what_remains_of_an_epoch_makes_a_step_of_its_own():
    _, metrics = steps_taken(batch_size=27, grad_accumulate=3)
    assert metrics["updates"] == 2  # 3 + 1 minibatches
    _, metrics = steps_taken(batch_size=27, grad_accumulate=9)
    assert metrics["updates"] == 1


def test_whole_chains_cover_every_pair_once():
    actor = make_policy()
    rollout, _ = make_state_rollout(actor, PointMass(N, 2, 11), S)
    rows = torch.arange(S * N)[3:]
    data = ppo_module.Data({"state": None}, None, None, rollout.log_probs.flatten(0, 1))
    for whole in (True, False, None):
        pairs, chunks = learner(actor, whole_chains=whole)._minibatches(data, rows)
        assert len(pairs) == len(chunks) == round(len(rows) * K / 30)
        assert torch.cat(pairs).sort().values.tolist() == list(range(len(rows) * K))
        assert torch.cat(chunks).sort().values.tolist() == list(range(len(rows)))
        if whole:
            assert all((pair.view(-1, K) % K == torch.arange(K)).all() for pair in pairs)


def test_it_learns_from_pixels_what_the_goal_is_worth():
    """The critic's only way to know the goal is to look."""
    actor = policy()
    algorithm = learner(actor, batch_size=200, update_epochs=6, augment=False)
    venv = PointMass(40, 2, 16, image_size=SIZE, dense=True)
    obs = venv.reset(0)
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    rollout = Rollout.allocate(8, 40, tensors, (K + 1, 2, 2), "cpu")
    for iteration in range(8):
        g = torch.Generator().manual_seed(iteration)
        collect(actor, venv, venv.reset(iteration), np.ones(40, bool), rollout, EpisodeTracker.start(40), g)
        metrics = algorithm.update(rollout, iteration)
    assert metrics["explained_variance"] > 0.45, metrics


def test_images_use_every_thread():
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(5):
            assert torch.get_num_threads() == 1
        with threads_for(5, images=True):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(usual)
