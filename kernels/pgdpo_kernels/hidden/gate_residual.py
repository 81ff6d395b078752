"""residual + branch * gate in one pass, forward and backward."""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from ..backend import takes_triton
from ..launch import dense_like
from ..library import opaque
from ..reference import hidden as eager
from .rows import (
    Modulation,
    as_rows,
    check_branch,
    cut_rows,
    in_pieces,
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
    return _GateResidual.apply(residual, branch, values, table)


def launch_gate(kernel, op, x, branch, gate, table, outputs, **constants) -> None:
    """Forward and backward differ in what x and the outputs are."""
    cut = cut_rows(op, *x.shape, gate.shape[1])
    constants |= {"GATE": kind(gate, table), **in_pieces(x.shape[2])}
    tensors, strided = (x, branch, gate, table), (x, branch, gate)
    launch_rows(kernel, cut, cut.grid, tensors, outputs, strided, cut.sizes(), **constants)


@opaque("gate_residual", lambda residual, *_: dense_like(residual))
def _gate(
    residual: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor, table: torch.Tensor | None
) -> torch.Tensor:
    from .gate_residual_kernels import gate_forward

    hidden = dense_like(residual)
    launch_gate(gate_forward, "gate", as_rows(residual), as_rows(branch), gate, table, (hidden,))
    return hidden


def _gate_backward_fake(dhidden, branch, gate, table, branch_dtype):
    batch, _, width = dhidden.shape
    sums = dhidden.new_empty(0 if branch is None else batch, gate.shape[1], width, dtype=torch.float32)
    return torch.empty(dhidden.shape, dtype=branch_dtype, device=dhidden.device), sums


@opaque("gate_residual_backward", _gate_backward_fake)
def _gate_backward(
    dhidden: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor,
    table: torch.Tensor | None,
    branch_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`dbranch`, and the sums of dhidden * branch over each group, fp32 [B, G, D], if the branch is given."""
    from .gate_residual_kernels import gate_backward

    dhidden, branch = as_rows(dhidden), as_rows(branch)
    op = "gate" if branch is None else "gate_sums"
    dbranch = torch.empty(dhidden.shape, dtype=branch_dtype, device=dhidden.device)
    cut = cut_rows(op, *dhidden.shape, gate.shape[1])
    shape = (0 if branch is None else cut.batch, cut.groups, cut.parts, dhidden.shape[2])
    sums = dhidden.new_empty(shape, dtype=torch.float32)
    outputs, sum_gate = (dbranch, sums), branch is not None
    launch_gate(gate_backward, op, dhidden, branch, gate, table, outputs, SUM_GATE=sum_gate)
    return dbranch, sum_parts(sums)


class _GateResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, residual, branch, gate, table):
        needs_gate = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        ctx.save_for_backward(branch if needs_gate else None, gate, table)
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
