"""The PPO update: its objective against plain arithmetic, its guards, and that it learns."""

import math

import numpy as np
import pytest
import torch

from agent.errors import UsageError
from agent.finetune.objective import clipped_objective, value_objective
from agent.finetune.ppo import PPO
from agent.finetune.reward_scaling import RunningRewardScaler
from agent.finetune.rollout import EpisodeTracker, Rollout, collect, to_torch
from model.common.critic import CriticObs
from model.diffusion.diffusion_ppo import PPODiffusion
from model.diffusion.mlp_diffusion import DiffusionMLP
from tests.point_mass import PointMass

TRAIN = {
    "actor_lr": 1e-3,
    "actor_weight_decay": 0,
    "actor_lr_scheduler": {"first_cycle_steps": 100, "warmup_steps": 0, "min_lr": 1e-3},
    "critic_lr": 3e-3,
    "critic_weight_decay": 0,
    "critic_lr_scheduler": {"first_cycle_steps": 100, "warmup_steps": 0, "min_lr": 3e-3},
    "eta_lr": 1e-3,
    "eta_weight_decay": 0,
    "gamma": 0.95,
    "gae_lambda": 0.95,
    "reward_scale_running": False,
    "reward_scale_const": 0.1,
    "n_critic_warmup_itr": 0,
    "batch_size": 211,
    "update_epochs": 3,
    "vf_coef": 0.5,
    "target_kl": None,
    "max_grad_norm": 1.0,
}


def make_policy(k: int = 3, **settings) -> PPODiffusion:
    torch.manual_seed(0)
    actor = DiffusionMLP(
        action_dim=2, horizon_steps=2, cond_dim=4, time_dim=8, mlp_dims=(31, 31, 31), residual_style=True
    )
    critic = CriticObs(cond_dim=4, mlp_dims=(29, 29, 29), residual_style=True)
    return PPODiffusion(
        actor, critic, horizon_steps=2, obs_dim=4, action_dim=2, denoising_steps=5, ft_denoising_steps=k, **settings
    )


def make_rollout(policy: PPODiffusion, venv: PointMass, n_steps: int, seed: int = 0) -> tuple[Rollout, EpisodeTracker]:
    obs = venv.reset(seed)
    shape = (policy.n_chain_steps + 1, 2, 2)
    rollout = Rollout.allocate(n_steps, venv.n_envs, to_torch(obs, "cpu"), shape, "cpu")
    tracker = EpisodeTracker.start(venv.n_envs)
    collect(policy, venv, obs, np.ones(venv.n_envs, bool), rollout, tracker, torch.Generator().manual_seed(seed))
    return rollout, tracker


def test_clipped_objective_by_hand():
    # ratios 1.5, 0.5, 1.5, 0.5 with clip 0.2 and advantages +2, +2, -2, -2
    log_ratio = torch.tensor([1.5, 0.5, 1.5, 0.5]).log()
    loss, kl, clipped = clipped_objective(log_ratio, torch.tensor([2.0, 2.0, -2.0, -2.0]), torch.tensor(0.2))
    # minimum of (A r, A clip(r)): 2.4, 1.0, -3.0, -1.6
    assert math.isclose(float(loss), -(2.4 + 1.0 - 3.0 - 1.6) / 4, rel_tol=1e-6)
    assert math.isclose(float(kl), np.mean([0.5 - math.log(1.5), -0.5 - math.log(0.5)]), rel_tol=1e-6)
    assert float(clipped) == 1.0


def test_a_ratio_that_overflows_leaves_the_others_their_gradients():
    log_ratio = torch.tensor([200.0, 0.0], requires_grad=True)
    loss, _, _ = clipped_objective(log_ratio, torch.tensor([1.0, 2.0]), torch.tensor(0.2))
    loss.backward()
    assert log_ratio.grad.tolist() == [0.0, -1.0]  # clipped; -A / B


def test_value_objective_by_hand():
    values, returns, old = torch.tensor([3.0, 1.0]), torch.tensor([5.0, 5.0]), torch.tensor([0.0, 0.0])
    assert float(value_objective(values, returns, old, None)) == 0.5 * (4 + 16) / 2
    assert float(value_objective(values, returns, old, 0.5)) == 0.5 * (4.5**2 + 4.5**2) / 2


def test_reward_scaler_check_values_of_the_reference():
    scaler = RunningRewardScaler(2, gamma=0.99)
    rewards = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 4.0]])
    firsts = torch.tensor([[True, True], [False, False], [True, False]])
    scaled = scaler(rewards, firsts)
    expected = torch.tensor([[0.58103756, 0.0], [1.16207512, 0.0], [1.74311268, 2.32415024]])
    torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-6)
    assert abs(scaler.statistics.mean - 1.83163614) < 1e-6
    assert abs(scaler.statistics.var - 2.96204452) < 1e-6


def test_ratio_is_one_before_the_first_update_and_a_wrong_policy_is_found():
    policy = make_policy()
    rollout, _ = make_rollout(policy, PointMass(5), 7)
    metrics = PPO(policy, TRAIN, 5, torch.Generator().manual_seed(0)).update(rollout, 0)
    assert metrics["self_check/max_abs_log_ratio"] < 1e-5

    rollout, _ = make_rollout(policy, PointMass(5), 7)
    rollout.log_probs[3, 2, 1] += 0.1
    with pytest.raises(RuntimeError, match="importance ratio must be 1"):
        PPO(policy, TRAIN, 5, torch.Generator().manual_seed(0)).update(rollout, 0)


