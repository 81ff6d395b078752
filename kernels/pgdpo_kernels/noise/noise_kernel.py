"""Noise and noising of a group in one pass, to the bits of `reference.noise`: see there for the maths.

Every operation between the Philox words and the store is rounded on its own: enable_fp_fusion must be False. The
multiply-adds that are written out have an exact product, by a power of two, and so the bits of two roundings.
"""

import triton
import triton.language as tl

from ..jit import philox, store_rounded
from ..reference import noise as eager

LANE = tl.constexpr(eager.LANE)
GROUPS = 4  # groups of 4 * LANE elements a program
THREADS = 128
QUARTER, LN2 = tl.constexpr(eager.QUARTER), tl.constexpr(eager.LN2)
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (tl.constexpr(c) for c in eager.LOG)
S0, S1, S2 = (tl.constexpr(c) for c in eager.SIN)
C0, C1, C2 = (tl.constexpr(c) for c in eager.COS)


@triton.jit
def negated(x):
    """-x; Triton's minus is 0 - x in some versions, which turns -0 into 0 and costs an instruction."""
    return (x.to(tl.uint32, bitcast=True) ^ 0x80000000).to(tl.float32, bitcast=True)


@triton.jit
def log_times_minus_2(u):
    bits = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    e = (bits & -0x800000).to(tl.float32)  # 2^23 times the exponent
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    f2 = f * f
    p = f * L0 + L1
    p = p * f + L2
    p = p * f + L3
    p = p * f + L4
    p = p * f + L5
    p = p * f + L6
    p = p * f + L7
    p = p * f + L8
    return tl.fma(tl.fma(f2, -0.5, p * f * f2) + f, -2.0, e * (LN2 * -(2.0**-22)))


@triton.jit
def root(x, INTERPRETED: tl.constexpr):
    """sqrt(x) rounded as IEEE asks, for x of 2^-100 to 2^100 and 0, without the branch that every `sqrt_rn` has.

    Newton steps on root and half reciprocal root, then one by the exact remainder (Markstein): right to the bit for
    every mantissa from any reciprocal root within four units in the last place (tests/kernels/test_noise.py); a
    GPU's is within two.
    """
    if INTERPRETED:  # it rounds the products of multiply-adds
        r = tl.sqrt_rn(x)
    else:
        y = tl.minimum(tl.abs(tl.rsqrt(x)), 1e30)  # of 0 too
        r, half = x * y, y * 0.5
        rest = tl.fma(negated(r), half, 0.5)
        r, half = tl.fma(r, rest, r), tl.fma(half, rest, half)
        r = tl.fma(tl.fma(negated(r), r, x), half, r)
    return r


@triton.jit
def gaussians(radius, angle, INTERPRETED: tl.constexpr):
    u = tl.fma(radius.to(tl.float32), 2.3283064365386963e-10, 1.1641532182693481e-10)
    r = root(log_times_minus_2(u), INTERPRETED)
    x = (angle << 2).to(tl.int32, bitcast=True).to(tl.float32) * QUARTER
    x2 = x * x
    sine = ((S0 * x2 + S1) * x2 + S2) * x2 * x + x
    cosine = ((C0 * x2 + C1) * x2 + C2) * x2 * x2 + tl.fma(x2, -0.5, 1.0)
    odd = (angle & 0x40000000) != 0
    sign = (r.to(tl.uint32, bitcast=True) ^ (angle & 0x80000000)).to(tl.float32, bitcast=True)
    return sign * tl.where(odd, negated(sine), cosine), sign * tl.where(odd, cosine, sine)


@triton.jit(do_not_specialize=["length", "pairs", "tiles", "seed_low", "seed_high"])
def noise_kernel(
    latents,  # [K * B, n], member by member; not read for the noise alone
    level,  # fp32 [B]
    pair_ids,  # int64 [B]
    draw,  # int64 [B]
    noisy,  # [K * B, n]; [B, n] for the noise alone
    target,  # [K * B, n]
    length,  # n, in units of ALIGN
    pairs,
    tiles,  # programs a pair
    seed_low,
    seed_high,
    PREDICTION: tl.constexpr,  # "flow", "epsilon", "v", or "noise": the noise alone
    MEMBERS: tl.constexpr,  # K
    ALIGN: tl.constexpr,
    GROUPS: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    pair, tile = program // tiles, program % tiles
    size = length.to(tl.int64) * ALIGN
    group = tile * GROUPS + tl.arange(0, GROUPS)
    lane = tl.arange(0, LANE)[None, :]
    block = (group[:, None] * LANE + lane).to(tl.uint32)
    id_ = tl.load(pair_ids + pair)
    zero = block ^ block
    w0, w1, w2, w3 = philox(
        block, zero + tl.load(draw + pair).to(tl.uint32), zero + id_.to(tl.uint32),
        zero + (id_ >> 32).to(tl.uint32), seed_low.to(tl.uint32), seed_high.to(tl.uint32),
    )  # fmt: skip
    if PREDICTION != "noise":
        amount = tl.load(level + pair)
        keep, add = 1.0 - amount, amount
        if PREDICTION != "flow":
            keep, add = tl.sqrt_rn(amount), tl.sqrt_rn(1.0 - amount)

    for i in tl.static_range(4):
        if i % 2 == 0:  # not earlier: the second two would wait in registers
            first, second = gaussians(w0 if i == 0 else w2, w1 if i == 0 else w3, EMULATE_BF16)
        noise = first if i % 2 == 0 else second
        offset = group[:, None] * (4 * LANE) + i * LANE + lane
        inside = offset < size
        if PREDICTION == "noise":
            store_rounded(noisy + pair * size + offset, noise, inside, EMULATE_BF16)
        else:
            for member in tl.static_range(MEMBERS):
                row = (pair + member * pairs) * size
                x = tl.load(latents + row + offset, mask=inside, other=0.0).to(tl.float32)
                aim = noise
                if PREDICTION == "flow":
                    aim = noise - x
                elif PREDICTION == "v":
                    aim = keep * noise - add * x
                store_rounded(noisy + row + offset, keep * x + add * noise, inside, EMULATE_BF16)
                store_rounded(target + row + offset, aim, inside, EMULATE_BF16)
