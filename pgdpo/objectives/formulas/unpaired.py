"""Objectives on single samples with a thumb up or down."""

from __future__ import annotations

from pgdpo.objectives.batch import Batch, Terms
from pgdpo.objectives.spec import Option, beta, objective


@objective(
    paper="Diffusion-KTO, arXiv 2404.04465",
    summary="Single samples, desirable or not: each one's reward is compared with the batch's mean.",
    formula="w_y·(1 − σ(y·β(r − z₀))), z₀ = sg max(0, mean r), mean over the pair's samples",
    confidence="code",
    pools=True,
    options={
        "beta": beta(1000.0),
        "desirable_weight": Option(1.0, "weight of desirable samples", least=0),
        "undesirable_weight": Option(1.0, "weight of undesirable samples", least=0),
    },
    note="β itself, without the half. PairInfo.label says what stands in the two places of unpaired data.",
)
def kto(batch: Batch, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Terms:
    import torch

    reward = torch.stack((batch.reward_chosen, batch.reward_rejected), 1)
    label = batch.sided("label") if batch.has("label") else reward.new_tensor([[1.0, -1.0]] * len(batch))
    everyone, _ = batch.gathered(reward.detach())
    present, _ = batch.gathered(label.abs())
    reference_point = ((everyone * present).sum() / present.sum().clamp_min(1)).relu()
    logits = label * batch.scaled(beta)[:, None] * (reward - reference_point)
    weight = desirable_weight * label.relu() + undesirable_weight * (-label).relu()
    per_sample = weight * (-logits).sigmoid()  # 1 - σ, and 0 for an absent sample
    per_pair = per_sample.sum(1) / label.abs().sum(1).clamp_min(1)
    return Terms(per_pair, logits.sum(1), stats={"kto/reference_point": reference_point})
