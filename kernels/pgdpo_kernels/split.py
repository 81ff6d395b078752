"""Means over samples whose elements lie on several ranks: sums are exchanged once, and added in the ranks' order."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import torch

from .types import GroupErrors, PairErrors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def agreed_segments(segments: object, count: int, device: torch.device, group: ProcessGroup) -> int:
    """The number of segments of the whole samples, of which a rank may have the first alone.

    Args:
        segments: as the caller gave them: from None and a number all ranks know it, and nothing is exchanged.
        count: what this rank's part shows of it.
    """
    if segments is None or isinstance(segments, int):
        return count
    import torch.distributed as dist

    most = torch.tensor(count, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
    return int(most)


def over_ranks(
    errors: PairErrors | GroupErrors, segments: int, group: ProcessGroup
) -> PairErrors | GroupErrors:
    """The errors of whole samples from those of this rank's parts; the same bits on every rank of the group."""
    found = {field.name: getattr(errors, field.name) for field in fields(errors) if field.name != "count"}
    found = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    count, *means = _OverRanks.apply(group, segments, errors.count, *found.values())
    return replace(errors, count=count, **dict(zip(found, means, strict=True)))


class _OverRanks(torch.autograd.Function):
    """Count `[N, S]` and means `[at most N, S]` of the whole; gradients are by this rank's part, and stay here."""

    @staticmethod
    def forward(ctx, group, segments, count, *means):
        sizes = [len(mean) for mean in means]
        weights = torch.cat([count[:size] for size in sizes])
        # In float64: equal predictions' excess is 0 on each rank and so on all, and no rank's share is rounded away.
        sums = torch.cat((count.double(), torch.cat(means).double() * weights))
        sums = torch.nn.functional.pad(sums, (0, segments - count.shape[1]))
        total, *sums = _summed(sums, group).split([len(count), *sizes])
        inverse = torch.where(total > 0, 1 / torch.where(total > 0, total, 1.0), 0.0)
        ctx.save_for_backward(count.double() * inverse[:, : count.shape[1]])
        total = total.to(count.dtype)
        ctx.mark_non_differentiable(total)
        return total, *((x * inverse[: len(x)]).to(count.dtype) for x in sums)

    @staticmethod
    def backward(ctx, _, *grads):
        (share,) = ctx.saved_tensors
        here = share.shape[1]  # segments that this rank has
        return (None, None, None, *((grad[:, :here] * share[: len(grad)]).to(grad.dtype) for grad in grads))


def _summed(local: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    import torch.distributed as dist

    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local, group=group)
    total = parts[0]
    for part in parts[1:]:  # in this order: an all-reduce has one of its own, by rank and by backend
        total = total + part
    return total
