"""residual + branch * gate in one pass, forward and backward."""

from __future__ import annotations

import functools

import torch

from ..backend import takes_triton
from ..launch import dense_like
from ..library import once_differentiable, opaque, recorded
from ..reference import hidden as eager
from .rows import (
    Modulation,
    as_rows,
    check_branch,
    cut_rows,
    kind,
    launch_rows,
    modulation,
    modulation_gradients,
    obstacle,
    sum_parts,
)


def gate_residual(residual: torch.Tensor, branch: torch.Tensor, gate: Modulation) -> torch.Tensor:
    """residual + branch * gate, in the shape and dtype of the residual.

    The branch is kept for backward only where the gate wants a gradient.

    Args:
        residual, branch: `[B, N, D]`, bf16, fp16 or fp32, each of its own dtype; rows may be strided.
        gate: as in `gate_residual_norm_modulate`.

    Raises:
        TypeError, ValueError: a dtype or a shape is not one of the above.
        RuntimeError: the backend `triton` was asked for and cannot run here.
    """
    op = "gate_residual"
    check_branch(op, residual, branch)
    values, table = modulation(op, "gate", gate, residual)
    if values is None:
        raise ValueError(f"{op}: gate must be given")
    if not takes_triton(op, residual, obstacle(residual, values, table)):
        return eager.gate_residual(residual, branch, gate)
    return recorded(_GateResidual, _gate)(residual, branch, values, table)


@functools.cache
def _kernels():
    """Imported when one is launched, as the package imports without Triton; once, as an import statement takes 2 us."""
    from . import gate_residual_kernels

    return gate_residual_kernels


def launch_gate(kernel, cut, x, branch, gate, table, outputs, **constants) -> None:
    """Forward and backward differ in what x and the outputs are."""
    tensors, strided = (x, branch, gate, table), (x, branch, gate)
    constants["GATE"] = kind(gate, table)
    launch_rows(kernel, cut, cut.programs, tensors, outputs, strided, cut.sizes, **constants)


@opaque("gate_residual", lambda residual, *_: dense_like(residual))
def _gate(
    residual: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor, table: torch.Tensor | None
) -> torch.Tensor:
    hidden, cut = dense_like(residual), cut_rows("gate", residual, gate.shape[1])
    launch_gate(_kernels().gate_forward, cut, as_rows(residual), as_rows(branch), gate, table, (hidden,))
    return hidden


def _gate_backward_fake(dhidden, branch, gate, table, branch_dtype):
    batch, _, width = dhidden.shape
    sums = dhidden.new_empty(0 if branch is None else batch, gate.shape[1], width, dtype=torch.float32)
    return dense_like(dhidden, branch_dtype), sums


@opaque("gate_residual_backward", _gate_backward_fake)
def _gate_backward(
    dhidden: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor,
    table: torch.Tensor | None,
    branch_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`dbranch`, and the sums of dhidden * branch over each group, fp32 [B, G, D], if the branch is given."""
    dhidden, branch = as_rows(dhidden), as_rows(branch)
    sum_gate = branch is not None
    cut = cut_rows("gate_sums" if sum_gate else "gate", dhidden, gate.shape[1])
    dbranch = dense_like(dhidden, branch_dtype)
    groups, _, parts = cut.sizes
    shape = (cut.batch, groups, parts, dhidden.shape[2]) if sum_gate else (0, groups, 1, dhidden.shape[2])
    sums = dhidden.new_empty(shape, dtype=torch.float32)
    launch_gate(
        _kernels().gate_backward, cut, dhidden, branch, gate, table, (dbranch, sums), SUM_GATE=sum_gate
    )
    return dbranch, sum_parts(sums)


class _GateResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, residual, branch, gate, table):
        needs = ctx.needs_input_grad
        ctx.save_for_backward(branch if needs[2] or needs[3] else None, gate, table)
        ctx.branch_dtype = branch.dtype
        return _gate(residual, branch, gate, table)

    @staticmethod
    @once_differentiable
    def backward(ctx, dhidden):
        branch, gate, table = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if not any(needs[1:]):
            return dhidden, None, None, None
        dbranch, sums = _gate_backward(dhidden, branch, gate, table, ctx.branch_dtype)
        gates = (None, None) if branch is None else modulation_gradients(sums, gate, table, needs[2:4])
        return dhidden, dbranch if needs[1] else None, *gates
