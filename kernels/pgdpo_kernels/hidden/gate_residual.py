"""residual + branch * gate in one pass, forward and backward."""

from __future__ import annotations

import torch

from ..backend import takes_triton
from ..reference import hidden as eager
from .rows import (
    Modulation,
    as_rows,
    check_hidden,
    cut_rows,
    kind,
    modulation,
    modulation_gradients,
    obstacle,
    options,
    strides,
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
    check_hidden(op, "residual", residual)
    check_hidden(op, "branch", branch)
    if branch.shape != residual.shape:
        raise ValueError(
            f"{op}: branch must have the residual's shape {tuple(residual.shape)}, got {tuple(branch.shape)}"
        )
    values, table = modulation(op, "gate", gate, residual)
    if values is None:
        raise ValueError(f"{op}: gate must be given")
    if not takes_triton(op, residual, obstacle(residual, values, table)):
        return eager.gate_residual(residual, branch, gate)
    return _gate(residual, branch, values, table)


def launch(kernel, op, x, branch, gate, table, out, *sums, **switches) -> None:
    """Forward and backward differ in what x and `out` are, and in the sums."""
    groups = cut_rows(op, x, gate.shape[1])
    align, steps = strides(x, branch, gate)
    with torch.cuda.device_of(x):
        kernel[groups.grid](
            x,
            x if branch is None else branch,
            gate,
            gate if table is None else table,
            out,
            *sums,
            *steps,
            *groups.sizes(),
            GATE=kind(gate, table),
            ALIGN=align,
            CHUNK=groups.chunk,
            **switches,
            **options(op, x.shape[2]),
        )


@torch.library.custom_op("pgdpo::gate_residual", mutates_args=())
def _gate(
    residual: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor, table: torch.Tensor | None
) -> torch.Tensor:
    from .gate_residual_kernels import gate_forward

    hidden = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    launch(gate_forward, "gate", as_rows(residual), as_rows(branch), gate, table, hidden)
    return hidden


@_gate.register_fake
def _(residual, branch, gate, table):
    return torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)


def backward_launch(branch: torch.Tensor | None) -> str:
    return "gate" if branch is None else "gate_sums"


@torch.library.custom_op("pgdpo::gate_residual_backward", mutates_args=())
def _gate_backward(
    dhidden: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor,
    table: torch.Tensor | None,
    branch_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`dbranch`, and the sums of dhidden * branch over each group, fp32 [B, G, D], if the branch is given."""
    from .gate_residual_kernels import gate_backward

    dhidden, branch = as_rows(dhidden), None if branch is None else as_rows(branch)
    dbranch = torch.empty(dhidden.shape, dtype=branch_dtype, device=dhidden.device)
    groups = cut_rows(backward_launch(branch), dhidden, gate.shape[1])
    shape = (0 if branch is None else groups.batch, groups.groups, groups.parts, dhidden.shape[2])
    sums = dhidden.new_empty(shape, dtype=torch.float32)
    launch(
        gate_backward,
        backward_launch(branch),
        dhidden,
        branch,
        gate,
        table,
        dbranch,
        sums,
        SUM_GATE=branch is not None,
    )
    return dbranch, sum_parts(sums)


@_gate_backward.register_fake
def _(dhidden, branch, gate, table, branch_dtype):
    batch, _, width = dhidden.shape
    sums = dhidden.new_empty(0 if branch is None else batch, gate.shape[1], width, dtype=torch.float32)
    return torch.empty(dhidden.shape, dtype=branch_dtype, device=dhidden.device), sums


def _setup(ctx, inputs, output):
    residual, branch, gate, table = inputs
    needs_gate = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
    ctx.save_for_backward(branch if needs_gate else None, gate, table)
    ctx.branch_dtype = branch.dtype


def _backward(ctx, dhidden):
    branch, gate, table = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if not any(needs[1:]):
        return dhidden, None, None, None
    dbranch, sums = _gate_backward(dhidden, branch, gate, table, ctx.branch_dtype)
    gates = (None, None) if branch is None else modulation_gradients(sums, gate, table, needs[2:4])
    return dhidden, dbranch if needs[1] else None, *gates


_gate.register_autograd(_backward, setup_context=_setup)
