"""Objectives on the policy's own errors, without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgdpo.objectives.batch import Batch, Terms, nll
from pgdpo.objectives.spec import Needs, Option, Spec, beta

if TYPE_CHECKING:
    from torch import Tensor


def simpo(batch: Batch, *, beta: float, gamma: float) -> Terms:
    z = batch.kappa(beta) * (batch.error_rejected - batch.error_chosen) - gamma
    return Terms(nll(z), z)


def asft(batch: Batch, *, beta: float) -> Terms:
    chosen, rejected = batch.kappa(beta) * batch.error_chosen, batch.kappa(beta) * batch.error_rejected
    missed, kept = _log_complement(chosen), _log_complement(rejected)
    odds_chosen, odds_rejected = -chosen - missed, -rejected - kept
    return Terms(chosen - kept, odds_chosen - odds_rejected)


def mapo(batch: Batch, *, s: float, weight: float, horizon: float) -> Terms:
    z = horizon * (_odds(s * batch.error_chosen) - _odds(s * batch.error_rejected))
    return Terms(batch.error_chosen + weight * nll(z), z)


def pso(batch: Batch, *, beta: float, nu: float, weight: float, form: str) -> Terms:
    z = batch.kappa(beta) * (nu * batch.error_rejected - batch.error_chosen)
    preference = nll(z) if form == "sigmoid" else (1 - z).relu()
    return Terms(preference + weight * batch.error_rejected, z)


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


SIMPO = Spec(
    name="simpo",
    paper="SimPO, arXiv 2405.14734; CPO, arXiv 2401.08417",
    summary="The policy's own errors as rewards, with a target margin.",
    formula="ℓ(κ(E_pl − E_pw) − γ)",
    confidence="code",
    compute=simpo,
    options={"beta": beta(), "gamma": Option(0.5, "γ, in logits", least=0)},
    needs=Needs(reference=False),
)
ASFT = Spec(
    name="asft",
    paper="ASFT, arXiv 2409.10571",
    summary="Raises the chosen's absolute likelihood and lowers the rejected's, each by itself.",
    formula="−log σ(f(E_pw)) − log σ(−f(E_pl)), f the log-odds of e^(−κE): κE_pw − log(1 − e^(−κE_pl))",
    confidence="ours",
    compute=asft,
    options={"beta": beta(1.0)},
    needs=Needs(reference=False),
    note="The paper's losses on log-odds; that e^(−κE) stands for the probability is ours. β near 1: beyond "
    "κE of 20 the rejected term has no gradient.",
)
MAPO = Spec(
    name="mapo",
    paper="MaPO, arXiv 2406.06424",
    summary="Denoising on the chosen with a margin between transformed errors.",
    formula="E_pw + λℓ(T[f(E_pw) − f(E_pl)]), f(E) = sE/(e^(sE) − 1)",
    confidence="code",
    compute=mapo,
    options={
        "s": Option(0.5, "s", above=0),
        "weight": Option(0.1, "λ", least=0),
        "horizon": Option(1000.0, "T, the number of timesteps", above=0),
    },
    needs=Needs(reference=False),
)
PSO = Spec(
    name="pso",
    paper="PSO, arXiv 2410.03190",
    summary="Offline pairwise sample optimization of distilled models.",
    formula="ℓ(−κ(E_pw − νE_pl)) + λE_pl, or [1 + κ(E_pw − νE_pl)]₊ + λE_pl",
    confidence="code",
    compute=pso,
    options={
        "beta": beta(200.0),
        "nu": Option(0.1, "ν", least=0),
        "weight": Option(1.0, "λ", least=0),
        "form": Option("sigmoid", "the link", choices=("sigmoid", "hinge")),
    },
    needs=Needs(reference=False),
    note="The online form is `spo`.",
)
DRO = Spec(
    name="dro",
    paper="Diffusion-DRO; DSO's DRO, arXiv 2503.22677",
    summary="A margin between expert samples (chosen) and the policy's own (rejected).",
    formula="ranking: max(0, e_w − e_l + margin); direct: max(E_pw − E_pl, −margin), no reference",
    confidence="code",
    compute=dro,
    options={
        "form": Option("ranking", "against the reference, or without", choices=("ranking", "direct")),
        "margin": Option(1e-3, "margin; the clip of the direct form", above=0),
    },
    needs=Needs(data="rejected samples from the policy's own rollouts"),
    needs_if={("form", "direct"): Needs(reference=False)},
    note="Beyond the margin a pair has no gradient; without it the direct form has no lower bound.",
    trained_with=None,
)
