"""Errors of policy and reference on the samples of groups of any size, stacked, separate or in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..backend import takes_triton
from ..checks import check_float, check_like, check_number, check_samples
from ..reference import errors as eager
from ..split import agreed_segments, over_ranks
from ..types import GroupErrors
from .layout import Segments, checked_groups, frame_axis, group_mask, mask_groups, mask_rows, segment_index
from .pair_errors import cached_excess, check_one_reference, per_sample
from .pair_launch import unpack_groups
from .samples import ErrorsFunction, Form, Samples, Tensors, stacked

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

OP = "group_errors"


def group_errors(
    pred: Samples | Mapping[str, Samples],  # [N, ...]
    target: Samples | Mapping[str, Samples],
    ref_pred: Samples | Mapping[str, Samples] | None = None,
    groups: int | Sequence[int] | torch.Tensor = 2,
    *,
    ref_errors: torch.Tensor | None = None,
    excess: torch.Tensor | None = None,
    segments: Segments | Mapping[str, Segments] = None,
    mask: torch.Tensor | None | Mapping[str, torch.Tensor | None] = None,
    cross: bool = False,
    weights: Mapping[str, float] | None = None,
    frame_dim: int = 2,
    process_group: ProcessGroup | None = None,
) -> GroupErrors:
    """Mean squared errors per sample and temporal segment, fp32 `[N, S]`, each differentiable by `pred`.

    `pair_errors` is the case of `groups=2` and has the same bits. A sample's numbers depend on that sample and its
    group's mask alone: not on K, on the batch around it, or on whether samples come stacked.

    Args:
        pred: the policy's prediction, bf16, fp16 or fp32: `[N, ...]`; or N tensors `[...]` of one shape and dtype, a
            sample each, that are read where they lie; or, of models with several outputs a sample, such as picture
            and sound, these by name.
        target, ref_pred: as in `pair_errors`, each stacked or separate; by the same names.
        groups: K, where the samples lie member by member, sample g of member k in row k * B + g with N = K * B (pairs,
            2: the chosen half first); or the group of each sample, 0 to G - 1, a sequence or an integer tensor
            `[N]`, whose values are read on the host.
        ref_errors, excess: as in `pair_errors`, `[N, S]`, or `[N]` for one segment. Of parts their weighted sums.
        segments, frame_dim: as in `pair_errors`, counted with the batch axis, also where samples are separate. Of
            parts the same for all, or segments by name, as many of each.
        mask: weights of 0 or more, of groups: `[G | 1, ...]`, or frame weights `[F]` or `[G, F]`; by name where parts
            have masks. Elements of weight 0 may hold anything, NaN too. No gradient flows to it.
        cross: also the mean of the product of a pair's two residuals, `[B, S]`; with `groups=2` alone.
        weights: of the parts, 1 each by default: every error is the sum of weight * mean over the part, and `count`
            the sum of the parts' counts.
        process_group: as in `pair_errors`, an exchange for each of the parts.

    Raises:
        TypeError: a tensor is not bf16, fp16 or fp32; groups are no integers.
        ValueError: shapes, groups, segments, mask or names don't fit; both of `ref_pred` and `ref_errors`; `cross` of
            groups other than pairs.
    """
    check_one_reference(OP, ref_pred, ref_errors, excess)
    options = {"groups": groups, "segments": segments, "mask": mask, "cross": cross}
    options |= {"frame_dim": frame_dim, "process_group": process_group}
    if isinstance(pred, Mapping):
        errors = _by_parts(pred, target, ref_pred, weights, options)
    elif weights is not None:
        raise ValueError(f"{OP}: weights are of parts, but pred is no mapping of names to these")
    else:
        errors = _of_output("", pred, target, ref_pred, **options)
    if ref_errors is None:
        return errors
    shape, device = tuple(errors.policy.shape), errors.policy.device
    ref_errors, excess = (
        per_sample(OP, name, x, shape, device) for name, x in (("ref_errors", ref_errors), ("excess", excess))
    )
    return replace(errors, ref=ref_errors, excess=cached_excess(errors.policy, ref_errors, excess))


def _by_parts(pred, target, ref_pred, weights, options: dict) -> GroupErrors:
    for name, given in (("target", target), ("ref_pred", ref_pred), ("weights", weights)):
        if given is not None and (not isinstance(given, Mapping) or set(given) != set(pred)):
            got = sorted(given) if isinstance(given, Mapping) else type(given).__name__
            raise ValueError(f"{OP}: {name} must be a mapping of pred's parts, {sorted(pred)}, got {got}")
    if not pred:
        raise ValueError(f"{OP}: pred has no parts")
    total = None
    for part in pred:
        weight = 1.0 if weights is None else weights[part]
        check_number(OP, f"weights[{part!r}]", weight)
        of_part = {name: x.get(part) if isinstance(x, Mapping) else x for name, x in options.items()}
        reference = None if ref_pred is None else ref_pred[part]
        found = _of_output(f"[{part!r}]", pred[part], target[part], reference, **of_part)
        if total is not None and found.policy.shape != total.policy.shape:
            raise ValueError(
                f"{OP}: every part must have the same samples and segments, but {part!r} has errors "
                f"{tuple(found.policy.shape)}, the parts before it {tuple(total.policy.shape)}"
            )
        total = _add(total, weight, found)
    return total


def _add(total: GroupErrors | None, weight: float, found: GroupErrors) -> GroupErrors:
    """total + weight * found; counts are added as they are."""

    def of(name: str) -> torch.Tensor | None:
        value, before = getattr(found, name), getattr(total, name, None)
        if value is None:
            return None
        value = value if name == "count" else weight * value
        return value if before is None else before + value

    return replace(
        found, **{name: of(name) for name in ("policy", "ref", "excess", "drift", "count", "cross")}
    )


def _of_output(
    part: str,
    pred: Samples,
    target: Samples,
    ref_pred: Samples | None,
    groups,
    segments,
    mask,
    cross,
    frame_dim,
    process_group,
) -> GroupErrors:
    """Of the samples' one output; `part` says which, in messages."""
    given = {f"pred{part}": pred, f"target{part}": target, f"ref_pred{part}": ref_pred}
    if all(isinstance(x, torch.Tensor) for x in given.values() if x is not None):
        form, samples = None, _checked_stacks(given)
        shape = samples[0].shape
    else:
        form, samples = _checked_samples(given)
        shape = torch.Size((form[0], *samples[0].shape))
    like = samples[0]
    groups = checked_groups(OP, groups, shape[0])
    if cross and groups != 2:
        raise ValueError(f"{OP}: cross is of pairs, groups=2, got groups={groups}")
    index = segment_index(OP, segments, shape, frame_dim)
    axis = 0 if index is None else frame_axis(OP, shape, frame_dim)
    count = shape[0] // groups if isinstance(groups, int) else max(groups) + 1
    mask = group_mask(OP, mask, like, [count, *shape[1:]], frame_dim, "one sample of each group")
    members = 2 if groups == 2 else 1
    rows = mask_groups(groups, mask, members, like.device, shape[0])
    if takes_triton(OP, like):
        where = mask_rows(mask, shape), index or (), axis, cross, members, rows
        found = unpack_groups(*ErrorsFunction.apply(form, *where, *samples), members)
    else:
        found = eager.group_errors(*stacked(form, samples), index, axis, mask, rows, cross)
    errors = GroupErrors(**found, groups=groups)
    if process_group is None:
        return errors
    count = agreed_segments(segments, errors.policy.shape[1], like.device, process_group)
    return over_ranks(errors, count, process_group)


