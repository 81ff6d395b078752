"""Inversion against closed forms in float64: linear velocity fields whose ODE is solved on paper."""

import numpy as np
import pytest
import torch

from pgdpo.diffusion.inversion import invert

SIGMA = torch.tensor([0.05, 0.4, 0.97])


def latents() -> torch.Tensor:
    return torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def per_sample(values: torch.Tensor) -> np.ndarray:
    return values.double().numpy().reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_straight_path_is_followed_exactly(steps):
    """v = eps - x_0 is constant along the path of one noise: the target is v, whatever the number of steps."""
    start = latents()
    velocity = torch.randn_like(start)
    noisy, target = invert(lambda x, sigma: velocity, start, SIGMA, steps=steps)
    expected = start.double().numpy() + per_sample(SIGMA) * velocity.double().numpy()
    np.testing.assert_allclose(noisy.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(target.numpy(), velocity.numpy(), rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_linear_field_against_the_closed_form_of_the_recurrence(steps):
    """v = a x + c: n Euler steps of width h give x_n + c/a = (1 + a h)^n (x_0 + c/a)."""
    a, c = 1.7, -0.3
    noisy, target = invert(lambda x, sigma: a * x + c, latents(), SIGMA, steps=steps)
    start, sigma = latents().double().numpy(), per_sample(SIGMA)
    expected = (1 + a * sigma / steps) ** steps * (start + c / a) - c / a
    np.testing.assert_allclose(noisy.numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(target.numpy(), (expected - start) / sigma, rtol=1e-5, atol=1e-5)


def gaussian_velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[eps - x_0 | x] where clips and noise are standard normal: the velocity of a perfect model."""
    sigma = sigma.view(-1, 1, 1, 1, 1)
    return x * (2 * sigma - 1) / (sigma**2 + (1 - sigma) ** 2)


def test_gaussian_clips_are_carried_along_their_exact_path_at_first_order():
    """There the ODE's solution is x_0 sqrt(sigma^2 + (1 - sigma)^2)."""
    start, sigma = latents().double().numpy(), per_sample(SIGMA)
    exact = start * np.sqrt(sigma**2 + (1 - sigma) ** 2)
    misses = [
        np.abs(invert(gaussian_velocity, latents(), SIGMA, steps=steps)[0].numpy() / exact - 1).max()
        for steps in (10, 40, 160)
    ]
    assert misses[0] < 0.15 and misses[1] < misses[0] / 3 and misses[2] < misses[1] / 3


def test_the_model_is_asked_at_the_level_where_each_step_begins():
    """Euler's factors for the same field: prod over k of 1 + h a(k h), the first at sigma 0."""
    sigma, steps = per_sample(SIGMA), 5
    levels = [sigma * k / steps for k in range(steps)]
    factors = [1 + sigma / steps * (2 * s - 1) / (s**2 + (1 - s) ** 2) for s in levels]
    noisy, _ = invert(gaussian_velocity, latents(), SIGMA, steps=steps)
    np.testing.assert_allclose(
        noisy.numpy(), latents().double().numpy() * np.prod(factors, axis=0), rtol=1e-5
    )


def test_a_small_sigma_costs_the_target_no_digits():
    start, velocity = 100 + latents(), latents() - 3
    _, target = invert(lambda x, sigma: velocity, start, torch.full((3,), 1e-6), steps=10)
    np.testing.assert_allclose(target.numpy(), velocity.numpy(), rtol=1e-6)


def test_no_gradient_reaches_the_model():
    scale = torch.ones((), requires_grad=True)
    noisy, target = invert(lambda x, sigma: scale * x, latents(), SIGMA, steps=2)
    assert not noisy.requires_grad and not target.requires_grad
