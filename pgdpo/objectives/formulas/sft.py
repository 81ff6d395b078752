"""Supervised fine-tuning on the samples: the baseline without a preference."""

from __future__ import annotations

from pgdpo.objectives.batch import Batch, Terms
from pgdpo.objectives.spec import Needs, Option, objective


@objective(
    paper="–",
    summary="The denoising loss on the chosen samples; or on all. The baseline, and the first stage.",
    formula="E_pw, or ½(E_pw + E_pl)",
    groups=True,
    confidence="code",
    options={"on": Option("chosen", "which samples are fitted", choices=("chosen", "both"))},
    needs=Needs(reference=False),
    reads_omega=False,
)
def sft(batch: Batch, *, on: str) -> Terms:
    loss = batch.error_chosen if on == "chosen" else batch.each("policy").mean(1)
    if batch.size == 1 and on == "chosen" and batch.has("label"):
        loss = loss * (
            batch.of_each("label")[:, 0] > 0
        )  # a single clip that was found bad is fitted by nobody
    return Terms(loss, batch.error_rejected - batch.error_chosen)
