"""The last stage of `diffusion_dpo_loss`: from each pair's errors the loss and its slopes, in one program.

One program, because the loss is a mean over the batch whose order must be fixed; it reads a few numbers for each
segment of a pair. The formula is that of `formula`, compiled from the same source.
"""

import types

import triton
import triton.language as tl

from .. import jit
from . import formula
from .pair_kernels import SIZES

POLICY_CHOSEN = tl.constexpr(0)  # as `pair_gradient` reads slopes
POLICY_REJECTED = tl.constexpr(1)
COUNT = tl.constexpr(2)
EXCESS_CHOSEN = tl.constexpr(3)
EXCESS_REJECTED = tl.constexpr(4)

LOSSES = tl.constexpr(0)
LOGITS = tl.constexpr(1)
REWARD_CHOSEN = tl.constexpr(2)
REWARD_REJECTED = tl.constexpr(3)
ARS_ALPHA = tl.constexpr(4)
IPR_GATE = tl.constexpr(5)
PAIRS = 128  # a turn, one a thread


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def sigmoid(x):
    return tl.sigmoid(x)


@triton.jit
def where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def clip(x, bound):
    return tl.where(x == x, tl.minimum(tl.maximum(x, -bound), bound), x)


@triton.jit
def constant_like(x, value):
    return tl.full(x.shape, value, tl.float32)


PRIMITIVES = {"tl": tl, "absolute": absolute, "sigmoid": sigmoid, "where": where, "clip": clip}
PRIMITIVES |= {"softplus": jit.softplus, "constant_like": constant_like}


def with_primitives(function: types.FunctionType) -> triton.JITFunction:
    """A device function of `formula`'s source, in which the primitives are Triton's."""
    return triton.jit(types.FunctionType(function.__code__, PRIMITIVES | {"__name__": __name__}))


preference = with_primitives(formula.preference)
safeguard = with_primitives(formula.safeguard)


@triton.jit
def load_sides(labels, count, total, cell, inside, LABELLED: tl.constexpr):
    """What a segment's chosen side has of the better side, and its rejected side: by the label, else by its size."""
    if LABELLED:
        label = tl.load(labels + cell, mask=inside, other=0.0).to(tl.float32)
        plus, minus = tl.maximum(label, 0.0), tl.maximum(-label, 0.0)
    else:
        plus = tl.load(count + cell, mask=inside, other=0.0)
        plus = tl.where(total > 0.0, tl.div_rn(plus, tl.where(total > 0.0, total, 1.0)), 0.0)
        minus = plus * 0.0
    return plus, minus


@triton.jit
def load_per_pair(pointer, pair, inside, GIVEN: tl.constexpr):
    if GIVEN:
        x = tl.load(pointer + pair, mask=inside, other=0.0).to(tl.float32)
    else:
        x = tl.full(pair.shape, 1.0, tl.float32)
    return x


