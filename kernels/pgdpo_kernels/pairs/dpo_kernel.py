"""The later stages of `diffusion_dpo_loss`: each pair's sums, then from those the loss and its slopes in one program.

The formulas are those of `preference.loss_from_errors`. One program, because the loss is a mean over the
batch whose order must be fixed; it reads ten numbers for each segment of a pair.
"""

import triton
import triton.language as tl

from ..jit import softplus
from .pair_kernels import (
    EXCESS_CHOSEN,
    EXCESS_REJECTED,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    SIZES,
    load_quantities,
    program_sums,
    store_means,
    store_quantities,
)

LOSSES = tl.constexpr(0)
LOGITS = tl.constexpr(1)
REWARD_CHOSEN = tl.constexpr(2)
REWARD_REJECTED = tl.constexpr(3)
ARS_ALPHA = tl.constexpr(4)
IPR_GATE = tl.constexpr(5)
PER_PAIR = 6
PAIRS = 128  # a turn, one a thread


@triton.jit(do_not_specialize=SIZES)
def segment_sums(
    partials,  # [10, B, parts]
    bounds,  # int64 [S + 1]
    sums,  # [10, B, S]
    pairs,
    parts,
    segments,
    HAS_REF: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    CROSS: tl.constexpr,
    PAIRS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """What `pair_means` adds up, not yet divided: for a stage that needs all pairs in one program."""
    cell, inside, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = program_sums(
        partials, bounds, pairs, parts, segments, HAS_REF, HAS_TABLE, CROSS, PAIRS, PARTS
    )
    step = pairs.to(tl.int64) * segments
    store_quantities(sums + cell, step, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, inside, HAS_REF, CROSS)


@triton.jit
def preference(
    better, worse, won, cross, kappa, half_inverse_beta, smoothing, ars_k, ars_eps, ars_clip,
    ipr_weight, ipr_sharpness, ipr_threshold, safeguard_keep,
    OBJECTIVE: tl.constexpr, ARS: tl.constexpr, IPR: tl.constexpr, SAFEGUARD: tl.constexpr,
):  # fmt: skip
    """Per pair: loss, logits, alpha, gate, and the loss's slopes by `better`, `worse` and `won`."""
    zero = tl.zeros(better.shape, tl.float32)
    alpha, gate, slope_won = zero + 1.0, zero, zero
    if ARS:
        ratio = ars_k * (worse - better) / (tl.abs(worse) + ars_eps)
        clipped = tl.minimum(tl.maximum(ratio, -ars_clip), ars_clip)
        alpha = tl.sigmoid(tl.where(ratio == ratio, clipped, ratio))
    logits = kappa * (alpha * worse - better)
    if OBJECTIVE == "ipo":
        gap = worse - better - half_inverse_beta
        losses, slope_better, slope_worse = gap * gap, -2.0 * gap, 2.0 * gap
    else:
        if OBJECTIVE == "hinge":
            losses = tl.where(logits < 1.0, 1.0 - logits, logits * 0.0)
            slope = tl.where(logits < 1.0, -1.0, logits * 0.0)
        else:
            losses = (1.0 - smoothing) * softplus(-logits) + smoothing * softplus(logits)
            slope = smoothing * tl.sigmoid(logits) - (1.0 - smoothing) * tl.sigmoid(-logits)
        slope_better, slope_worse = -kappa * slope, kappa * alpha * slope
    if IPR != "none":
        gate = tl.sigmoid(ipr_sharpness * (logits - ipr_threshold))
        pull = ipr_weight * gate
        if IPR == "bt":
            losses += pull * softplus(kappa * better)
            slope_better += pull * kappa * tl.sigmoid(kappa * better)
        elif IPR == "hinge":
            losses += pull * tl.where(better > 0.0, better, better * 0.0)
            slope_better += tl.where(better > 0.0, pull, 0.0)
        else:
            losses += pull * won
            slope_won = pull
    if SAFEGUARD:
        scale = tl.minimum(tl.maximum(safeguard_keep * won / (cross + 1e-9), 0.0), 1.0)
        slope_worse *= tl.where(cross <= 0.0, 1.0, scale)
    return losses, logits, alpha, gate, slope_better, slope_worse, slope_won


@triton.jit
def read_labels(pointer, inside):
    """The weights of a segment whose chosen, and of one whose rejected side is the better."""
    label = tl.load(pointer, mask=inside, other=0.0).to(tl.float32)
    return tl.maximum(label, 0.0), tl.maximum(-label, 0.0)


@triton.jit
def store_slopes(
    slopes, labels, slope_better, slope_worse, total, pair, inside, segments, step, LABELLED: tl.constexpr
):
    """The loss by the chosen's and the rejected's error of each segment. Unlabelled ones are pooled by `total`."""
    segment = tl.program_id(0)
    while segment < segments:
        cell = pair * segments + segment
        slope_w, slope_l = slope_better, slope_worse
        if LABELLED:
            plus, minus = read_labels(labels + cell, inside)
            slope_w = plus * slope_better + minus * slope_worse
            slope_l = plus * slope_worse + minus * slope_better
        else:
            tl.store(slopes + 2 * step + cell, total, mask=inside)
        tl.store(slopes + POLICY_CHOSEN * step + cell, slope_w, mask=inside)
        tl.store(slopes + POLICY_REJECTED * step + cell, slope_l, mask=inside)
        segment += 1


@triton.jit(do_not_specialize=SIZES)
def preference_stage(
    sums,  # [10, B, S]
    ref_errors,  # [2B, S], with CACHED
    weight,  # [B]
    labels,  # [B, S]
    errors,  # [3 or 7, B, S]
    drift,
    cross,
    per_pair,  # [6, B]
    slopes,  # [3, B, S]: the loss by either side's sum of squares, times count; then that count
    loss,  # []
    pairs,
    segments,
    kappa,
    half_inverse_beta,
    smoothing,
    ars_k,
    ars_eps,
    ars_clip,
    ipr_weight,
    ipr_sharpness,
    ipr_threshold,
    safeguard_keep,
    OBJECTIVE: tl.constexpr,
    ARS: tl.constexpr,
    IPR: tl.constexpr,
    SAFEGUARD: tl.constexpr,
    HAS_REF: tl.constexpr,
    CACHED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    LABELLED: tl.constexpr,
    PAIRS: tl.constexpr,
):
    step = pairs.to(tl.int64) * segments
    sum_of_losses = tl.zeros([PAIRS], tl.float32)
    first = tl.program_id(0)
    while first < pairs:
        pair = first + tl.arange(0, PAIRS).to(tl.int64)
        inside = pair < pairs
        zero = tl.zeros([PAIRS], tl.float32)
        better, worse, won, shared, total = zero, zero, zero, zero, zero
        segment = tl.program_id(0)
        while segment < segments:
            cell = pair * segments + segment
            s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = load_quantities(
                sums, step, cell, inside, HAS_REF, SAFEGUARD
            )
            inverse = store_means(
                s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, errors, drift, cross, cell, step, inside,
                HAS_REF, SAFEGUARD,
            )  # fmt: skip
            if CACHED:
                r0 = tl.load(ref_errors + cell, mask=inside, other=0.0)
                r1 = tl.load(ref_errors + step + cell, mask=inside, other=0.0)
                e0, e1 = s0 * inverse - r0, s1 * inverse - r1
                tl.store(errors + EXCESS_CHOSEN * step + cell, e0, mask=inside)
                tl.store(errors + EXCESS_REJECTED * step + cell, e1, mask=inside)
                tl.store(errors + REF_CHOSEN * step + cell, r0, mask=inside)
                tl.store(errors + REF_REJECTED * step + cell, r1, mask=inside)
                s3, s4 = e0 * s2, e1 * s2
            if LABELLED:
                tl.store(slopes + 2 * step + cell, s2, mask=inside)
                plus, minus = read_labels(labels + cell, inside)
                plus, minus = plus * inverse, minus * inverse
                s3, s4 = plus * s3 + minus * s4, plus * s4 + minus * s3
                s0, s9 = plus * s0 + minus * s1, (plus + minus) * s9
            better, worse, won, shared = better + s3, worse + s4, won + s0, shared + s9
            total += s2
            segment += 1
        share = tl.where(total > 0.0, 1.0 / tl.where(total > 0.0, total, 1.0), 0.0)
        if not LABELLED:
            better, worse, won, shared = better * share, worse * share, won * share, shared * share

        losses, logits, alpha, gate, slope_better, slope_worse, slope_won = preference(
            better, worse, won, shared, kappa, half_inverse_beta, smoothing, ars_k, ars_eps, ars_clip,
            ipr_weight, ipr_sharpness, ipr_threshold, safeguard_keep, OBJECTIVE, ARS, IPR, SAFEGUARD,
        )  # fmt: skip
        scale = 1.0 / pairs.to(tl.float32)
        if HAS_WEIGHT:
            given = tl.load(weight + pair, mask=inside, other=0.0).to(tl.float32)
            losses, scale = losses * given, scale * given
        tl.store(per_pair + LOSSES * pairs + pair, losses, mask=inside)
        tl.store(per_pair + LOGITS * pairs + pair, logits, mask=inside)
        tl.store(per_pair + REWARD_CHOSEN * pairs + pair, -better, mask=inside)
        tl.store(per_pair + REWARD_REJECTED * pairs + pair, -worse, mask=inside)
        tl.store(per_pair + ARS_ALPHA * pairs + pair, alpha, mask=inside)
        tl.store(per_pair + IPR_GATE * pairs + pair, gate, mask=inside)
        sum_of_losses += tl.where(inside, losses, 0.0)

        slope_better, slope_worse = (slope_better + slope_won) * scale, slope_worse * scale
        store_slopes(slopes, labels, slope_better, slope_worse, total, pair, inside, segments, step, LABELLED)
        first += PAIRS
    tl.store(loss, tl.sum(sum_of_losses) / pairs.to(tl.float32))
