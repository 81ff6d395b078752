"""Objectives on the policy's own errors, without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgdpo.objectives.batch import Batch, Terms, nll
from pgdpo.objectives.spec import Needs, Option, beta, objective

if TYPE_CHECKING:
    from torch import Tensor


@objective(
    paper="SimPO, arXiv 2405.14734; CPO, arXiv 2401.08417",
    summary="The policy's own errors, a target margin; no reference.",
    formula="ℓ(κ(E_pl − E_pw) − γ)",
    confidence="code",
    options={"beta": beta(), "gamma": Option(0.5, "γ, in logits", least=0)},
    needs=Needs(reference=False),
)
def simpo(batch: Batch, *, beta: float, gamma: float) -> Terms:
    z = batch.kappa(beta) * (batch.error_rejected - batch.error_chosen) - gamma
    return Terms(nll(z), z)


@objective(
    paper="ASFT, arXiv 2409.10571",
    summary="Both sides' likelihood, each by itself: the chosen's rises, the rejected's falls.",
    formula="−log σ(f(E_pw)) − log σ(−f(E_pl)), f the log-odds of e^(−κE): κE_pw − log(1 − e^(−κE_pl))",
    confidence="ours",
    options={"beta": beta(1.0)},
    needs=Needs(reference=False),
    note="The paper's losses on log-odds; that e^(−κE) stands for the probability is ours. β near 1: beyond "
    "κE of 20 the rejected term has no gradient.",
)
def asft(batch: Batch, *, beta: float) -> Terms:
    chosen, rejected = batch.kappa(beta) * batch.error_chosen, batch.kappa(beta) * batch.error_rejected
    missed, kept = _log_complement(chosen), _log_complement(rejected)
    odds_chosen, odds_rejected = -chosen - missed, -rejected - kept
    return Terms(chosen - kept, odds_chosen - odds_rejected)


@objective(
    paper="MaPO, arXiv 2406.06424",
    summary="Denoising and a margin; no reference. The margin is between transformed errors.",
    formula="E_pw + λℓ(T[f(E_pw) − f(E_pl)]), f(E) = sE/(e^(sE) − 1)",
    confidence="code",
    options={
        "s": Option(0.5, "s", above=0),
        "weight": Option(0.1, "λ", least=0),
        "horizon": Option(1000.0, "T, the number of timesteps", above=0),
    },
    needs=Needs(reference=False),
    reads_omega=False,
)
def mapo(batch: Batch, *, s: float, weight: float, horizon: float) -> Terms:
    z = horizon * (_odds(s * batch.error_chosen) - _odds(s * batch.error_rejected))
    return Terms(batch.error_chosen + weight * nll(z), z)


@objective(
    paper="PSO, arXiv 2410.03190",
    summary="Pairs for distilled models; offline.",
    formula="ℓ(−κ(E_pw − νE_pl)) + λE_pl, or [1 + κ(E_pw − νE_pl)]₊ + λE_pl",
    confidence="code",
    options={
        "beta": beta(200.0),
        "nu": Option(0.1, "ν", least=0),
        "weight": Option(1.0, "λ", least=0),
        "form": Option("sigmoid", "the link", choices=("sigmoid", "hinge")),
    },
    needs=Needs(reference=False),
    note="The online form is `spo`.",
)
def pso(batch: Batch, *, beta: float, nu: float, weight: float, form: str) -> Terms:
    z = batch.kappa(beta) * (nu * batch.error_rejected - batch.error_chosen)
    preference = nll(z) if form == "sigmoid" else (1 - z).relu()
    return Terms(preference + weight * batch.error_rejected, z)


@objective(
    paper="Diffusion-DRO; DSO's DRO, arXiv 2503.22677",
    summary="A margin of expert over own samples: chosen are an expert's, rejected the policy's.",
    formula="ranking: max(0, e_w − e_l + margin); direct: max(E_pw − E_pl, −margin), no reference",
    confidence="code",
    options={
        "form": Option("ranking", "against the reference, or without", choices=("ranking", "direct")),
        "margin": Option(1e-3, "margin; the clip of the direct form", above=0),
    },
    needs=Needs(data="rejected samples from the policy's own rollouts"),
    needs_if={("form", "direct"): Needs(reference=False)},
    reads_omega=False,
    note="Beyond the margin a pair has no gradient; without it the direct form has no lower bound.",
    trained_with=None,
)
def dro(batch: Batch, *, form: str, margin: float) -> Terms:
    if form == "direct":
        gap = batch.error_chosen - batch.error_rejected
        return Terms(gap.clamp_min(-margin), -gap)
    return Terms((margin - batch.margin).relu(), batch.margin)


def _log_complement(x: Tensor) -> Tensor:
    """log(1 - e^-x) for x >= 0; below 1e-12 it goes on flat."""
    return (-(-x.clamp_min(1e-12)).expm1()).log()


def _odds(x: Tensor) -> Tensor:
    """x / (e^x - 1) for x >= 0, by its series near 0, where the quotient's gradient would lose all digits."""
    series = 1 - x / 2 + x.square() / 12 - x.pow(4) / 720
    far = x.clamp_min(0.05)
    return series.where(x < 0.05, far * (-far).exp() / -(-far).expm1())
