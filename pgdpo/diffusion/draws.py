"""Draws as pure functions of (seed, pair, draw): the same on every rank, device and world size.

The noise comes from `pgdpo_kernels.noise_pair`, keyed by the same three numbers.
"""

from __future__ import annotations

import hashlib
import math
import struct
from statistics import NormalDist

import torch

from pgdpo.config import DiffusionConfig


def uniform(seed: int, pair_id: int, draw: int, *, stream: str) -> float:
    """A number in (0, 1), uniform over pairs and draws. `stream` keeps uses apart ("timestep", "caption")."""
    digest = hashlib.sha256(struct.pack("<QQQ", seed, pair_id, draw) + stream.encode()).digest()
    return (int.from_bytes(digest[:8], "little") >> 11 | 1) / 2.0**53


def seed_torch(seed: int, pair_ids: torch.Tensor, draws: torch.Tensor) -> None:
    """Seed torch from a micro-batch's first pair, so that dropout too is a function of the pair, not of the past.

    A resumed run then needs no generator's state, on any number of ranks.
    """
    torch.manual_seed(int(2**53 * uniform(seed, int(pair_ids[0]), int(draws[0]), stream="model")))


def sigmas(
    config: DiffusionConfig,
    *,
    seed: int,
    pair_ids: torch.Tensor,
    draws: torch.Tensor,
    within: tuple[float, float],
) -> torch.Tensor:
    """Noise levels `[B]`, fp32, one per pair, shared by chosen and rejected.

    Uniform, or logit-normal (Esser et al. 2024, arXiv 2403.03206, eq. 19), then shifted (ibid., eq. 23), under the
    condition that they lie in `within` (a family's `sigma_range`).
    """
    values = [
        sigma_at(config, uniform(seed, pair_id, draw, stream="timestep"), within)
        for pair_id, draw in zip(pair_ids.tolist(), draws.tolist(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float32)


def sigma_at(config: DiffusionConfig, quantile: float, within: tuple[float, float] = (0.0, 1.0)) -> float:
    """The noise level below which a share `quantile` of the training draws in `within` lies."""
    low, high = (share_below(config, sigma) for sigma in within)
    quantile = low + quantile * (high - low)
    if config.timestep_sampling == "uniform":
        sigma = quantile
    else:
        logit = NormalDist(config.logit_mean, config.logit_std).inv_cdf(quantile)
        sigma = 1 / (1 + math.exp(-logit))
    return config.shift * sigma / (1 + (config.shift - 1) * sigma)


def share_below(config: DiffusionConfig, sigma: float) -> float:
    """The share of unconditioned training draws below `sigma`: the inverse of `sigma_at`."""
    if not 0 < sigma < 1:
        return min(max(sigma, 0.0), 1.0)
    plain = sigma / (config.shift - (config.shift - 1) * sigma)  # the shift undone
    if config.timestep_sampling == "uniform":
        return plain
    return NormalDist(config.logit_mean, config.logit_std).cdf(math.log(plain / (1 - plain)))
