"""Errors of policy and reference on chosen/rejected pairs, in one pass over the predictions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..backend import takes_triton
from ..checks import check_float, check_like, check_pairs
from ..launch import dense_like
from ..library import once_differentiable, opaque
from ..reference import errors as eager
from ..types import PairErrors
from .layout import Segments, frame_axis, group_mask, mask_rows, segment_index
from .pair_launch import launch_gradient, launch_means, pair_rows, sizes_of_errors, unpack_errors


def pair_errors(
    pred: torch.Tensor,  # [2B, ...], chosen half first
    target: torch.Tensor,
    ref_pred: torch.Tensor | None = None,
    *,
    ref_errors: torch.Tensor | None = None,
    excess: torch.Tensor | None = None,
    segments: Segments = None,
    mask: torch.Tensor | None = None,
    cross: bool = False,
    frame_dim: int = 2,
) -> PairErrors:
    """Mean squared errors per pair and temporal segment, fp32 `[B, S]`, each differentiable by `pred`.

    The excess over the reference is accumulated as (policy - reference)(rho_p + rho_r) in fp32, so that it
    keeps its digits where policy and reference nearly agree, and is exactly 0 where they do.

    Args:
        pred: the policy's prediction, `[2B, ...]`, chosen half first; bf16, fp16 or fp32.
        target: what it is compared with, of the same shape. No gradient flows to it.
        ref_pred: the reference's prediction. Without it and `ref_errors`, `ref_*`, `excess_*` and `drift_*` are None.
        ref_errors: in its place the reference's mean squared errors from a cache, chosen half first: `[2B, S]`, or
            `[2B]` for one segment; `drift_*` are None then. The excess is a difference of two rounded means: near
            an error of 0.1 it is good to 1e-8, which a beta of 5000 turns into 2e-5 logits.
        excess: with `ref_errors`, the policy's errors less these, of the same shape, where the caller knows them in
            more digits than that. Its gradient is the policy error's.
        segments: a number of equal temporal segments, or the segment of each frame (a sequence or an integer
            tensor `[F]`); None for one segment over everything.
        mask: weights of 0 or more: a tensor that broadcasts to one half of `pred`, dimension by dimension, or
            frame weights `[F]` or `[B, F]`. Elements of weight 0 may hold anything, NaN too. No gradient
            flows to it.
        cross: also the mean of rho_p,chosen * rho_p,rejected.
        frame_dim: the axis of the frames, by default that of latents `[2B, C, F, H, W]`.

    Raises:
        TypeError: a tensor is not bf16, fp16 or fp32.
        ValueError: shapes, segments or mask don't fit; both of `ref_pred` and `ref_errors`.
    """
    op = "pair_errors"
    given = checked_arguments(op, pred, target, ref_pred, ref_errors, excess, segments, mask, frame_dim)
    if takes_triton(op, pred):
        rows, index = mask_rows(given.mask, pred.shape), given.index or ()
        found = PairErrorsFunction.apply(
            pred, given.target, given.ref_pred, rows, index, given.axis, cross, 2, None
        )
        errors = PairErrors(**unpack_errors(*found))
    else:
        where = given.index, given.axis, given.mask
        errors = eager.pair_errors(pred, given.target, given.ref_pred, *where, cross)
    if given.ref_errors is None:
        return errors
    policy = torch.stack((errors.policy_chosen, errors.policy_rejected))
    return against_cache(errors, given.ref_errors, cached_excess(policy, given.ref_errors, given.excess))


@dataclass(frozen=True)
class PairArguments:
    """What `pred` is compared with, checked and without gradient."""

    target: torch.Tensor
    ref_pred: torch.Tensor | None
    ref_errors: torch.Tensor | None  # fp32 [2, B, S]
    excess: torch.Tensor | None  # fp32 [2, B, S]
    index: tuple[int, ...] | None  # the segment of each frame
    axis: int  # of the frames
    mask: torch.Tensor | None  # fp32, as `layout.group_mask` gives it
    pairs: int
    segments: int


def checked_arguments(
    op, pred, target, ref_pred, ref_errors, excess, segments, mask, frame_dim
) -> PairArguments:
    pairs = check_pairs(op, "pred", pred)
    check_like(op, "target", target, "pred", pred)
    if ref_pred is not None:
        check_like(op, "ref_pred", ref_pred, "pred", pred)
        ref_pred = ref_pred.detach()
    check_one_reference(op, ref_pred, ref_errors, excess)
    index = segment_index(op, segments, pred.shape, frame_dim)
    axis = 0 if index is None else frame_axis(op, pred.shape, frame_dim)
    shape = pairs, max(index or (0,)) + 1
    cached = (
        per_sample(op, name, x, (pred.shape[0], shape[1]), pred.device)
        for name, x in (("ref_errors", ref_errors), ("excess", excess))
    )
    cached = (None if x is None else x.reshape(2, *shape) for x in cached)
    mask = group_mask(op, mask, pred, [pairs, *pred.shape[1:]], frame_dim, "one half of pred")
    return PairArguments(target.detach(), ref_pred, *cached, index, axis, mask, *shape)


def check_one_reference(op: str, ref_pred: object, ref_errors: object, excess: object) -> None:
    if ref_pred is not None and ref_errors is not None:
        raise ValueError(f"{op}: give either ref_pred or ref_errors, got both")
    if excess is not None and ref_errors is None:
        raise ValueError(f"{op}: excess goes with ref_errors, which are not given")


def per_sample(
    op: str, name: str, x: torch.Tensor | None, shape: tuple[int, int], device: torch.device
) -> torch.Tensor | None:
    """`[N, S]`, or `[N]` for one segment, as fp32 `[N, S]`."""
    if x is None:
        return None
    check_float(op, name, x)
    if x.shape not in (shape, *([shape[:1]] if shape[1] == 1 else [])):
        raise ValueError(
            f"{op}: {name} must be [N, S] = {shape}, a row for each sample of pred, got shape {tuple(x.shape)}"
        )
    if x.device != device:
        raise ValueError(f"{op}: {name} is on {x.device}, pred on {device}")
    return x.detach().float().reshape(shape)


def cached_excess(
    policy: torch.Tensor, ref_errors: torch.Tensor, excess: torch.Tensor | None
) -> torch.Tensor:
    """The policy's errors less the reference's, of one shape, with the former's gradient."""
    if excess is None:
        return policy - ref_errors
    return excess + (policy - policy.detach())  # 0, or NaN where the policy's error is not finite


