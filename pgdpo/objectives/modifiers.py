"""Modifiers that compose with any objective.

Before the formula they scale gradients and leave every value as it is; after it they add a term or a weight.
`logit_cap` and `chosen_pull` are part of the formula where that is `preference_loss`, and come after any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pgdpo.messages.errors import InputError
from pgdpo.objectives.batch import Batch, Terms, with_scaled_gradient
from pgdpo.objectives.pairing import PAIRINGS
from pgdpo.objectives.spec import Needs, Option, Spec, check_known

if TYPE_CHECKING:
    from torch import Tensor

    from pgdpo_kernels import PairErrors

MODIFIERS: dict[str, Option | dict[str, Option]] = {
    "safeguard": {  # Diffusion-SDPO, arXiv 2511.03317
        "mu": Option(
            0.9, "μ: how far the chosen's descent is protected; 0.6 on larger models", least=0, most=1
        ),
        "scope": Option("pair", "one scale per pair, or one per micro-batch", choices=("pair", "microbatch")),
    },
    "pairing": Option(
        "best_worst",
        "of groups of three samples or more: the best against the worst, all pairs, or each against the next; equal "
        "ranks are no pair; form ours",
        choices=tuple(PAIRINGS),
    ),
    "timestep_weight": Option(
        "none",
        "ω(σ), a factor of β at the drawn noise level σ, from 0, clip, to 1, noise: flow_dpo is (1 − σ)² (flow models "
        "alone; snr is the same there), snr and min_snr weigh the clip's error by the signal-to-noise ratio, up to 5 "
        "(arXiv 2303.09556), a table is linear between its points; times the rows' own timestep_weight",
        choices=("none", "flow_dpo", "snr", "min_snr"),
        table=True,
    ),
    "sft_weight": Option(0.0, "adds this times E_pw (RPO, arXiv 2405.16436)", least=0),
    "logit_cap": Option("none", "a pair whose logit is above it has no gradient by it; form ours", above=0),
    "chosen_pull": Option(
        0.0,
        "adds this times κ·e_w: a pull on the chosen in the preference's own units, 0 at the reference; form ours",
        least=0,
    ),
    "saturation_skip": {  # DPPO, DEPO; form ours
        "threshold": Option(8.0, "pairs with a larger logit are saturated"),
        "keep": Option(0.1, "probability that a saturated pair is kept, with weight 1/keep", above=0, most=1),
    },
    "adaptive_clip": {  # BAPO, arXiv 2510.18927; form ours
        "share": Option(0.4, "share of the ratios that the chosen side shall have", above=0, below=1),
        "low_start": Option(0.6, "lower bound of the rejected's ratio, at first", above=0, most=1),
        "low_end": Option(0.9, "and at most", above=0, most=1),
        "high_start": Option(1.2, "upper bound of the chosen's ratio, at first", least=1),
        "high_end": Option(3.0, "and at most", least=1),
    },
}
LIMITS = ("logit_cap", "chosen_pull")  # keywords of `preference_loss` too
# They scale the gradients of chosen and rejected; the first reads their product.
ON_PAIRS = ("safeguard", "adaptive_clip")
# In `diffusion_dpo_loss` too; omega comes to it in `PairInfo`, and `pairing` is of groups.
FUSED = (*LIMITS, "timestep_weight", "pairing")
HIGH_STEP, LOW_STEP = 0.05, 0.02  # of adaptive_clip's bounds
RATIO_LIMIT = 20.0  # log of the largest ratio that is summed
CHOSEN = ("policy_chosen", "excess_chosen", "drift_chosen")
REJECTED = ("policy_rejected", "excess_rejected", "drift_rejected")


def check(spec: Spec, options: Mapping[str, Any], where: str, key: str, value: Any) -> Any:
    """A modifier's checked options beside the objective's own `options`. Raises InputError."""
    compares = spec.needs_with(options).reference
    if key in ("adaptive_clip", "chosen_pull") and not ("beta" in options and compares):
        raise InputError(f"{where} needs an objective with `beta` and a reference")
    if key == "pairing" and spec.groups:
        raise InputError(f"{where} is for objectives that compare pairs, and {spec.name} reads whole groups")
    if key == "logit_cap" and not compares:
        raise InputError(f"{where} needs an objective with a reference")
    if key in LIMITS and spec.name == "ipo":
        raise InputError(
            f"{where}: ipo regresses to a margin of its own; leave it out, or take another objective"
        )
    if key == "timestep_weight" and value != "none" and not spec.reads_omega:
        raise InputError(
            f"{where} is a factor of β at each noise level, and this loss has no β that takes one: leave it out"
        )
    known = MODIFIERS[key]
    if isinstance(known, Option):
        return known.check(where, value)
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {value!r}; allowed: a mapping of {', '.join(known)}")
    check_known(where, value, known)
    checked = {name: option.default for name, option in known.items()}
    for name, given in value.items():
        checked[name] = known[name].check(f"{where}: `{name}`", given)
    for start in [name for name in checked if name.endswith("_start")]:
        end = start.replace("_start", "_end")
        if checked[start] > checked[end]:
            raise InputError(
                f"{where}: `{start}` is {checked[start]:g}; allowed: ≤ `{end}`, {checked[end]:g}"
            )
    return checked


def add_needs(needs: Needs, options: Mapping[str, Any]) -> Needs:
    """What an objective needs together with its modifiers."""
    return replace(needs, cross=needs.cross or "safeguard" in options)


def before(batch: Batch, options: Mapping[str, Any]) -> tuple[Batch, dict[str, Tensor]]:
    """The batch with its gradients scaled, and what to log."""
    stats: dict[str, Tensor] = {}
    if "safeguard" in options:
        scale, stats = safeguard(batch, **options["safeguard"])
        batch = scale_gradients(batch, REJECTED, scale)
    if "adaptive_clip" in options:
        chosen, rejected, more = adaptive_clip(batch, options["beta"], **options["adaptive_clip"])
        batch = scale_gradients(scale_gradients(batch, CHOSEN, chosen), REJECTED, rejected)
        stats = {**stats, **more}
    return batch, stats


def limits(options: Mapping[str, Any]) -> dict[str, float]:
    """Those of `LIMITS` that are given: the keywords of `preference_loss`."""
    return {key: options[key] for key in LIMITS if key in options}


def after(
    batch: Batch, terms: Terms, options: Mapping[str, Any], beta: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses `[B]` with terms and weights added, and what to log; `beta` is the objective's, where it has one."""
    losses, stats = terms.losses, {}
    if not terms.limited:
        losses = limited(batch, terms, beta, **limits(options))
    if options.get("sft_weight"):
        losses = losses + options["sft_weight"] * batch.error_chosen
    if "saturation_skip" in options:
        weight = saturation_skip(batch, terms.logits, **options["saturation_skip"])
        losses, stats = losses * weight, {"saturation_skip/weight": weight}
    return losses, stats


