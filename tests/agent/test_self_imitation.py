"""Self-imitation: which chunks are learned from, by hand; on a bandit it comes to do what succeeded; exact resume."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from agent.dataset.transitions import StitchedSequenceQLearningDataset
from agent.errors import UsageError
from agent.finetune.experience import Experience
from agent.finetune.self_imitation import SelfImitation
from model.diffusion.diffusion_rwr import RWRDiffusion
from model.diffusion.mlp_diffusion import DiffusionMLP
from tests.agent.test_diffusion_rl import DA, DO, TA, observed, rollout_of

SCHEDULE = {"first_cycle_steps": 7, "warmup_steps": 2, "min_lr": 0.0}
TRAIN = {
    "actor_lr": 3e-3, "actor_weight_decay": 0, "actor_lr_scheduler": SCHEDULE, "buffer_size": 300, "batch_size": 41, "gamma": 0.9,
    "max_grad_norm": None, "n_explore_itr": 1, "n_learn_itr": 2, "n_batches": 7, "min_return": 1.0, "demo_share": 0.25,
    "average_decay": 0.5, "experience_path": None,
}  # fmt: skip


@pytest.fixture
def demos(tmp_path) -> StitchedSequenceQLearningDataset:
    """Two trajectories; their actions are 0.9, which nobody else does."""
    n = 13
    np.savez(
        tmp_path / "train.npz", states=np.full((n, DO), -0.5, np.float32), actions=np.full((n, DA), 0.9, np.float32), traj_lengths=np.array([6, 7]),
        rewards=np.zeros(n, np.float32), terminals=np.zeros(n, bool),
    )  # fmt: skip
    return StitchedSequenceQLearningDataset(tmp_path / "train.npz", TA)


def policy_of(ta: int = TA, **more) -> RWRDiffusion:
    torch.manual_seed(0)
    network = DiffusionMLP(DA, ta, DO, time_dim=8, mlp_dims=[31, 31, 31], residual_style=True)
    settings = {"min_sampling_denoising_std": 0.0, "use_ddim": True, "ddim_steps": 5, "start_std": 0.0, **more}
    return RWRDiffusion(network, horizon_steps=ta, obs_dim=DO, action_dim=DA, denoising_steps=20, **settings)


def algorithm_of(demos, policy=None, n_envs: int = 3, **train) -> SelfImitation:
    generator = torch.Generator().manual_seed(0)
    return SelfImitation(policy or policy_of(), {**TRAIN, **train}, n_envs, generator, demos)


# Three environments, four rows. 0: fails (time) after two chunks, then succeeds in two. 1: succeeds in three, begins anew. 2: goes unstable in its
# second chunk in spite of its reward, then needs two chunks whose rewards reach 1 only together.
STATES = [[1, 11, 21], [2, 12, 22], [3, 13, 23], [4, 14, 24]]
REWARDS = [[0.0, 0.0, 1.0], [0.9, 0.0, 1.0], [0.0, 1.0, 0.5], [1.0, 0.0, 0.5]]
TERMINATED = [[0, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]]
TRUNCATED = [[0, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]]
VALID = [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
FINAL = np.asarray(STATES) + 0.5
GOOD = {3.0, 4.0, 11.0, 12.0, 13.0, 23.0, 24.0}


def successes():
    actions = torch.as_tensor(STATES, dtype=torch.float32)[..., None, None].expand(4, 3, TA, DA) / 100
    return rollout_of(STATES, REWARDS, TERMINATED, TRUNCATED, actions, VALID)


def test_only_whole_episodes_that_reached_the_return_are_imitated(demos):
    algorithm = algorithm_of(demos)
    observed(algorithm, successes(), FINAL)
    arrays = algorithm.replay.arrays
    assert set(arrays["obs.state"][algorithm.imitated()].ravel().tolist()) == GOOD
    assert len(algorithm.imitated()) == len(GOOD)
    assert algorithm.update(successes(), 0)["imitated_chunks"] == len(GOOD)


def test_an_episode_that_time_ended_counts_too(demos):
    algorithm = algorithm_of(demos, min_return=0.8)
    observed(algorithm, successes(), FINAL)
    states = algorithm.replay.arrays["obs.state"][algorithm.imitated()]
    assert set(states.ravel().tolist()) == GOOD | {1.0, 2.0}


def test_minibatches_are_of_good_chunks_and_demonstrations(demos, monkeypatch):
    policy, seen = policy_of(), []
    algorithm = algorithm_of(demos, policy)
    rollout = successes()
    observed(algorithm, rollout, FINAL)
    errors = policy.regression_errors
    monkeypatch.setattr(
        policy, "regression_errors", lambda o, a, g, n: seen.append((o["state"], a)) or errors(o, a, g, n)
    )
    lengths = []
    for iteration in range(6):  # two rounds: 7 minibatches in two iterations of each
        algorithm.update(rollout if algorithm.collects(iteration) else None, iteration)
        lengths.append(len(seen))
    assert lengths == [0, 3, 7, 7, 10, 14]
    states, actions = (torch.cat(parts).flatten(1)[:, 0] for parts in zip(*seen, strict=True))
    theirs = states == -0.5
    assert int(theirs.sum()) == len(seen) * round(0.25 * 41)
    assert torch.allclose(actions[theirs], torch.tensor(0.9))
    assert torch.allclose(actions[~theirs], states[~theirs] / 100)  # the chunk that was done there
    assert set(states[~theirs].tolist()) == GOOD


def test_another_runs_chunks_are_drawn_alike(demos):
    """A third of the good chunks are the other run's; without own experience all are, and nothing need be collected."""
    given = Experience({"state": torch.full((4, 1, DO), 77.0)}, torch.full((4, TA, DA), 0.7), 1, 1)
    generator, few = torch.Generator().manual_seed(0), len(GOOD)
    both = SelfImitation(policy_of(), {**TRAIN, "demo_share": 0}, 3, generator, demos, given)
    observed(both, successes(), FINAL)
    both.good = both.imitated()
    batch = both.own(6007)
    theirs = batch.obs["state"].flatten() == 77
    assert abs(int(theirs.sum()) / 6007 - 4 / (4 + few)) < 0.02
    assert torch.allclose(batch.actions[theirs], torch.tensor(0.7))
    mine = batch.obs["state"].flatten()[~theirs]
    assert set(mine.tolist()) == GOOD and torch.allclose(batch.actions[~theirs].flatten(1)[:, 0], mine / 100)
    alone = SelfImitation(policy_of(), {**TRAIN, "n_explore_itr": 0}, 3, generator, demos, given)
    before = weights(alone.policy)
    assert not alone.collects(0) and alone.update(None, 0)["imitated_chunks"] == 4
    assert not same(before, weights(alone.policy))


