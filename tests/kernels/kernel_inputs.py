"""Inputs that the kernels' tests and benchmarks share."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_pairs(shape, dtypes=(torch.float32,) * 3, seed=0, distance=0.05, device=DEVICE):
    """Policy, target and reference: errors near 0.1, the policy `distance` away from the reference."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(shape, generator=generator)
    ref = target + 0.3 * torch.randn(shape, generator=generator)
    pred = ref + distance * torch.randn(shape, generator=generator)
    return tuple(x.to(dtype).to(device) for x, dtype in zip((pred, target, ref), dtypes, strict=True))