@triton.jit(do_not_specialize=SIZES)
def preference_stage(
    policy,  # [2, B, S], errors of chosen and rejected
    count,  # [B, S]
    excess,  # [2, B, S]
    cross,  # [B, S]
    omega,  # [B]
    weight,  # [B]
    labels,  # [B, S]
    loss,  # []
    per_pair,  # [6, B]
    slopes,  # [5, B, S], as `errors` begins: of a pair's own loss by its errors, and the count
    loss_slopes,  # [2, B, S]: the loss by the error of either side
    pairs, segments, kappa, half_inverse_beta, smoothing, ars_k, ars_eps, ars_clip,
    ipr_weight, ipr_sharpness, ipr_threshold, logit_cap, chosen_pull, safeguard_keep,
    OBJECTIVE: tl.constexpr,
    ARS: tl.constexpr,
    IPR: tl.constexpr,
    CAPPED: tl.constexpr,
    PULLED: tl.constexpr,
    SAFEGUARD: tl.constexpr,
    HAS_OMEGA: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    LABELLED: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    step = pairs.to(tl.int64) * segments
    sum_of_losses = tl.zeros([PAIRS], tl.float64)
    first = tl.program_id(0)
    while first < pairs:
        pair = first + tl.arange(0, PAIRS).to(tl.int64)
        inside = pair < pairs
        zero = tl.zeros([PAIRS], tl.float32)
        total, better, worse, won, shared = zero, zero, zero, zero, zero
        segment = tl.program_id(0)
        while segment < segments:
            total += tl.load(count + pair * segments + segment, mask=inside, other=0.0)
            segment += 1
        segment = tl.program_id(0)
        while segment < segments:
            cell = pair * segments + segment
            plus, minus = load_sides(labels, count, total, cell, inside, LABELLED)
            e_w = tl.load(excess + cell, mask=inside, other=0.0)
            e_l = tl.load(excess + step + cell, mask=inside, other=0.0)
            p_w = tl.load(policy + cell, mask=inside, other=0.0)
            better, worse, won = better + plus * e_w, worse + plus * e_l, won + plus * p_w
            if LABELLED:
                p_l = tl.load(policy + step + cell, mask=inside, other=0.0)
                better, worse, won = better + minus * e_l, worse + minus * e_w, won + minus * p_l
            if SAFEGUARD:
                shared += (plus + minus) * tl.load(cross + cell, mask=inside, other=0.0)
            segment += 1

        scale = load_per_pair(omega, pair, inside, HAS_OMEGA)
        losses, logits, alpha, gate, slope_better, slope_worse, slope_won = preference(
            better, worse, won, scale, kappa, half_inverse_beta, smoothing, ars_k, ars_eps, ars_clip,
            ipr_weight, ipr_sharpness, ipr_threshold, logit_cap, chosen_pull, OBJECTIVE, ARS, IPR, CAPPED, PULLED,
        )  # fmt: skip
        if SAFEGUARD:
            slope_worse *= safeguard(won, shared, safeguard_keep)
        given = load_per_pair(weight, pair, inside, HAS_WEIGHT)
        losses *= given
        tl.store(per_pair + LOSSES * pairs + pair, losses, mask=inside)
        tl.store(per_pair + LOGITS * pairs + pair, logits, mask=inside)
        tl.store(per_pair + REWARD_CHOSEN * pairs + pair, -better, mask=inside)
        tl.store(per_pair + REWARD_REJECTED * pairs + pair, -worse, mask=inside)
        tl.store(per_pair + ARS_ALPHA * pairs + pair, alpha, mask=inside)
        tl.store(per_pair + IPR_GATE * pairs + pair, gate, mask=inside)
        # In float64 the sum of a batch of equal losses is exact: that of a fresh run is ln 2 and nothing else.
        sum_of_losses += tl.where(inside, losses.to(tl.float64), 0.0)

        given = tl.div_rn(zero + 1.0, zero + pairs.to(tl.float32)) * given
        segment = tl.program_id(0)
        while segment < segments:
            cell = pair * segments + segment
            plus, minus = load_sides(labels, count, total, cell, inside, LABELLED)
            policy_w, policy_l = slope_won * plus, slope_won * minus
            excess_w, excess_l = slope_better * plus, slope_worse * plus
            if LABELLED:
                excess_w, excess_l = excess_w + slope_worse * minus, excess_l + slope_better * minus
            size = tl.load(count + cell, mask=inside, other=0.0)
            tl.store(slopes + POLICY_CHOSEN * step + cell, policy_w, mask=inside)
            tl.store(slopes + POLICY_REJECTED * step + cell, policy_l, mask=inside)
            tl.store(slopes + COUNT * step + cell, size, mask=inside)
            tl.store(slopes + EXCESS_CHOSEN * step + cell, excess_w, mask=inside)
            tl.store(slopes + EXCESS_REJECTED * step + cell, excess_l, mask=inside)
            tl.store(loss_slopes + cell, policy_w * given + excess_w * given, mask=inside)
            tl.store(loss_slopes + step + cell, policy_l * given + excess_l * given, mask=inside)
            segment += 1
        first += PAIRS
    tl.store(loss, (tl.sum(sum_of_losses) / pairs.to(tl.float64)).to(tl.float32))
