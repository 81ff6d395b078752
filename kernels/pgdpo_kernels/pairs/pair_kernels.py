"""The kernels under `pair_errors`, `group_errors` and `diffusion_dpo_loss` that read samples: sums, and the gradient.

A sample is a row of n elements, cut into parts of at most CHUNK, each in one temporal segment. The cut depends on the
sample's shape alone, so that its numbers don't depend on the batch around it. A program has one part of MEMBERS rows:
with 2 those of a pair, read together (a mask is read once, and `cross` needs both); with 1 a sample's own, whatever
its group, and each "pair" below is such a sample. A sample's numbers have the same bits either way.

What is summed, in this order: the policy's error of each member, the count, then of each member the excess, the
reference's error and the drift, then the cross term. Those that were not asked for are neither computed nor stored.
"""

import triton
import triton.language as tl

from ..jit import store_rounded

BLOCK = 1024  # elements per turn: 8 a thread, which is one 128-bit load in bf16
THREADS = 128

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
def part_of_row(pointer, addresses, row, stride, start, SEPARATE: tl.constexpr, ALIGN: tl.constexpr):
    """Where the part begins: in a row of one tensor, `stride` in units of ALIGN, or in one at its own address."""
    if SEPARATE:
        begin = tl.load(addresses + row).to(pointer.dtype) + start
        if ALIGN > 1:  # bytes: `own_row` sees to it; a hint on the address itself is lost in the cast
            begin = tl.multiple_of(begin, 16)
    else:
        begin = pointer + row * (stride.to(tl.int64) * ALIGN) + start
    return begin


@triton.jit
def mask_weights(mask, group, start, within, inside, mask_row, mask_length, SHORT_MASK: tl.constexpr):
    """The weights of a part's elements: the mask [G | 1, mask_length] repeats along the row."""
    if SHORT_MASK:
        offset = ((start % mask_length).to(tl.int32) + within) % mask_length
    else:
        offset = start % mask_length + within
        offset = tl.where(offset >= mask_length, offset - mask_length, offset)
    return tl.load(mask + group * mask_row + offset, mask=inside, other=0.0)


@triton.jit
def load_row(pointer, offset, inside, weight, HAS_MASK: tl.constexpr):
    x = tl.load(pointer + offset, mask=inside, other=0.0).to(tl.float32)
    if HAS_MASK:  # what is masked out may hold NaN
        x = tl.where(weight == 0.0, 0.0, x)
    return x


@triton.jit
def weighted(x, weight, HAS_MASK: tl.constexpr):
    if HAS_MASK:
        x = x * weight
    return x


@triton.jit
def store_gradient(pointer, offset, grad, inside, weight, HAS_MASK: tl.constexpr, EMULATE_BF16: tl.constexpr):
    if HAS_MASK:
        grad = tl.where(weight == 0.0, 0.0, grad * weight)
    store_rounded(pointer + offset, grad, inside, EMULATE_BF16)


@triton.jit
def store_quantities(
    out, step, policy_w, policy_l, count, excess_w, excess_l, reference_w, reference_l, drift_w, drift_l, cross,
    MEMBERS: tl.constexpr, HAS_REF: tl.constexpr, CROSS: tl.constexpr,
):  # fmt: skip
    """One number each, `step` elements apart."""
    tl.store(out, policy_w)
    if MEMBERS == 2:
        tl.store(out + step, policy_l)
    tl.store(out + MEMBERS * step, count)
    if HAS_REF:
        tl.store(out + (MEMBERS + 1) * step, excess_w)
        if MEMBERS == 2:
            tl.store(out + (MEMBERS + 2) * step, excess_l)
        tl.store(out + (2 * MEMBERS + 1) * step, reference_w)
        if MEMBERS == 2:
            tl.store(out + (2 * MEMBERS + 2) * step, reference_l)
        tl.store(out + (3 * MEMBERS + 1) * step, drift_w)
        if MEMBERS == 2:
            tl.store(out + (3 * MEMBERS + 2) * step, drift_l)
    if CROSS:
        tl.store(out + (4 * MEMBERS + 1) * step, cross)


