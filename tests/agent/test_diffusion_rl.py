"""RWR, AWR, DIPO, DQL, IDQL and QSM: each update rule against hand-worked numbers, and each on a bandit whose best action is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from agent.errors import UsageError
from agent.finetune import dipo, idql, q_learning
from agent.finetune.awr import AWR
from agent.finetune.dipo import DIPO
from agent.finetune.dql import DQL
from agent.finetune.idql import IDQL, expectile_loss
from agent.finetune.preflight import check_memory
from agent.finetune.qsm import QSM
from agent.finetune.rollout import Rollout
from agent.finetune.rwr import RWR, exponential_weights, returns_to_go
from model.common.critic import CriticObs, CriticObsAct
from model.diffusion.diffusion_awr import AWRDiffusion
from model.diffusion.diffusion_dipo import DIPODiffusion
from model.diffusion.diffusion_dql import DQLDiffusion
from model.diffusion.diffusion_idql import IDQLDiffusion
from model.diffusion.diffusion_qsm import QSMDiffusion
from model.diffusion.diffusion_rwr import RWRDiffusion
from model.diffusion.mlp_diffusion import DiffusionMLP

N, TA, DA, DO = 3, 2, 1, 1
KINDS = {
    "rwr": (RWR, RWRDiffusion),
    "awr": (AWR, AWRDiffusion),
    "dipo": (DIPO, DIPODiffusion),
    "dql": (DQL, DQLDiffusion),
    "idql": (IDQL, IDQLDiffusion),
    "qsm": (QSM, QSMDiffusion),
}
SCHEDULE = {"first_cycle_steps": 1000, "warmup_steps": 0, "min_lr": 1e-4}
TRAIN = {
    "actor_lr": 3e-3, "actor_weight_decay": 0, "actor_lr_scheduler": SCHEDULE, "critic_lr": 3e-3, "critic_weight_decay": 0,
    "critic_lr_scheduler": SCHEDULE, "lr": 3e-3, "weight_decay": 0, "lr_scheduler": SCHEDULE, "gamma": 0.5, "gae_lambda": 0.9,
    "n_critic_warmup_itr": 0, "buffer_size": 300, "batch_size": 40, "replay_ratio": 4, "n_step_returns": 1, "scale_reward_factor": 1,
    "max_grad_norm": None, "beta": 2, "max_reward_weight": 100, "update_epochs": 4, "max_adv_weight": 100, "critic_update_ratio": 2,
    "target_ema_rate": 0.05, "critic_tau": 0.05, "action_lr": 0.03, "action_gradient_steps": 5, "eta": 1.0, "q_grad_coeff": 3,
}  # fmt: skip

STILL = {"critic_lr": 0.0, "critic_lr_scheduler": {**SCHEDULE, "min_lr": 0.0}}


class Hand(nn.Module):
    """``Q1 = s + slope x sum of a``, ``Q2 = Q1 + 1``: what can be reckoned without a network."""

    def __init__(self, slope: float = 0.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, obs, actions):
        q = obs["state"].flatten(1)[:, 0] + self.slope * actions.sum(dim=(1, 2))
        return q, q + 1


class HandValue(nn.Module):
    """``V = 2 s``."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, obs):
        return self.factor * obs["state"].flatten(1)[:, 0]


def policy_of(kind: str, critic: nn.Module | None = None, value: nn.Module | None = None, steps: int = 5, **more):
    torch.manual_seed(0)
    actor = DiffusionMLP(DA, TA, DO, time_dim=8, mlp_dims=[31, 31, 31], residual_style=True)
    critic = critic or CriticObsAct(DO, [29, 29], DA, TA)
    value = value or CriticObs(DO, [29, 29])
    sizes = {
        "horizon_steps": TA,
        "obs_dim": DO,
        "action_dim": DA,
        "denoising_steps": steps,
        "randn_clip_value": 3,
        **more,
    }
    parts = {
        "rwr": {"network": actor},
        "awr": {"actor": actor, "critic": value},
        "idql": {"actor": actor, "critic_q": critic, "critic_v": value, "num_sample": 7},
    }.get(kind, {"actor": actor, "critic": critic})
    return KINDS[kind][1](**parts, **sizes)


