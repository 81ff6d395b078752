"""Errors of policy and reference on chosen/rejected pairs, in one pass over the predictions."""

import functools
from collections.abc import Sequence

import torch

from ..backend import takes_triton
from ..checks import check_like, check_pairs
from ..launch import dense_like
from ..reference.pair_errors import pair_errors as eager_pair_errors
from ..types import PairErrors
from .layout import Segments, frame_axis, mask_rows, pair_mask, segment_index
from .pair_launch import launch_gradient, launch_means, pair_rows, unpack_errors


def pair_errors(
    pred: torch.Tensor,  # [2B, ...], chosen half first
    target: torch.Tensor,
    ref_pred: torch.Tensor | None = None,
    *,
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
        ref_pred: the reference's prediction; None leaves `ref_*`, `excess_*` and `drift_*` None.
        segments: a number of equal temporal segments, or the segment of each frame (a sequence or an integer
            tensor `[F]`); None for one segment over everything.
        mask: weights of 0 or more: a tensor that broadcasts to one half of `pred`, dimension by dimension, or
            frame weights `[F]` or `[B, F]`. Elements of weight 0 may hold anything, NaN too. No gradient
            flows to it.
        cross: also the mean of rho_p,chosen * rho_p,rejected.
        frame_dim: the axis of the frames, by default that of latents `[2B, C, F, H, W]`.

    Raises:
        TypeError: a tensor is not bf16, fp16 or fp32.
        ValueError: shapes, segments or mask don't fit.
    """
    op = "pair_errors"
    target, ref_pred, index, axis, weights = checked_arguments(
        op, pred, target, ref_pred, segments, mask, frame_dim
    )
    if not takes_triton(op, pred):
        return eager_pair_errors(pred, target, ref_pred, index, axis, weights, cross)
    rows = mask_rows(weights, pred.shape)
    return PairErrors(**unpack_errors(*_pair_errors(pred, target, ref_pred, rows, index or (), axis, cross)))


def checked_arguments(op, pred, target, ref_pred, segments, mask, frame_dim):
    """Target and reference without gradient, the segment of each frame, the frame axis and the fp32 mask."""
    check_pairs(op, "pred", pred)
    check_like(op, "target", target, "pred", pred)
    if ref_pred is not None:
        check_like(op, "ref_pred", ref_pred, "pred", pred)
        ref_pred = ref_pred.detach()
    index = segment_index(op, segments, pred.shape, frame_dim)
    axis = 0 if index is None else frame_axis(op, pred.shape, frame_dim)
    return target.detach(), ref_pred, index, axis, pair_mask(op, mask, pred, frame_dim)


@torch.library.custom_op("pgdpo::pair_errors", mutates_args=())
def _pair_errors(
    pred: torch.Tensor,
    target: torch.Tensor,
    ref_pred: torch.Tensor | None,
    mask: torch.Tensor | None,
    index: Sequence[int],
    frame_axis: int,
    cross: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return launch_means(pair_rows(pred, target, ref_pred, mask, index, frame_axis), cross)


@_pair_errors.register_fake
def _(pred, target, ref_pred, mask, index, frame_axis, cross):
    pairs, segments = pred.shape[0] // 2, max(index, default=0) + 1
    sizes = (3, 0) if ref_pred is None else (7, 2)
    new = functools.partial(pred.new_empty, dtype=torch.float32)
    return tuple(new((size, pairs, segments)) for size in (*sizes, int(cross)))


@torch.library.custom_op("pgdpo::pair_errors_backward", mutates_args=())
def _pair_errors_backward(
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
) -> torch.Tensor:
    rows = pair_rows(pred, target, ref_pred, mask, index, frame_axis)
    slopes = (None if grad is None else grad.contiguous() for grad in (grad_errors, grad_drift, grad_cross))
    return launch_gradient(rows, pred, *slopes, count.contiguous(), None)


@_pair_errors_backward.register_fake
def _(grad_errors, grad_drift, grad_cross, count, pred, *rest):
    return dense_like(pred)


def _setup(ctx, inputs, output):
    pred, target, ref_pred, mask, index, frame_axis, cross = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(pred, target, ref_pred, mask, output[0])
    ctx.index, ctx.frame_axis = index, frame_axis


def _backward(ctx, grad_errors, grad_drift, grad_cross):
    pred, target, ref_pred, mask, errors = ctx.saved_tensors
    if grad_errors is None:
        grad_errors = torch.zeros_like(errors)
    if grad_drift is None or grad_drift.shape[0] == 0:
        ref_pred = grad_drift = None
    if grad_cross is not None and grad_cross.shape[0] == 0:
        grad_cross = None
    grad = _pair_errors_backward(
        grad_errors,
        grad_drift,
        grad_cross,
        errors[2],
        pred,
        target,
        ref_pred,
        mask,
        ctx.index,
        ctx.frame_axis,
    )
    return grad, None, None, None, None, None, None


_pair_errors.register_autograd(_backward, setup_context=_setup)
