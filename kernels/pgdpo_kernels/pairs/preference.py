"""From pair errors to a preference loss: the small stage on `[B, S]` numbers, in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from ..checks import check_number, check_per_pair
from ..types import PairErrors, PreferenceLoss

OBJECTIVES = ("dpo", "pg_dpo", "ipo", "hinge")
IPR_FORMS = ("bt", "hinge", "sft")
SAFEGUARD_SCOPES = ("pair", "batch")


@dataclass(frozen=True)
class Preference:
    """The objective and its numbers, checked. See `preference_loss` for their meaning."""

    beta: float
    objective: str = "pg_dpo"
    label_smoothing: float = 0.0
    ars_k: float | None = 1.0
    ars_eps: float = 1e-6
    ars_clip: float = 10.0
    ipr_weight: float = 1.0
    ipr_sharpness: float = 1.0
    ipr_threshold: float = 1.0
    ipr_form: str = "bt"
    safeguard_mu: float | None = None
    safeguard_scope: str = "pair"

    @property
    def scales_rejected(self) -> bool:
        return self.objective == "pg_dpo" and self.ars_k is not None

    @property
    def regularizes(self) -> bool:
        return self.objective == "pg_dpo" and self.ipr_weight != 0

    def kernel_arguments(self) -> tuple[str, bool, str, bool, list[float]]:
        """Objective, switches and numbers in the order of `dpo_kernel.preference_stage`."""
        numbers = (0.5 * self.beta, 0.5 / self.beta, self.label_smoothing, self.ars_k or 0.0, self.ars_eps)
        numbers += (self.ars_clip, self.ipr_weight, self.ipr_sharpness, self.ipr_threshold)
        numbers += (1 - (self.safeguard_mu or 0.0),)
        return (
            self.objective,
            self.scales_rejected,
            self.ipr_form if self.regularizes else "none",
            self.safeguard_mu is not None,
            [float(number) for number in numbers],
        )

    def check(self, op: str) -> Preference:
        for name, options in (
            ("objective", OBJECTIVES),
            ("ipr_form", IPR_FORMS),
            ("safeguard_scope", SAFEGUARD_SCOPES),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{op}: {name} must be one of {options}, got {getattr(self, name)!r}")
        check_number(op, "beta", self.beta, above=0)
        check_number(op, "label_smoothing", self.label_smoothing, least=0)
        if self.label_smoothing >= 0.5:
            raise ValueError(f"{op}: label_smoothing must be below 0.5, got {self.label_smoothing}")
        if self.label_smoothing and self.objective not in ("dpo", "pg_dpo"):
            raise ValueError(f"{op}: label_smoothing is defined for dpo and pg_dpo, not for {self.objective}")
        if self.ars_k is not None:
            check_number(op, "ars_k", self.ars_k)
        check_number(op, "ars_eps", self.ars_eps, above=0)
        check_number(op, "ars_clip", self.ars_clip, above=0)
        check_number(op, "ipr_weight", self.ipr_weight, least=0)
        check_number(op, "ipr_sharpness", self.ipr_sharpness)
        check_number(op, "ipr_threshold", self.ipr_threshold)
        if self.safeguard_mu is not None:
            check_number(op, "safeguard_mu", self.safeguard_mu, least=0)
            if self.safeguard_mu > 1:
                raise ValueError(f"{op}: safeguard_mu must be between 0 and 1, got {self.safeguard_mu}")
        return self


def preference_loss(
    errors: PairErrors,
    *,
    beta: float,
    weight: torch.Tensor | None = None,
    segment_labels: torch.Tensor | None = None,
    **options: float | str | None,
) -> PreferenceLoss:
    """The sigmoid family of preference losses on pair errors, differentiable through `.loss` and `.losses`.

    With r_w = -excess_chosen, r_l = -excess_rejected (raw, before beta) and kappa = beta / 2
    (Diffusion-DPO, arXiv 2311.12908, Eq. 14, as its official code scales beta):

        logits = kappa (r_w - alpha r_l)
        loss = mean over pairs of weight * [l(logits) + ipr_weight * gate * l(kappa r_w)]
        l(z) = -log sigmoid(z)

    * `dpo`: alpha = 1, no second term. `hinge`: max(0, 1 - logits). `ipo`: (r_w - r_l - 1 / (2 beta))^2
      (arXiv 2310.12036, Eq. 17).
    * `pg_dpo` (arXiv 2511.19049): alpha = sigmoid(clip(ars_k (r_w - r_l) / (|r_l| + ars_eps), +-ars_clip)),
      detached, from the paper's Eq. 7; gate = sigmoid(ipr_sharpness (logits - ipr_threshold)), detached. The
      second term is our reconstruction of the paper's implicit preference regularization.

    Args:
        errors: with `excess_*`, as `pair_errors` or `PairErrors.with_reference` gives them. Several segments
            without labels are pooled by their counts.
        beta: on errors that are means over elements.
        weight: `[B]`, the weight of each pair; the loss is the mean over all B, not over the weights' sum.
        segment_labels: `[B, S]` of -1, 0 or +1 (DenseDPO, arXiv 2506.03517): +1 where the chosen segment is
            better, -1 where the rejected one is, 0 for a tie, which drops out. The sum over segments stands
            inside one sigmoid; r_w sums the better segments, r_l the worse.
        options:
            objective: `dpo`, `pg_dpo` (default), `ipo` or `hinge`.
            label_smoothing: of `dpo` and `pg_dpo`, (1 - x) l(z) + x l(-z), 0 by default.
            ars_k, ars_eps, ars_clip: 1, 1e-6, 10 by default. `ars_k=None` leaves alpha = 1.
            ipr_weight, ipr_sharpness, ipr_threshold: 1 by default. With `ars_k=None, ipr_weight=0`, `pg_dpo`
                is `dpo` to the bit.
            ipr_form: `bt` (default, as above), `hinge` (gate * max(0, -r_w)) or `sft` (gate * policy error).
            safeguard_mu: scale the rejected sample's gradient, not its value, by 1 where cross <= 0, else by
                clip((1 - mu) E_pw / (cross + 1e-9), 0, 1) (Diffusion-SDPO, arXiv 2511.03317). Needs
                `errors.cross`.
            safeguard_scope: `pair` (default), a scale per pair; `batch`, one for all, as the authors' code.

    Raises:
        ValueError: a number out of range, an unknown name, or `errors` without what the objective needs.
    """
    op = "preference_loss"
    return loss_from_errors(op, errors, Preference(beta=beta, **options).check(op), weight, segment_labels)


def loss_from_errors(
    op: str,
    errors: PairErrors,
    preference: Preference,
    weight: torch.Tensor | None,
    segment_labels: torch.Tensor | None,
) -> PreferenceLoss:
    if errors.excess_chosen is None or errors.excess_rejected is None:
        raise ValueError(f"{op}: errors hold no excess over a reference; give ref_pred or ref_errors")
    if preference.safeguard_mu is not None and errors.cross is None:
        raise ValueError(f"{op}: safeguard_mu needs errors.cross; compute pair_errors with cross=True")
    check_weights(op, weight, segment_labels, errors.policy_chosen.shape, errors.policy_chosen.device)

    better, worse, won, cross = sides(errors, segment_labels)
    reward_chosen, reward_rejected = -better, -worse
    kappa = 0.5 * preference.beta
    alpha = ars_alpha(reward_chosen, reward_rejected, preference)
    scaled = reward_rejected
    if preference.safeguard_mu is not None:
        scale = safeguard_scale(won, cross, preference)
        scaled = scaled.detach() + scale * (scaled - scaled.detach())
    logits = kappa * (reward_chosen - alpha * scaled)
    gate = torch.zeros_like(logits)
    if preference.objective == "ipo":
        losses = (reward_chosen - scaled - 0.5 / preference.beta).square()
    elif preference.objective == "hinge":
        losses = torch.relu(1 - logits)
    else:
        losses = -logsigmoid(logits)
        if preference.label_smoothing:
            smoothing = preference.label_smoothing
            losses = (1 - smoothing) * losses - smoothing * logsigmoid(-logits)
        if preference.regularizes:
            gate = torch.sigmoid(preference.ipr_sharpness * (logits - preference.ipr_threshold)).detach()
            kept = {"bt": -logsigmoid(kappa * reward_chosen), "hinge": torch.relu(better), "sft": won}
            losses = losses + preference.ipr_weight * gate * kept[preference.ipr_form]
    if weight is not None:
        losses = losses * weight.detach()
    return PreferenceLoss(
        loss=losses.mean(),
        losses=losses,
        logits=logits.detach(),
        implicit_reward_chosen=reward_chosen.detach(),
        implicit_reward_rejected=reward_rejected.detach(),
        ars_alpha=alpha,
        ipr_gate=gate,
        errors=errors.detach(),
    )


def sides(errors: PairErrors, labels: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Per pair `[B]`: excess of the better and the worse side, policy error of the better, cross term."""
    if labels is None:
        pooled = errors.over_segments()
        return tuple(
            None if value is None else value[:, 0]
            for value in (pooled.excess_chosen, pooled.excess_rejected, pooled.policy_chosen, pooled.cross)
        )
    plus, minus = labels.float().clamp_min(0), (-labels.float()).clamp_min(0)
    better = (plus * errors.excess_chosen + minus * errors.excess_rejected).sum(1)
    worse = (plus * errors.excess_rejected + minus * errors.excess_chosen).sum(1)
    won = (plus * errors.policy_chosen + minus * errors.policy_rejected).sum(1)
    cross = None if errors.cross is None else ((plus + minus) * errors.cross).sum(1)
    return better, worse, won, cross