@pytest.mark.parametrize(("share", "of_demos"), [(0.0, 0), (1.0, 41)])
def test_without_the_one_or_the_other(demos, share, of_demos):
    algorithm = algorithm_of(demos, demo_share=share)
    observed(algorithm, successes(), FINAL)
    algorithm.good = algorithm.imitated()
    batch = algorithm.from_both(round(share * 41))
    assert len(batch.actions) == 41 and int((batch.obs["state"] == -0.5).sum()) == of_demos


def test_what_is_overwritten_is_forgotten(demos):
    """The ring is so short that the second rollout, in which nobody ends an episode, takes the place of the first."""
    algorithm = algorithm_of(demos, buffer_size=12)
    observed(algorithm, successes(), FINAL)
    again = rollout_of(np.full((6, 3), 7.0), np.ones((6, 3)), np.zeros((6, 3)), np.zeros((6, 3)))
    observed(algorithm, again, np.full((6, 3), 7.0))
    assert len(algorithm.imitated()) == 0


def weights(module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(first, second) -> bool:
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first, second, strict=True))


def test_a_round_collects_first(demos):
    algorithm = algorithm_of(demos, n_explore_itr=2, n_learn_itr=3)
    rollout, moved = successes(), []
    observed(algorithm, rollout, FINAL)
    for iteration in range(10):
        before = weights(algorithm.policy)
        algorithm.update(rollout if algorithm.collects(iteration) else None, iteration)
        moved.append(not same(before, weights(algorithm.policy)))
    assert moved == [False, False, True, True, True] * 2
    assert [algorithm.collects(i) for i in range(10)] == [not it for it in moved]


