"""From pair errors to a preference loss: the small stage on `[B, S]` numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backend import takes_eager, takes_triton
from ..checks import check_per_pair
from ..launch import launch
from ..library import once_differentiable, opaque
from ..types import PairErrors, PreferenceLoss
from . import formula
from .options import Custom, Objective, Preference, check_reduction, checked_objective


def preference_loss(
    errors: PairErrors,
    *,
    beta: float | None = None,
    objective: Objective = "pg_dpo",
    weight: torch.Tensor | None = None,
    timestep_weight: torch.Tensor | None = None,
    segment_labels: torch.Tensor | None = None,
    reduction: str = "mean",
    loss_scale: float = 1.0,
    **options: float | str | None,
) -> PreferenceLoss:
    """The sigmoid family of preference losses on pair errors, differentiable through `.loss` and `.losses`.

    With r_w = -excess_chosen, r_l = -excess_rejected (raw, before beta) and kappa = beta / 2
    (Diffusion-DPO, arXiv 2311.12908, Eq. 14, as its official code scales beta), times omega_t where it is given:

        logits = kappa (r_w - alpha r_l)
        loss = mean over pairs of weight * [l(logits) + ipr_weight * gate * l(kappa r_w)]
        l(z) = -log sigmoid(z)

    * `dpo`: alpha = 1, no second term. `hinge`: max(0, 1 - logits). `ipo`: (r_w - r_l - 1 / (2 beta))^2
      (arXiv 2310.12036, Eq. 17).
    * `pg_dpo` (arXiv 2511.19049): alpha = sigmoid(clip(ars_k (r_w - r_l) / (|r_l| + ars_eps), +-ars_clip)),
      detached, from the paper's Eq. 7; gate = sigmoid(ipr_sharpness (logits - ipr_threshold)), detached. The
      second term is our reconstruction of the paper's implicit preference regularization, and so is its form
      `switch`, a factor inside the sigmoid in the second term's place: logits = kappa (r_w - alpha (1 - ipr_weight *
      gate) r_l), gate = sigmoid(clip(ipr_sharpness (r_w - r_l) / (|r_w| + ars_eps), +-ars_clip)), detached.

    Args:
        errors: with `excess_*`, as `pair_errors` gives them beside a reference. Several segments without labels are
            pooled by their counts.
        beta: on errors that are means over elements; of the named objectives, which need it.
        objective: `dpo`, `pg_dpo` (default), `ipo` or `hinge`; or a callable of your own, which makes losses `[B]` of
            the errors, in their dtype and differentiable by them. It has `weight`, `reduction` and `loss_scale`; beta,
            timestep weights, labels and options are its own affair. `logits`, `ars_alpha`, `ipr_gate` and the slopes
            are None then, and so are the implicit rewards of errors without an excess.
        weight: `[B]`, the weight of each pair; the mean is over all B, not over the weights' sum.
        timestep_weight: `[B]`, omega_t: a factor of beta in the logit. ARS and IPR see rewards times it, and `ipo`
            has it on the margin alone.
        segment_labels: `[B, S]` of -1, 0 or +1 (DenseDPO, arXiv 2506.03517): +1 where the chosen segment is
            better, -1 where the rejected one is, 0 for a tie, which drops out. The sum over segments stands
            inside one sigmoid; r_w sums the better segments, r_l the worse.
        reduction: `mean` (default) or `sum` of the pairs' losses, in float64 and fixed order; or `none`: `.loss` is
            `[B]`.
        loss_scale: a factor of `.loss` and so of the gradient, such as 1 over the steps of an accumulation. It and the
            reduction are in `.loss` alone: `losses` are before both, the slopes are those of the mean.
        options: of the named objectives.
            label_smoothing: of `dpo` and `pg_dpo`, (1 - x) l(z) + x l(-z), 0 by default.
            ars_k, ars_eps, ars_clip: 1, 1e-6, 10 by default. `ars_k=None` leaves alpha = 1.
            ipr_weight, ipr_sharpness, ipr_threshold: 1 by default. With `ars_k=None, ipr_weight=0`, `pg_dpo`
                is `dpo` to the bit.
            ipr_form: `bt` (default, as above), `hinge` (gate * max(0, -r_w)), `sft` (gate * policy error) or
                `switch`, with an ipr_weight of 1 at most and without ipr_threshold.
            logit_cap: None by default. Where the logit is above it, l has its value at the cap and no gradient;
                PG-DPO's second term and the logits that are told go on as they are. Not of `ipo`.
            chosen_pull: None by default. Adds chosen_pull * kappa * (-r_w), omega_t in it as in the logit: a pull on
                the better side that is 0 where the policy is the reference. Not of `ipo`, whose slopes have no
                kappa.
            safeguard_mu: scale the rejected sample's gradient, not its value, by 1 where cross <= 0, else by
                clip((1 - mu) E_pw / (cross + 1e-9), 0, 1) (Diffusion-SDPO, arXiv 2511.03317). Needs
                `errors.cross`.
            safeguard_scope: `pair` (default), a scale per pair; `batch`, one for all, as the authors' code.

    Raises:
        TypeError: no beta, or an unknown option; what the callable made is no tensor, or of another dtype.
        ValueError: a number out of range, an unknown name, or `errors` without what the objective needs; a callable
            beside what is of the named objectives, or with losses of another shape or without a gradient.
    """
    op = "preference_loss"
    preference = checked_objective(op, objective, beta, timestep_weight, segment_labels, options)
    check_reduction(op, reduction, loss_scale)
    weights = weight, timestep_weight, segment_labels
    return loss_from_errors(op, errors, preference, *weights, reduction, loss_scale)


def reduced(losses: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "mean":
        return mean_loss(losses)
    return losses if reduction == "none" else losses.double().sum().to(losses.dtype)


def mean_loss(losses: torch.Tensor) -> torch.Tensor:
    """The mean of `[B]`, summed and divided in float64: of equal fp32 losses it is that loss, to the last bit."""
    return losses.double().mean().to(losses.dtype)


def loss_from_errors(
    op: str,
    errors: PairErrors,
    preference: Preference | Custom,
    weight: torch.Tensor | None,
    timestep_weight: torch.Tensor | None,
    segment_labels: torch.Tensor | None,
    reduction: str,
    loss_scale: float,
) -> PreferenceLoss:
    if not isinstance(preference, Preference):
        return _loss_of_callable(op, errors, preference, weight, reduction, loss_scale)
    if errors.excess_chosen is None or errors.excess_rejected is None:
        raise ValueError(f"{op}: errors hold no excess over a reference; give ref_pred or ref_errors")
    if preference.safeguard_mu is not None and errors.cross is None:
        raise ValueError(f"{op}: safeguard_mu needs errors.cross; compute pair_errors with cross=True")
    policy = errors.policy_chosen
    check_errors(op, errors)
    check_weights(op, weight, timestep_weight, segment_labels, policy.shape, policy.device)
    obstacle = None if policy.dtype == torch.float32 else f"its errors are {policy.dtype}, not float32"
    triton = preference.in_one_sweep and takes_triton(op, policy, obstacle)
    if not preference.in_one_sweep:
        takes_eager(
            op, policy, "safeguard_scope='batch' needs the whole batch first; of [B, S] numbers alone"
        )
    loss, losses, per_pair, loss_slopes = _PreferenceLoss.apply(
        policy,
        errors.policy_rejected,
        errors.excess_chosen,
        errors.excess_rejected,
        torch.ones_like(policy) if errors.count is None else errors.count,
        errors.cross,
        *(None if x is None else x.detach() for x in (timestep_weight, weight, segment_labels)),
        triton,
        *preference.arguments(),
    )
    loss = loss if reduction == "mean" else reduced(losses, reduction)
    return packed(loss, losses, per_pair, loss_slopes, errors.detach(), loss_scale)


def _loss_of_callable(
    op: str,
    errors: PairErrors,
    objective: Custom,
    weight: torch.Tensor | None,
    reduction: str,
    loss_scale: float,
) -> PreferenceLoss:
    policy = errors.policy_chosen
    check_per_pair(op, "weight", weight, policy.shape[:1], "[B]", policy.device)
    losses = objective(errors)
    check_losses(op, losses, errors)
    losses = losses if weight is None else losses * weight.detach().to(losses)
    loss, errors = reduced(losses, reduction), errors.detach()
    whole = errors.over_segments()
    sides = (whole.excess_chosen, whole.excess_rejected)
    rewards = (None if excess is None else -excess[:, 0] for excess in sides)
    return PreferenceLoss(scaled(loss, loss_scale), losses, None, *rewards, None, None, None, None, errors)


def check_losses(op: str, losses: torch.Tensor, errors: PairErrors) -> None:
    policy = errors.policy_chosen
    if not isinstance(losses, torch.Tensor):
        raise TypeError(f"{op}: objective must return a tensor of losses [B], got {type(losses).__name__}")
    if losses.shape != policy.shape[:1]:
        raise ValueError(
            f"{op}: objective must return losses [B] = {tuple(policy.shape[:1])}, got shape {tuple(losses.shape)}; "
            "errors are [B, S], `over_segments()` makes them [B, 1]"
        )
    if losses.dtype != policy.dtype:
        raise TypeError(f"{op}: objective must return losses in {policy.dtype}, got {losses.dtype}")
    if policy.requires_grad and not losses.requires_grad:
        raise ValueError(f"{op}: objective returned losses without a gradient, though its errors have one")


def scaled(loss: torch.Tensor, loss_scale: float) -> torch.Tensor:
    return loss if loss_scale == 1.0 else loss * loss_scale


def packed(loss, losses, per_pair, loss_slopes, errors: PairErrors, loss_scale: float) -> PreferenceLoss:
    logits, chosen, rejected, alpha, gate = per_pair.unbind(0)[1:]
    slope_chosen, slope_rejected = loss_slopes.unbind(0)
    return PreferenceLoss(
        loss=scaled(loss, loss_scale),
        losses=losses,
        logits=logits,
        implicit_reward_chosen=chosen,
        implicit_reward_rejected=rejected,
        ars_alpha=alpha,
        ipr_gate=gate,
        slope_chosen=slope_chosen,
        slope_rejected=slope_rejected,
        errors=errors,
    )


class _PreferenceLoss(torch.autograd.Function):
    """(loss, losses, per_pair, loss_slopes) of errors `[B, S]`, differentiable through the first two."""

    @staticmethod
    def forward(
        ctx, policy_w, policy_l, excess_w, excess_l, count, cross, omega, weight, labels, triton, *arguments
    ):
        stage = preference_op if triton else eager_stage
        policy, excess = torch.stack((policy_w, policy_l)), torch.stack((excess_w, excess_l))
        loss, per_pair, slopes, loss_slopes = stage(
            policy, count, excess, cross, omega, weight, labels, *arguments
        )
        # The errors, for a second derivative to be refused.
        ctx.save_for_backward(slopes, weight, policy_w, policy_l, excess_w, excess_l)
        ctx.mark_non_differentiable(per_pair, loss_slopes)
        ctx.set_materialize_grads(False)
        return loss, per_pair[0].clone(), per_pair, loss_slopes

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, grad_losses, *_):
        slopes, weight = ctx.saved_tensors[:2]
        pairs = slopes.shape[1]
        # In float64, as `mean_loss`: a division by a number is a product in fp32 on CUDA.
        grad = None if grad_loss is None else (grad_loss.double() / pairs).to(grad_loss.dtype).expand(pairs)
        if grad_losses is not None:
            grad = grad_losses if grad is None else grad + grad_losses
        if grad is None:
            return (None,) * 17
        grad = grad if weight is None else grad * weight.to(grad)
        policy_w, policy_l, _, excess_w, excess_l = (slopes * grad[:, None]).unbind(0)
        return policy_w, policy_l, excess_w, excess_l, *[None] * 13


Stage = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def eager_stage(
    policy, count, excess, cross, omega, weight, labels, objective, ars, ipr, capped, pulled, scope, numbers
) -> Stage:
    """What `dpo_kernel.preference_stage` writes: loss, per_pair, slopes, loss_slopes."""
    if labels is None:
        total = count.sum(1, keepdim=True)
        plus = torch.where(total > 0, count / torch.where(total > 0, total, 1.0), 0.0)
        minus = torch.zeros_like(plus)
        better, worse, won = ((plus * x).sum(1) for x in (excess[0], excess[1], policy[0]))
    else:
        labels = labels.to(policy.dtype)
        plus, minus = labels.clamp_min(0), (-labels).clamp_min(0)
        better = (plus * excess[0] + minus * excess[1]).sum(1)
        worse = (plus * excess[1] + minus * excess[0]).sum(1)
        won = (plus * policy[0] + minus * policy[1]).sum(1)
    given = torch.ones_like(better) if weight is None else weight.to(better)
    scale = torch.ones_like(better) if omega is None else omega.to(better)
    *values, slope_better, slope_worse, slope_won = formula.preference(
        better, worse, won, scale, *numbers[:-1], objective, ars, ipr, capped, pulled
    )
    if scope != "none":
        shared = ((plus + minus) * cross).sum(1)
        sides = (won.mean(), shared.mean()) if scope == "batch" else (won, shared)
        slope_worse = slope_worse * formula.safeguard(*sides, numbers[-1])
    losses, logits, alpha, gate = values
    per_pair = torch.stack((losses * given, logits, -better, -worse, alpha, gate))
    slope_better, slope_worse, slope_won = (x[:, None] for x in (slope_better, slope_worse, slope_won))
    by_policy = torch.stack((slope_won * plus, slope_won * minus))
    by_excess = torch.stack((slope_better * plus, slope_worse * plus))
    if labels is not None:
        by_excess = by_excess + torch.stack((slope_worse * minus, slope_better * minus))
    given = (1.0 / len(better) * given)[:, None]
    slopes = torch.cat((by_policy, count[None], by_excess))
    return mean_loss(per_pair[0]), per_pair, slopes, by_policy * given + by_excess * given


def _stage_fake(policy, *_) -> Stage:
    _, pairs, segments = policy.shape
    return tuple(policy.new_empty(shape) for shape in ((), (6, pairs), (5, pairs, segments), policy.shape))


@opaque("preference", _stage_fake)
def preference_op(
    policy: torch.Tensor,
    count: torch.Tensor,
    excess: torch.Tensor,
    cross: torch.Tensor | None,
    omega: torch.Tensor | None,
    weight: torch.Tensor | None,
    labels: torch.Tensor | None,
    objective: str,
    ars: bool,
    ipr: str,
    capped: bool,
    pulled: bool,
    safeguard: str,
    numbers: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`loss` [], `per_pair` [6, B], `slopes` [5, B, S] and `loss_slopes` [2, B, S] of fp32 errors `[2, B, S]`."""
    from .dpo_kernel import PAIRS, preference_stage

    outputs = _stage_fake(policy)
    inputs = (policy, count, excess, cross, omega, weight, labels)
    launch(
        preference_stage,
        (1,),
        (x if x is None else x.contiguous() for x in inputs),
        outputs,
        (*policy.shape[1:], *numbers),
        threads=PAIRS,
        fp_fusion=False,  # the slopes that it tells are those of the gradient, to the bit
        OBJECTIVE=objective,
        ARS=ars,
        IPR=ipr,
        CAPPED=capped,
        PULLED=pulled,
        SAFEGUARD=safeguard != "none",
        HAS_OMEGA=omega is not None,
        HAS_WEIGHT=weight is not None,
        LABELLED=labels is not None,
        PAIRS=PAIRS,
    )
    return outputs


def check_errors(op: str, errors: PairErrors) -> None:
    """Errors may be built by hand: what the loss reads of them is all alike."""
    policy = errors.policy_chosen
    if policy.dim() != 2:
        raise ValueError(f"{op}: errors.policy_chosen must be [B, S], got shape {tuple(policy.shape)}")
    for name in ("policy_rejected", "excess_chosen", "excess_rejected", "cross", "count"):
        value = getattr(errors, name)
        check_per_pair(op, f"errors.{name}", value, policy.shape, "[B, S]", policy.device)
        if value is not None and value.dtype != policy.dtype:
            raise TypeError(f"{op}: errors.{name} is {value.dtype}, errors.policy_chosen {policy.dtype}")


def check_weights(
    op: str,
    weight: torch.Tensor | None,
    timestep_weight: torch.Tensor | None,
    segment_labels: torch.Tensor | None,
    shape: tuple[int, int],
    device: torch.device,
) -> None:
    check_per_pair(op, "weight", weight, shape[:1], "[B]", device)
    check_per_pair(op, "timestep_weight", timestep_weight, shape[:1], "[B]", device)
    check_per_pair(op, "segment_labels", segment_labels, shape, "[B, S]", device)
