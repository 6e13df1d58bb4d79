"""How much of a gradient is signal: against gradients taken one by one, and where the answer is known."""

from statistics import mean

import pytest
import torch

from agent.finetune.gae import generalized_advantage
from agent.finetune.minibatch import Data
from agent.finetune.ppo import PPO
from agent.finetune.signal import LAMBDAS, gradient_signal
from tests.agent.test_ppo import TRAIN, make_policy, make_rollout
from tests.point_mass import PointMass


def data_of(rollout) -> Data:
    obs = {key: value.flatten(0, 1) for key, value in rollout.obs.items()}
    return Data(obs, None, rollout.chains.flatten(0, 1), rollout.log_probs.flatten(0, 1))


@pytest.mark.parametrize("rows_at_once", [10_000, 7])
def test_against_gradients_taken_one_by_one(rows_at_once: int):
    policy, n_steps, n_envs = make_policy(), 7, 5
    rollout, _ = make_rollout(policy, PointMass(n_envs), n_steps)
    data = data_of(rollout)
    advantages = {decay: torch.randn(n_steps * n_envs, generator=torch.Generator().manual_seed(i)) for i, decay in enumerate(LAMBDAS)}  # fmt: skip
    rows = torch.tensor([row for row in range(n_steps * n_envs) if row not in (3, 11)])
    found = gradient_signal(policy, data, rows, n_envs, advantages.__getitem__, rows_at_once)

    def gradient(decay: float, odd: bool) -> torch.Tensor:
        total = 0
        for row in rows.tolist():
            if (row % n_envs) % 2 != odd:
                continue
            for step in range(3):
                one = {key: value[row : row + 1] for key, value in data.obs.items()}
                chain = data.chains[row : row + 1]
                said = policy.log_prob(one, chain[:, step], chain[:, step + 1], torch.tensor([step]))
                grads = torch.autograd.grad(said.sum(), list(policy.actor_parameters()))
                weight = advantages[decay][row] - advantages[decay][rows].mean()
                total = total + weight * policy.gamma_denoising ** (2 - step) * torch.cat([g.flatten() for g in grads])
        return total

    unbiased = [gradient(1.0, odd) for odd in (False, True)]
    for decay in (0.0, 0.9, 1.0):
        own = [gradient(decay, odd) for odd in (False, True)]
        cosines = [float(own[i] @ unbiased[1 - i] / own[i].norm() / unbiased[1 - i].norm()) for i in (0, 1)]
        assert found[f"signal/lambda_{decay:g}"] == pytest.approx(mean(cosines), abs=2e-5)


class Linear(torch.nn.Module):
    """A normal distribution of deviation 1 around a linear function, of one number."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(n))

    def actor_parameters(self):
        return self.parameters()

    def chain_log_probs(self, obs, chains: torch.Tensor) -> torch.Tensor:
        return -0.5 * (chains[:, 1:, 0, 0] - (obs["state"][:, 0] @ self.weight)[:, None]).square()

    def denoising_discount(self, step: torch.Tensor) -> torch.Tensor:
        return torch.ones(step.shape)


def test_where_only_the_next_reward_depends_on_the_action_a_short_trace_has_more_signal():
    n_steps, n_envs, size = 29, 31, 41
    policy, nothing = Linear(size), torch.zeros(n_steps, n_envs)
    never, found = nothing.bool(), []
    for seed in range(13):  # one rollout's cosines scatter by 1 / sqrt(41)
        generator = torch.Generator().manual_seed(seed)
        state, action, noise = (torch.randn(n_steps * n_envs, n, generator=generator) for n in (size, 1, 1))
        chains = torch.stack([torch.zeros_like(action), action], 1)[..., None]
        rewards = (action * state[:, :1] + 3 * noise).view(n_steps, n_envs)  # acting as the first number says is good

        def advantages_of(decay: float, rewards: torch.Tensor = rewards) -> torch.Tensor:
            return generalized_advantage(rewards, nothing, never, never, nothing, 0.99, decay)[0].flatten()

        data = Data({"state": state[:, None]}, None, chains, torch.zeros(n_steps * n_envs, 1))
        found.append(gradient_signal(policy, data, torch.arange(n_steps * n_envs), n_envs, advantages_of, 10_000))
    short, long = (mean(one[f"signal/lambda_{decay}"] for one in found) for decay in (0, 1))
    # Of half the chunks |E g| = 450, and the noise of g sqrt(450 * 41 * variance of what an action is credited with: 11, or about 140).
    assert short == pytest.approx(0.71 * 0.27, abs=0.08)
    assert long == pytest.approx(0.27 * 0.27, abs=0.08)


def test_measuring_changes_nothing():
    states, logged = [], []
    for measure in (False, True):
        policy = make_policy()
        rollout, _ = make_rollout(policy, PointMass(5), 7)
        train = {**TRAIN, "gradient_signal": measure}
        logged.append(PPO(policy, train, 5, torch.Generator().manual_seed(0)).update(rollout, 0))
        states.append(policy.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert set(logged[1]) - set(logged[0]) == {f"signal/lambda_{decay:g}" for decay in LAMBDAS}