def algorithm_of(kind: str, policy=None, n_envs: int = N, **train):
    policy = policy or policy_of(kind)
    return KINDS[kind][0](policy, {**TRAIN, **train}, n_envs, torch.Generator().manual_seed(0))


def rollout_of(states, rewards, terminated, truncated, actions=None, valid=None) -> Rollout:
    """(S, N) arrays; the first row begins all episodes."""
    rewards = torch.as_tensor(rewards, dtype=torch.float32)
    s, n = rewards.shape
    state = torch.as_tensor(states, dtype=torch.float32).view(s, n, 1, 1)
    terminated, truncated = (torch.as_tensor(x).bool() for x in (terminated, truncated))
    firsts = torch.cat([torch.ones(1, n, dtype=torch.bool), (terminated | truncated)[:-1]])
    chains = torch.zeros(s, n, 1, TA, DA) if actions is None else torch.as_tensor(actions).float().view(s, n, 1, TA, DA)
    valid = torch.ones(s, n, dtype=torch.bool) if valid is None else torch.as_tensor(valid).bool()
    return Rollout({"state": state}, chains, torch.zeros(s, n, 0), rewards, terminated, truncated, firsts, valid)


def observed(algorithm, rollout: Rollout, final) -> None:
    """As the loop does; ``final (S, N)`` are the states that the chunks led to."""
    final = np.asarray(final, np.float32)
    for s in range(len(rollout.rewards)):
        algorithm.observe(rollout, s, {"state": final[s].reshape(-1, 1, 1)})


# One environment terminates after its first chunk, one's time is up after the second, one goes on. Chunks led to states 1, 2, 3, ...
REWARDS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
TERMINATED, TRUNCATED = [[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]
STATES, FINAL = [[10, 20, 30], [70, 21, 31]], [[11, 21, 31], [71, 22, 32]]
TARGETS = {  # gamma 0.5, with a next value of the state itself: reward + 0.5 x state, and nothing after a termination
    10.0: 1.0,
    20.0: 2 + 0.5 * 21,
    30.0: 3 + 0.5 * 31,
    70.0: 4 + 0.5 * 71,
    21.0: 5 + 0.5 * 22,  # its own last observation
    31.0: 6 + 0.5 * 32,
}


@pytest.mark.parametrize(
    ("module", "kind"), [(q_learning, "dql"), (q_learning, "dipo"), (q_learning, "qsm"), (idql, "idql")]
)
@pytest.mark.parametrize("n_steps", [1, 2])
def test_targets_of_critics_by_hand(module, kind, n_steps, monkeypatch):
    """The smaller of two target values (or, for IDQL, V) of what followed; terminated, truncated, going on, and two chunks' returns."""
    policy, seen = policy_of(kind, Hand(), HandValue()), {}

    def spy(values, target):
        seen["target"] = target
        return torch.stack([value.mean() for value in values]).sum() * 0

    monkeypatch.setattr(module, "squared_errors", spy)
    algorithm = algorithm_of(kind, policy, batch_size=500, replay_ratio=0, n_step_returns=n_steps, **STILL)
    rollout, drawn = rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED), []
    batch = algorithm.batch
    monkeypatch.setattr(algorithm, "batch", lambda: drawn.append(batch()) or drawn[-1])
    observed(algorithm, rollout, FINAL)
    algorithm.update(rollout, 0)
    expected = dict(TARGETS)
    if n_steps == 2:
        expected[20.0] = 2 + 0.5 * 5 + 0.25 * 22
        expected[30.0] = 3 + 0.5 * 6 + 0.25 * 32
    if kind == "idql":  # V = 2 s
        rewards = {10.0: 1.0, 20.0: 2.0, 30.0: 3.0, 70.0: 4.0, 21.0: 5.0, 31.0: 6.0} | (
            {20.0: 4.5, 30.0: 6.0} if n_steps == 2 else {}
        )
        expected = {state: reward + 2 * (expected[state] - reward) for state, reward in rewards.items()}
    found = dict(zip(drawn[0].obs["state"].flatten().tolist(), seen["target"].tolist(), strict=True))
    assert found == pytest.approx(expected)


