"""Schedules against the check values of the specification and against the `diffusers` library."""

from __future__ import annotations

import pytest
import torch

from model.diffusion.schedule import DDIMSchedule, DDPMSchedule, cosine_betas

INDICES = [0, 1, 2, 10, 18, 19]


def close(found: torch.Tensor, expected: list[float], tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=tolerance, atol=tolerance * 0.1)


def test_check_values_for_20_steps():
    s = DDPMSchedule(20)
    close(s.betas[INDICES], [0.00799272, 0.020075, 0.03225385, 0.15699708, 0.7484761, 0.999])
    close(s.alphas_cumprod[INDICES], [0.99200726, 0.97209269, 0.94073892, 0.41631156, 0.0060596443, 6.0595662e-06])
    close(s.posterior_coef_x0[INDICES], [0.9999971, 0.7164648, 0.53661877, 0.1890189, 0.11688305, 0.07776634], 1e-5)
    close(s.posterior_coef_xt[INDICES], [0, 0.2835139, 0.46326464, 0.79619277, 0.49242297, 0.03143114], 1e-5)
    std = [0, 0.0758, 0.1232, 0.1617, 0.1952, 0.2257, 0.2546, 0.2827, 0.3107, 0.3392]
    std += [0.3690, 0.4007, 0.4354, 0.4744, 0.5194, 0.5734, 0.6412, 0.7310, 0.8573, 0.9965]
    torch.testing.assert_close(s.posterior_std, torch.tensor(std), rtol=0, atol=6e-5)
    assert s.posterior_std[0].item() == pytest.approx(1e-10)


def test_check_values_for_100_steps():
    s = DDPMSchedule(100)
    close(s.betas[[0, 1, 50, 98, 99]], [6.3128e-4, 1.11694e-3, 0.03154634, 0.74993926, 0.999], 1e-5)
    close(s.alphas_cumprod[[0, 50, 99]], [0.99936873, 0.47826457, 2.4285407e-07])
    assert (s.betas == 0.999).sum() == 1
    assert (s.posterior_std >= 0.1).nonzero()[0].item() == 21


def test_ddim_check_values():
    s = DDIMSchedule(100, 5)
    assert s.times.tolist() == [80, 60, 40, 20, 0]
    close(s.alphas, [0.0851462, 0.3261152, 0.6325157, 0.8891031, 0.9993687])
    close(s.alphas_prev, [0.3261152, 0.6325157, 0.8891031, 0.9993687, 1])
    torch.testing.assert_close(s.sigma_unit, torch.tensor([0.73775, 0.51397, 0.29511, 0.02506, 0]), rtol=0, atol=6e-6)


def test_schedules_stay_out_of_the_state_dict_and_follow_dtype():
    for s in (DDPMSchedule(7), DDIMSchedule(11, 3)):
        assert not s.state_dict()
        assert list(s.buffers())
    assert DDPMSchedule(7).to(torch.float64).betas.dtype == torch.float64


@pytest.mark.parametrize("ddim_steps", [0, 12])
def test_ddim_steps_out_of_range(ddim_steps: int):
    with pytest.raises(ValueError, match="ddim_steps.*11"):
        DDIMSchedule(11, ddim_steps)


def test_ddpm_posterior_matches_diffusers():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    k = 19
    s = DDPMSchedule(k)
    theirs = diffusers.DDPMScheduler(
        k, trained_betas=cosine_betas(k).tolist(), clip_sample=False, variance_type="fixed_small"
    )
    theirs.set_timesteps(k)
    x, eps = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    t = torch.tensor([3, 11, 18])
    noisy = theirs.add_noise(x, eps, t)
    torch.testing.assert_close(s.q_sample(x, t, eps), noisy, rtol=1e-6, atol=1e-6)
    for step in range(k):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
        expected = theirs.step(eps, step, x, generator=torch.Generator().manual_seed(step))
        x0 = s.predict_x0(x, step, eps)
        scale = x0.abs().max().item()  # up to 1 / sqrt(abar) = 400: differences of such numbers cancel in float32
        torch.testing.assert_close(x0, expected.pred_original_sample, rtol=1e-6, atol=1e-6 * scale)
        mean, std = s.posterior_mean_std(x0, x, step)
        std = std if step > 0 else torch.zeros(())
        torch.testing.assert_close(
            mean + std * noise, expected.prev_sample, rtol=1e-6, atol=1e-6 * max(1, mean.abs().max().item())
        )


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_step_matches_diffusers(eta: float):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    k, n = 23, 4
    s = DDIMSchedule(k, n)
    theirs = diffusers.DDIMScheduler(
        k,
        trained_betas=cosine_betas(k).tolist(),
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="leading",
    )
    theirs.set_timesteps(n)
    assert theirs.timesteps.tolist() == s.times.tolist()
    x, eps, noise = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    for i, t in enumerate(s.times.tolist()):
        # diffusers steps back by K // n from t; at the last step that is before the beginning: alpha_prev = 1
        expected = theirs.step(eps, t, x, eta=eta, variance_noise=noise if eta > 0 else None).prev_sample
        level = torch.full((3, 1), eta) if eta > 0 else None
        mean, std = s.mean_std(s.predict_x0(x, i, eps), eps, i, level)
        scale = max(1, s.predict_x0(x, i, eps).abs().max().item())
        torch.testing.assert_close(mean + std * noise, expected, rtol=1e-6, atol=1e-6 * scale)


def test_one_step_for_all_rows_equals_a_step_per_row():
    x, eps = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    ddpm, ddim = DDPMSchedule(11), DDIMSchedule(11, 5)
    rows = torch.tensor([4, 4, 4])
    torch.testing.assert_close(ddpm.predict_x0(x, 4, eps), ddpm.predict_x0(x, rows, eps), rtol=0, atol=0)
    eta = torch.rand(3, 5)
    for a, b in zip(ddim.mean_std(x, eps, 4, eta), ddim.mean_std(x, eps, rows, eta), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_ddim_eta_one_over_all_steps_is_ddpm():
    """DDIM at eta = 1 with S = K is DDPM: same mean and deviation (Song et al., section 4.1)."""
    k = 13
    ddpm, ddim = DDPMSchedule(k), DDIMSchedule(k, k)
    x, eps = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    for i in range(k - 1):
        t = k - 1 - i
        x0 = ddpm.predict_x0(x, t, eps)
        m1, s1 = ddpm.posterior_mean_std(x0, x, t)
        m2, s2 = ddim.mean_std(x0, eps, i, torch.ones(3, 1))
        torch.testing.assert_close(m1, m2, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(s1.expand_as(s2), s2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 1.0, 2.0])
def test_gradient_of_eta_is_finite_at_every_step(level: float):
    """At ``eta = 2`` the variance exceeds what the step has: the direction's root is at 0."""
    s = DDIMSchedule(20, 5)
    x, eps = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    for i in range(5):
        eta = torch.full((3, 1), level, requires_grad=True)
        mean, std = s.mean_std(x, eps, i, eta)
        (mean.sum() + std.sum()).backward()
        assert torch.isfinite(eta.grad).all()