def test_nothing_is_learned_before_a_success(demos):
    algorithm = algorithm_of(demos, min_return=1.5)
    before, rollout = weights(algorithm.policy), successes()
    observed(algorithm, rollout, FINAL)
    for iteration in range(3):
        assert algorithm.update(rollout, iteration)["imitated_chunks"] == 0
    assert same(before, weights(algorithm.policy))


def test_a_round_is_one_regression_from_the_policy(demos, monkeypatch):
    """By hand from the weights after each minibatch: two rounds, in both the average grows older at first, the rate rises and falls to zero, and
    the weights begin as the average of the round before. The second round, told apart by nothing but the policy, is that of a new algorithm."""
    algorithm = algorithm_of(demos, average_decay=0.25)
    rollout, rates, states = successes(), [], []
    observed(algorithm, rollout, FINAL)
    step = algorithm.step

    def watched(name, loss):
        rates.append(algorithm.schedules["actor"].lr)
        if len(rates) % 7 == 1:
            assert same(weights(algorithm.learner), weights(algorithm.policy))
        step(name, loss)
        states.append(weights(algorithm.learner))

    monkeypatch.setattr(algorithm, "step", watched)
    mean, done = weights(algorithm.policy), 0
    for iteration in range(6):
        if iteration == 3:
            again = algorithm_of(demos, policy_of(), average_decay=0.25)
            again.policy.load_state_dict(algorithm.policy.state_dict())
            observed(again, rollout, FINAL)
            again.generator.set_state(algorithm.generator.get_state())
        algorithm.update(rollout, iteration)
        for k in range(done, len(states)):
            decay = min(0.25, (1 + k % 7) / (10 + k % 7))
            mean = [decay * m + (1 - decay) * p for m, p in zip(mean, states[k], strict=True)]
        done = len(states)
        assert same(mean, weights(algorithm.policy.network))
    peak = TRAIN["actor_lr"]
    by_hand = [0, peak / 2, *(peak * (1 + np.cos(np.pi * k / 5)) / 2 for k in range(5))]
    assert rates == pytest.approx(by_hand * 2)
    for iteration in range(3):
        again.update(rollout, iteration)
    assert same(weights(again.policy), weights(algorithm.policy))


def test_a_run_cut_in_a_round_goes_on(demos):
    algorithm, rollout = algorithm_of(demos), successes()
    observed(algorithm, rollout, FINAL)
    for iteration in range(2):
        algorithm.update(rollout, iteration)
    again = algorithm_of(demos, policy_of())
    again.policy.load_state_dict(algorithm.policy.state_dict())
    again.load_state_dict(copy.deepcopy(algorithm.state_dict()))
    again.generator.set_state(algorithm.generator.get_state())
    for one in (algorithm, again):
        one.update(None, 2)
    assert not same(weights(again.learner), weights(again.policy.network))
    assert same(weights(again.policy), weights(algorithm.policy)) and same(
        weights(again.learner), weights(algorithm.learner)
    )