def against_cache(errors: PairErrors, ref_errors: torch.Tensor, excess: torch.Tensor) -> PairErrors:
    """The errors with the reference's from a cache, each `[2, B, S]`."""
    ref_chosen, ref_rejected = ref_errors.unbind(0)
    chosen, rejected = excess.unbind(0)
    return replace(
        errors,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        excess_chosen=chosen,
        excess_rejected=rejected,
    )


def _pair_errors_fake(pred, target, ref_pred, mask, index, frame_axis, cross, members=2, groups=None):
    pairs, segments = pred.shape[0] // members, max(index, default=0) + 1
    new = functools.partial(pred.new_empty, dtype=torch.float32)
    sizes = sizes_of_errors(members, ref_pred is not None, cross)
    return tuple(new((size, pairs, segments)) for size in sizes)


@opaque("pair_errors", _pair_errors_fake)
def pair_errors_op(
    pred: torch.Tensor,
    target: torch.Tensor,
    ref_pred: torch.Tensor | None,
    mask: torch.Tensor | None,
    index: Sequence[int],
    frame_axis: int,
    cross: bool,
    members: int = 2,
    groups: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """With `members` of 1, of samples of any groups: `groups` [N] is the mask's row of each."""
    return launch_means(pair_rows(pred, target, ref_pred, mask, groups, index, frame_axis, members), cross)


@opaque("pair_errors_backward", lambda grad_errors, drift, cross, count, pred, *_: dense_like(pred))
def pair_errors_backward_op(
    grad_errors: torch.Tensor,
    grad_drift: torch.Tensor | None,
    grad_cross: torch.Tensor | None,
    count: torch.Tensor,
    pred: torch.Tensor,
    target: torch.Tensor,
    ref_pred: torch.Tensor | None,
    mask: torch.Tensor | None,
    index: Sequence[int],
    frame_axis: int,
    grad_loss: torch.Tensor | None,
    weight: torch.Tensor | None,
    members: int = 2,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """With `grad_loss` [], `grad_errors` are slopes of each pair's own loss: those of the mean are times
    grad_loss / B * weight [B]."""
    rows = pair_rows(pred, target, ref_pred, mask, groups, index, frame_axis, members)
    slopes = (None if grad is None else grad.contiguous() for grad in (grad_errors, grad_drift, grad_cross))
    return launch_gradient(rows, dense_like(pred), *slopes, count.contiguous(), grad_loss, weight)


class PairErrorsFunction(torch.autograd.Function):
    """`errors`, `drift` and `cross` as `sizes_of_errors` says, each differentiable by `pred`."""

    @staticmethod
    def forward(ctx, pred, target, ref_pred, mask, index, frame_axis, cross, members, groups):
        where = mask, index, frame_axis
        errors, drift, cross = pair_errors_op(pred, target, ref_pred, *where, cross, members, groups)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(pred, target, ref_pred, mask, groups, errors)
        ctx.index, ctx.frame_axis, ctx.members = index, frame_axis, members
        return errors, drift, cross

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_errors, grad_drift, grad_cross):
        pred, target, ref_pred, mask, groups, errors = ctx.saved_tensors
        slopes = asked_slopes(errors, grad_errors, grad_drift, grad_cross, ctx.members)
        ref_pred = None if slopes[1] is None else ref_pred
        where = mask, ctx.index, ctx.frame_axis
        grad = pair_errors_backward_op(
            *slopes, pred, target, ref_pred, *where, None, None, ctx.members, groups
        )
        return (grad, *[None] * 8)


def asked_slopes(
    errors: torch.Tensor,
    grad_errors: torch.Tensor | None,
    grad_drift: torch.Tensor | None,
    grad_cross: torch.Tensor | None,
    members: int,
) -> tuple[torch.Tensor | None, ...]:
    """The gradients by what there is of errors, drift and cross; and the count."""
    if grad_errors is None:
        grad_errors = torch.zeros_like(errors)
    if grad_drift is not None and grad_drift.shape[0] == 0:
        grad_drift = None
    if grad_cross is not None and grad_cross.shape[0] == 0:
        grad_cross = None
    return grad_errors, grad_drift, grad_cross, errors[members]