def limited(
    batch: Batch,
    terms: Terms,
    beta: float | None,
    *,
    logit_cap: float | None = None,
    chosen_pull: float | None = None,
) -> Tensor:
    """The losses `[B]` of a formula that isn't `preference_loss`: capped at the same value, then pulled."""
    losses = terms.losses
    if logit_cap is not None:
        losses = losses.detach().where(terms.logits.detach() > logit_cap, losses)
    if chosen_pull is not None:
        excess = batch.excess_chosen if terms.excess_better is None else terms.excess_better
        losses = losses + chosen_pull * (batch.kappa(beta) * excess)
    return losses


def safeguard(batch: Batch, *, mu: float, scope: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Diffusion-SDPO's scale of the rejected's gradient, and the cosine of the two residuals."""
    errors = batch.pooled.detach()
    chosen, rejected, cross = errors.policy_chosen[:, 0], errors.policy_rejected[:, 0], errors.cross[:, 0]
    cosine = cross / (chosen * rejected).sqrt().clamp_min(1e-12)
    if scope == "microbatch":
        chosen, cross = batch.gathered(chosen)[0].mean(), batch.gathered(cross)[0].mean()
    scale = ((1 - mu) * chosen / (cross + 1e-9)).clamp(0, 1).where(cross > 0, 1.0)
    return scale, {"safeguard/lambda": scale, "safeguard/cosine": cosine}


def adaptive_clip(
    batch: Batch,
    beta: float,
    *,
    share: float,
    low_start: float,
    low_end: float,
    high_start: float,
    high_end: float,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Gradient scales, 0 or 1, of chosen and rejected.

    With the ratios e^(κr), the chosen's gradient stops above an upper bound, the rejected's below a lower
    one. The bounds start tight; the upper, then the lower is raised until the chosen side has its share.
    """
    import torch

    chosen, rejected = (
        (batch.kappa(beta) * reward).detach().clamp(-RATIO_LIMIT, RATIO_LIMIT).exp()
        for reward in (batch.reward_chosen, batch.reward_rejected)
    )
    high = torch.arange(high_start, high_end + 1e-9, HIGH_STEP)
    low = torch.arange(low_start, low_end + 1e-9, LOW_STEP)
    highs = torch.cat((high, high[-1:].expand(len(low) - 1))).to(chosen)
    lows = torch.cat((low[:1].expand(len(high)), low[1:])).to(chosen)
    all_chosen, all_rejected = batch.gathered(chosen)[0], batch.gathered(rejected)[0]
    kept_chosen = (all_chosen * (all_chosen <= highs[:, None])).sum(1)
    kept_rejected = (all_rejected * (all_rejected >= lows[:, None])).sum(1)
    enough = kept_chosen >= share * (kept_chosen + kept_rejected)
    first = torch.where(enough.any(), enough.to(torch.int8).argmax(), len(highs) - 1)
    upper, lower = highs[first], lows[first]
    stats = {"adaptive_clip/high": upper, "adaptive_clip/low": lower}
    return (chosen <= upper).to(chosen), (rejected >= lower).to(chosen), stats


def saturation_skip(batch: Batch, logits: Tensor, *, threshold: float, keep: float) -> Tensor:
    """Weights `[B]` that drop most saturated pairs and leave the expectation as it is."""
    drawn = (batch.uniform(1, stream="saturation_skip")[:, 0] < keep).to(logits) / keep
    return drawn.where(logits.detach() > threshold, 1.0)


def scale_gradients(batch: Batch, names: tuple[str, ...], scale: Tensor) -> Batch:
    """The same values; gradients through the named fields times `scale`, `[B]` or one for all."""
    column = scale[:, None] if scale.dim() else scale

    def scaled(errors: PairErrors) -> PairErrors:
        present = {name: value for name in names if (value := getattr(errors, name)) is not None}
        return replace(
            errors, **{name: with_scaled_gradient(value, column) for name, value in present.items()}
        )

    pairs = batch.pairs
    if pairs.masked is not None:
        pairs = replace(pairs, masked=scaled(pairs.masked))
    return replace(batch, segments=scaled(batch.segments), pairs=pairs)