def test_returns_to_go_by_hand():
    rewards = torch.tensor([[1.0, 1], [2, 2], [4, 4]])
    ended = torch.tensor([[0, 0], [1, 0], [0, 0]]).bool()
    returns, known = returns_to_go(rewards, ended, 0.5)
    assert returns[:2, 0].tolist() == [2.0, 2.0]
    assert known.tolist() == [
        [True, False],
        [True, False],
        [False, False],
    ]  # the second episode, and all of the other one, went on
    weights = exponential_weights(torch.tensor([0.0, 2.0]), 2.0, 3.0, epsilon=0.0)
    assert weights.tolist() == pytest.approx([np.exp(-np.sqrt(2)), 3.0])


def test_rwr_regresses_on_finished_valid_episodes_only(monkeypatch):
    algorithm, seen = algorithm_of("rwr", update_epochs=1, batch_size=3), []
    errors = algorithm.policy.regression_errors
    monkeypatch.setattr(
        algorithm.policy, "regression_errors", lambda obs, *more: seen.append(obs["state"]) or errors(obs, *more)
    )
    rollout = rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED, valid=[[1, 1, 1], [1, 1, 1]])
    assert algorithm.update(rollout, 0)["chunks_with_return"] == 3
    assert sorted(torch.cat(seen).flatten().tolist()) == [10.0, 20.0, 21.0]
    nothing = rollout_of(STATES, REWARDS, [[0] * 3] * 2, [[0] * 3] * 2)
    assert algorithm.update(nothing, 1)["chunks_with_return"] == 0  # no episode finished: no crash, no step


def test_awr_returns_by_hand():
    """``A = delta + gamma lambda A'``, cut where the episode ends; V = 2 s, gamma = lambda = 0.5."""
    algorithm = algorithm_of("awr", policy_of("awr", value=HandValue()), gae_lambda=0.5)
    observed(algorithm, rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED), FINAL)
    returns, advantages = algorithm._returns()
    replay = algorithm.replay
    at = np.flatnonzero(replay.arrays["usable"])
    states = replay.arrays["obs.state"][at].ravel().tolist()
    delta = {20: 2 + 0.5 * 42 - 40, 21: 5 + 0.5 * 44 - 42, 30: 3 + 0.5 * 62 - 60, 31: 6 + 0.5 * 64 - 62}
    expected = {
        10.0: 1.0 - 20, 20.0: delta[20] + 0.25 * delta[21], 21.0: delta[21], 30.0: delta[30] + 0.25 * delta[31], 31.0: delta[31],
        70.0: 4 + 0.5 * 142 - 140,
    }  # fmt: skip
    assert dict(zip(states, advantages[at].tolist(), strict=True)) == pytest.approx(expected)
    values = {state: 2 * state for state in expected}
    assert dict(zip(states, (returns - advantages)[at].tolist(), strict=True)) == pytest.approx(values)


def test_awr_critic_error_is_elementwise(monkeypatch):
    """(B,) minus (B,): the published one was (B, B)."""
    algorithm, losses = (
        algorithm_of("awr", policy_of("awr", value=HandValue()), n_critic_warmup_itr=9, batch_size=900),
        [],
    )
    monkeypatch.setattr(algorithm, "step", lambda name, loss: losses.append(float(loss.detach())))
    observed(algorithm, rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED), FINAL)
    algorithm.learn(rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED), 0)
    _, advantages = algorithm._returns()
    at = algorithm.replay.arrays["usable"]
    assert losses[0] == pytest.approx(float((advantages[at] ** 2).mean()), rel=0.15)  # of a sample with replacement


def test_dipo_improves_copies_and_values_what_was_done():
    policy = policy_of("dipo", Hand(slope=1.0))
    algorithm = algorithm_of(
        "dipo", policy, action_lr=0.01, action_gradient_steps=3, batch_size=200, replay_ratio=0, **STILL
    )
    actions = torch.tensor([[0.3, 0.995, -0.2], [0.1, 0.2, 0.4]])[..., None, None].expand(2, 3, TA, DA)
    rollout = rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED, actions=actions)
    observed(algorithm, rollout, FINAL)
    done = algorithm.replay.arrays["actions"].copy()
    algorithm.update(rollout, 0)
    at = algorithm.replay.arrays["usable"]
    moved = algorithm.replay.arrays["improved"][at] - done[at]
    assert np.array_equal(algorithm.replay.arrays["actions"], done)
    expected = (
        np.minimum(done[at] + 0.03, 1.0) - done[at]
    )  # Adam: a step is the rate, whatever the gradient's size; bounded by 1
    assert moved == pytest.approx(expected, abs=1e-3)


