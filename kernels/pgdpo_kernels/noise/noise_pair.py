"""Noise that is a pure function of (seed, pair, draw, element), and noising of pairs and other groups with it."""

import math
from collections.abc import Sequence

import torch

from ..backend import interpreting, takes_triton
from ..checks import FLOATS, check_samples
from ..launch import dense_like, launch
from ..library import opaque
from ..reference import noise as eager

PREDICTIONS = ("flow", "epsilon", "v")


def noise_pair(
    latents: torch.Tensor,  # [K * B, ...], member by member: of pairs the chosen half first
    level: torch.Tensor,  # [B]
    *,
    seed: int,
    pair_ids: torch.Tensor,  # [B] int64
    draw: int | torch.Tensor,  # [B] int64
    prediction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents and the target of the prediction, both `[K * B, ...]` in the latents' dtype.

    The K samples of a group, rows g, B + g, 2B + g, ..., share one noise: chosen and rejected of a pair, K = 2; a clip
    by itself, K = 1. It is the same to the bit on every device and backend, and in any
    batch: an element's noise depends on (seed, pair id, draw, its index within the sample) alone.

    Args:
        latents: bf16, fp16 or fp32.
        level: for `prediction="flow"` sigma in [0, 1]: noisy = (1 - sigma) x + sigma eps, target eps - x;
            for `epsilon` and `v` the cumulative alpha-bar a in [0, 1]: noisy = sqrt(a) x + sqrt(1 - a) eps,
            target eps or sqrt(a) eps - sqrt(1 - a) x (arXiv 2202.00512).
        seed: a 64-bit integer.
        pair_ids: 64-bit hashes that name the pairs, or the groups: as many as these, B, of which the rows are a
            multiple.
        draw: which draw of the pair, an integer or one per pair, modulo 2^32.
        prediction: `flow`, `epsilon` or `v`.

    Raises:
        TypeError, ValueError: a dtype, a shape or the prediction is not one of the above.
    """
    op = "noise_pair"
    check_samples(op, "latents", latents)
    if prediction not in PREDICTIONS:
        raise ValueError(f"{op}: prediction must be one of {PREDICTIONS}, got {prediction!r}")
    seed = check_seed(op, seed)
    pairs = check_members(op, latents, pair_ids)
    ids, draws = check_ids(op, pair_ids, draw, pairs, latents.device)
    if not isinstance(level, torch.Tensor) or not level.is_floating_point() or level.shape != (pairs,):
        given = (level.dtype, tuple(level.shape)) if isinstance(level, torch.Tensor) else type(level).__name__
        raise ValueError(f"{op}: level must be a float tensor of shape ({pairs},), got {given}")
    level = level.detach().to(latents.device, torch.float32).contiguous()
    triton = takes_triton(op, latents)
    return _noise_pair(latents.detach(), level, ids, draws, seed, prediction, triton)


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
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"{op}: shape must be [B, ...] of rank 2 or more, got {tuple(shape)}")
    if dtype not in FLOATS:
        raise TypeError(f"{op}: dtype must be bfloat16, float16 or float32, got {dtype}")
    seed = check_seed(op, seed)
    ids, draws = check_ids(op, pair_ids, draw, shape[0], device)
    return _pair_noise(list(shape), ids, draws, seed, dtype, takes_triton(op, ids))


def check_seed(op: str, seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"{op}: seed must be a 64-bit integer, got {seed!r}")
    return seed - 2**64 if seed >= 2**63 else seed


def check_members(op: str, latents: torch.Tensor, pair_ids: torch.Tensor) -> int:
    """B, the number of groups: that of their ids."""
    groups = (
        pair_ids.numel() if isinstance(pair_ids, torch.Tensor) else 1
    )  # what it is instead `check_ids` tells
    if not groups or latents.shape[0] % groups:
        raise ValueError(
            f"{op}: latents must have K rows for each of the {groups} pair_ids, K * B in all, "
            f"got {latents.shape[0]} rows"
        )
    return groups


def check_ids(
    op: str, pair_ids: torch.Tensor, draw: int | torch.Tensor, pairs: int, device: torch.device | str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(draw, int) and not isinstance(draw, bool):
        draw = torch.full((pairs,), draw, dtype=torch.int64, device=device)
    for name, ids in (("pair_ids", pair_ids), ("draw", draw)):
        if not isinstance(ids, torch.Tensor) or ids.dtype != torch.int64:
            raise TypeError(f"{op}: {name} must be int64, got {getattr(ids, 'dtype', type(ids).__name__)}")
        if ids.shape != (pairs,):
            raise ValueError(f"{op}: {name} must have shape ({pairs},), got {tuple(ids.shape)}")
    device = pair_ids.device if device is None else device
    return pair_ids.to(device).contiguous(), draw.to(device).contiguous()


# Eager maths too stands behind the opaque op: torch.compile would fuse it and change its bits.
@opaque("noise_pair", lambda latents, *_: (dense_like(latents), dense_like(latents)))
def _noise_pair(
    latents: torch.Tensor,
    level: torch.Tensor,
    pair_ids: torch.Tensor,
    draw: torch.Tensor,
    seed: int,
    prediction: str,
    triton: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = latents.reshape(latents.shape[0], -1).contiguous()
    if triton:
        noisy, target = torch.empty_like(rows), torch.empty_like(rows)
        members = rows.shape[0] // level.shape[0]
        launch_noise(rows, level, pair_ids, draw, noisy, target, rows.shape[1], seed, prediction, members)
        return noisy.view(latents.shape), target.view(latents.shape)
    noise = eager.pair_noise(level.shape[0], rows.shape[1], seed, pair_ids, draw)
    noisy, target = eager.noise_pair(rows, level, noise, prediction)
    return noisy.view(latents.shape), target.view(latents.shape)


def _pair_noise_fake(shape, pair_ids, draw, seed, dtype, triton):
    return torch.empty(shape, dtype=dtype, device=pair_ids.device)


@opaque("pair_noise", _pair_noise_fake)
def _pair_noise(
    shape: Sequence[int],
    pair_ids: torch.Tensor,
    draw: torch.Tensor,
    seed: int,
    dtype: torch.dtype,
    triton: bool,
) -> torch.Tensor:
    elements = math.prod(shape[1:])
    if not triton:
        noise = eager.pair_noise(shape[0], elements, seed, pair_ids, draw)
        return noise.to(dtype).reshape(shape).contiguous()
    out = torch.empty(shape, dtype=dtype, device=pair_ids.device)
    launch_noise(out, pair_ids, pair_ids, draw, out, out, elements, seed, "noise", 1)
    return out


def launch_noise(latents, level, pair_ids, draw, noisy, target, elements, seed, prediction, members) -> None:
    from .noise_kernel import GROUPS, LANE, THREADS, noise_kernel

    align = 8 if elements % 8 == 0 else 1
    pairs = pair_ids.shape[0]
    tiles = -(-elements // (4 * LANE.value * GROUPS))
    launch(
        noise_kernel,
        (pairs * tiles,),
        (latents, level, pair_ids, draw),
        (noisy, target),
        (elements // align, pairs, tiles, seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF),
        threads=THREADS,
        fp_fusion=False,
        PREDICTION=prediction,
        MEMBERS=members,
        ALIGN=align,
        GROUPS=GROUPS,
        EMULATE_BF16=interpreting(),
    )
