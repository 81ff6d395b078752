"""Noise that is a pure function of (seed, pair, draw, element), and noising of pairs with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .checks import check_pairs
from .reference import noise as eager

PREDICTIONS = ("flow", "epsilon", "v")


def noise_pair(
    latents: torch.Tensor,  # [2B, ...], chosen half first
    level: torch.Tensor,  # [B]
    *,
    seed: int,
    pair_ids: torch.Tensor,  # [B] int64
    draw: int | torch.Tensor,  # [B] int64
    prediction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents and the target of the prediction, both `[2B, ...]` in the latents' dtype.

    Chosen and rejected share one noise. It is the same to the bit on every device and backend, and in any
    batch: an element's noise depends on (seed, pair id, draw, its index within the sample) alone.

    Args:
        latents: bf16, fp16 or fp32.
        level: for `prediction="flow"` sigma in [0, 1]: noisy = (1 - sigma) x + sigma eps, target eps - x;
            for `epsilon` and `v` the cumulative alpha-bar a in [0, 1]: noisy = sqrt(a) x + sqrt(1 - a) eps,
            target eps or sqrt(a) eps - sqrt(1 - a) x (arXiv 2202.00512).
        seed: a 64-bit integer.
        pair_ids: 64-bit hashes that name the pairs.
        draw: which draw of the pair, an integer or one per pair, modulo 2^32.
        prediction: `flow`, `epsilon` or `v`.

    Raises:
        TypeError, ValueError: a dtype, a shape or the prediction is not one of the above.
    """
    op = "noise_pair"
    pairs = check_pairs(op, "latents", latents)
    if prediction not in PREDICTIONS:
        raise ValueError(f"{op}: prediction must be one of {PREDICTIONS}, got {prediction!r}")
    if not isinstance(level, torch.Tensor) or not level.is_floating_point() or level.shape != (pairs,):
        given = (level.dtype, tuple(level.shape)) if isinstance(level, torch.Tensor) else type(level).__name__
        raise ValueError(f"{op}: level must be a float tensor of shape ({pairs},), got {given}")
    seed = check_seed(op, seed)
    ids, draws = check_ids(op, pair_ids, draw, pairs, latents.device)
    level = level.detach().to(latents.device, torch.float32)
    rows = latents.detach().reshape(2 * pairs, -1)
    noise = eager.pair_noise(pairs, rows.shape[1], seed, ids, draws)
    noisy, target = eager.noise_pair(rows, level, noise, prediction)
    return noisy.view(latents.shape), target.view(latents.shape)


def pair_noise(
    shape: Sequence[int],
    *,
    seed: int,
    pair_ids: torch.Tensor,
    draw: int | torch.Tensor,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The noise of `noise_pair` alone: `[B, ...]`, one sample per pair, rounded once to `dtype`."""
    op = "pair_noise"
    seed = check_seed(op, seed)
    ids, draws = check_ids(op, pair_ids, draw, shape[0], torch.device(device or pair_ids.device))
    return eager.pair_noise(shape[0], math.prod(shape[1:]), seed, ids, draws).reshape(shape).to(dtype)


def check_seed(op: str, seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"{op}: seed must be a 64-bit integer, got {seed!r}")
    return seed - 2**64 if seed >= 2**63 else seed


def check_ids(
    op: str, pair_ids: torch.Tensor, draw: int | torch.Tensor, pairs: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(draw, int) and not isinstance(draw, bool):
        draw = torch.full((pairs,), draw, dtype=torch.int64, device=device)
    for name, ids in (("pair_ids", pair_ids), ("draw", draw)):
        if not isinstance(ids, torch.Tensor) or ids.dtype != torch.int64:
            raise TypeError(f"{op}: {name} must be int64, got {getattr(ids, 'dtype', type(ids).__name__)}")
        if ids.shape != (pairs,):
            raise ValueError(f"{op}: {name} must have shape ({pairs},), got {tuple(ids.shape)}")
    return pair_ids.to(device), draw.to(device)
