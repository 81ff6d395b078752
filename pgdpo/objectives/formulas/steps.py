"""Step-aware objectives: the log-ratio of one denoising step, from siblings of one noisy latent."""

from __future__ import annotations

from math import log1p

from pgdpo.objectives.batch import Batch, Terms, nll
from pgdpo.objectives.spec import Needs, Option, Spec, beta


def spo(batch: Batch, *, beta: float, epsilon: float) -> Terms:
    weight = batch.info("timestep_weight")
    low, high = log1p(-epsilon), log1p(epsilon)
    chosen = (weight * batch.reward_chosen).clamp(low, high)  # log clip(e^Δ, 1 ± ε)
    rejected = (weight * batch.reward_rejected).clamp(low, high)
    z = beta * (chosen - rejected)
    return Terms(nll(z), z)


def tailor_dpo(batch: Batch, *, beta: float) -> Terms:
    z = beta * batch.info("timestep_weight") * batch.margin
    return Terms(nll(z), z)


_NEEDS = Needs(
    pairs=("timestep_weight",),
    noisy="siblings",
    data="siblings x_(t−1) denoised from one x_t; target (x_(t−1) − a·x_t)/b with mean a·x_t + b·prediction",
)
_NOTE = "Δ = (b²/2σ²)·r; PairInfo.timestep_weight holds b²/2σ². β itself: the half is in Δ."

SPO = Spec(
    name="spo",
    paper="SPO, arXiv 2406.04314",
    summary="A step-aware preference between siblings, with clipped probability ratios.",
    formula="ℓ(β[log clip(e^Δw, 1±ε) − log clip(e^Δl, 1±ε)])",
    confidence="code",
    compute=spo,
    options={"beta": beta(10.0), "epsilon": Option(0.1, "ε", above=0, below=1)},
    needs=_NEEDS,
    note=_NOTE,
    trained_with=None,
)
D3PO = Spec(
    name="d3po",
    paper="D3PO, arXiv 2311.13231",
    summary="DPO on every denoising step of a sampled path, with clipped probability ratios.",
    formula="ℓ(β[log clip(e^Δw, 1±ε) − log clip(e^Δl, 1±ε)])",
    confidence="code",
    compute=spo,
    options={"beta": beta(0.1), "epsilon": Option(0.1, "ε", above=0, below=1)},
    needs=_NEEDS,
    note=_NOTE,
    trained_with=None,
)
TAILOR_DPO = Spec(
    name="tailor_dpo",
    paper="TailorPO, arXiv 2502.01667",
    summary="DPO per step between two siblings ranked by a step reward.",
    formula="ℓ(β(Δw − Δl))",
    confidence="notes",
    compute=tailor_dpo,
    options={"beta": beta(10.0)},
    needs=_NEEDS,
    note=_NOTE + " From the abstract; default ours.",
    trained_with=None,
)
