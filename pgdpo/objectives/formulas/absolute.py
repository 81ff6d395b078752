"""Objectives with a term for each sample: the two rewards are moved by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pgdpo.objectives.batch import Batch, Terms, nll
from pgdpo.objectives.spec import Near, Option, beta, objective

if TYPE_CHECKING:
    from torch import Tensor


def _distance(batch: Batch, beta: float) -> Tensor:
    """(r_w − 1/2β)² + (r_l + 1/2β)²."""
    target = 0.5 / beta
    return (batch.reward_chosen - target).square() + (batch.reward_rejected + target).square()


def _near_dpo(options: Mapping[str, float]) -> Near | None:
    """Gradients by r_w at the reference: β/4 of ℓ(z), 1/β and 2·r_w (of order 1e-3) of the calibration."""
    beta = options["beta"]
    within = 4 / beta**2 + 0.02 / beta
    if within > 0.02:
        return None
    return Near("dpo", within, "the calibration counts at a beta of about 2", beta)


@objective(
    paper="Cal-DPO, arXiv 2412.14516",
    summary="DPO that also pins both rewards' scale.",
    formula="ℓ(z) + (r_w − 1/2β)² + (r_l + 1/2β)²",
    confidence="paper",
    options={"beta": beta()},
    near=_near_dpo,
    note="The targets take β itself. On mean errors they are of order 1e-4: felt at a β of about 2, where ℓ(z) pulls "
    "as much as they do; at the default β it is dpo to 1e-5 of the gradient. A timestep_weight of the rows is read by "
    "ℓ(z) alone.",
)
def cal_dpo(batch: Batch, *, beta: float) -> Terms:
    z = batch.logit(beta)
    return Terms(nll(z) + _distance(batch, beta), z)


@objective(
    paper="NCA, arXiv 2402.05369",
    summary="Raises the chosen reward, holds both down; noise-contrastive.",
    formula="ℓ(κr_w) + ½ℓ(−κr_w) + ½ℓ(−κr_l)",
    confidence="code",
    options={"beta": beta()},
)
def nca(batch: Batch, *, beta: float) -> Terms:
    chosen, rejected = batch.rewards(beta)
    return Terms(nll(chosen) + 0.5 * nll(-chosen) + 0.5 * nll(-rejected), chosen - rejected)


@objective(
    paper="BCO, arXiv 2404.04656",
    pools=True,
    summary="A classifier of chosen and rejected: around the running mean of their rewards.",
    formula="ℓ(κr_w − δ) + ℓ(δ − κr_l), δ the running mean of κr over all samples so far",
    confidence="code",
    options={"beta": beta()},
)
def bco(batch: Batch, *, beta: float) -> Terms:
    chosen, rejected = batch.rewards(beta)
    everyone, _ = batch.gathered((0.5 * (chosen + rejected)).detach())
    count = batch.state.get("count", 0) + len(everyone)
    mean = batch.state.get("mean", 0.0)
    shift = mean + (everyone.mean() - mean) * (len(everyone) / count)
    if batch.learning():
        batch.state.update(mean=shift, count=count)
    return Terms(nll(chosen - shift) + nll(shift - rejected), chosen - rejected, stats={"bco/shift": shift})


@objective(
    paper="SPPO (hard), arXiv 2405.00675",
    summary="Regresses the two rewards to ±1/2β.",
    formula="(r_w − 1/2β)² + (r_l + 1/2β)²",
    confidence="code",
    options={"beta": beta()},
    note="β itself, without the half; r is of order 1e-3. A timestep_weight of the rows is not read.",
    reads_omega=False,
)
def sppo(batch: Batch, *, beta: float) -> Terms:
    return Terms(_distance(batch, beta), batch.logit(beta))


@objective(
    paper="APO, arXiv 2408.06266",
    summary="Raises the chosen, lowers the rejected: for a policy worse than the chosen samples.",
    formula="1 − σ(κr_w) + σ(κr_l)",
    confidence="code",
    options={"beta": beta()},
)
def apo_zero(batch: Batch, *, beta: float) -> Terms:
    chosen, rejected = batch.rewards(beta)
    return Terms((-chosen).sigmoid() + rejected.sigmoid(), chosen - rejected)


@objective(
    paper="APO, arXiv 2408.06266",
    summary="Lowers both, the rejected more: for a policy better than the chosen samples.",
    formula="σ(κr_w) + 1 − σ(z)",
    confidence="code",
    options={"beta": beta()},
)
def apo_down(batch: Batch, *, beta: float) -> Terms:
    z = batch.logit(beta)
    return Terms((batch.kappa(beta) * batch.reward_chosen).sigmoid() + (-z).sigmoid(), z)


@objective(
    paper="3D-Properties (Flex-DPO), arXiv 2406.07327",
    summary="A β for each side: the rejected side's gradient can be held back.",
    formula="ℓ(κ⁺r_w − κ⁻r_l), κ± = ½β±",
    confidence="paper",
    options={
        "beta_chosen": Option(5000.0, "β⁺", above=0),
        "beta_rejected": Option(2500.0, "β⁻; default ours", least=0),
    },
)
def flex_dpo(batch: Batch, *, beta_chosen: float, beta_rejected: float) -> Terms:
    z = batch.kappa(beta_chosen) * batch.reward_chosen - batch.kappa(beta_rejected) * batch.reward_rejected
    return Terms(nll(z), z)