def test_warm_up_leaves_the_actor_alone_and_the_base_never_moves():
    policy = make_policy()
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    algorithm = PPO(policy, {**TRAIN, "n_critic_warmup_itr": 1}, 5, torch.Generator().manual_seed(0))
    moved = []
    for iteration in range(2):
        rollout, _ = make_rollout(policy, PointMass(5), 7, seed=iteration)
        algorithm.update(rollout, iteration)
        moved.append(
            {key.split(".")[0] for key, value in policy.state_dict().items() if not torch.equal(value, before[key])}
        )
    assert moved == [{"critic"}, {"critic", "actor_ft"}]


def test_kl_stop_ends_the_actors_updates(caplog):
    policy = make_policy()
    train = {
        **TRAIN,
        "actor_lr": 0.05,
        "actor_lr_scheduler": {**TRAIN["actor_lr_scheduler"], "min_lr": 0.05},
        "target_kl": 1e-4,
        "update_epochs": 50,
    }
    rollout, _ = make_rollout(policy, PointMass(5), 7)
    algorithm = PPO(policy, train, 5, torch.Generator().manual_seed(0))
    for _ in range(2):  # it is said once
        metrics = algorithm.update(rollout, 0)
        assert metrics["kl_stopped"] == 1
        assert metrics["updates"] < 10
    (said,) = (record.getMessage() for record in caplog.records)
    assert "lower train.actor_lr (now 0.05)" in said


def test_an_unstable_simulation_never_enters_an_update():
    policy = make_policy()
    venv = PointMass(5)
    venv.reset(0)
    bad_seed = int(venv.seeds()[2])
    rollout, tracker = make_rollout(policy, PointMass(5, broken=[bad_seed]), 7)
    assert tracker.summary()["train/invalid_episodes"] == 1
    assert not rollout.valid[0, 2]
    assert int((~rollout.valid).sum()) == 1  # the episode was cut in its first chunk; the next one in that slot is fine
    rollout.rewards[0, 2] = math.nan  # whatever an unstable simulation may report
    metrics = PPO(policy, TRAIN, 5, torch.Generator().manual_seed(0)).update(rollout, 0)
    assert math.isfinite(metrics["loss/value"])
    rollout.valid.fill_(False)
    with pytest.raises(UsageError, match="unstable"):
        PPO(policy, TRAIN, 5, torch.Generator().manual_seed(0)).update(rollout, 0)


def test_an_unknown_rule_for_time_limits_is_refused():
    with pytest.raises(UsageError, match=r"train\.time_limit: expected bootstrap or terminal, found 'never'"):
        PPO(make_policy(), {**TRAIN, "time_limit": "never"}, 5, torch.Generator())


def test_collect_bootstraps_from_the_episodes_own_last_observation():
    policy, venv = make_policy(), PointMass(3, act_steps=2, max_episode_steps=5)
    rollout, tracker = make_rollout(policy, venv, 7)
    # 5 control steps in chunks of 2: truncated at chunks 2 and 5, in every environment
    assert rollout.truncated.nonzero()[:, 0].tolist() == [2, 2, 2, 5, 5, 5]
    assert rollout.firsts.nonzero()[:, 0].tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    assert len(tracker.finished) == 6
    assert all(length == 5 for _, length, _ in tracker.finished)
    rows = {int(i): obs for index, last in rollout.final_obs for i, obs in zip(index, last["state"], strict=True)}
    assert sorted(rows) == [6, 7, 8, 15, 16, 17, 18, 19, 20]
    for env in range(3):
        own, following = rows[2 * 3 + env][0], rollout.obs["state"][3, env, 0]
        assert torch.equal(own[2:], rollout.obs["state"][2, env, 0, 2:])  # still the old goal
        assert not torch.equal(own[2:], following[2:])


def test_no_finished_episode_is_nan_not_zero():
    assert math.isnan(EpisodeTracker.start(3).summary()["train/success_rate"])


def test_ppo_learns_to_reach_the_goal():
    policy = make_policy(5, clip_ploss_coef=0.2, clip_ploss_coef_base=0.1)
    algorithm = PPO(policy, {**TRAIN, "batch_size": 500, "update_epochs": 5}, 40, torch.Generator().manual_seed(0))
    reached = []
    for iteration in range(25):
        rollout, tracker = make_rollout(
            policy, PointMass(40, act_steps=2, max_episode_steps=16, dense=True), 8, seed=iteration
        )
        algorithm.update(rollout, iteration)
        reached.append(tracker.summary()["train/episode_return"])
    assert np.mean(reached[-3:]) > np.mean(reached[:3]) + 4, reached


def test_actor_and_critic_may_have_traces_of_their_own(monkeypatch):
    learned = {}

    def recorded(self, data, rows, advantages, returns, values, learn_actor):
        learned[self.train["gae_lambda"], self.train.get("value_lambda")] = advantages, returns
        return {"updates": 0.0, "kl_stopped": 0.0}

    monkeypatch.setattr(PPO, "_epochs", recorded)
    for own in ((0.3, None), (0.9, None), (0.3, 0.9)):
        policy = make_policy()
        rollout, _ = make_rollout(policy, PointMass(5), 7)
        train = {**TRAIN, "gae_lambda": own[0], "value_lambda": own[1]}
        PPO(policy, train, 5, torch.Generator().manual_seed(0)).update(rollout, 0)
    torch.testing.assert_close(learned[0.3, 0.9][0], learned[0.3, None][0], rtol=0, atol=0)
    torch.testing.assert_close(learned[0.3, 0.9][1], learned[0.9, None][1], rtol=0, atol=0)
    assert not torch.allclose(learned[0.3, None][1], learned[0.9, None][1])
