"""Diffusion preference losses, straight from predictions: pair errors and loss in one op."""

from __future__ import annotations

import torch

from ..backend import takes_triton
from ..checks import check_pairs
from ..library import once_differentiable
from ..types import PairErrors, PreferenceLoss
from .layout import Segments, mask_rows
from .pair_errors import (
    PairArguments,
    against_cache,
    cached_excess,
    checked_arguments,
    pair_errors,
    pair_errors_backward_op,
    pair_errors_op,
)
from .pair_launch import unpack_errors
from .preference import Preference, check_weights, loss_from_errors, packed, preference_op

OP = "diffusion_dpo_loss"


def diffusion_dpo_loss(
    pred: torch.Tensor,  # [2B, ...], chosen half first
    target: torch.Tensor,
    ref_pred: torch.Tensor | None = None,
    *,
    ref_errors: torch.Tensor | None = None,
    excess: torch.Tensor | None = None,
    beta: float,
    objective: str = "pg_dpo",
    label_smoothing: float = 0.0,
    weight: torch.Tensor | None = None,
    timestep_weight: torch.Tensor | None = None,
    segments: Segments = None,
    segment_labels: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    ars_k: float | None = 1.0,
    ars_eps: float = 1e-6,
    ars_clip: float = 10.0,
    ipr_weight: float = 1.0,
    ipr_sharpness: float = 1.0,
    ipr_threshold: float = 1.0,
    ipr_form: str = "bt",
    logit_cap: float | None = None,
    chosen_pull: float | None = None,
    safeguard_mu: float | None = None,
    safeguard_scope: str = "pair",
    frame_dim: int = 2,
) -> PreferenceLoss:
    """`pair_errors` and `preference_loss` in one op: see there for the formulas and the arguments.

    The gradient flows through `.loss` alone, to `pred` alone.

    Args:
        pred, target, ref_pred, ref_errors, excess, segments, mask, frame_dim: as in `pair_errors`; one of
            `ref_pred` and `ref_errors` must be given.
        segments: by default as many equal segments as `segment_labels` has columns.
        beta ... safeguard_scope: as in `preference_loss`. A number that changes from call to call, such as beta,
            compiles no kernel anew. (`torch.compile` takes it for a constant and traces again, as often as its
            `recompile_limit` lets it.)

    Raises:
        TypeError, ValueError: as the two ops.
    """
    preference = Preference(
        beta=beta,
        objective=objective,
        label_smoothing=label_smoothing,
        ars_k=ars_k,
        ars_eps=ars_eps,
        ars_clip=ars_clip,
        ipr_weight=ipr_weight,
        ipr_sharpness=ipr_sharpness,
        ipr_threshold=ipr_threshold,
        ipr_form=ipr_form,
        logit_cap=logit_cap,
        chosen_pull=chosen_pull,
        safeguard_mu=safeguard_mu,
        safeguard_scope=safeguard_scope,
    ).check(OP)
    check_pairs(OP, "pred", pred)
    if ref_pred is None and ref_errors is None:
        raise ValueError(f"{OP}: give either ref_pred or ref_errors, got neither")
    if segments is None and segment_labels is not None:
        segments = label_columns(OP, segment_labels)
    compared = {"ref_errors": ref_errors, "excess": excess, "segments": segments, "mask": mask}
    compared["frame_dim"] = frame_dim
    weights = timestep_weight, weight, segment_labels
    if preference.in_one_sweep and takes_triton(OP, pred):
        given = checked_arguments(OP, pred, target, ref_pred, **compared)
        return _fused(pred, given, preference, weights)
    errors = pair_errors(pred, target, ref_pred, cross=preference.safeguard_mu is not None, **compared)
    result = loss_from_errors(OP, errors, preference, weight, timestep_weight, segment_labels)
    result.losses = result.losses.detach()
    return result


def label_columns(op: str, labels: torch.Tensor) -> int:
    if not isinstance(labels, torch.Tensor) or labels.dim() != 2:
        given = tuple(labels.shape) if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ValueError(f"{op}: segment_labels must be a tensor [B, S], got {given}")
    return labels.shape[1]


def _fused(pred, given: PairArguments, preference: Preference, weights) -> PreferenceLoss:
    """Three launches forward, one backward: `pair_errors` and `preference_loss` without what autograd keeps between."""
    omega, weight, labels = weights
    check_weights(OP, weight, omega, labels, (given.pairs, given.segments), pred.device)
    omega, weight, labels = (None if x is None else x.detach() for x in weights)
    loss, per_pair, loss_slopes, excess, *errors = _DiffusionDPO.apply(
        pred,
        given.target,
        given.ref_pred,
        given.ref_errors,
        given.excess,
        omega,
        weight,
        labels,
        mask_rows(given.mask, pred.shape),
        given.index or (),
        given.axis,
        *preference.arguments(),
    )
    errors = PairErrors(**unpack_errors(*errors))
    if given.ref_errors is not None:
        errors = against_cache(errors, given.ref_errors, excess)
    return packed(loss, per_pair[0], per_pair, loss_slopes, errors)


class _DiffusionDPO(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, pred, target, ref_pred, ref_errors, excess, omega, weight, labels, mask, index, axis, *arguments
    ):
        guarded = arguments[-2] != "none"
        errors, drift, cross = pair_errors_op(pred, target, ref_pred, mask, index, axis, guarded)
        excess = errors[3:5] if ref_errors is None else cached_excess(errors[:2], ref_errors, excess)
        loss, per_pair, slopes, loss_slopes = preference_op(
            errors[:2], errors[2], excess, cross if guarded else None, omega, weight, labels, *arguments
        )
        ctx.save_for_backward(pred, target, mask, slopes, weight)
        ctx.index, ctx.axis = index, axis
        found = per_pair, loss_slopes, excess, errors, drift, cross
        ctx.mark_non_differentiable(*found)
        ctx.set_materialize_grads(False)  # of zeros for these
        return loss, *found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):
        pred, target, mask, slopes, weight = ctx.saved_tensors
        where = mask, ctx.index, ctx.axis
        grad = pair_errors_backward_op(
            slopes, None, None, slopes[2], pred, target, None, *where, grad_loss, weight
        )
        return (grad, *[None] * 17)
