"""Advantages against values worked out by hand (gamma = lambda = 1/2, so gamma * lambda = 1/4)."""

import torch

from agent.finetune.gae import generalized_advantage


def column(*x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)[:, None]


def flags(*x: int) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.bool)[:, None]


def test_termination_truncation_and_the_end_of_the_rollout_by_hand():
    # t=4: last step, bootstraps 6:    16 + 6/2 - 1 = 18
    # t=3: terminated, no future:       8 - 1 = 7
    # t=2: 4 + 1/2 - 1 = 3.5;           3.5 + 7/4 = 5.25
    # t=1: truncated, bootstraps 10:    2 + 10/2 - 1 = 6, and nothing leaks back from t=2
    # t=0: 1 + 1/2 - 1 = 0.5;           0.5 + 6/4 = 2
    advantages, returns = generalized_advantage(
        column(1, 2, 4, 8, 16),
        column(1, 1, 1, 1, 1),
        flags(0, 0, 0, 1, 0),
        flags(0, 1, 0, 0, 0),
        column(99, 10, 99, 99, 6),
        0.5,
        0.5,
    )
    torch.testing.assert_close(advantages, column(2, 6, 5.25, 7, 18), rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, column(3, 7, 6.25, 8, 19), rtol=0, atol=1e-12)


def test_an_episode_that_earns_nothing_and_is_truncated_learns_nothing_from_the_next():
    # The ancestors' recursion gives [2.35, 2.50, 2.66] here (spec/style.md 3.3).
    zero = column(0, 0, 0, 0, 0, 0)
    advantages, _ = generalized_advantage(
        column(0, 0, 0, 0, 0, 3), zero, flags(0, 0, 0, 0, 0, 0), flags(0, 0, 1, 0, 0, 1), zero, 0.99, 0.95
    )
    assert advantages[:3].abs().max() == 0
    assert advantages[5] == 3


def test_terminated_and_truncated_at_once_has_no_future():
    advantages, _ = generalized_advantage(column(5), column(2), flags(1), flags(1), column(1000), 0.9, 0.9)
    assert float(advantages) == 3


def test_environments_do_not_mix():
    generator = torch.Generator().manual_seed(0)
    rewards, values, final = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    terminated, truncated = (torch.rand(7, 5, generator=generator) < 0.2 for _ in range(2))
    together, _ = generalized_advantage(rewards, values, terminated, truncated, final, 0.97, 0.93)
    for i in range(5):
        alone, _ = generalized_advantage(
            *(x[:, i : i + 1] for x in (rewards, values, terminated, truncated, final)), 0.97, 0.93
        )
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=0, atol=0)


def test_without_ends_and_lambda_one_it_is_the_discounted_sum():
    rewards, gamma = column(3, 1, 4, 1, 5), 0.9
    advantages, returns = generalized_advantage(
        rewards, column(2, 7, 1, 8, 2), *[flags(0, 0, 0, 0, 0)] * 2, column(0, 0, 0, 0, 11), gamma, 1.0
    )
    expected = sum(gamma**k * float(r) for k, r in enumerate(rewards)) + gamma**5 * 11
    assert abs(float(returns[0]) - expected) < 1e-12
    assert abs(float(advantages[0]) - (expected - 2)) < 1e-12


def test_what_a_broken_episode_reports_stays_in_it():
    advantages, _ = generalized_advantage(
        column(1, 1, float("nan"), 1),
        column(0, 0, 0, 0),
        flags(0, 0, 0, 0),
        flags(0, 1, 1, 1),
        column(0, 0, 0, 0),
        0.9,
        0.9,
    )
    assert advantages.isfinite()[:, 0].tolist() == [True, True, False, True]
