"""Gradients whose sum does not depend on the number of ranks: bit-equal runs on 2, 1 and 2 ranks again.

Floating-point sums depend on their order, and DeepSpeed's order on the ranks. Here every micro-batch's gradient is a
leaf of one binary tree over the step's micro-batches; each rank sums what it holds whole subtrees of, and all ranks
finish the same tree. That costs a broadcast per rank in place of one all-reduce, and log2(micro-batches) gradients
of memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import deepspeed
import torch
import torch.distributed as dist

from pgdpo.engine.group_batching import Joint
from pgdpo.engine.parallel import Ranks
from pgdpo.messages.errors import InputError
from pgdpo.models.family import Family
from pgdpo.objectives import Objective

Node = tuple[int, int]  # (level, index): the leaves index * 2^level ... (index + 1) * 2^level - 1


def make_deterministic(on: bool) -> None:
    """Let torch take the same kernels with the same order of sums every time, or (off) the fastest."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)


def check_objective(objective: Objective) -> None:
    """Raises InputError for an objective that hands something on from batch to batch: ranks see other batches."""
    if objective.state:
        raise InputError(
            f"train.deterministic: objective `{objective.name}` keeps {', '.join(objective.state)} from batch to "
            "batch, which depends on the number of ranks: take another objective, or leave train.deterministic out"
        )


class FixedTree:
    """The sum of `leaves` tensors, contiguous and equally many on each rank, in an order set by their number alone."""

    def __init__(self, leaves: int) -> None:
        self.leaves = leaves
        per_rank, rank = leaves // dist.get_world_size(), dist.get_rank()
        self._next = rank * per_rank
        self._nodes: dict[Node, torch.Tensor] = {}
        self._of_rank = [
            _whole_subtrees(range(r * per_rank, (r + 1) * per_rank), leaves)
            for r in range(dist.get_world_size())
        ]

    def add(self, leaf: torch.Tensor) -> None:
        """This rank's next leaf; it is overwritten."""
        _insert(self._nodes, (0, self._next), leaf, self.leaves)
        self._next += 1

    def total(self) -> torch.Tensor:
        """The sum, on every rank, once each has added all of its leaves."""
        like = next(iter(self._nodes.values()))
        own, nodes = self._nodes, {}
        for rank, theirs in enumerate(self._of_rank):
            for node in theirs:
                value = own[node] if rank == dist.get_rank() else torch.empty_like(like)
                dist.broadcast(value, src=rank)
                _insert(nodes, node, value, self.leaves)
        (total,) = nodes.values()
        return total


def _insert(nodes: dict[Node, torch.Tensor], node: Node, value: torch.Tensor, leaves: int) -> None:
    """Put a node into the tree and join it with its sibling as far up as that is there."""
    level, index = node
    count = -(-leaves // 2**level)  # nodes of this level
    while count > 1:
        sibling = index ^ 1
        if sibling < count:  # else it has none, and goes up as it is
            if (level, sibling) not in nodes:
                break
            value = value.add_(nodes.pop((level, sibling)))
        level, index, count = level + 1, index // 2, -(-count // 2)
    nodes[level, index] = value


def _whole_subtrees(leaves: range, count: int) -> list[Node]:
    """The nodes that a rank with these leaves is left with."""
    nodes: dict[Node, torch.Tensor] = {}
    for leaf in leaves:
        _insert(nodes, (0, leaf), torch.zeros(()), count)
    return list(nodes)


class Deterministic(Joint):
    """The policy, with gradients summed in a fixed tree; for ZeRO stage 0, where every rank holds them whole."""

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        forward: Callable,
        family: Family,
        ranks: Ranks,
        *,
        max_norm: float,
    ) -> None:
        """`max_norm`: the gradient is clipped to it, after the sum."""
        super().__init__(engine, forward, family, ranks)
        self._max_norm = max_norm
        self._groups = engine.gradient_accumulation_steps() * ranks.data_size  # micro-batches of a step
        self._trained = [p for p in engine.module.parameters() if p.requires_grad]
        self._tree = FixedTree(self._groups)

    def backward(self, loss: torch.Tensor) -> float | None:
        """As `Joint`'s."""
        with self.engine.no_sync():
            self.engine.backward(loss, scale_wrt_gas=False)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained]
        self._tree.add(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter in self._trained:
            parameter.grad = None
        norm = None
        if self.engine.is_gradient_accumulation_boundary():
            norm = self.engine.unclipped_norm = self._set_gradients(self._tree.total() / self._groups)
            self._tree = FixedTree(self._groups)
        self.engine.step()
        return norm

    def _set_gradients(self, mean: torch.Tensor) -> float:
        parts = mean.split([p.numel() for p in self._trained])
        for parameter, part in zip(self._trained, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        return float(torch.nn.utils.clip_grad_norm_(self._trained, self._max_norm))
