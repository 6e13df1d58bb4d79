"""SAC, RLPD, Cal-QL and IBRL: each update rule against hand-worked numbers, and each on a bandit whose best action is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from agent.dataset.transitions import StitchedSequenceQLearningDataset
from agent.errors import UsageError
from agent.finetune.calql import CalQL
from agent.finetune.ibrl import IBRL
from agent.finetune.rlpd import RLPD
from agent.finetune.sac import SAC
from model.common.critic import CriticObsAct
from model.common.mlp_gaussian import Gaussian_MLP
from model.rl.gaussian_calql import CalQL_Gaussian
from model.rl.gaussian_ibrl import IBRL_Gaussian
from model.rl.gaussian_rlpd import RLPD_Gaussian
from model.rl.gaussian_sac import SAC_Gaussian
from tests.agent.test_diffusion_rl import FINAL, REWARDS, STATES, TARGETS, TERMINATED, TRUNCATED, rollout_of

TA, DA = 2, 1
KINDS = {
    "sac": (SAC, SAC_Gaussian),
    "rlpd": (RLPD, RLPD_Gaussian),
    "calql": (CalQL, CalQL_Gaussian),
    "ibrl": (IBRL, IBRL_Gaussian),
}
SCHEDULE = {"first_cycle_steps": 1000, "warmup_steps": 0, "min_lr": 1e-4}
TRAIN = {
    "actor_lr": 3e-3, "actor_lr_scheduler": SCHEDULE, "critic_lr": 3e-3, "critic_lr_scheduler": SCHEDULE, "gamma": 0.5, "buffer_size": 3000,
    "batch_size": 40, "n_step_returns": 1, "scale_reward_factor": 1, "n_explore_steps": 0, "target_ema_rate": 0.05, "init_temperature": 0.1,
    "target_entropy": None, "automatic_entropy_tuning": True, "critic_replay_ratio": 40, "actor_replay_ratio": 20, "critic_num_update": 2,
    "update_freq": 2, "train_online": True, "num_update": 5, "online_utd_ratio": 1, "n_random_actions": 4,
}  # fmt: skip


class Plain(nn.Module):
    """``Q_k = s + slope x sum of a + k``, of ``heads`` heads."""

    def __init__(self, heads: int = 2, slope: float = 0.0) -> None:
        super().__init__()
        self.heads, self.slope = heads, nn.Parameter(torch.tensor(slope))

    def forward(self, obs, actions):
        q = obs["state"].flatten(1)[:, 0] + self.slope * actions.sum(dim=(1, 2))
        return tuple(q + k for k in range(self.heads))

    def reset_parameters(self):
        """An ensemble's members are alike here."""


@pytest.fixture
def offline(tmp_path):
    return demonstrations(tmp_path / "train.npz")


