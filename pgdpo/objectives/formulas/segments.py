"""Objectives that look at parts of the clip: temporal segments, the longer clip's tail, regions."""

from __future__ import annotations

from dataclasses import replace

from pgdpo.objectives.batch import Batch, Terms, nll
from pgdpo.objectives.formulas.sigmoid import preference
from pgdpo.objectives.spec import Needs, Option, beta, objective


@objective(
    paper="DenseDPO, arXiv 2506.03517",
    summary="A label per temporal segment; tied segments drop out.",
    formula="inside: ℓ(κ·Σ_f s_f·m_f); mean: mean_f ℓ(κ·s_f·m_f)",
    confidence="paper",
    options={
        "beta": beta(500.0),
        "form": Option(
            "inside", "one sigmoid around the sum, or one per segment", choices=("inside", "mean")
        ),
    },
    needs=Needs(pairs=("segment_labels",)),
    note="The paper's β has no half: its 500 is 1000 here.",
)
def dense_dpo(batch: Batch, *, beta: float, form: str) -> Terms:
    labels = batch.segment_labels()
    if form == "inside":
        return preference(batch, objective="dpo", beta=beta, segment_labels=labels)
    errors = batch.segments
    margins = labels * (errors.excess_rejected - errors.excess_chosen)  # (B, S)
    logits = batch.kappa(beta)[:, None] * margins
    better = (labels > 0) * errors.excess_chosen + (labels < 0) * errors.excess_rejected
    return Terms(nll(logits).mean(1), logits.sum(1), excess_better=better.mean(1))


@objective(
    paper="LD-DPO, arXiv 2409.06411",
    summary="What lies beyond the shorter clip counts less: by α.",
    formula="ℓ(κ·Σ_f n_f·(1 − (1−α)·tail_f)·m_f), n_f the segment's share of the elements",
    confidence="ours",
    options={"beta": beta(), "alpha": Option(0.5, "weight of the tail; default ours", least=0, most=1)},
    needs=Needs(pairs=("tail",)),
    note="From language models, where the tail is the tokens beyond the shorter answer.",
)
def ld_dpo(batch: Batch, *, beta: float, alpha: float) -> Terms:
    errors = batch.segments
    weight = 1 - (1 - alpha) * batch.info("tail", errors.policy_chosen.shape[1])  # (B, S)
    lighter = batch.with_excess(errors.excess_chosen * weight, errors.excess_rejected * weight)
    return preference(lighter, objective="dpo", beta=beta)


@objective(
    paper="LocalDPO",
    summary="DPO on the clip and inside a region: with a fit of the chosen sample in both.",
    formula="λ₁ℓ(z) + λ₂ℓ(z_mask) + λ₃E_pw,mask + λ₄E_pw",
    confidence="code",
    options={
        "beta": beta(),
        "full_weight": Option(1.0, "λ₁", least=0),
        "mask_weight": Option(1.0, "λ₂", least=0),
        "mask_sft": Option(0.1, "λ₃", least=0),
        "full_sft": Option(0.1, "λ₄", least=0),
    },
    needs=Needs(pairs=("masked",)),
    note="`PairInfo.masked` is a second `pair_errors` under the row's `mask`, its means over the mask's area.",
)
def local_dpo(
    batch: Batch, *, beta: float, full_weight: float, mask_weight: float, mask_sft: float, full_sft: float
) -> Terms:
    region = replace(batch, segments=batch.pairs.masked)
    full, inside = batch.logit(beta), region.logit(beta)
    preference_terms = full_weight * nll(full) + mask_weight * nll(inside)
    fit_terms = mask_sft * region.error_chosen + full_sft * batch.error_chosen
    return Terms(preference_terms + fit_terms, full, stats={"margin/masked": region.margin})


@objective(
    paper="SGDPO (self-guided)",
    summary="Each sample against an estimate of the other: detached, from a random part of it.",
    formula="½ℓ(κ(r_w − sg r̃_l)) + ½ℓ(κ(sg r̃_w − r_l)), r̃ over a random subset of the segments",
    confidence="ours",
    options={
        "beta": beta(),
        "subset": Option(0.5, "share of the segments in r̃; default ours", above=0, most=1),
    },
    note="The paper draws a subset of the tokens. With one segment r̃ = r: DPO's value, half its gradient.",
)
def sgdpo(batch: Batch, *, beta: float, subset: float) -> Terms:
    errors = batch.segments
    segments = errors.policy_chosen.shape[1]
    kept = max(1, round(subset * segments))
    order = batch.uniform(segments, stream="sgdpo").argsort(1).argsort(1)
    count = 1.0 if errors.count is None else errors.count
    share = (order < kept).to(errors.policy_chosen.dtype) * count  # (B, S)
    share = share / share.sum(1, keepdim=True).clamp_min(1e-12)
    guide_chosen = -(errors.excess_chosen * share).sum(1).detach()
    guide_rejected = -(errors.excess_rejected * share).sum(1).detach()
    kappa = batch.kappa(beta)
    pull = nll(kappa * (batch.reward_chosen - guide_rejected))
    push = nll(kappa * (guide_chosen - batch.reward_rejected))
    return Terms(0.5 * pull + 0.5 * push, batch.logit(beta))
