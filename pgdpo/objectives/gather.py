"""All-gather that carries gradients back to the rank that they belong to."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def all_gather(local: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, int]:
    """`[n, ...]` of every rank, concatenated in rank order, and the row where this rank's begin.

    The gradient sums every rank's loss: where a loss is the mean over its rank's pairs and gradients are
    averaged over ranks, that is the gradient of the mean over all pairs.
    """
    return _AllGather.apply(local, group), dist.get_rank(group) * local.shape[0]


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.rows = group, local.shape[0]
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, local.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad.narrow(0, dist.get_rank(ctx.group) * ctx.rows, ctx.rows), None
