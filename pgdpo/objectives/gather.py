"""All-gather that carries gradients back to the rank that they belong to."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def all_gather(local: Tensor, process_group: dist.ProcessGroup) -> tuple[Tensor, int]:
    """`[n, ...]` of every rank, concatenated in rank order, and the row where this rank's begin; n may differ.

    The gradient sums every rank's loss: where a loss is the mean over its rank's groups, equally many on each, and
    gradients are averaged over ranks, that is the gradient of the mean over all groups.
    """
    counts = _counts(len(local), local.device, process_group)
    return _AllGather.apply(local, process_group, counts), sum(counts[: dist.get_rank(process_group)])


def _counts(rows: int, device: torch.device, process_group: dist.ProcessGroup) -> list[int]:
    """How many rows each rank has."""
    own = torch.tensor([rows], device=device)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(everyone, own, group=process_group)
    return torch.cat(everyone).tolist()


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor, process_group: dist.ProcessGroup, counts: list[int]) -> Tensor:
        ctx.process_group, ctx.counts = process_group, counts
        most = max(counts)
        padded = local.new_zeros(most, *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=process_group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.process_group)
        rank = dist.get_rank(ctx.process_group)
        return grad.narrow(0, sum(ctx.counts[:rank]), ctx.counts[rank]), None, None
