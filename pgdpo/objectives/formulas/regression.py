"""Objectives that are linear or quadratic in the errors, and those on the drift from the reference."""

from __future__ import annotations

from collections.abc import Mapping

from pgdpo.objectives.batch import Batch, Terms, nll
from pgdpo.objectives.spec import Near, Needs, Option, Spec, beta


def capo(batch: Batch, *, beta: float) -> Terms:
    z = batch.logit(beta)
    return Terms((z - batch.info("reward_margin")).square(), z)


def linear_dpo(batch: Batch, *, beta: float, eta: float) -> Terms:
    z = batch.scaled(beta) * batch.margin
    slope = (0.5 - 0.2 * z).clamp(eta, 1 - eta).detach()
    loss = slope * (batch.error_chosen - batch.error_rejected)
    return Terms(loss, z, stats={"linear_dpo/slope": slope})


def dspo(batch: Batch, *, beta: float) -> Terms:
    z = batch.logit(beta)
    c = batch.scaled(beta) * (-z).sigmoid()
    # mean (rho - c d)^2 with d = policy - reference, where 2 mean(rho d) = e + D
    loss = (
        batch.error_chosen - c * (batch.excess_chosen + batch.drift_chosen) + c.square() * batch.drift_chosen
    )
    return Terms(loss, z)


def inversion_dpo(batch: Batch, *, beta: float, inverted_by: str) -> Terms:
    sign = 1.0 if inverted_by == "policy" else -1.0
    z = sign * batch.kappa(beta) * (batch.drift_chosen - batch.drift_rejected)
    return Terms(nll(z), z)


def _near_sft(options: Mapping[str, float]) -> Near | None:
    """c is β/2 near the reference: below a hundredth, the second term of the target is lost."""
    if options["beta"] > 0.02:
        return None
    return Near("sft", 2 * options["beta"], "the preference counts from a beta of about 0.1")


CAPO = Spec(
    name="capo",
    paper="CaPO, arXiv 2502.02588",
    summary="Regresses the logit to a calibrated reward gap.",
    formula="(z − h)², h = PairInfo.reward_margin",
    confidence="ours",
    compute=capo,
    options={"beta": beta()},
    needs=Needs(pairs=("reward_margin",)),
)
LINEAR_DPO = Spec(
    name="linear_dpo",
    paper="Linear-DPO",
    summary="The sigmoid's slope made linear and clipped, as a weight of the plain error difference.",
    formula="sg[clip(½ − 0.2·βm, η, 1−η)]·(E_pw − E_pl)",
    confidence="code",
    compute=linear_dpo,
    options={"beta": beta(500.0), "eta": Option(0.1, "η; default ours", least=0, below=0.5)},
    needs=Needs(moving=True),
    note="β itself, without the half. The value isn't bounded below; only its gradient has a meaning.",
    trained_with=("train.reference=ema",),
)
DSPO = Spec(
    name="dspo",
    paper="DSPO (direct score preference optimization)",
    summary="Moves the chosen's target along policy − reference, by how little the pair is learnt yet.",
    formula="mean (ρ_pw − c(policy − reference)_w)², c = β(1 − σ(z)), not detached",
    confidence="code",
    compute=dspo,
    options={"beta": beta(0.001)},
    needs=Needs(predictions=True),
    near=_near_sft,
    note="c takes β itself, z has κ = β/2. At the published β the chosen's denoising loss is nearly all of it.",
)
INVERSION_DPO = Spec(
    name="inversion_dpo",
    paper="Inversion-DPO, arXiv 2507.11554",
    summary="Compares how far the policy has moved from the reference along inverted paths.",
    formula="ℓ(±κ(D_w − D_l)), + for paths inverted by the policy, − by the reference",
    confidence="code",
    compute=inversion_dpo,
    options={
        "beta": beta(2000.0),
        "inverted_by": Option("policy", "which model inverted the paths", choices=("policy", "reference")),
    },
    needs=Needs(predictions=True, noisy="inverted", data="noisy latents from inversion"),
    note="The sign is ours: + is right for policy-inverted paths; public code inverts with the reference. "
    "D has no gradient where policy and reference agree: start from a policy that has moved.",
    trained_with=None,
)