def demonstrations(path, reward=lambda a: np.zeros(len(a))):
    """60 trajectories of one chunk each, at state 0, that end with a terminal."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (120, 1)).astype(np.float32)
    terminals = np.tile([False, True], 60)
    arrays = {
        "states": np.zeros((120, 1), np.float32),
        "actions": actions,
        "traj_lengths": np.full(60, 2),
        "terminals": terminals,
    }
    np.savez(path, rewards=reward(actions[:, 0]).astype(np.float32), **arrays)
    return StitchedSequenceQLearningDataset(path, horizon_steps=TA, discount_factor=0.5, get_mc_return=True)


def policy_of(kind: str, critic: nn.Module | None = None, **more):
    torch.manual_seed(0)
    fixed = (
        {"fixed_std": 0.3, "tanh_output": True}
        if kind == "ibrl"
        else {"tanh_output": False, "std_min": 0.0067, "std_max": 7.4}
    )
    actor = Gaussian_MLP(DA, TA, 1, mlp_dims=[31, 31], **fixed)
    single = kind in ("rlpd", "ibrl")
    critic = critic or CriticObsAct(1, [29, 29], DA, TA, double_q=not single)
    return KINDS[kind][1](actor, critic, TA, **more)


def algorithm_of(kind: str, policy, n_envs: int = 3, offline=None, **train):
    extra = {} if kind == "sac" else {"offline": offline}
    return KINDS[kind][0](policy, {**TRAIN, **train}, n_envs, torch.Generator().manual_seed(0), **extra)


def filled(algorithm):
    """With six chunks in the buffer, and nothing learned yet."""
    rollout, final = rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED), np.asarray(FINAL, np.float32)
    for s in range(2):
        _keep(algorithm, rollout, s, {"state": final[s].reshape(-1, 1, 1)})
    return algorithm, algorithm.replay.gather(np.flatnonzero(algorithm.replay.arrays["usable"]), 0.5)


def _keep(algorithm, rollout, s, final) -> None:
    """``observe`` without learning."""
    learn, algorithm.learn_step = algorithm.learn_step, lambda: None
    algorithm.observe(rollout, s, final)
    algorithm.learn_step = learn


def by_state(batch, values) -> dict[float, float]:
    return dict(zip(batch.obs["state"].flatten().tolist(), values.tolist(), strict=True))


def test_sac_target_is_soft_only_where_there_is_a_future():
    """``r + discount (min Q' - alpha log pi)``, with Q' = s: the hand-worked targets less the discounted entropy term."""
    policy = policy_of("sac", Plain())
    algorithm, batch = filled(algorithm_of("sac", policy, init_temperature=0.2))
    algorithm.generator.manual_seed(5)
    _, log_prob = policy.sample_with_log_prob(batch.next_obs, torch.Generator().manual_seed(5))
    expected = {
        state: target - d * 0.2 * p
        for (state, target), d, p in zip(sorted(TARGETS.items()), *_sorted(batch, log_prob), strict=True)
    }
    assert by_state(batch, algorithm.soft_target(batch)) == pytest.approx(expected, rel=1e-5)
    assert expected[10.0] == TARGETS[10.0]  # terminated: no value, and no entropy either


def _sorted(batch, log_prob):
    order = batch.obs["state"].flatten().argsort()
    return batch.discounts[order].tolist(), log_prob.detach()[order].tolist()


def test_log_probabilities_of_squashed_actions_are_densities():
    """They integrate to one: the mean of 1 / density over draws is the size of the space."""
    torch.manual_seed(0)
    policy = SAC_Gaussian(Gaussian_MLP(1, 1, 1, mlp_dims=[5], fixed_std=0.8, tanh_output=False), Plain(), 1)
    obs = {"state": torch.zeros(1, 1, 1)}
    actions, log_prob = policy.sample_with_log_prob(obs, torch.Generator().manual_seed(0), n=40000)
    inside = actions.abs().flatten() < 0.9
    assert float((inside / log_prob.detach().exp()).mean()) == pytest.approx(1.8, rel=0.03)
    assert float(policy.sample(obs, deterministic=True).trajectories) == pytest.approx(
        float(policy.network(obs)[0].tanh())
    )


def test_sac_actor_and_temperature_steps(offline):
    policy = policy_of("sac", Plain(slope=1.0))
    algorithm, batch = filled(algorithm_of("sac", policy))
    before = policy.sample(batch.obs, deterministic=True).trajectories.mean()
    warm = float(algorithm.alpha)
    for _ in range(30):
        algorithm.learn_actor(batch.obs)
    assert policy.sample(batch.obs, deterministic=True).trajectories.mean() > before + 0.05  # up the slope
    _, log_prob = policy.sample_with_log_prob(batch.obs, algorithm.generator)
    assert algorithm.target_entropy == -TA * DA
    rises = -log_prob.mean() < algorithm.target_entropy
    assert (float(algorithm.alpha) > warm) == bool(rises)


def test_sac_minibatches_per_step():
    algorithm, _ = filled(algorithm_of("sac", policy_of("sac"), critic_replay_ratio=80, actor_replay_ratio=10))
    calls = []
    algorithm.step = lambda name, loss: calls.append(name)
    for steps in range(1, 9):
        algorithm.steps = steps
        algorithm.learn_step()
    assert calls.count("critic") == 16 and calls.count("actor") == 8  # twice a step; four at a time, every four steps


def test_exploration_is_random_at_first_and_then_learns():
    algorithm, _ = filled(algorithm_of("sac", policy_of("sac"), n_explore_steps=3))
    assert algorithm.steps == 2 and algorithm.exploring
    noise, obs = torch.zeros(2000, *algorithm.policy.noise_shape), {"state": torch.zeros(2000, 1, 1)}
    drawn = algorithm.act(obs, noise).trajectories
    assert (
        drawn.shape == (2000, TA, DA)
        and abs(float(drawn.mean())) < 0.05
        and float(drawn.std()) == pytest.approx(1 / math.sqrt(3), rel=0.05)
    )
    algorithm.steps = 3
    assert torch.allclose(
        algorithm.act(obs, noise).trajectories[0],
        algorithm.policy.sample({"state": torch.zeros(1, 1, 1)}).trajectories[0],
    )


def test_rlpd_asks_two_members_and_mixes_halves(offline):
    policy = policy_of("rlpd", n_critics=5)
    algorithm, batch = filled(algorithm_of("rlpd", policy, offline=offline))
    values, seen = policy.target_networks(batch.next_obs, batch.actions), set()
    draw = policy.draw_members
    for _ in range(60):
        policy.draw_members = lambda g: seen.add(drawn := tuple(sorted(draw(g).tolist()))) or torch.tensor(drawn)
        found = algorithm.next_value(batch.next_obs, batch.actions)
    policy.draw_members = lambda g: torch.tensor([3, 1])
    found = algorithm.next_value(batch.next_obs, batch.actions)
    assert torch.allclose(found, torch.minimum(values[1], values[3])) and len(seen) == 10  # all pairs of different ones
    taken = []
    algorithm.step = lambda name, loss: taken.append(name)
    sample = algorithm.replay.sample
    algorithm.replay.sample = lambda n, *more: taken.append(n) or sample(n, *more)
    algorithm.learn_step()
    assert taken == [20, "critic", 20, "critic", "actor", "temperature"]  # 20 of 40 are demonstrations
    with pytest.raises(UsageError, match="train.n_step_returns: with demonstrations only 1"):
        algorithm_of("rlpd", policy, offline=offline, n_step_returns=3)


def test_rlpd_members_stay_apart(offline):
    policy = policy_of("rlpd", n_critics=4)
    algorithm, batch = filled(algorithm_of("rlpd", policy, offline=offline))
    for _ in range(20):
        algorithm.learn_step()
    assert torch.pdist(policy.critic_networks(batch.obs, batch.actions)).min() > 1e-3


def test_ibrl_target_takes_the_better_proposal(offline):
    """Q' = s + slope sum a: the cloned policy is told to propose -1, the other +1; the better one counts, discounted, if there is a future."""
    policy = policy_of("ibrl", Plain(heads=1, slope=2.0), n_critics=3)
    policy.propose = lambda network, obs, z=None: torch.full(
        (len(obs["state"]), TA, DA), -1.0 if network is policy.bc_policy else 0.5
    )
    algorithm, batch = filled(algorithm_of("ibrl", policy, offline=offline))
    expected = {
        s: t + d * 2 * 0.5 * TA
        for (s, t), d in zip(sorted(TARGETS.items()), _sorted(batch, batch.rewards)[0], strict=True)
    }
    assert by_state(batch, algorithm.target(batch)) == pytest.approx(expected)
    noise = torch.zeros(6, *policy.noise_shape)
    assert torch.equal(policy.sample(batch.obs, True, noise).trajectories, torch.full((6, TA, DA), 0.5))
    with torch.no_grad():
        policy.critic_networks.slope.mul_(-1)  # what acts is what is trained: now the cloned proposal is the better one
    assert torch.equal(policy.sample(batch.obs, True, noise).trajectories, torch.full((6, TA, DA), -1.0))


def test_ibrl_draws_between_proposals_by_softmax():
    policy = policy_of(
        "ibrl", Plain(heads=1, slope=1.0), n_critics=2, soft_action_sample=True, soft_action_sample_beta=0.5
    )
    policy.propose = lambda network, obs, z=None: torch.full(
        (len(obs["state"]), TA, DA), 0.0 if network is policy.bc_policy else 0.7
    )
    obs, noise = (
        {"state": torch.zeros(8000, 1, 1)},
        torch.randn(8000, *policy.noise_shape, generator=torch.Generator().manual_seed(1)),
    )
    chosen = policy.sample(obs, False, noise).trajectories[:, 0, 0] > 0.5
    assert float(chosen.float().mean()) == pytest.approx(1 / (1 + math.exp(-0.5 * 1.4)), abs=0.02)


def test_ibrl_keeps_its_base_and_acts_without_dropout(offline):
    torch.manual_seed(0)
    actor = Gaussian_MLP(DA, TA, 1, mlp_dims=[31, 31], fixed_std=0.3, dropout=0.5)
    policy = IBRL_Gaussian(actor, CriticObsAct(1, [29], DA, TA, double_q=False), TA, n_critics=2)
    assert policy.network.training and not policy.bc_policy.training and not policy.target_actor.training
    algorithm, batch = filled(algorithm_of("ibrl", policy, offline=offline))
    base = {key: value.clone() for key, value in policy.bc_policy.state_dict().items()}
    for _ in range(4):
        algorithm.steps += 1
        algorithm.learn_step()
    assert all(torch.equal(value, base[key]) for key, value in policy.bc_policy.state_dict().items())
    assert not torch.equal(
        policy.network.mlp_mean.moduleList[0][0].weight, base["mlp_mean.moduleList.0.linear_1.weight"]
    )
    one, two = (algorithm.act(batch.obs, torch.zeros(6, *policy.noise_shape)).trajectories for _ in range(2))
    assert torch.equal(one, two) and policy.network.training


def test_calql_target_is_the_best_draw(offline):
    policy = policy_of("calql", Plain(slope=1.0), cql_n_actions=3)
    algorithm, batch = filled(algorithm_of("calql", policy, offline=offline, init_temperature=0.2))
    algorithm.generator.manual_seed(5)
    actions, log_prob = policy.sample_with_log_prob(batch.next_obs, torch.Generator().manual_seed(5), 3)
    sums, log_prob = actions.sum(dim=(1, 2)).view(3, 6), log_prob.view(3, 6)
    best = sums.argmax(dim=0)
    extra = (sums.gather(0, best[None]) - 0.2 * log_prob.gather(0, best[None]))[0]
    expected = {
        s: TARGETS[s] + d * e
        for s, d, e in zip(batch.obs["state"].flatten().tolist(), batch.discounts.tolist(), extra.tolist(), strict=True)
    }
    assert by_state(batch, algorithm.target(batch)) == pytest.approx(expected, rel=1e-5)


def test_calql_conservative_term_by_hand(offline, monkeypatch):
    """Constant Q = s (+1): logsumexp over 2 uniform actions of log density 2 log 1/2, and 3 own ones of log density -1, raised to the return."""
    policy = policy_of("calql", Plain(), cql_n_actions=3)
    algorithm, batch = filled(algorithm_of("calql", policy, offline=offline, n_random_actions=2))
    monkeypatch.setattr(
        policy, "sample_with_log_prob", lambda obs, g, n: (torch.zeros(n * 6, TA, DA), torch.full((n * 6,), -1.0))
    )
    states = batch.obs["state"].flatten()
    returns = torch.where(states == 21, 25.0, -math.inf)  # only one knows its return, and it is higher than its value
    batch = batch._replace(returns=returns)
    expected = 0.0
    for k in (0, 1):
        for s in states.tolist():
            q, own = s + k, max(s + k, 25.0 if s == 21 else -math.inf)
            scores = [q - 2 * math.log(0.5)] * 2 + [own + 1] * 3
            expected += (math.log(sum(math.exp(x - q) for x in scores)) + q - q) / 6
    assert float(algorithm.conservative(batch, policy.values(batch.obs, batch.actions)).detach()) == pytest.approx(
        expected, rel=1e-5
    )


def test_calql_knows_the_returns_of_episodes_that_ended(offline):
    _, batch = filled(algorithm_of("calql", policy_of("calql"), offline=offline))
    assert by_state(batch, batch.returns) == {
        10.0: 1.0,
        20.0: 2 + 0.5 * 5,
        21.0: 5.0,
        30.0: -math.inf,
        31.0: -math.inf,
        70.0: -math.inf,
    }


def test_calql_off_line_collects_nothing(offline):
    algorithm = algorithm_of("calql", policy_of("calql"), offline=offline, train_online=False)
    assert not algorithm.collects(0)
    metrics = algorithm.update(None, 0)
    assert {"loss/critic", "loss/actor", "loss/td", "loss/conservative"} <= metrics.keys()
    offline.returns = None
    with pytest.raises(UsageError, match="offline_dataset.get_mc_return"):
        algorithm_of("calql", policy_of("calql"), offline=offline)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rewarded_action_is_learned(kind, tmp_path):
    """A bandit: the reward of a chunk is the sum of its actions, the demonstrations' are uniform; exploring around 0 at first, it goes up."""
    offline = demonstrations(tmp_path / "train.npz", lambda a: a)
    policy = policy_of(kind, **({"cql_n_actions": 3, "cql_min_q_weight": 0.3} if kind == "calql" else {}))
    algorithm = algorithm_of(
        kind, policy, 5, offline, init_temperature=0.02, target_entropy=-3, actor_lr=1e-2, critic_lr=1e-2
    )
    obs, g = {"state": torch.zeros(5, 1, 1)}, torch.Generator().manual_seed(1)
    for iteration in range(8):
        rollout = rollout_of(torch.zeros(20, 5), torch.zeros(20, 5), torch.ones(20, 5), torch.zeros(20, 5))
        for s in range(20):
            acts = algorithm.act(obs, torch.randn(5, *policy.noise_shape, generator=g)).trajectories.clamp(-1, 1)
            rollout.chains[s, :, 0], rollout.rewards[s] = acts, acts.sum(dim=(1, 2))
            algorithm.observe(rollout, s, {"state": np.zeros((5, 1, 1), np.float32)})
        metrics = algorithm.update(rollout, iteration)
    assert np.isfinite(list(metrics.values())).all()
    policy.eval()
    found = policy.sample({"state": torch.zeros(1, 1, 1)}, True, torch.zeros(1, *policy.noise_shape)).trajectories
    assert float(found.min()) > 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_it_goes_on_alike(kind, offline):
    results = []
    for cut in (False, True):
        algorithm, _ = filled(algorithm_of(kind, policy_of(kind), offline=offline))
        rollout = rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED)
        for iteration in range(3):
            for s in range(2):
                algorithm.observe(rollout, s, {"state": np.asarray(FINAL[s], np.float32).reshape(-1, 1, 1)})
            algorithm.update(rollout, iteration)
            if cut and iteration == 0:
                weights, state, numbers = (
                    algorithm.policy.state_dict(),
                    algorithm.state_dict(),
                    algorithm.generator.get_state(),
                )
                algorithm = algorithm_of(kind, policy_of(kind), offline=offline)
                algorithm.policy.load_state_dict(weights)
                algorithm.load_state_dict(state)
                algorithm.generator.set_state(numbers)
        results.append(algorithm.policy.state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
