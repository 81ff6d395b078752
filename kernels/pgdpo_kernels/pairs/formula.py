"""The loss of a pair and its slopes: elementwise arithmetic that stands once, for PyTorch and for Triton.

PyTorch runs these functions with the names of this module; `dpo_kernel` compiles their source with Triton's functions
of the same names. So they call nothing but those, and branch on the constants in capitals alone.
"""

import torch
from torch import sigmoid, where


def absolute(x):
    return x.abs()


def softplus(x):
    """log(1 + e^x)."""
    return x.clamp_min(0.0) + torch.log1p(torch.exp(-absolute(x)))


def clip(x, bound):
    """Within +-bound; NaN stays NaN."""
    return x.clamp(-bound, bound)


def constant_like(x, value):
    return torch.full_like(x, value)


def preference(
    better, worse, won, omega, kappa, half_inverse_beta, smoothing, ars_k, ars_eps, ars_clip,
    ipr_weight, ipr_sharpness, ipr_threshold, logit_cap, chosen_pull, OBJECTIVE, ARS, IPR, CAPPED, PULLED,
):  # fmt: skip
    """Per pair: loss, logits, alpha, gate, and the loss's slopes by `better`, `worse` and `won`.

    better, worse: the excess error of the side that the label prefers, and of the other; won: the policy error of
    the former; omega: a factor of both rewards, 1 by default. The objectives are those of `preference_loss`.
    """
    better, worse = omega * better, omega * worse
    alpha, gate, slope_won = (
        constant_like(better, 1.0),
        constant_like(better, 0.0),
        constant_like(better, 0.0),
    )
    if ARS:
        alpha = sigmoid(clip(ars_k * (worse - better) / (absolute(worse) + ars_eps), ars_clip))
    share = alpha  # of the rejected reward
    if IPR == "switch":
        gate = sigmoid(clip(ipr_sharpness * (worse - better) / (absolute(better) + ars_eps), ars_clip))
        share = alpha * (1.0 - ipr_weight * gate)
    logits = kappa * (share * worse - better)
    if OBJECTIVE == "ipo":
        gap = worse - better - half_inverse_beta
        losses, slope_better, slope_worse = gap * gap, -2.0 * gap, 2.0 * gap
    else:
        judged = logits
        if CAPPED:
            judged = where(logits > logit_cap, logit_cap, logits)
        if OBJECTIVE == "hinge":
            losses = where(judged < 1.0, 1.0 - judged, judged * 0.0)
            slope = where(judged < 1.0, judged * 0.0 - 1.0, judged * 0.0)
        else:
            losses = (1.0 - smoothing) * softplus(-judged) + smoothing * softplus(judged)
            slope = smoothing * sigmoid(judged) - (1.0 - smoothing) * sigmoid(-judged)
        if CAPPED:
            slope = where(logits > logit_cap, slope * 0.0, slope)
        slope_better, slope_worse = -kappa * slope, kappa * share * slope
    if IPR == "bt" or IPR == "hinge" or IPR == "sft":  # noqa: PLR1714, SIM102, Triton knows no `in`
        gate = sigmoid(ipr_sharpness * (logits - ipr_threshold))
        pull = ipr_weight * gate
        if IPR == "bt":
            losses += pull * softplus(kappa * better)
            slope_better += pull * kappa * sigmoid(kappa * better)
        elif IPR == "hinge":
            losses += pull * where(better > 0.0, better, better * 0.0)
            slope_better += where(better > 0.0, pull, pull * 0.0)
        else:
            losses += pull * won
            slope_won = pull
    if PULLED:
        losses += chosen_pull * (kappa * better)
        slope_better += constant_like(better, chosen_pull) * kappa
    return losses, logits, alpha, gate, omega * slope_better, omega * slope_worse, slope_won


def safeguard(won, cross, keep):
    """Diffusion-SDPO's scale of the rejected sample's gradient (arXiv 2511.03317)."""
    scale = clip(keep * won / (cross + 1e-9), 1.0)
    return where(cross <= 0.0, constant_like(cross, 1.0), where(scale < 0.0, scale * 0.0, scale))
