"""Diffusion preference losses, straight from predictions: pair errors and loss in one op, and as a module."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..backend import takes_triton
from ..library import once_differentiable
from ..types import PairErrors, PreferenceLoss
from .layout import Segments, mask_rows
from .options import OPTIONS, Objective, Preference, check_reduction, checked_objective
from .pair_errors import PairArguments, against_cache, cached_excess, checked_arguments, errors_of
from .pair_launch import unpack_errors
from .preference import check_weights, loss_from_errors, packed, preference_op, reduced
from .samples import Samples, gradients, means, without_reference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

OP = "diffusion_dpo_loss"


def diffusion_dpo_loss(
    pred: Samples,  # [2B, ...], chosen half first, or (chosen, rejected) of [B, ...]
    target: Samples,
    ref_pred: Samples | None = None,
    *,
    ref_errors: Samples | None = None,
    excess: Samples | None = None,
    beta: float | None = None,
    objective: Objective = "pg_dpo",
    weight: torch.Tensor | None = None,
    timestep_weight: torch.Tensor | None = None,
    segments: Segments = None,
    segment_labels: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    frame_dim: int = 2,
    reduction: str = "mean",
    loss_scale: float = 1.0,
    process_group: ProcessGroup | None = None,
    **options: float | str | None,
) -> PreferenceLoss:
    """`pair_errors` and `preference_loss` in one op: see there for the formulas and the arguments.

    The gradient flows through `.loss` alone, to `pred` alone.

    Args:
        pred, target, ref_pred, ref_errors, excess, segments, mask, frame_dim, process_group: as in `pair_errors`; one
            of `ref_pred` and `ref_errors` must be given, but for a callable objective, which may do without.
        segments: by default as many equal segments as `segment_labels` has columns.
        beta, objective, weight, timestep_weight, segment_labels, reduction, loss_scale, options: as in
            `preference_loss`. A number that changes from call to call, such as beta, compiles no kernel anew.
            (`torch.compile` takes it for a constant and traces again, as often as its `recompile_limit` lets it.)

    Raises:
        TypeError, ValueError: as the two ops.
    """
    preference = checked_objective(OP, objective, beta, timestep_weight, segment_labels, options)
    check_reduction(OP, reduction, loss_scale)
    named = isinstance(preference, Preference)
    if named and ref_pred is None and ref_errors is None:
        raise ValueError(f"{OP}: give either ref_pred or ref_errors, got neither")
    if segments is None and segment_labels is not None:
        segments = label_columns(OP, segment_labels)
    where = segments, mask, frame_dim, process_group
    given = checked_arguments(OP, pred, target, ref_pred, ref_errors, excess, *where)
    weights = weight, timestep_weight, segment_labels
    fused = named and preference.in_one_sweep and process_group is None
    if fused and takes_triton(OP, given.tensors[0]):
        return _fused(given, preference, weights, reduction, loss_scale)
    errors = errors_of(given, cross=named and preference.safeguard_mu is not None)
    result = loss_from_errors(OP, errors, preference, *weights, reduction, loss_scale)
    return replace(result, losses=result.losses.detach())


def label_columns(op: str, labels: torch.Tensor) -> int:
    if not isinstance(labels, torch.Tensor) or labels.dim() != 2:
        given = tuple(labels.shape) if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ValueError(f"{op}: segment_labels must be a tensor [B, S], got {given}")
    return labels.shape[1]


class DiffusionDPOLoss(torch.nn.Module):
    """`diffusion_dpo_loss` with what stays the same from step to step said once. It has no parameters.

    Args:
        beta: as in `preference_loss`; the attribute may be set anew between steps.
        options: what `diffusion_dpo_loss` takes of `objective`, `reduction`, `loss_scale`, `segments`, `frame_dim`,
            `process_group` and the objective's options; kept as the dict `options`, whose numbers may change too.

    A module with a process group can't be copied or pickled, as the group can't.

    Raises:
        TypeError, ValueError: a name or a number that `diffusion_dpo_loss` would not take.
    """

    def __init__(self, beta: float | None = None, **options: object):
        super().__init__()
        op = type(self).__name__
        if unknown := ", ".join(sorted(options.keys() - OF_A_RUN - OPTIONS)):
            known = ", ".join(sorted(OF_A_RUN | OPTIONS))
            raise TypeError(f"{op}: unknown option {unknown}; options are {known}")
        numbers = {name: value for name, value in options.items() if name in OPTIONS}
        checked_objective(op, options.get("objective", "pg_dpo"), beta, None, None, numbers)
        check_reduction(op, options.get("reduction", "mean"), options.get("loss_scale", 1.0))
        self.beta, self.options = beta, options

    def forward(
        self,
        pred: Samples,
        target: Samples,
        ref_pred: Samples | None = None,
        *,
        ref_errors: Samples | None = None,
        excess: Samples | None = None,
        weight: torch.Tensor | None = None,
        timestep_weight: torch.Tensor | None = None,
        segment_labels: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> PreferenceLoss:
        """Shapes and errors as in `diffusion_dpo_loss`."""
        return diffusion_dpo_loss(
            pred,
            target,
            ref_pred,
            ref_errors=ref_errors,
            excess=excess,
            weight=weight,
            timestep_weight=timestep_weight,
            segment_labels=segment_labels,
            mask=mask,
            beta=self.beta,
            **self.options,
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in {"beta": self.beta, **self.options}.items())


OF_A_RUN = {"objective", "reduction", "loss_scale", "segments", "frame_dim", "process_group"}


def _fused(
    given: PairArguments, preference: Preference, weights, reduction: str, loss_scale: float
) -> PreferenceLoss:
    """Three launches forward, one backward: `pair_errors` and `preference_loss` without what autograd keeps between."""
    weight, omega, labels = weights
    check_weights(OP, weight, omega, labels, (given.pairs, given.segments), given.tensors[0].device)
    weight, omega, labels = (None if x is None else x.detach() for x in weights)
    loss, per_pair, loss_slopes, excess, *errors = _DiffusionDPO.apply(
        given.form,
        given.ref_errors,
        given.excess,
        omega,
        weight,
        labels,
        mask_rows(given.mask, given.shape),
        given.index or (),
        given.axis,
        reduction,
        preference.arguments(),
        *given.tensors,
    )
    errors = PairErrors(**unpack_errors(*errors))
    if given.ref_errors is not None:
        errors = against_cache(errors, given.ref_errors, excess)
    return packed(loss, per_pair[0], per_pair, loss_slopes, errors, loss_scale)


class _DiffusionDPO(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        form,
        ref_errors,
        excess,
        omega,
        weight,
        labels,
        mask,
        index,
        axis,
        reduction,
        arguments,
        *tensors,
    ):
        guarded = arguments[-2] != "none"
        errors, drift, cross = means(form, tensors, mask, index, axis, guarded)
        excess = errors[3:5] if ref_errors is None else cached_excess(errors[:2], ref_errors, excess)
        loss, per_pair, slopes, loss_slopes = preference_op(
            errors[:2], errors[2], excess, cross if guarded else None, omega, weight, labels, *arguments
        )
        if reduction != "mean":
            loss = reduced(per_pair[0].clone(), reduction)
        ctx.save_for_backward(mask, slopes, weight, *without_reference(form, tensors))
        ctx.form, ctx.index, ctx.axis, ctx.reduction, ctx.count = form, index, axis, reduction, len(tensors)
        found = per_pair, loss_slopes, excess, errors, drift, cross
        ctx.mark_non_differentiable(*found)
        ctx.set_materialize_grads(False)  # of zeros for these
        return loss, *found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):
        mask, slopes, weight, *tensors = ctx.saved_tensors
        loss = grad_loss, weight  # a share of the mean, which the kernel divides
        if ctx.reduction != "mean":
            grad = grad_loss if weight is None else grad_loss * weight.to(grad_loss)
            slopes, count = slopes * grad.reshape(-1, 1), slopes[2]
            loss = None, None
        else:
            count = slopes[2]
        by_errors = slopes, None, None, count
        grads = gradients(ctx.form, tensors, by_errors, mask, ctx.index, ctx.axis, loss)
        return (*[None] * 11, *grads, *[None] * (ctx.count - len(grads)))
