"""Objectives on single samples with a thumb up or down."""

from __future__ import annotations

from pgdpo.objectives.batch import Batch, Terms
from pgdpo.objectives.spec import Option, beta, objective


@objective(
    paper="Diffusion-KTO, arXiv 2404.04465",
    summary="Single samples, desirable or not: each one's reward is compared with the batch's mean.",
    formula="w_y·(1 − σ(y·β(r − z₀))), z₀ = sg max(0, mean r), mean over the group's samples",
    confidence="code",
    pools=True,
    groups=True,
    of_groups=("label",),
    options={
        "beta": beta(1000.0),
        "desirable_weight": Option(1.0, "weight of desirable samples", least=0),
        "undesirable_weight": Option(1.0, "weight of undesirable samples", least=0),
    },
    note="β itself, without the half. Single clips are groups of one with a `label`; of a pair without labels the "
    "chosen is desirable, the rejected is not.",
)
def kto(batch: Batch, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Terms:
    import torch

    reward = -batch.each("excess")  # (B, K)
    label = batch.of_each("label") if batch.has("label") else 1 - 2 * (batch.places > 0).to(reward)
    sums = torch.stack(((reward.detach() * label.abs()).sum(1), label.abs().sum(1)), 1)
    total, present = batch.gathered(sums)[0].sum(0)
    reference_point = (total / present.clamp_min(1)).relu()
    logits = label * batch.scaled(beta)[:, None] * (reward - reference_point)
    weight = desirable_weight * label.relu() + undesirable_weight * (-label).relu()
    per_sample = weight * (-logits).sigmoid()  # 1 - σ, and 0 for an absent sample
    per_group = per_sample.sum(1) / label.abs().sum(1).clamp_min(1)
    return Terms(per_group, logits.sum(1), stats={"kto/reference_point": reference_point})
