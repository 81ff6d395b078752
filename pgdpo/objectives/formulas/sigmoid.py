"""Diffusion-DPO, PG-DPO and the objectives that differ from them by data, target or link alone.

The formulas themselves stand once, in `pgdpo_kernels.preference_loss`; those that are `fused` go straight from
predictions to the loss.
"""

from __future__ import annotations

from collections.abc import Mapping

from pgdpo.objectives.batch import Batch, Terms
from pgdpo.objectives.spec import Needs, Option, always, beta, objective

THRESHOLD = 1.0  # of the IPR gate, by default


def preference(batch: Batch, **options) -> Terms:
    """`preference_loss` of the batch; options are its own."""
    result = batch.preference(**options)
    stats = {}
    if options["objective"] == "pg_dpo":
        stats = {"ars/alpha": result.ars_alpha, "ipr/gate": result.ipr_gate}
    return Terms(result.losses, result.logits, limited=True, stats=stats)


def unlike_a_switch(options: Mapping[str, float | str]) -> str | None:
    """The `switch` turns the rejected term off and must not turn it round; it has no threshold."""
    if options["ipr_form"] == "switch" and options["ipr_weight"] > 1:
        return f"`ipr_weight` is {options['ipr_weight']:g} with `ipr_form` switch; allowed: ≤ 1"
    if options["ipr_form"] == "switch" and options["ipr_threshold"] != THRESHOLD:
        threshold = f"`ipr_threshold` is {options['ipr_threshold']:g} with `ipr_form` switch"
        return f"{threshold}, which doesn't read it; allowed: {THRESHOLD:g}, as if it weren't there"
    return None


@objective(
    paper="Diffusion-DPO, arXiv 2311.12908",
    summary="Log-sigmoid of the implicit reward margin.",
    formula="ℓ(z)",
    confidence="code",
    options={"beta": beta(auto=True)},
    fused=always,
)
def dpo(batch: Batch, *, beta: float) -> Terms:
    return preference(batch, objective="dpo", beta=beta)


@objective(
    paper="DDIM-InPO, arXiv 2503.18454",
    summary="DPO on the noise of DDIM inversion: found for each sample, in place of fresh noise.",
    formula="ℓ(z), target (x_t^inv − √ᾱ·x₀)/√(1−ᾱ)",
    confidence="code",
    options={"beta": beta(2000.0, auto=True)},
    needs=Needs(noisy="inverted", data="noisy latents and target from DDIM inversion (≤ 10 steps)"),
    trained_with=("diffusion.inversion_steps=2",),
    fused=always,
)
def inpo(batch: Batch, *, beta: float) -> Terms:
    return preference(batch, objective="dpo", beta=beta)


@objective(
    paper="IPO, arXiv 2310.12036",
    summary="Regresses the margin to 1/2β; doesn't push it without end.",
    formula="(m − 1/2β)²",
    confidence="paper",
    options={"beta": beta()},
    note="β itself, without the half; m is of order 1e-3. Rows with a timestep_weight have it on m, not on β.",
    fused=always,
)
def ipo(batch: Batch, *, beta: float) -> Terms:
    return preference(batch, objective="ipo", beta=beta)


@objective(
    paper="SLiC, arXiv 2305.10425; RSO, arXiv 2309.06657",
    summary="Pairs with a logit above 1 have no gradient.",
    formula="max(0, 1 − z)",
    confidence="code",
    options={"beta": beta(auto=True)},
    fused=always,
)
def hinge(batch: Batch, *, beta: float) -> Terms:
    return preference(batch, objective="hinge", beta=beta)


