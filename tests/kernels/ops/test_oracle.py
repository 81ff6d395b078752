"""The comparison with float64 sees the defects that it is there for."""

import op_oracle as oracle
import pytest
import torch
from op_oracle import assert_no_worse, doubled, results

from pgdpo_kernels import norm_modulate, qk_norm_rope, set_backend
from pgdpo_kernels.reference import hidden as eager

X = torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).requires_grad_()
SCALE = torch.randn(2, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()


def uncentered(x, scale):
    return eager.norm_modulate(x, scale, norm="rms")


def neighbours_scale(x, scale):
    return eager.norm_modulate(x, scale.roll(1, 0))


def frozen_norm(x, scale):
    """A gradient that takes the row's statistics for constants."""
    y = eager.norm_modulate(x, scale)
    held = x.detach().float()
    linear = (x.float() - held) * held.std(-1, keepdim=True, correction=0).reciprocal() * (1 + scale[:, None])
    return (y.detach().float() + linear).to(torch.bfloat16) + 0 * y


@pytest.mark.parametrize("defect", [uncentered, neighbours_scale, frozen_norm])
def test_defects_are_seen(defect):
    exact = results(oracle.norm_modulate, doubled((X, SCALE)))
    good = results(eager.norm_modulate, (X, SCALE))
    assert_no_worse(good, good, exact)
    with pytest.raises(AssertionError):
        assert_no_worse(results(defect, (X, SCALE)), good, exact)


def truncated(y: torch.Tensor) -> torch.Tensor:
    return (y.float().view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)


def test_stores_round_to_nearest():
    """Cutting off has twice the error of rounding, which a bound of twice eager's error lets pass."""
    x, scale = X.detach().to(oracle.DEVICE), SCALE.detach().to(oracle.DEVICE)
    with set_backend("triton"):
        modulated, (turned, _) = norm_modulate(x, scale), qk_norm_rope(x, x, num_heads=5)
    exact = oracle.norm_modulate(x.double(), scale.double())
    normed = oracle.norm_rope(x.double(), None, None, None, 5, "rms_full")
    for ours, truth in ((modulated, exact), (turned, normed)):
        assert (ours == truth.to(torch.bfloat16)).float().mean() > 0.99
        assert (truncated(truth) == truth.to(torch.bfloat16)).float().mean() < 0.7