def test_the_start_that_explores():
    """By hand: exploring from 0.3 times the noise is what a policy of that start does; evaluation starts from its own."""
    policy, as_given = policy_of(explore_start_std=0.3), policy_of(start_std=0.3)
    obs = {"state": torch.zeros(17, 1, DO)}
    noise = torch.randn(17, *policy.noise_shape, generator=torch.Generator().manual_seed(1))
    explored = policy.sample(obs, deterministic=False, noise=noise).trajectories
    assert torch.equal(explored, as_given.sample(obs, deterministic=False, noise=noise).trajectories)
    best = policy.sample(obs, deterministic=True, noise=noise).trajectories
    assert torch.allclose(best, best[:1].expand_as(best), atol=1e-6) and explored.std(dim=0).min() > 0
    with pytest.raises(ValueError, match="explore_start_std"):
        policy_of(explore_start_std=-0.1)


def test_one_start_for_several_steps_of_a_chunk():
    """By hand: the rows of the start that count stand in the others' places, while exploring only."""
    policy, usual = policy_of(6, start_std=0.3, explore_start_steps=3), policy_of(6, start_std=0.3)
    obs = {"state": torch.zeros(17, 1, DO)}
    noise = torch.randn(17, *policy.noise_shape, generator=torch.Generator().manual_seed(1))
    repeated = noise.clone()
    repeated[:, 0] = noise[:, 0, [0, 0, 2, 2, 4, 4]]
    explored = policy.sample(obs, deterministic=False, noise=noise).trajectories
    assert torch.equal(explored, usual.sample(obs, deterministic=False, noise=repeated).trajectories)
    assert not torch.allclose(explored, usual.sample(obs, deterministic=False, noise=noise).trajectories)
    best = policy.sample(obs, deterministic=True, noise=noise).trajectories
    assert torch.equal(best, usual.sample(obs, deterministic=True, noise=noise).trajectories)
    for wrong in (0, -1, 4, 12):
        with pytest.raises(
            ValueError, match="explore_start_steps: expected a divisor of horizon_steps = 6, or null, found"
        ):
            policy_of(6, explore_start_steps=wrong)


def test_what_succeeded_is_done(demos):
    """A bandit: a chunk succeeds if all of it lies within 0.15 of 0.5; from a wide start a few do, and from zero the policy then does, too."""
    policy = policy_of(explore_start_std=1.0)
    schedule = {**SCHEDULE, "first_cycle_steps": 200}
    algorithm = algorithm_of(
        demos, policy, n_envs=61, buffer_size=6000, batch_size=127, n_explore_itr=2, n_learn_itr=1, n_batches=200, demo_share=0, actor_lr_scheduler=schedule
    )  # fmt: skip
    obs, g, s = {"state": torch.zeros(61, 1, DO)}, torch.Generator().manual_seed(1), 5
    rates = []
    for iteration in range(12):
        if not algorithm.collects(iteration):
            algorithm.update(None, iteration)
            continue
        noise = torch.randn(s, 61, *policy.noise_shape, generator=g)
        actions = torch.stack([algorithm.act(obs, row).trajectories for row in noise]).clamp(-1, 1)
        rewards = ((actions - 0.5).abs() < 0.15).all(dim=-1).all(dim=-1).float()
        rates.append(float(rewards.mean()))
        rollout = rollout_of(torch.zeros(s, 61), rewards, torch.ones(s, 61), torch.zeros(s, 61), actions)
        observed(algorithm, rollout, np.zeros((s, 61)))
        algorithm.update(rollout, iteration)
    assert rates[0] < 0.3 and rates[-1] > 0.8
    done = policy.sample(obs, deterministic=True).trajectories
    assert float((done - 0.5).abs().max()) < 0.15


def test_settings_out_of_range(demos):
    with pytest.raises(UsageError, match=r"train.demo_share: expected a fraction from 0 to 1, found 1.5"):
        algorithm_of(demos, demo_share=1.5)
    with pytest.raises(UsageError, match=r"train.average_decay: expected from 0 to below 1, found 1"):
        algorithm_of(demos, average_decay=1)
    for key in ("n_explore_itr", "n_learn_itr", "n_batches"):
        with pytest.raises(UsageError, match=f"train.{key}: expected at least 1.*found 0"):
            algorithm_of(demos, **{key: 0})
