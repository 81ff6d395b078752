"""The second stage of `pair_errors` and `group_errors`: partial sums to means."""

import triton
import triton.language as tl

from .pair_kernels import SIZES

TILE = 1024  # partial sums per turn
TILE_THREADS = 512
TILE_REGISTERS = 128  # else ptxas keeps to 64, for a second block that never comes, and spills


@triton.jit
def load_quantities(
    pointer, step, cell, inside, MEMBERS: tl.constexpr, COUNTS: tl.constexpr, HAS_REF: tl.constexpr,
    CROSS: tl.constexpr,
):  # fmt: skip
    """The ten at these cells, `step` elements apart; those that were not asked for are 0.

    COUNTS: of a pair, one if its rows were read together, else one each.
    """
    s0 = tl.load(pointer + cell, mask=inside, other=0.0)
    zero = tl.zeros(s0.shape, tl.float32)
    s1, s3, s4, s5, s6, s7, s8, s9 = zero, zero, zero, zero, zero, zero, zero, zero
    if MEMBERS == 2:
        s1 = tl.load(pointer + step + cell, mask=inside, other=0.0)
    s2 = tl.load(pointer + MEMBERS * step + cell, mask=inside, other=0.0)
    if HAS_REF:
        s3 = tl.load(pointer + (MEMBERS + COUNTS) * step + cell, mask=inside, other=0.0)
        if MEMBERS == 2:
            s4 = tl.load(pointer + (MEMBERS + COUNTS + 1) * step + cell, mask=inside, other=0.0)
        s5 = tl.load(pointer + (2 * MEMBERS + COUNTS) * step + cell, mask=inside, other=0.0)
        if MEMBERS == 2:
            s6 = tl.load(pointer + (2 * MEMBERS + COUNTS + 1) * step + cell, mask=inside, other=0.0)
        s7 = tl.load(pointer + (3 * MEMBERS + COUNTS) * step + cell, mask=inside, other=0.0)
        if MEMBERS == 2:
            s8 = tl.load(pointer + (3 * MEMBERS + COUNTS + 1) * step + cell, mask=inside, other=0.0)
    if CROSS:
        s9 = tl.load(pointer + (4 * MEMBERS + 1) * step + cell, mask=inside, other=0.0)
    return s0, s1, s2, s3, s4, s5, s6, s7, s8, s9


@triton.jit
def sum_parts(
    partials, pair, pairs, parts, begin, end, MEMBERS: tl.constexpr, COUNTS: tl.constexpr,
    HAS_REF: tl.constexpr, CROSS: tl.constexpr, PAIRS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The ten quantities' sums over the parts [begin, end) for a vector of PAIRS pairs, in a fixed order."""
    zero = tl.zeros([PAIRS, PARTS], tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    step = pairs.to(tl.int64) * parts
    part = begin
    while part < end:
        column = part + tl.arange(0, PARTS)
        inside = (pair < pairs)[:, None] & (column < end)[None, :]
        # 32-bit offsets from scalar pointers: a kernel of ten streams has no registers for 64-bit ones.
        cell = (pair.to(tl.int32) * parts)[:, None] + column[None, :]
        t0, t1, t2, t3, t4, t5, t6, t7, t8, t9 = load_quantities(
            partials, step, cell, inside, MEMBERS, COUNTS, HAS_REF, CROSS
        )
        s0, s1, s2 = s0 + t0, s1 + t1, s2 + t2
        if HAS_REF:
            s3, s4, s5, s6, s7, s8 = s3 + t3, s4 + t4, s5 + t5, s6 + t6, s7 + t7, s8 + t8
        if CROSS:
            s9 += t9
        part += PARTS
    return (
        tl.sum(s0, 1), tl.sum(s1, 1), tl.sum(s2, 1), tl.sum(s3, 1), tl.sum(s4, 1),
        tl.sum(s5, 1), tl.sum(s6, 1), tl.sum(s7, 1), tl.sum(s8, 1), tl.sum(s9, 1),
    )  # fmt: skip


@triton.jit
def store_means(
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, errors, drift, cross, cell, step, inside,
    MEMBERS: tl.constexpr, HAS_REF: tl.constexpr, CROSS: tl.constexpr,
):  # fmt: skip
    """Sums to means: `errors` [1 | 3 times MEMBERS, and 1, B, S], `drift` [MEMBERS, B, S], `cross` [B, S]."""
    inverse = tl.where(
        s2 > 0.0, tl.div_rn(tl.zeros(s2.shape, tl.float32) + 1.0, tl.where(s2 > 0.0, s2, 1.0)), 0.0
    )
    tl.store(errors + cell, s0 * inverse, mask=inside)
    if MEMBERS == 2:
        tl.store(errors + step + cell, s1 * inverse, mask=inside)
    tl.store(errors + MEMBERS * step + cell, s2, mask=inside)
    if HAS_REF:
        tl.store(errors + (MEMBERS + 1) * step + cell, s3 * inverse, mask=inside)
        if MEMBERS == 2:
            tl.store(errors + (MEMBERS + 2) * step + cell, s4 * inverse, mask=inside)
        tl.store(errors + (2 * MEMBERS + 1) * step + cell, s5 * inverse, mask=inside)
        if MEMBERS == 2:
            tl.store(errors + (2 * MEMBERS + 2) * step + cell, s6 * inverse, mask=inside)
        tl.store(drift + cell, s7 * inverse, mask=inside)
        if MEMBERS == 2:
            tl.store(drift + step + cell, s8 * inverse, mask=inside)
    if CROSS:
        tl.store(cross + cell, s9 * inverse, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def pair_means(
    partials,  # [5 * MEMBERS, B, parts]
    bounds,  # int64 [S + 1]
    errors,
    drift,
    cross,
    pairs,
    parts,
    segments,
    MEMBERS: tl.constexpr,
    COUNTS: tl.constexpr,
    HAS_REF: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    CROSS: tl.constexpr,
    PAIRS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A program adds up one segment of PAIRS pairs."""
    program = tl.program_id(0).to(tl.int64)
    segment = program % segments
    pair = program // segments * PAIRS + tl.arange(0, PAIRS)
    if HAS_TABLE:
        begin, end = tl.load(bounds + segment).to(tl.int32), tl.load(bounds + segment + 1).to(tl.int32)
    else:
        begin, end = 0, parts
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = sum_parts(
        partials, pair, pairs, parts, begin, end, MEMBERS, COUNTS, HAS_REF, CROSS, PAIRS, PARTS
    )
    cell, step, inside = pair * segments + segment, pairs.to(tl.int64) * segments, pair < pairs
    store_means(
        s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, errors, drift, cross, cell, step, inside,
        MEMBERS, HAS_REF, CROSS,
    )  # fmt: skip
