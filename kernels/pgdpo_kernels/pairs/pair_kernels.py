"""The kernels under `pair_errors` and `diffusion_dpo_loss`: partial sums, their means, and the gradient.

A sample is a row of n elements, cut into parts of at most CHUNK, each in one temporal segment. The cut
depends on the sample's shape alone, so that a pair's numbers don't depend on the batch around it. A pair's
two rows are read together. Partial sums are fp32 [10, B, parts], in the order of the constants below.
"""

import triton
import triton.language as tl

from ..jit import store_rounded

BLOCK = 1024  # elements per turn: 8 a thread, which is one 128-bit load in bf16
THREADS = 128
TILE = 1024  # partial sums per turn of the second stage
TILE_THREADS = 512
TILE_REGISTERS = 128  # else ptxas keeps to 64, for a second block that never comes, and spills

POLICY_CHOSEN = tl.constexpr(0)
POLICY_REJECTED = tl.constexpr(1)
COUNT = tl.constexpr(2)
EXCESS_CHOSEN = tl.constexpr(3)
EXCESS_REJECTED = tl.constexpr(4)
REF_CHOSEN = tl.constexpr(5)
REF_REJECTED = tl.constexpr(6)
DRIFT_CHOSEN = tl.constexpr(7)
DRIFT_REJECTED = tl.constexpr(8)
CROSS_TERM = tl.constexpr(9)
QUANTITIES = 10


@triton.jit
def part_bounds(
    table, part, parts, length, HAS_TABLE: tl.constexpr, ALIGN: tl.constexpr, CHUNK: tl.constexpr
):
    """Where a part starts in its row, its size and its segment; the table is int64 [3, parts]."""
    if HAS_TABLE:
        start = tl.load(table + part) * ALIGN
        size = (tl.load(table + parts + part) * ALIGN).to(tl.int32)
        segment = tl.load(table + 2 * parts + part)
    else:
        start = part * CHUNK
        size = tl.minimum(length.to(tl.int64) * ALIGN - start, CHUNK).to(tl.int32)
        segment = part * 0
    return start, size, segment


@triton.jit
def rows_of_pair(pointer, row, pair, pairs, start, ALIGN: tl.constexpr):
    """Where the part begins in the pair's chosen and rejected row; `row` is their stride in units of ALIGN."""
    stride = row.to(tl.int64) * ALIGN
    return pointer + pair * stride + start, pointer + (pair + pairs) * stride + start


@triton.jit
def mask_weights(mask, pair, start, within, inside, mask_row, mask_length, SHORT_MASK: tl.constexpr):
    """The weights of a part's elements: the mask [B | 1, mask_length] repeats along the row."""
    if SHORT_MASK:
        offset = ((start % mask_length).to(tl.int32) + within) % mask_length
    else:
        offset = start % mask_length + within
        offset = tl.where(offset >= mask_length, offset - mask_length, offset)
    return tl.load(mask + pair * mask_row + offset, mask=inside, other=0.0)


@triton.jit
def load_row(pointer, offset, inside, weight, HAS_MASK: tl.constexpr):
    x = tl.load(pointer + offset, mask=inside, other=0.0).to(tl.float32)
    if HAS_MASK:  # what is masked out may hold NaN
        x = tl.where(weight == 0.0, 0.0, x)
    return x


