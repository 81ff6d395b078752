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


def sigmas(
    config: DiffusionConfig, *, seed: int, pair_ids: torch.Tensor, draws: torch.Tensor
) -> torch.Tensor:
    """Noise levels `[B]` in (0, 1), fp32, one per pair, shared by chosen and rejected.

    Uniform, or logit-normal (Esser et al. 2024, arXiv 2403.03206, eq. 19), then shifted (ibid., eq. 23).
    """
    values = [
        sigma_at(config, uniform(seed, pair_id, draw, stream="timestep"))
        for pair_id, draw in zip(pair_ids.tolist(), draws.tolist(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float32)


def sigma_at(config: DiffusionConfig, quantile: float) -> float:
    """The noise level below which a share `quantile` of the training draws lies."""
    if config.timestep_sampling == "uniform":
        sigma = quantile
    else:
        logit = NormalDist(config.logit_mean, config.logit_std).inv_cdf(quantile)
        sigma = 1 / (1 + math.exp(-logit))
    return config.shift * sigma / (1 + (config.shift - 1) * sigma)