def _checked_stacks(given: dict[str, torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Prediction, target and reference, the last two without gradient."""
    (name, pred), *others = given.items()
    check_samples(OP, name, pred)
    for other, x in others:
        if x is not None:
            check_like(OP, other, x, name, pred)
    return [pred, *(None if x is None else x.detach() for _, x in others)]


def _checked_samples(given: dict[str, Samples | None]) -> tuple[Form, Tensors]:
    """The same, each as many samples of one shape; what is stacked is taken apart into views."""
    first, out = None, []
    for name, samples in given.items():
        if samples is None:
            out.append([])
            continue
        if not isinstance(samples, torch.Tensor | list | tuple) or len(samples) == 0:
            got = "none" if isinstance(samples, list | tuple) else type(samples).__name__
            raise TypeError(f"{OP}: {name} must be a tensor [N, ...] or a sequence of N tensors, got {got}")
        samples = list(samples)
        for number, x in enumerate(samples):
            check_float(OP, f"{name}[{number}]", x)
            check_like(OP, f"{name}[{number}]", x, *(first or (f"{name}[0]", samples[0])))
            if x.dtype != samples[0].dtype:
                raise TypeError(f"{OP}: {name}[{number}] is {x.dtype}, {name}[0] {samples[0].dtype}")
        first = first or (f"{name}[0]", samples[0])
        if out and len(samples) != len(out[0]):
            raise ValueError(f"{OP}: {name} has {len(samples)} samples, pred {len(out[0])}")
        out.append([x.detach() for x in samples] if out else samples)
    if out[0][0].dim() == 0 or out[0][0].numel() == 0:
        raise ValueError(f"{OP}: {first[0]} has no axes or no elements, its shape is {tuple(first[1].shape)}")
    return (*map(len, out), False), [x for samples in out for x in samples]
