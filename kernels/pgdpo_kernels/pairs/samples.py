"""Samples as they are given, stacked or in several tensors, and the operators that read them where they lie."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from ..checks import check_like, check_pairs, check_samples
from ..launch import dense_like
from ..library import once_differentiable, opaque
from .pair_launch import launch_gradient, launch_means, pair_rows, separate_rows, sizes_of_errors

Samples = torch.Tensor | Sequence[torch.Tensor]
# None: prediction, target and reference are a tensor each, `[N, ...]`. Else the number of tensors of each, 0 without a
# reference, and whether these are stacks `[n, ...]` of samples or a sample `[...]` each.
Form = tuple[int, int, int, bool] | None
Tensors = Sequence[torch.Tensor | None]
SEVERAL = (list, tuple)


def checked_halves(
    op: str, pred: Samples, target: Samples, ref_pred: Samples | None
) -> tuple[Form, Tensors, Sequence[int]]:
    """Of pairs, each stacked or as (chosen, rejected): the form, its tensors, and the stacked shape `[2B, ...]`.

    Target and reference are without gradient.
    """
    if not (isinstance(pred, SEVERAL) or isinstance(target, SEVERAL) or isinstance(ref_pred, SEVERAL)):
        check_pairs(op, "pred", pred)
        check_like(op, "target", target, "pred", pred)
        if ref_pred is not None:
            check_like(op, "ref_pred", ref_pred, "pred", pred)
            ref_pred = ref_pred.detach()
        return None, (pred, target.detach(), ref_pred), pred.shape
    if not isinstance(pred, SEVERAL):
        check_pairs(op, "pred", pred)
        like, shape = pred, pred.shape
    else:
        _check_two(op, "pred", pred)
        check_samples(op, "pred[0]", pred[0], "[B, ...]")
        like, shape = pred[0], (2 * len(pred[0]), *pred[0].shape[1:])
    pred = _blocks(op, "pred", pred, like, shape)
    target = _blocks(op, "target", target, like, shape)
    ref_pred = () if ref_pred is None else _blocks(op, "ref_pred", ref_pred, like, shape)
    tensors = (*pred, *(x.detach() for x in (*target, *ref_pred)))
    return (len(pred), len(target), len(ref_pred), True), tensors, shape


def _check_two(op: str, name: str, given: Sequence) -> None:
    if len(given) != 2:
        raise ValueError(
            f"{op}: {name} must be a tensor [2B, ...] or a pair (chosen, rejected) of [B, ...], "
            f"got a sequence of {len(given)}"
        )


def _blocks(op: str, name: str, given: Samples, like: torch.Tensor, shape: Sequence[int]) -> Tensors:
    if not isinstance(given, SEVERAL):
        check_like(op, name, given, "both halves of pred", like, shape)
        return (given,)
    _check_two(op, name, given)
    for number, x in enumerate(given):
        check_like(op, f"{name}[{number}]", x, "one half of pred", like, (shape[0] // 2, *shape[1:]))
    if given[0].dtype != given[1].dtype:
        raise TypeError(
            f"{op}: chosen and rejected of {name} must have one dtype, got {given[0].dtype} and {given[1].dtype}"
        )
    return tuple(given)


def stacked(form: Form, tensors: Tensors) -> Tensors:
    """Prediction, target and reference, each in one tensor `[N, ...]`: what eager maths reads."""
    if form is None:
        return tensors
    *_, stacks = form
    join = torch.cat if stacks else torch.stack
    return [x[0] if stacks and len(x) == 1 else join(x) if x else None for x in _taken_apart(form, tensors)]


def _taken_apart(form: Form, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    of_pred, of_target, *_ = form
    return tensors[:of_pred], tensors[of_pred : of_pred + of_target], tensors[of_pred + of_target :]


def means(form: Form, tensors: Tensors, mask, index, frame_axis: int, cross: bool, members=2, groups=None):
    """`errors`, `drift` and `cross` as `sizes_of_errors` says, fp32 `[..., N / members, S]`, without gradient."""
    where = mask, index, frame_axis, cross, members, groups
    if form is None:
        return pair_errors_op(*tensors, *where)
    return separate_errors_op(*_taken_apart(form, tensors), *where, form[3])


def gradients(
    form: Form, tensors: Tensors, slopes: Tensors, mask, index, frame_axis: int, loss=(None, None), members=2,
    groups=None,
) -> Tensors:  # fmt: skip
    """By each tensor of the prediction: of one allocation, in order.

    slopes: by `errors`, `drift` and `cross`, and the count; loss: `grad_loss` and `weight` of
    `pair_errors_backward_op`.
    """
    if form is None:
        return (pair_errors_backward_op(*slopes, *tensors, mask, index, frame_axis, *loss, members, groups),)
    pred, target, ref_pred = _taken_apart(form, tensors)
    where = mask, index, frame_axis, members, groups, form[3]
    grad = separate_errors_backward_op(*slopes, pred, target, ref_pred, *where, *loss)
    return grad.split([len(x) for x in pred]) if form[3] else grad.unbind(0)


class ErrorsFunction(torch.autograd.Function):
    """`means`, differentiable by the tensors of the prediction."""

    @staticmethod
    def forward(ctx, form, mask, index, frame_axis, cross, members, groups, *tensors):
        errors, drift, cross = means(form, tensors, mask, index, frame_axis, cross, members, groups)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, groups, errors, *tensors)
        ctx.form, ctx.index, ctx.frame_axis, ctx.members = form, index, frame_axis, members
        return errors, drift, cross

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_errors, grad_drift, grad_cross):
        mask, groups, errors, *tensors = ctx.saved_tensors
        slopes = asked_slopes(errors, grad_errors, grad_drift, grad_cross, ctx.members)
        count = len(tensors)
        if slopes[1] is None:  # the reference is not read
            tensors = without_reference(ctx.form, tensors)
        where = mask, ctx.index, ctx.frame_axis
        grads = gradients(ctx.form, tensors, slopes, *where, members=ctx.members, groups=groups)
        return (*[None] * 7, *grads, *[None] * (count - len(grads)))


def without_reference(form: Form, tensors: Tensors) -> Tensors:
    if form is None:
        return (*tensors[:2], None)
    return tensors[: form[0] + form[1]]


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


def _means_like(pred, samples, ref_pred, index, cross, members):
    pairs, segments = samples // members, max(index, default=0) + 1
    new = functools.partial(pred.new_empty, dtype=torch.float32)
    return tuple(new((size, pairs, segments)) for size in sizes_of_errors(members, ref_pred, cross))


def _pair_errors_fake(pred, target, ref_pred, mask, index, frame_axis, cross, members=2, groups=None):
    return _means_like(pred, pred.shape[0], ref_pred is not None, index, cross, members)


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


def _separate_fake(pred, target, ref_pred, mask, index, frame_axis, cross, members, groups, stacks=False):
    return _means_like(pred[0], _stack_shape(pred, stacks)[0], bool(ref_pred), index, cross, members)


@opaque("separate_errors", _separate_fake)
def separate_errors_op(
    pred: Sequence[torch.Tensor],
    target: Sequence[torch.Tensor],
    ref_pred: Sequence[torch.Tensor],
    mask: torch.Tensor | None,
    index: Sequence[int],
    frame_axis: int,
    cross: bool,
    members: int,
    groups: torch.Tensor | None,
    stacks: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`pair_errors` of the dispatcher, of samples that lie by themselves or in `stacks`; `ref_pred` may be empty."""
    rows = separate_rows(pred, target, ref_pred, mask, groups, index, frame_axis, members, stacks)
    return launch_means(rows, cross)