@triton.jit
def load_quantities(pointer, step, cell, inside, HAS_REF: tl.constexpr, CROSS: tl.constexpr):
    """The ten at these cells, `step` elements apart; those that were not asked for are 0."""
    s0 = tl.load(pointer + POLICY_CHOSEN * step + cell, mask=inside, other=0.0)
    s1 = tl.load(pointer + POLICY_REJECTED * step + cell, mask=inside, other=0.0)
    s2 = tl.load(pointer + COUNT * step + cell, mask=inside, other=0.0)
    zero = tl.zeros(s0.shape, tl.float32)
    s3, s4, s5, s6, s7, s8, s9 = zero, zero, zero, zero, zero, zero, zero
    if HAS_REF:
        s3 = tl.load(pointer + EXCESS_CHOSEN * step + cell, mask=inside, other=0.0)
        s4 = tl.load(pointer + EXCESS_REJECTED * step + cell, mask=inside, other=0.0)
        s5 = tl.load(pointer + REF_CHOSEN * step + cell, mask=inside, other=0.0)
        s6 = tl.load(pointer + REF_REJECTED * step + cell, mask=inside, other=0.0)
        s7 = tl.load(pointer + DRIFT_CHOSEN * step + cell, mask=inside, other=0.0)
        s8 = tl.load(pointer + DRIFT_REJECTED * step + cell, mask=inside, other=0.0)
    if CROSS:
        s9 = tl.load(pointer + CROSS_TERM * step + cell, mask=inside, other=0.0)
    return s0, s1, s2, s3, s4, s5, s6, s7, s8, s9


@triton.jit
def store_quantities(
    out, step, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, inside, HAS_REF: tl.constexpr, CROSS: tl.constexpr
):
    """The ten, `step` elements apart; those that were not asked for are left as they are."""
    tl.store(out + POLICY_CHOSEN * step, s0, mask=inside)
    tl.store(out + POLICY_REJECTED * step, s1, mask=inside)
    tl.store(out + COUNT * step, s2, mask=inside)
    if HAS_REF:
        tl.store(out + EXCESS_CHOSEN * step, s3, mask=inside)
        tl.store(out + EXCESS_REJECTED * step, s4, mask=inside)
        tl.store(out + REF_CHOSEN * step, s5, mask=inside)
        tl.store(out + REF_REJECTED * step, s6, mask=inside)
        tl.store(out + DRIFT_CHOSEN * step, s7, mask=inside)
        tl.store(out + DRIFT_REJECTED * step, s8, mask=inside)
    if CROSS:
        tl.store(out + CROSS_TERM * step, s9, mask=inside)


# Runtime integers are not specialized: one binary for every batch, and a stride of 1 stays a number.
SIZES = [
    "pred_row",
    "target_row",
    "ref_row",
    "length",
    "pairs",
    "parts",
    "mask_row",
    "mask_length",
    "segments",
]


