"""Errors of policy and reference on chosen/rejected pairs, in one pass over the predictions."""

from __future__ import annotations

import torch

from .checks import check_like, check_pairs
from .layout import Segments, frame_axis, pair_mask, segment_index
from .reference.pair_errors import pair_errors as eager_pair_errors
from .types import PairErrors


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
    check_pairs(op, "pred", pred)
    check_like(op, "target", target, "pred", pred)
    if ref_pred is not None:
        check_like(op, "ref_pred", ref_pred, "pred", pred)
        ref_pred = ref_pred.detach()
    index = segment_index(op, segments, pred.shape, frame_dim)
    axis = 0 if index is None else frame_axis(op, pred.shape, frame_dim)
    weights = pair_mask(op, mask, pred, frame_dim)
    return eager_pair_errors(pred, target.detach(), ref_pred, index, axis, weights, cross)
