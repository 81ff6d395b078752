"""Step-aware objectives: the log-ratio of one denoising step, from siblings of one noisy latent."""

from __future__ import annotations

from math import log1p

from pgdpo.objectives.batch import Batch, Terms, nll
from pgdpo.objectives.spec import Needs, Option, beta, objective

_NEEDS = Needs(
    pairs=("timestep_weight",),
    noisy="siblings",
    data="siblings x_(t−1) denoised from one x_t; target (x_(t−1) − a·x_t)/b with mean a·x_t + b·prediction",
)
_EPSILON = Option(0.1, "ε", above=0, below=1)
_NOTE = "Δ = (b²/2σ²)·r; PairInfo.timestep_weight holds b²/2σ². β itself: the half is in Δ."


@objective(
    paper="SPO, arXiv 2406.04314",
    summary="A preference per step between siblings: step-aware, with clipped probability ratios.",
    formula="ℓ(β[log clip(e^Δw, 1±ε) − log clip(e^Δl, 1±ε)])",
    confidence="code",
    options={"beta": beta(10.0), "epsilon": _EPSILON},
    needs=_NEEDS,
    note=_NOTE,
    reads_omega=False,  # its weight of a step is another
    trained_with=None,
)
def spo(batch: Batch, *, beta: float, epsilon: float) -> Terms:
    weight = batch.info("timestep_weight")
    low, high = log1p(-epsilon), log1p(epsilon)
    chosen = (weight * batch.reward_chosen).clamp(low, high)  # log clip(e^Δ, 1 ± ε)
    rejected = (weight * batch.reward_rejected).clamp(low, high)
    z = beta * (chosen - rejected)
    return Terms(nll(z), z)


@objective(
    paper="D3PO, arXiv 2311.13231",
    summary="DPO on every step of a sampled path: with clipped probability ratios.",
    formula="ℓ(β[log clip(e^Δw, 1±ε) − log clip(e^Δl, 1±ε)])",
    confidence="code",
    options={"beta": beta(0.1), "epsilon": _EPSILON},
    needs=_NEEDS,
    note=_NOTE,
    reads_omega=False,  # its weight of a step is another
    trained_with=None,
)
def d3po(batch: Batch, *, beta: float, epsilon: float) -> Terms:
    return spo.compute(batch, beta=beta, epsilon=epsilon)


@objective(
    paper="TailorPO, arXiv 2502.01667",
    summary="DPO per step between two siblings: ranked by a step reward.",
    formula="ℓ(β(Δw − Δl))",
    confidence="notes",
    options={"beta": beta(10.0)},
    needs=_NEEDS,
    note=_NOTE + " From the abstract; default ours.",
    reads_omega=False,  # its weight of a step is another
    trained_with=None,
)
def tailor_dpo(batch: Batch, *, beta: float) -> Terms:
    z = beta * batch.info("timestep_weight") * batch.margin
    return Terms(nll(z), z)
