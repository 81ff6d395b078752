"""What a beta means elsewhere, and whether it fits this run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SATURATED, IDLE = 8.0, 1e-3  # |logit| beyond which the sigmoid is flat, and below which it is one half
TARGET = 1.0  # the |logit| that a fitting beta gives the middle pair


@dataclass(frozen=True)
class BetaRow:
    """One convention of the logit u in loss = -log sigmoid(u), and the beta that gives our logit there."""

    formula: str
    trainers: str
    beta: float


def beta_report(beta: float, numel: int) -> list[BetaRow]:
    """This run's beta in other trainers' conventions.

    `numel`: elements of one sample's latents. D is the policy's error of chosen minus rejected, less the
    reference's, with errors that are means (or sums) over those elements. Sources: the trainers' public code.
    """
    return [
        BetaRow(
            "u = −½·β·D, means",
            "this trainer, DiffusionDPO, Diffusion-SDPO, diffusers SDXL, flow_grpo, Flow-Factory",
            beta,
        ),
        BetaRow("u = −β·D, means", "diffusers SD1.5, LongCat-Image", beta / 2),
        BetaRow("u = −½·β·D, sums", "sums, SimpleTuner's default reduction", beta / numel),
        BetaRow("u = −β·D, sums", "the same without the half", beta / 2 / numel),
    ]


def saturation_advice(abs_logits: Sequence[float], beta: float) -> str | None:
    """A warning if more than half of the pairs are saturated or idle, with the beta that would fit, or None.

    `abs_logits`: |logit| of pairs from the first steps (20, say). Exact zeros, of a policy that still equals
    its reference, say nothing and are left out.
    """
    moved = [value for value in abs_logits if value > 0]
    if not moved:
        return None
    middle = median(moved)
    fitting = f"a beta near {beta * TARGET / middle:.2g} would bring the middle pair to |logit| = {TARGET:g}"
    if sum(value > SATURATED for value in moved) > len(moved) / 2:
        return f"beta {beta:g} saturates: |logit| > {SATURATED:g} on more than half of the pairs; {fitting}"
    if sum(value < IDLE for value in moved) > len(moved) / 2:
        return f"beta {beta:g} does nothing: |logit| < {IDLE:g} on more than half of the pairs; {fitting}"
    return None