def ars_alpha(chosen: torch.Tensor, rejected: torch.Tensor, preference: Preference) -> torch.Tensor:
    """Adaptive rejection scaling, `[B]`, detached: PG-DPO Eq. 7, its denominator kept positive."""
    if not preference.scales_rejected:
        return torch.ones_like(chosen)
    ratio = preference.ars_k * (chosen - rejected) / (rejected.abs() + preference.ars_eps)
    return torch.sigmoid(ratio.clamp(-preference.ars_clip, preference.ars_clip)).detach()


def safeguard_scale(won: torch.Tensor, cross: torch.Tensor, preference: Preference) -> torch.Tensor:
    """The scale of the rejected sample's gradient, `[B]` or one for all, detached."""
    won, cross = won.detach(), cross.detach()
    if preference.safeguard_scope == "batch":
        won, cross = won.mean(), cross.mean()
    scale = ((1 - preference.safeguard_mu) * won / (cross + 1e-9)).clamp(0, 1)
    return torch.where(cross <= 0, 1.0, scale)


def check_weights(
    op: str,
    weight: torch.Tensor | None,
    segment_labels: torch.Tensor | None,
    shape: tuple[int, int],
    device: torch.device,
) -> None:
    check_per_pair(op, "weight", weight, shape[:1], "[B]", device)
    check_per_pair(op, "segment_labels", segment_labels, shape, "[B, S]", device)