@triton.jit(do_not_specialize=SIZES)
def partial_sums(
    pred,
    target,
    ref,
    mask,
    table,
    partials,  # [10, B, parts]
    pred_row,  # strides between rows, in units of ALIGN
    target_row,
    ref_row,
    length,  # of a row, in units of ALIGN
    pairs,
    parts,
    mask_row,
    mask_length,
    HAS_REF: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SHORT_MASK: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    CROSS: tl.constexpr,
    ALIGN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    pair, part = program // parts, program % parts
    start, size, _ = part_bounds(table, part, parts, length, HAS_TABLE, ALIGN, CHUNK)
    pred_w, pred_l = rows_of_pair(pred, pred_row, pair, pairs, start, ALIGN)
    target_w, target_l = rows_of_pair(target, target_row, pair, pairs, start, ALIGN)
    ref_w, ref_l = rows_of_pair(ref, ref_row, pair, pairs, start, ALIGN)

    zero = tl.zeros([BLOCK], tl.float32)
    policy_w, policy_l, reference_w, reference_l = zero, zero, zero, zero
    excess_w, excess_l, drift_w, drift_l = zero, zero, zero, zero
    cross, count = zero, zero
    turn = 0
    while turn < size:  # not a range over CHUNK: some compilers unroll that into thousands of registers
        within = turn + tl.arange(0, BLOCK)
        inside = within < size
        weight = zero
        if HAS_MASK:
            weight = mask_weights(mask, pair, start, within, inside, mask_row, mask_length, SHORT_MASK)
            count += weight
        p_w = load_row(pred_w, within, inside, weight, HAS_MASK)
        t_w = load_row(target_w, within, inside, weight, HAS_MASK)
        p_l = load_row(pred_l, within, inside, weight, HAS_MASK)
        t_l = load_row(target_l, within, inside, weight, HAS_MASK)
        if HAS_REF:
            r_w = load_row(ref_w, within, inside, weight, HAS_MASK)
            r_l = load_row(ref_l, within, inside, weight, HAS_MASK)
        rho_w, rho_l = p_w - t_w, p_l - t_l
        scale_w, scale_l = rho_w, rho_l
        if HAS_MASK:
            scale_w, scale_l = rho_w * weight, rho_l * weight
        policy_w += rho_w * scale_w
        policy_l += rho_l * scale_l
        if CROSS:
            cross += scale_w * rho_l
        if HAS_REF:
            rho_rw, rho_rl = r_w - t_w, r_l - t_l
            d_w, d_l = p_w - r_w, p_l - r_l
            weighted_w, weighted_l, weighted_rw, weighted_rl = d_w, d_l, rho_rw, rho_rl
            if HAS_MASK:
                weighted_w, weighted_l = d_w * weight, d_l * weight
                weighted_rw, weighted_rl = rho_rw * weight, rho_rl * weight
            reference_w += rho_rw * weighted_rw
            reference_l += rho_rl * weighted_rl
            excess_w += weighted_w * (rho_w + rho_rw)
            excess_l += weighted_l * (rho_l + rho_rl)
            drift_w += d_w * weighted_w
            drift_l += d_l * weighted_l
        turn += BLOCK

    step = pairs.to(tl.int64) * parts
    out = partials + pair * parts + part
    total = tl.sum(count) if HAS_MASK else size.to(tl.float32)
    store_quantities(
        out, step, tl.sum(policy_w), tl.sum(policy_l), total, tl.sum(excess_w), tl.sum(excess_l),
        tl.sum(reference_w), tl.sum(reference_l), tl.sum(drift_w), tl.sum(drift_l), tl.sum(cross), None,
        HAS_REF, CROSS,
    )  # fmt: skip


@triton.jit
def sum_parts(
    partials, pair, pairs, parts, begin, end,
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
        t0, t1, t2, t3, t4, t5, t6, t7, t8, t9 = load_quantities(partials, step, cell, inside, HAS_REF, CROSS)
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
    HAS_REF: tl.constexpr, CROSS: tl.constexpr,
):  # fmt: skip
    """Sums to means: `errors` [3 or 7, B, S], `drift` [2, B, S], `cross` [B, S]."""
    inverse = tl.where(
        s2 > 0.0, tl.div_rn(tl.zeros(s2.shape, tl.float32) + 1.0, tl.where(s2 > 0.0, s2, 1.0)), 0.0
    )
    tl.store(errors + POLICY_CHOSEN * step + cell, s0 * inverse, mask=inside)
    tl.store(errors + POLICY_REJECTED * step + cell, s1 * inverse, mask=inside)
    tl.store(errors + COUNT * step + cell, s2, mask=inside)
    if HAS_REF:
        tl.store(errors + EXCESS_CHOSEN * step + cell, s3 * inverse, mask=inside)
        tl.store(errors + EXCESS_REJECTED * step + cell, s4 * inverse, mask=inside)
        tl.store(errors + REF_CHOSEN * step + cell, s5 * inverse, mask=inside)
        tl.store(errors + REF_REJECTED * step + cell, s6 * inverse, mask=inside)
        tl.store(drift + cell, s7 * inverse, mask=inside)
        tl.store(drift + step + cell, s8 * inverse, mask=inside)
    if CROSS:
        tl.store(cross + cell, s9 * inverse, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def pair_means(
    partials,  # [10, B, parts]
    bounds,  # int64 [S + 1]
    errors,
    drift,
    cross,
    pairs,
    parts,
    segments,
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
        partials, pair, pairs, parts, begin, end, HAS_REF, CROSS, PAIRS, PARTS
    )
    cell, step, inside = pair * segments + segment, pairs.to(tl.int64) * segments, pair < pairs
    store_means(
        s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, errors, drift, cross, cell, step, inside, HAS_REF, CROSS
    )


@triton.jit(do_not_specialize=SIZES)
def pair_gradient(
    pred,
    target,
    ref,
    mask,
    table,
    grad_loss,  # FUSED: fp32 [], the gradient by a mean of pairs' losses
    pair_weight,  # FUSED: [B], of the pairs in that mean
    slopes,  # [3, 5 or 7, B, S], the gradient by `errors`; FUSED: of each pair's own loss
    drift_slopes,  # [2, B, S], the gradient by `drift`
    cross_slopes,  # [B, S]
    count,  # [B, S]
    out,  # [2B, n]
    pred_row,
    target_row,
    ref_row,
    length,
    pairs,
    parts,
    segments,
    mask_row,
    mask_length,
    FUSED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_REF: tl.constexpr,  # whether `slopes` has rows for the excess
    DRIFT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SHORT_MASK: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    CROSS: tl.constexpr,
    ALIGN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    pair, part = program // parts, program % parts
    start, size, segment = part_bounds(table, part, parts, length, HAS_TABLE, ALIGN, CHUNK)

    cell, step = pair * segments + segment, pairs.to(tl.int64) * segments
    total = tl.load(count + cell)
    double = tl.where(total > 0.0, tl.div_rn(2.0, tl.where(total > 0.0, total, 1.0)), 0.0)
    share = total * 0.0 + 1.0  # of the pair in the loss
    if FUSED:
        share = tl.div_rn(tl.load(grad_loss), pairs.to(tl.float32))
        if HAS_WEIGHT:
            share *= tl.load(pair_weight + pair).to(tl.float32)
    slope_w = tl.load(slopes + POLICY_CHOSEN * step + cell) * share
    slope_l = tl.load(slopes + POLICY_REJECTED * step + cell) * share
    if HAS_REF:  # d(policy - ref)(rho_p + rho_r) = 2 rho_p d(policy): the reference is not read
        slope_w += tl.load(slopes + EXCESS_CHOSEN * step + cell) * share
        slope_l += tl.load(slopes + EXCESS_REJECTED * step + cell) * share
    slope_w, slope_l = slope_w * double, slope_l * double
    if DRIFT:
        pull_w = tl.load(drift_slopes + cell) * double
        pull_l = tl.load(drift_slopes + step + cell) * double
    if CROSS:
        twist = tl.load(cross_slopes + cell) * double * 0.5

    pred_w, pred_l = rows_of_pair(pred, pred_row, pair, pairs, start, ALIGN)
    target_w, target_l = rows_of_pair(target, target_row, pair, pairs, start, ALIGN)
    ref_w, ref_l = rows_of_pair(ref, ref_row, pair, pairs, start, ALIGN)
    out_w, out_l = rows_of_pair(out, length, pair, pairs, start, ALIGN)
    turn = 0
    while turn < size:
        within = turn + tl.arange(0, BLOCK)
        inside = within < size
        weight = tl.zeros([BLOCK], tl.float32)
        if HAS_MASK:
            weight = mask_weights(mask, pair, start, within, inside, mask_row, mask_length, SHORT_MASK)
        p_w = load_row(pred_w, within, inside, weight, HAS_MASK)
        p_l = load_row(pred_l, within, inside, weight, HAS_MASK)
        rho_w = p_w - load_row(target_w, within, inside, weight, HAS_MASK)
        rho_l = p_l - load_row(target_l, within, inside, weight, HAS_MASK)
        grad_w, grad_l = slope_w * rho_w, slope_l * rho_l
        if DRIFT:
            grad_w += pull_w * (p_w - load_row(ref_w, within, inside, weight, HAS_MASK))
            grad_l += pull_l * (p_l - load_row(ref_l, within, inside, weight, HAS_MASK))
        if CROSS:
            grad_w, grad_l = grad_w + twist * rho_l, grad_l + twist * rho_w
        if HAS_MASK:
            grad_w = tl.where(weight == 0.0, 0.0, grad_w * weight)
            grad_l = tl.where(weight == 0.0, 0.0, grad_l * weight)
        store_rounded(out_w + within, grad_w, inside, EMULATE_BF16)
        store_rounded(out_l + within, grad_l, inside, EMULATE_BF16)
        turn += BLOCK
