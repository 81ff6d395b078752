"""Cached errors: their arithmetic against a live reference and float64, their files, what is refused."""

import math

import numpy as np
import pytest
import torch

from pgdpo.reference.cached import compared_with, frame_sums
from pgdpo_kernels import pair_errors

SHAPE = (4, 6, 5, 7, 3)  # 2 pairs, 6 channels, 5 frames


def predictions(seed: int, distance: float, dtype=torch.float32):
    """(policy, target, reference): errors near 1, the policy `distance` from the reference."""
    g = torch.Generator().manual_seed(seed)
    target, reference, step = (torch.randn(SHAPE, generator=g) for _ in range(3))
    return (reference + distance * step).to(dtype), target, reference.to(dtype)


def exact_excess(policy, target, reference, segments, weight=None):
    """Mean excess `[4, S]` in float64 with numpy, from the definition."""
    p, t, r = (x.double().numpy() for x in (policy, target, reference))
    w = np.ones_like(p) if weight is None else np.broadcast_to(weight, p.shape)
    difference = ((p - t) ** 2 - (r - t) ** 2) * w
    return np.stack(
        [
            [difference[n][:, [f for f, s in enumerate(segments) if s == k]].sum()
             / w[n][:, [f for f, s in enumerate(segments) if s == k]].sum() for k in range(max(segments) + 1)]
            for n in range(len(p))
        ]
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("segments", [None, [0, 0, 1, 1, 2]])
@pytest.mark.parametrize("distance", [1e-4, 1e-2, 1.0])
def test_the_cached_excess_is_the_live_one_where_means_would_cancel(dtype, segments, distance):
    policy, target, reference = predictions(1, distance, dtype)
    live = pair_errors(policy, target, reference, segments=segments)
    cached = compared_with(frame_sums(reference, target), policy, target, segments=segments).errors()
    exact = exact_excess(policy, target, reference, segments or [0] * 5)
    for side, half in (("chosen", slice(0, 2)), ("rejected", slice(2, 4))):
        found = getattr(cached, f"excess_{side}").numpy()
        np.testing.assert_allclose(found, exact[half], rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(found, getattr(live, f"excess_{side}").numpy(), rtol=2e-5, atol=1e-9)
        np.testing.assert_allclose(
            getattr(cached, f"ref_{side}").numpy(), getattr(live, f"ref_{side}").numpy(), rtol=1e-6
        )
    assert cached.drift_chosen is None


def test_equal_predictions_give_exactly_zero_in_any_batch():
    policy, target, _ = predictions(2, 0.0)
    alone = torch.cat(
        [frame_sums(policy[[i, i + 2]], target[[i, i + 2]]) for i in range(2)]
    )  # pair by pair, as another run may have computed them
    errors = compared_with(alone, policy, target).errors()
    assert not errors.excess_chosen.any() and not errors.excess_rejected.any()


def test_the_gradient_is_that_beside_a_live_reference():
    policy, target, reference = predictions(3, 0.1)
    gradients = []
    for compare in (
        lambda p: pair_errors(p, target, reference, segments=[0, 0, 1, 1, 1], cross=True),
        lambda p: compared_with(frame_sums(reference, target), p, target, segments=[0, 0, 1, 1, 1]).errors(
            cross=True
        ),
    ):
        leaf = policy.clone().requires_grad_()
        errors = compare(leaf)
        margin = 250 * (errors.excess_rejected - errors.excess_chosen)
        loss = torch.nn.functional.softplus(-margin).sum() + errors.cross.sum() + errors.policy_chosen.sum()
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (1, 1, 5, 1, 1), (2, 1, 5, 7, 3)])
def test_masked_elements_may_hold_nan_and_do_not_count(shape):
    policy, target, reference = predictions(4, 0.1)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    mask[..., :1] = 0 if len(shape) < 3 else mask[..., :1]
    live = pair_errors(policy, target, reference, mask=mask, segments=[0, 0, 1, 1, 1])
    if len(shape) < 3:
        policy[:, :, 0] = math.nan
    cached = compared_with(
        frame_sums(reference, target, mask), policy, target, mask=mask, segments=[0, 0, 1, 1, 1]
    ).errors()
    torch.testing.assert_close(cached.excess_chosen, live.excess_chosen, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(cached.excess_rejected, live.excess_rejected, rtol=1e-5, atol=1e-8)
