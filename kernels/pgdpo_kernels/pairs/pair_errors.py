"""Errors of policy and reference on chosen/rejected pairs, in one pass over the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..backend import takes_triton
from ..checks import check_float
from ..reference import errors as eager
from ..split import agreed_segments, over_ranks
from ..types import PairErrors
from .layout import Segments, frame_axis, group_mask, mask_rows, segment_index
from .pair_launch import unpack_errors
from .samples import SEVERAL, ErrorsFunction, Form, Samples, Tensors, checked_halves, stacked

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def pair_errors(
    pred: Samples,  # [2B, ...], chosen half first, or (chosen, rejected) of [B, ...]
    target: Samples,
    ref_pred: Samples | None = None,
    *,
    ref_errors: Samples | None = None,
    excess: Samples | None = None,
    segments: Segments = None,
    mask: torch.Tensor | None = None,
    cross: bool = False,
    frame_dim: int = 2,
    process_group: ProcessGroup | None = None,
) -> PairErrors:
    """Mean squared errors per pair and temporal segment, fp32 `[B, S]`, each differentiable by `pred`.

    The excess over the reference is accumulated as (policy - reference)(rho_p + rho_r) in fp32, so that it
    keeps its digits where policy and reference nearly agree, and is exactly 0 where they do.

    Args:
        pred: the policy's prediction, bf16, fp16 or fp32: `[2B, ...]`, chosen half first; or the two halves
            (chosen, rejected), `[B, ...]` each and of one dtype. The kernels read halves where they lie and write both
            gradients in one pass, to the same bits; a CUDA graph can't be captured around that, as their addresses are
            copied from the host.
        target: what it is compared with, of the same shape and of any of these dtypes, in either form. No gradient
            flows to it.
        ref_pred: the reference's prediction, alike. Without it and `ref_errors`, `ref_*`, `excess_*` and `drift_*` are
            None.
        ref_errors: in its place the reference's mean squared errors from a cache, chosen half first: `[2B, S]`, or
            `[2B]` for one segment, or two halves of it; `drift_*` are None then. The excess is a difference of two
            rounded means: near an error of 0.1 it is good to 1e-8, which a beta of 5000 turns into 2e-5 logits.
        excess: with `ref_errors`, the policy's errors less these, of the same shape, where the caller knows them in
            more digits than that. Its gradient is the policy error's.
        segments: a number of equal temporal segments, or the segment of each frame (a sequence or an integer
            tensor `[F]`); None for one segment over everything.
        mask: weights of 0 or more: a tensor that broadcasts to one half of `pred`, dimension by dimension, or
            frame weights `[F]` or `[B, F]`. Elements of weight 0 may hold anything, NaN too. No gradient
            flows to it.
        cross: also the mean of rho_p,chosen * rho_p,rejected.
        frame_dim: the axis of the frames, by default that of latents `[2B, C, F, H, W]`. Tokens `[2B, N, C]` have
            `frame_dim=1`: a mask `[B, N]` weights them.
        process_group: each of its ranks has a part of every sample, of frames, rows or tokens, as sequence and context
            parallelism cut them: the errors are means over the whole samples, to the same bits on every rank. Parts may
            differ in size, and a mask may leave a rank nothing. The pairs and `ref_errors` must be the same on all;
            mask and segments are of the rank's own part, the latter the index of its frames where frames are cut (one
            more exchange, for which the host waits). Nothing is exchanged in backward: the gradient is the whole
            loss's by this rank's part of `pred`, as every rank computes that same loss. Gradients of weights are
            therefore to be summed over the group, as the backward of a sequence-parallel model does for activations;
            where the trainer takes their mean over it, give the loss a `loss_scale` of the group's size.

    Raises:
        TypeError: a tensor is not bf16, fp16 or fp32; two halves have two dtypes.
        ValueError: shapes, segments or mask don't fit; both of `ref_pred` and `ref_errors`.
    """
    where = segments, mask, frame_dim, process_group
    given = checked_arguments("pair_errors", pred, target, ref_pred, ref_errors, excess, *where)
    return errors_of(given, cross)


class PairArguments(NamedTuple):
    """What `pair_errors` was given, checked; nothing but the prediction has a gradient."""

    form: Form
    tensors: Tensors  # prediction, target, reference
    shape: Sequence[int]  # [2B, ...]
    ref_errors: torch.Tensor | None  # fp32 [2, B, S]
    excess: torch.Tensor | None  # fp32 [2, B, S]
    index: tuple[int, ...] | None  # the segment of each frame
    axis: int  # of the frames
    mask: torch.Tensor | None  # fp32, as `layout.group_mask` gives it
    segments: int
    process_group: ProcessGroup | None

    @property
    def pairs(self) -> int:
        return self.shape[0] // 2


def checked_arguments(
    op, pred, target, ref_pred, ref_errors, excess, segments, mask, frame_dim, process_group=None
) -> PairArguments:
    form, tensors, shape = checked_halves(op, pred, target, ref_pred)
    check_one_reference(op, ref_pred, ref_errors, excess)
    index = segment_index(op, segments, shape, frame_dim)
    axis = 0 if index is None else frame_axis(op, shape, frame_dim)
    pairs, like = shape[0] // 2, tensors[0]
    mask = group_mask(op, mask, like, [pairs, *shape[1:]], frame_dim, "one half of pred")
    count = 1 if index is None else max(index) + 1
    if process_group is not None:
        count = agreed_segments(segments, count, like.device, process_group)
    if ref_errors is not None:
        ref_errors = per_side(op, "ref_errors", ref_errors, pairs, count, like.device)
    if excess is not None:
        excess = per_side(op, "excess", excess, pairs, count, like.device)
    return PairArguments(form, tensors, shape, ref_errors, excess, index, axis, mask, count, process_group)


def errors_of(given: PairArguments, cross: bool) -> PairErrors:
    if takes_triton("pair_errors", given.tensors[0]):
        rows, index = mask_rows(given.mask, given.shape), given.index or ()
        found = ErrorsFunction.apply(given.form, rows, index, given.axis, cross, 2, None, *given.tensors)
        errors = PairErrors(**unpack_errors(*found))
    else:
        where = given.index, given.axis, given.mask
        errors = eager.pair_errors(*stacked(given.form, given.tensors), *where, cross)
    if given.process_group is not None:
        errors = over_ranks(errors, given.segments, given.process_group)
    if given.ref_errors is None:
        return errors
    policy = torch.stack((errors.policy_chosen, errors.policy_rejected))
    return against_cache(errors, given.ref_errors, cached_excess(policy, given.ref_errors, given.excess))


def check_one_reference(op: str, ref_pred: object, ref_errors: object, excess: object) -> None:
    if ref_pred is not None and ref_errors is not None:
        raise ValueError(f"{op}: give either ref_pred or ref_errors, got both")
    if excess is not None and ref_errors is None:
        raise ValueError(f"{op}: excess goes with ref_errors, which are not given")


def per_side(op: str, name: str, x: Samples, pairs: int, segments: int, device: torch.device) -> torch.Tensor:
    """Numbers of all samples, chosen half first, or of two halves, as fp32 `[2, B, S]`."""
    if not isinstance(x, SEVERAL):
        return per_sample(op, name, x, (2 * pairs, segments), device).reshape(2, pairs, segments)
    if len(x) != 2:
        raise ValueError(f"{op}: {name} must be a tensor or a pair (chosen, rejected), got {len(x)} tensors")
    halves = enumerate(x)
    return torch.stack(
        [per_sample(op, f"{name}[{i}]", half, (pairs, segments), device) for i, half in halves]
    )


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