def _stack_shape(pred: Sequence[torch.Tensor], stacks: bool) -> Sequence[int]:
    return (sum(len(x) for x in pred), *pred[0].shape[1:]) if stacks else (len(pred), *pred[0].shape)


def _separate_backward_fake(
    errors, drift, cross, count, pred, target, ref, mask, index, axis, members, groups, stacks=False, *_
):
    return pred[0].new_empty(_stack_shape(pred, stacks))


@opaque("separate_errors_backward", _separate_backward_fake)
def separate_errors_backward_op(
    grad_errors: torch.Tensor,
    grad_drift: torch.Tensor | None,
    grad_cross: torch.Tensor | None,
    count: torch.Tensor,
    pred: Sequence[torch.Tensor],
    target: Sequence[torch.Tensor],
    ref_pred: Sequence[torch.Tensor],
    mask: torch.Tensor | None,
    index: Sequence[int],
    frame_axis: int,
    members: int,
    groups: torch.Tensor | None,
    stacks: bool = False,
    grad_loss: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """The gradient by `pred` in one allocation, `[N, ...]`."""
    rows = separate_rows(pred, target, ref_pred, mask, groups, index, frame_axis, members, stacks)
    slopes = (None if grad is None else grad.contiguous() for grad in (grad_errors, grad_drift, grad_cross))
    out = pred[0].new_empty(_stack_shape(pred, stacks))
    return launch_gradient(rows, out, *slopes, count.contiguous(), grad_loss, weight)