def test_dipo_bounds_the_gradient_of_each_chunk(monkeypatch):
    policy, seen = policy_of("dipo", Hand(slope=50.0)), []
    algorithm = algorithm_of("dipo", policy, action_gradient_steps=1)
    adam = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *a: seen.append(self.param_groups[0]["params"][0].grad.clone()) or adam(self, *a))  # fmt: skip
    observed(algorithm, rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED), FINAL)
    batch = algorithm.batch()
    algorithm.improve(batch, batch.actions)
    assert seen[0].flatten(1).norm(dim=1).tolist() == pytest.approx(
        [dipo.GRADIENT_BOUND * TA * DA] * len(batch.actions)
    )


def test_dql_imitates_the_buffer_and_follows_the_critic(monkeypatch):
    policy, seen = policy_of("dql", Hand(slope=1.0)), []
    algorithm = algorithm_of("dql", policy, batch_size=50, replay_ratio=0)
    actions = torch.full((2, 3, TA, DA), 0.37)
    rollout = rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED, actions=actions)
    observed(algorithm, rollout, FINAL)
    errors = policy.regression_errors
    monkeypatch.setattr(policy, "regression_errors", lambda obs, a, g: seen.append(a) or errors(obs, a, g))
    algorithm.update(rollout, 0)
    assert torch.equal(seen[0], torch.full_like(seen[0], 0.37))  # not the policy's own samples
    batch = algorithm.batch()
    noise = torch.randn(50, *policy.noise_shape)
    value = policy.critic(batch.obs, policy.denoise(batch.obs, noise=noise))[0].sum()
    gradients = torch.autograd.grad(value, list(policy.network.parameters()))
    assert all(g.abs().sum() > 0 for g in gradients)  # through every denoising step


def test_qsm_matches_the_slope():
    """A network that says 0 where the critics' slope is 2: (0 - 3 x 2)^2 everywhere."""
    policy = policy_of("qsm", Hand(slope=2.0))
    for parameter in policy.network.parameters():
        parameter.data.zero_()
    algorithm = algorithm_of("qsm", policy, q_grad_coeff=3)
    observed(algorithm, rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED), FINAL)
    assert float(algorithm.score_loss(algorithm.batch()).detach()) == pytest.approx(36.0)
    with pytest.raises(ValueError, match="predict_epsilon"):
        policy_of("qsm", predict_epsilon=False)


