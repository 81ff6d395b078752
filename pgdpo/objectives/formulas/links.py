"""Objectives that change what stands around the margin: penalties, divergences, sorting, extra terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pgdpo.objectives.batch import Batch, Terms, nll, with_scaled_gradient
from pgdpo.objectives.spec import Near, Option, beta, objective

if TYPE_CHECKING:
    from torch import Tensor

EXPONENT_LIMIT = 20.0  # e^20 = 5e8: beyond it f_dpo's exponentials go on flat


@objective(
    paper="DPO-Positive (Smaug), arXiv 2402.13228",
    summary="DPO that holds the chosen error down: punished when it rises above the reference's.",
    formula="ℓ(κ[m − λ·max(0, e_w)])",
    confidence="paper",
    options={"beta": beta(auto=True), "penalty": Option(5.0, "λ; default ours", least=0)},
)
def dpop(batch: Batch, *, beta: float, penalty: float) -> Terms:
    z = batch.kappa(beta) * (batch.margin - penalty * batch.excess_chosen.relu())
    return Terms(nll(z), z)


@objective(
    paper="DiscoPOP, arXiv 2406.08414",
    summary="A loss found by search: between the logistic and the exponential loss.",
    formula="(1−μ)ℓ(z) + μ·e^(−z), μ = σ(z/τ)",
    confidence="code",
    options={"beta": beta(auto=True), "tau": Option(0.05, "τ", above=0, below=1)},
)
def discopop(batch: Batch, *, beta: float, tau: float) -> Terms:
    z = batch.logit(beta)
    modulation = (z / tau).sigmoid()
    exponential = (-z - nll(z / tau)).exp()  # e^-z * modulation, without overflow
    return Terms(nll(z) * (1 - modulation) + exponential, z)


def _f_near_dpo(options: Mapping[str, Any]) -> Near | None:
    """g'(r) is 1, e^(−r), σ(−r) or e^(−αr), with r of order 1e-3."""
    beta, divergence = options["beta"], options["divergence"]
    rate = {"reverse_kl": 0.0, "forward_kl": 1.0, "js": 0.5, "alpha": options["alpha"]}[divergence]
    if 0.01 * rate > 0.02:
        return None
    differs = "take the divergence alpha with an alpha of 100 or more, near which g is curved"
    return Near("dpo", 0.01 * rate, differs, beta / 2 if divergence == "js" else beta)


@objective(
    paper="f-DPO, arXiv 2309.16240",
    summary="Other divergences than reverse KL; from the reference.",
    formula="ℓ(κ(g(r_w) − g(r_l))); g: r | −e^(−r) | log σ(r) | −e^(−αr)/α",
    confidence="paper",
    options={
        "beta": beta(),
        "divergence": Option("forward_kl", "g", choices=("reverse_kl", "forward_kl", "js", "alpha")),
        "alpha": Option(0.5, "α of the alpha divergence; default ours", above=0),
    },
    near=_f_near_dpo,
    note=f"Exponents are clamped at {EXPONENT_LIMIT:g}. On mean errors r is of order 1e-3, where every g is nearly "
    "linear: reverse_kl is dpo, forward_kl is dpo to 1e-3, js dpo with half the β, alpha dpo to α·1e-3: an α of "
    "100 and more is itself.",
)
def f_dpo(batch: Batch, *, beta: float, divergence: str, alpha: float) -> Terms:
    def link(reward: Tensor) -> Tensor:
        """g up to a constant, which the difference drops; by expm1, as r is far below 1."""
        if divergence == "reverse_kl":
            return reward
        rate = alpha if divergence == "alpha" else 1.0
        grown = (-rate * reward).clamp(max=EXPONENT_LIMIT).expm1()
        return -(0.5 * grown).log1p() if divergence == "js" else -grown / rate

    z = batch.kappa(beta) * (link(batch.reward_chosen) - link(batch.reward_rejected))
    return Terms(nll(z), z)


@objective(
    paper="AOT, arXiv 2406.05882",
    pools=True,
    summary="Compares sorted rewards of the batch: of chosen and of rejected, place by place.",
    formula="ℓ(κ(r_w,(i) − r_l,(i))), (i) the i-th smallest of the batch",
    confidence="code",
    options={"beta": beta()},
    note="The unpaired form: first-order dominance of the chosen rewards over the rejected ones.",
)
def aot(batch: Batch, *, beta: float) -> Terms:
    chosen, rejected = batch.rewards(beta)
    all_chosen, start = batch.gathered(chosen)
    all_rejected, _ = batch.gathered(rejected)
    place = all_chosen.argsort(stable=True).argsort()[start : start + len(batch)]
    partner = all_rejected[all_rejected.argsort(stable=True)][place]
    z = chosen - partner
    return Terms(nll(z), z)


@objective(
    paper="Balanced-DPO",
    summary="Both sides' gradients made alike: the chosen's is scaled to the rejected's; the value is DPO's.",
    formula="ℓ(z), ∂/∂r_w × sg √(E_pl/E_pw)",
    confidence="ours",
    options={
        "beta": beta(auto=True),
        "limit": Option(10.0, "the scale stays within 1/limit..limit", least=1),
    },
)
def balanced_dpo(batch: Batch, *, beta: float, limit: float) -> Terms:
    scale = (batch.error_rejected / batch.error_chosen.clamp_min(1e-12)).detach().sqrt()
    scale = scale.clamp(1 / limit, limit)
    reward_chosen = with_scaled_gradient(batch.reward_chosen, scale)
    z = batch.kappa(beta) * (reward_chosen - batch.reward_rejected)
    return Terms(nll(z), z, stats={"balance/scale": scale})


@objective(
    paper="Poly-DPO",
    summary="Uncertain pairs weigh more: by a bounded term that is added.",
    formula="ℓ(z) + α(1 − σ(z))",
    confidence="notes",
    options={"beta": beta(auto=True), "alpha": Option(1.0, "α, 0 to 8 in the paper; default ours", least=0)},
)
def poly_dpo(batch: Batch, *, beta: float, alpha: float) -> Terms:
    z = batch.logit(beta)
    return Terms(nll(z) + alpha * (-z).sigmoid(), z)


def _near_dpo(options: Mapping[str, Any]) -> Near | None:
    """Gradients by E_pw at the reference: β/4 of ℓ(z), r of the denoising term."""
    within = 4 * options["sft_weight"] / options["beta"]
    if within > 0.02:
        return None
    return Near("dpo", within, "the denoising term counts at a sft_weight of about beta/4", options["beta"])


@objective(
    paper="Reg-DPO",
    summary="DPO with a denoising term; on the chosen sample, real clips in the paper.",
    formula="ℓ(z) + r·E_pw",
    confidence="notes",
    options={"beta": beta(auto=True), "sft_weight": Option(1.0, "r; default ours", least=0)},
    near=_near_dpo,
    note="At the defaults the denoising term has 8e-4 of the gradient: felt at an r of about β/4.",
)
def reg_dpo(batch: Batch, *, beta: float, sft_weight: float) -> Terms:
    z = batch.logit(beta)
    return Terms(nll(z) + sft_weight * batch.error_chosen, z)
