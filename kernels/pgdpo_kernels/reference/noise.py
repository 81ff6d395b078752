"""Philox noise in eager PyTorch: the same bits on every device, and as the Triton kernel's.

Only operations that IEEE 754 rounds correctly (+, -, *, sqrt, integer to float) on the Gaussian's way, each
rounded on its own: no libm, no fused multiply-add.
"""

from __future__ import annotations

import torch

# Elements come in groups of 4 * LANE: lane i of a group's j-th counter is the group's element i * LANE + j.
LANE = 256
MASK32 = 0xFFFFFFFF
CHUNK = 1 << 14  # counters at a time, to stay in the CPU's cache

# log(1 + f) = f - f^2/2 + f^3 P(f) for 1 + f in [sqrt(1/2), sqrt(2)); sine and cosine on [-pi/4, pi/4].
# The coefficients are those of Cephes' logf, sinf and cosf.
LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
LN2 = 0.6931471805599453
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
QUARTER = 1.5707963267948966 / 2**32  # radians per unit of a 32-bit fraction of a quarter turn


def pair_noise(
    samples: int, elements: int, seed: int, pair_ids: torch.Tensor, draw: torch.Tensor
) -> torch.Tensor:
    """Standard normal numbers, fp32 `[samples, elements]`; int64 `pair_ids` and `draw` are `[samples]`."""
    groups = -(-elements // (4 * LANE))
    out = torch.empty(samples, groups, 4, LANE, device=pair_ids.device)
    lanes = out.view(samples * groups, 4, LANE)
    row = torch.arange(samples * groups, device=pair_ids.device)
    step = max(1, CHUNK // LANE)
    within = torch.arange(LANE, device=pair_ids.device)
    for start in range(0, samples * groups, step):
        rows = row[start : start + step]
        sample, group = rows // groups, rows % groups
        block = group[:, None] * LANE + within
        words = philox(block, draw[sample][:, None], pair_ids[sample][:, None], seed)
        for lane, (radius, angle) in ((0, words[:2]), (2, words[2:])):
            lanes[start : start + step, lane], lanes[start : start + step, lane + 1] = gaussians(
                radius, angle
            )
    return out.view(samples, -1)[:, :elements]


def philox(
    block: torch.Tensor, draw: torch.Tensor, pair: torch.Tensor, seed: int
) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10 (Salmon et al. 2011) of counter (block, draw, pair low, pair high) and key `seed`.

    Words are int64 in [0, 2^32): the wrapped product of two of them holds both halves.
    """
    c0, c1, c2, c3 = block & MASK32, draw & MASK32, pair & MASK32, (pair >> 32) & MASK32
    k0, k1 = seed & MASK32, (seed >> 32) & MASK32
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0 = ((right >> 32) & MASK32) ^ c1 ^ k0
        c2 = ((left >> 32) & MASK32) ^ c3 ^ k1
        c1, c3 = right & MASK32, left & MASK32
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def gaussians(radius: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Box-Muller on two 32-bit words: sqrt(-2 ln u) times cosine and sine of a full turn's fraction."""
    u = radius.float() * 2**-32 + 2**-33
    r = _sqrt(_log(u) * -2.0)
    quarter = angle >> 30
    fraction = (angle << 2) & MASK32
    fraction = torch.where(fraction >= 2**31, fraction - 2**32, fraction)
    x = fraction.float() * QUARTER
    x2 = x * x
    sine = ((SIN[0] * x2 + SIN[1]) * x2 + SIN[2]) * x2 * x + x
    cosine = ((COS[0] * x2 + COS[1]) * x2 + COS[2]) * x2 * x2 + (1.0 - 0.5 * x2)
    odd = (quarter & 1) == 1
    first, second = torch.where(odd, -sine, cosine), torch.where(odd, cosine, sine)
    sign = torch.where(quarter >= 2, -r, r)
    return sign * first, sign * second


def _log(u: torch.Tensor) -> torch.Tensor:
    # u = 2^e * m with m in [sqrt(1/2), sqrt(2)): the magic number is the bit pattern of sqrt(1/2).
    bits = u.view(torch.int32) - 0x3F3504F3
    e = (bits >> 23).float()
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    f2 = f * f
    p = f * LOG[0] + LOG[1]
    for coefficient in LOG[2:]:
        p = p * f + coefficient
    return p * f * f2 - 0.5 * f2 + f + e * LN2


def _sqrt(x: torch.Tensor) -> torch.Tensor:
    """Correctly rounded: on a CPU torch may take a vector library's fp32 root, which is not."""
    return x.double().sqrt().float()


def noise_pair(
    latents: torch.Tensor, level: torch.Tensor, noise: torch.Tensor, prediction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents and target `[K * B, n]` in the latents' dtype; fp32 `level` `[B]`, `noise` `[B, n]`."""
    members = latents.shape[0] // level.shape[0]
    x = latents.float()
    keep, add = (1 - level, level) if prediction == "flow" else (_sqrt(level), _sqrt(1 - level))
    keep, add, noise = (y.repeat(members, 1) for y in (keep[:, None], add[:, None], noise))
    noisy = keep * x + add * noise
    target = noise
    if prediction == "flow":
        target = noise - x
    elif prediction == "v":
        target = keep * noise - add * x
    return noisy.to(latents.dtype), target.to(latents.dtype)