@objective(
    paper="PG-DPO, arXiv 2511.19049",
    summary="Rejected term scaled, chosen kept improving: by the pair's margin (ARS), by a term of its own (IPR).",
    formula="ℓ(κ(r_w − α·r_l)) + λ·g·ℓ(κ·r_w), α = sg σ(K₁(r_w − r_l)/(|r_l| + ε)), g = sg σ(K₂(logit − τ))",
    confidence="reconstructed",
    options={
        "beta": beta(auto=True),
        "ars": Option("adaptive", "scale the rejected term, or leave α = 1", choices=("adaptive", "none")),
        "reward": Option(
            "implicit", "what drives α: policy or reward model", choices=("implicit", "external")
        ),
        "ars_k": Option(1.0, "K₁"),
        "ars_eps": Option(1e-6, "ε", above=0),
        "ars_clip": Option(10.0, "bound of α's logit", above=0),
        "ipr_weight": Option(1.0, "λ; 0 switches IPR off", least=0),
        "ipr_sharpness": Option(1.0, "K₂"),
        "ipr_threshold": Option(THRESHOLD, "τ; not of ipr_form switch"),
        "ipr_form": Option(
            "bt",
            "ℓ(κ·r_w), max(0, e_w) or E_pw on the chosen sample beside the loss, or a factor 1 − λ·g of the rejected "
            "term in it",
            choices=("bt", "hinge", "sft", "switch"),
        ),
        "segments": Option("pooled", "the whole clip, or labels per segment", choices=("pooled", "labelled")),
    },
    needs_if={
        ("reward", "external"): Needs(pairs=("reward",)),
        ("segments", "labelled"): Needs(pairs=("segment_labels",)),
    },
    fused=lambda options: options["ars"] == "none" or options["reward"] == "implicit",
    conflict=unlike_a_switch,
    note="ARS is quoted second-hand (the paper's Eq. 7); |r_l| and the clip are ours. IPR is our "
    "reconstruction of what the abstract describes, not an equation of the paper. `ipr_form: switch` is ours too, "
    "after a second reader's report that the paper has a factor inside the sigmoid: ℓ(κ(r_w − α(1 − λ·g)·r_l)) alone, "
    "g = sg σ(K₂(r_w − r_l)/(|r_w| + ε)), clipped as α, without τ.",
)
def pg_dpo(batch: Batch, *, ars: str, reward: str, segments: str, **options: float | str) -> Terms:
    labels = batch.segment_labels() if segments == "labelled" else None
    if ars == "none":
        options["ars_k"] = None
    elif reward == "external":
        return _externally_scaled(batch, labels, **options)
    return preference(batch, objective="pg_dpo", segment_labels=labels, **options)


def _externally_scaled(batch, labels, *, ars_k, ars_eps, ars_clip, **options) -> Terms:
    """ARS from a reward model's scores: alpha is a constant, so it goes into the worse side beforehand."""
    chosen, rejected = batch.info("reward", 2).unbind(1)
    ratio = ars_k * (chosen - rejected) / (rejected.abs() + ars_eps)
    alpha = ratio.clamp(-ars_clip, ars_clip).sigmoid()
    errors = batch.segments
    swapped = errors.policy_chosen.new_zeros(()) > 0 if labels is None else labels < 0
    scaled = batch.with_excess(
        errors.excess_chosen * alpha[:, None].where(swapped, 1.0),
        errors.excess_rejected * alpha[:, None].where(~swapped, 1.0),
    )
    terms = preference(scaled, objective="pg_dpo", segment_labels=labels, ars_k=None, **options)
    terms.stats["ars/alpha"] = alpha
    return terms


@objective(
    paper="Diffusion-NPO, arXiv 2505.11245",
    summary="DPO with the labels swapped: trains a negative adapter for guidance's unconditional branch.",
    formula="ℓ(−z)",
    confidence="code",
    negative=True,
    options={"beta": beta(auto=True)},
    note="Chosen and rejected in the metrics stay the data's: a fall of the margin is what is wanted. `logit_cap` caps "
    "−z and `chosen_pull` pulls at the data's rejected, the side that this formula prefers. Evaluation and "
    "validation clips have the model's own weights in guidance's conditional branch and the trained ones in the "
    "unconditional one: use the adapter so.",
)
def npo(batch: Batch, *, beta: float) -> Terms:
    swapped = batch.with_excess(batch.segments.excess_rejected, batch.segments.excess_chosen)
    return preference(swapped, objective="dpo", beta=beta)