@triton.jit(do_not_specialize=SIZES)
def partial_sums(
    pred,  # SEPARATE: the first sample's alone
    target,
    ref,
    addresses,  # SEPARATE: int64 [3, N], of the rows of pred, target and ref
    mask,
    groups,  # int64 [N], of each sample, where the mask has a row for each
    table,
    partials,  # [5 * MEMBERS, B, parts]
    pred_row,  # strides between rows, in units of ALIGN
    target_row,
    ref_row,
    length,  # of a row, in units of ALIGN
    pairs,
    parts,
    mask_row,
    mask_length,
    MEMBERS: tl.constexpr,
    SEPARATE: tl.constexpr,
    HAS_REF: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
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
    targets, refs = addresses + MEMBERS * pairs, addresses + 2 * MEMBERS * pairs
    pred_w = part_of_row(pred, addresses, pair, pred_row, start, SEPARATE, ALIGN)
    target_w = part_of_row(target, targets, pair, target_row, start, SEPARATE, ALIGN)
    if HAS_REF:
        ref_w = part_of_row(ref, refs, pair, ref_row, start, SEPARATE, ALIGN)
    if MEMBERS == 2:
        pred_l = part_of_row(pred, addresses, pair + pairs, pred_row, start, SEPARATE, ALIGN)
        target_l = part_of_row(target, targets, pair + pairs, target_row, start, SEPARATE, ALIGN)
        if HAS_REF:
            ref_l = part_of_row(ref, refs, pair + pairs, ref_row, start, SEPARATE, ALIGN)
    if HAS_MASK:
        group = tl.load(groups + pair) if HAS_GROUPS else pair

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
            weight = mask_weights(mask, group, start, within, inside, mask_row, mask_length, SHORT_MASK)
            count += weight
        p_w = load_row(pred_w, within, inside, weight, HAS_MASK)
        t_w = load_row(target_w, within, inside, weight, HAS_MASK)
        if MEMBERS == 2:
            p_l = load_row(pred_l, within, inside, weight, HAS_MASK)
            t_l = load_row(target_l, within, inside, weight, HAS_MASK)
        if HAS_REF:
            r_w = load_row(ref_w, within, inside, weight, HAS_MASK)
            if MEMBERS == 2:
                r_l = load_row(ref_l, within, inside, weight, HAS_MASK)
        rho_w = p_w - t_w
        scale_w = weighted(rho_w, weight, HAS_MASK)
        policy_w += rho_w * scale_w
        if MEMBERS == 2:
            rho_l = p_l - t_l
            policy_l += rho_l * weighted(rho_l, weight, HAS_MASK)
            if CROSS:
                cross += scale_w * rho_l
        if HAS_REF:
            rho_rw, d_w = r_w - t_w, p_w - r_w
            weighted_w = weighted(d_w, weight, HAS_MASK)
            reference_w += rho_rw * weighted(rho_rw, weight, HAS_MASK)
            excess_w += weighted_w * (rho_w + rho_rw)
            drift_w += d_w * weighted_w
            if MEMBERS == 2:
                rho_rl, d_l = r_l - t_l, p_l - r_l
                weighted_l = weighted(d_l, weight, HAS_MASK)
                reference_l += rho_rl * weighted(rho_rl, weight, HAS_MASK)
                excess_l += weighted_l * (rho_l + rho_rl)
                drift_l += d_l * weighted_l
        turn += BLOCK

    step = pairs.to(tl.int64) * parts
    out = partials + pair * parts + part
    total = tl.sum(count) if HAS_MASK else size.to(tl.float32)
    store_quantities(
        out, step, tl.sum(policy_w), tl.sum(policy_l), total, tl.sum(excess_w), tl.sum(excess_l),
        tl.sum(reference_w), tl.sum(reference_l), tl.sum(drift_w), tl.sum(drift_l), tl.sum(cross),
        MEMBERS, HAS_REF, CROSS,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def pair_gradient(
    pred,
    target,
    ref,
    addresses,
    mask,
    groups,
    table,
    grad_loss,  # FUSED: fp32 [], the gradient by a mean of pairs' losses
    pair_weight,  # FUSED: [B], of the pairs in that mean
    slopes,  # [1 | 2 | 3 times MEMBERS, and 1, B, S], the gradient by `errors`; FUSED: of each pair's own loss
    drift_slopes,  # [MEMBERS, B, S], the gradient by `drift`
    cross_slopes,  # [B, S]
    count,  # [B, S]
    out,  # [MEMBERS * B, n]
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
    MEMBERS: tl.constexpr,
    SEPARATE: tl.constexpr,
    HAS_REF: tl.constexpr,  # whether `slopes` has rows for the excess
    DRIFT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
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
    slope_w = tl.load(slopes + cell) * share
    if HAS_REF:  # d(policy - ref)(rho_p + rho_r) = 2 rho_p d(policy): the reference is not read
        slope_w += tl.load(slopes + (MEMBERS + 1) * step + cell) * share
    slope_w = slope_w * double
    if DRIFT:
        pull_w = tl.load(drift_slopes + cell) * double
    if MEMBERS == 2:
        slope_l = tl.load(slopes + step + cell) * share
        if HAS_REF:
            slope_l += tl.load(slopes + (MEMBERS + 2) * step + cell) * share
        slope_l = slope_l * double
        if DRIFT:
            pull_l = tl.load(drift_slopes + step + cell) * double
    if CROSS:
        twist = tl.load(cross_slopes + cell) * double * 0.5

    targets, refs = addresses + MEMBERS * pairs, addresses + 2 * MEMBERS * pairs
    pred_w = part_of_row(pred, addresses, pair, pred_row, start, SEPARATE, ALIGN)
    target_w = part_of_row(target, targets, pair, target_row, start, SEPARATE, ALIGN)
    out_w = part_of_row(out, addresses, pair, length, start, False, ALIGN)
    if DRIFT:
        ref_w = part_of_row(ref, refs, pair, ref_row, start, SEPARATE, ALIGN)
    if MEMBERS == 2:
        pred_l = part_of_row(pred, addresses, pair + pairs, pred_row, start, SEPARATE, ALIGN)
        target_l = part_of_row(target, targets, pair + pairs, target_row, start, SEPARATE, ALIGN)
        out_l = part_of_row(out, addresses, pair + pairs, length, start, False, ALIGN)
        if DRIFT:
            ref_l = part_of_row(ref, refs, pair + pairs, ref_row, start, SEPARATE, ALIGN)
    if HAS_MASK:
        group = tl.load(groups + pair) if HAS_GROUPS else pair
    turn = 0
    while turn < size:
        within = turn + tl.arange(0, BLOCK)
        inside = within < size
        weight = tl.zeros([BLOCK], tl.float32)
        if HAS_MASK:
            weight = mask_weights(mask, group, start, within, inside, mask_row, mask_length, SHORT_MASK)
        p_w = load_row(pred_w, within, inside, weight, HAS_MASK)
        if MEMBERS == 2:
            p_l = load_row(pred_l, within, inside, weight, HAS_MASK)
        rho_w = p_w - load_row(target_w, within, inside, weight, HAS_MASK)
        if MEMBERS == 2:
            rho_l = p_l - load_row(target_l, within, inside, weight, HAS_MASK)
            grad_l = slope_l * rho_l
        grad_w = slope_w * rho_w
        if DRIFT:
            grad_w += pull_w * (p_w - load_row(ref_w, within, inside, weight, HAS_MASK))
            if MEMBERS == 2:
                grad_l += pull_l * (p_l - load_row(ref_l, within, inside, weight, HAS_MASK))
        if CROSS:
            grad_w, grad_l = grad_w + twist * rho_l, grad_l + twist * rho_w
        store_gradient(out_w, within, grad_w, inside, weight, HAS_MASK, EMULATE_BF16)
        if MEMBERS == 2:
            store_gradient(out_l, within, grad_l, inside, weight, HAS_MASK, EMULATE_BF16)
        turn += BLOCK