def test_idql_expectile_and_choice_by_hand():
    assert float(expectile_loss(torch.tensor([1.0, -2.0]))) == pytest.approx((0.8 * 1 + 0.2 * 4) / 2)
    policy = policy_of("idql", Hand(slope=1.0), HandValue())
    obs = {"state": torch.zeros(4000, 1, DO)}  # V = 0: samples of a positive sum are good ones
    noise = torch.randn(4000, *policy.noise_shape, generator=torch.Generator().manual_seed(3))
    best = policy.sample(obs, deterministic=True, noise=noise).trajectories.sum(dim=(1, 2))
    chosen = policy.sample(obs, deterministic=False, noise=noise).trajectories.sum(dim=(1, 2))
    rows = {"state": torch.zeros(28000, 1, DO)}
    chain = noise.flatten(0, 1)[:, :-1]
    samples = policy._from_noise(rows, False, chain, policy.network).sum(dim=(1, 2)).view(4000, 7)
    greedy = policy._from_noise(rows, True, chain, policy.network).sum(dim=(1, 2)).view(4000, 7)
    assert torch.allclose(best, greedy.amax(dim=1))
    good = (samples > 0).sum(dim=1).float()
    expected = (0.7 * good / (0.7 * good + 0.3 * (7 - good))).mean()  # chance that a good one is drawn
    assert float((chosen > 0).float().mean()) == pytest.approx(float(expected), abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rewarded_action_is_learned(kind):
    """A bandit: one observation, chunks of one reward ``-(a - 0.6)^2``. Exploring around 0 at first, the policy goes there."""
    policy = policy_of(kind, min_sampling_denoising_std=0.3)
    algorithm = algorithm_of(kind, policy, n_envs=60, buffer_size=3000, batch_size=120, replay_ratio=10, q_grad_coeff=8)
    g, s = torch.Generator().manual_seed(1), 4
    obs = {"state": torch.zeros(60, 1, DO)}
    start = _mean_error(policy)
    for iteration in range(14):
        actions = torch.stack(
            [algorithm.act(obs, torch.randn(60, *policy.noise_shape, generator=g)).trajectories for _ in range(s)]
        ).clamp(-1, 1)
        rewards = -(actions - 0.6).square().mean(dim=(2, 3))
        rollout = rollout_of(torch.zeros(s, 60), rewards, torch.ones(s, 60), torch.zeros(s, 60), actions)
        observed(algorithm, rollout, np.zeros((s, 60)))
        metrics = algorithm.update(rollout, iteration)
    assert np.isfinite([value for value in metrics.values()]).all()
    assert _mean_error(policy) < 0.4 * start


def _mean_error(policy) -> float:
    obs = {"state": torch.zeros(300, 1, DO)}
    noise = torch.randn(300, *policy.noise_shape, generator=torch.Generator().manual_seed(2))
    return float((policy.sample(obs, deterministic=True, noise=noise).trajectories - 0.6).square().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_from_zero_there_is_nothing_random_but_exploring(kind):
    """With DDIM the start is all that is drawn, and every one of them obeys its deviation, who samples many chunks too."""
    settings = {"use_ddim": True, "ddim_steps": 3, "start_std": 0.0, "min_sampling_denoising_std": 0.0}
    obs, g = {"state": torch.zeros(19, 1, DO)}, torch.Generator().manual_seed(4)
    for more, alike in (({}, True), ({"explore_start_std": 0.5}, False)):
        policy = policy_of(kind, **settings, **more)
        noise = torch.randn(19, *policy.noise_shape, generator=g)
        for deterministic in (True, False):
            chunks = policy.sample(obs, deterministic=deterministic, noise=noise).trajectories
            same = torch.allclose(chunks, chunks[:1].expand_as(chunks), atol=1e-5)
            assert same == (alike or deterministic)


def test_warm_up():
    algorithm = algorithm_of("dql", n_critic_warmup_itr=1)
    before = {key: value.clone() for key, value in algorithm.policy.state_dict().items()}
    rollout = rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED)
    observed(algorithm, rollout, FINAL)
    algorithm.update(rollout, 0)
    moved = {
        key.partition(".")[0]
        for key, value in algorithm.policy.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert moved == {"critic", "critic_target"}


def test_images_are_refused_before_anything_is_run():
    """The published off-policy configurations have none. (Reckoning with them divided by the length of a chain that is not there.)"""
    world = SimpleNamespace(
        obs_shapes={"state": (1, 1), "rgb": (1, 3, 2, 2)}, n_envs=3, act_steps=1, max_episode_steps=7
    )
    algorithm = algorithm_of("dql")
    train = {**algorithm.train, "algorithm": "agent.finetune.dql.DQL"}
    shape = (algorithm.policy.n_chain_steps + 1, 1, 1)
    with pytest.raises(UsageError, match=r"train.algorithm: DQL learns from states, .*ft_ppo_\*_img"):
        check_memory(algorithm.policy, world, 5, train, shape)
    world.obs_shapes.pop("rgb")
    check_memory(algorithm.policy, world, 5, train, shape)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_it_goes_on_alike(kind):
    results = []
    for cut in (False, True):
        algorithm, rollout = algorithm_of(kind), rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED)
        for iteration in range(3):
            observed(algorithm, rollout, FINAL)
            algorithm.update(rollout, iteration)
            if cut and iteration == 0:
                weights, state, numbers = (
                    algorithm.policy.state_dict(),
                    algorithm.state_dict(),
                    algorithm.generator.get_state(),
                )
                algorithm = algorithm_of(kind, policy_of(kind))
                algorithm.policy.load_state_dict(weights)
                algorithm.load_state_dict(state)
                algorithm.generator.set_state(numbers)
        results.append(algorithm.policy.state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
