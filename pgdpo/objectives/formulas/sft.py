"""Supervised fine-tuning on the pairs' samples: the baseline without a preference."""

from __future__ import annotations

from pgdpo.objectives.batch import Batch, Terms
from pgdpo.objectives.spec import Needs, Option, objective


@objective(
    paper="–",
    summary="The denoising loss on the chosen samples; or on both. The baseline, and the first stage.",
    formula="E_pw, or ½(E_pw + E_pl)",
    confidence="code",
    options={"on": Option("chosen", "which samples are fitted", choices=("chosen", "both"))},
    needs=Needs(reference=False),
    reads_omega=False,
)
def sft(batch: Batch, *, on: str) -> Terms:
    chosen, rejected = batch.error_chosen, batch.error_rejected
    loss = chosen if on == "chosen" else 0.5 * (chosen + rejected)
    return Terms(loss, rejected - chosen)
