"""Residual, gate, norm and modulation of a transformer block in one pass, forward and backward."""

from __future__ import annotations

import functools

import torch

from ..backend import takes_triton
from ..checks import check_number
from ..launch import dense_like
from ..library import once_differentiable, opaque, recorded
from ..reference import hidden as eager
from .rows import (
    Modulation,
    as_rows,
    check_branch,
    check_groups,
    check_vector,
    cut_rows,
    group_count,
    kind,
    launch_rows,
    modulation,
    modulation_gradients,
    norm_forward_launch,
    obstacle,
    sum_parts,
)

NORMS = ("layer", "rms")


def gate_residual_norm_modulate(
    residual: torch.Tensor,  # [B, N, D]
    branch: torch.Tensor,
    gate: Modulation = None,
    scale: Modulation = None,
    shift: Modulation = None,
    *,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden = residual + branch * gate, and y = norm(hidden) * (1 + scale) + shift.

    Both have the residual's shape and dtype. The norm is of `hidden` as it is stored.

    Args:
        residual, branch: `[B, N, D]`, bf16, fp16 or fp32, each of its own dtype; rows may be strided.
        gate, scale, shift: `[B, D]`, `[B, 1, D]`, `[B, F, D]` (one vector for each of F equal runs of tokens),
            `[B, N, D]`, or a pair (table, embedding) that stands for their sum: a table of D elements and an
            embedding of one of these forms. Strided views, such as those of `chunk`, are read where they lie.
            None leaves the step out.
        weight, bias: `[D]`, the norm's own.
        norm: `layer` (torch.nn.LayerNorm) or `rms` (torch.nn.RMSNorm).

    Raises:
        TypeError, ValueError: a dtype, a shape or the norm is not one of the above.
        RuntimeError: the backend `triton` was asked for and cannot run here.
    """
    op = "gate_residual_norm_modulate"
    check_branch(op, residual, branch)
    gates = modulation(op, "gate", gate, residual)
    norms = norm_arguments(op, residual, scale, shift, weight, bias, norm, eps)
    check_groups(op, gates, norms[:2], norms[2:4])
    if not takes_triton(op, residual, obstacle(residual, *gates, *norms[:6])):
        return eager.gate_residual_norm_modulate(
            residual, branch, gate, scale, shift, weight=weight, bias=bias, norm=norm, eps=eps
        )
    return gate_norm(residual, branch, *gates, *norms)


def norm_arguments(op, x, scale, shift, weight, bias, norm, eps) -> tuple:
    if norm not in NORMS:
        raise ValueError(f"{op}: norm must be one of {NORMS}, got {norm!r}")
    check_number(op, "eps", eps, least=0)
    check_vector(op, "weight", weight, x.shape[2])
    check_vector(op, "bias", bias, x.shape[2])
    scales, shifts = modulation(op, "scale", scale, x), modulation(op, "shift", shift, x)
    return *scales, *shifts, weight, bias, norm, float(eps)


def gate_norm(x, branch, *arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator, with its gradient where one is kept."""
    return recorded(_GateResidualNormModulate, _norm)(x, branch, *arguments)


@functools.cache
def _kernels():
    """Imported once, as in `gate_residual`."""
    from . import norm_kernels

    return norm_kernels


def _norm_fake(x, branch, *_):
    return x.new_empty(0) if branch is None else dense_like(x), dense_like(x)


@opaque("gate_residual_norm_modulate", _norm_fake)
def _norm(
    x: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor | None,
    gate_table: torch.Tensor | None,
    scale: torch.Tensor | None,
    scale_table: torch.Tensor | None,
    shift: torch.Tensor | None,
    shift_table: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    norm: str,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`hidden` (without elements where there is no branch) and `y`."""
    x, branch = as_rows(x), as_rows(branch)
    hidden, y = _norm_fake(x, branch)
    vectors = (gate, gate_table, scale, scale_table, shift, shift_table, weight, bias)
    op = norm_forward_launch(branch, *vectors)
    cut = cut_rows(op, x, group_count(gate, scale, shift))
    launch_rows(
        _kernels().norm_forward,
        cut,
        cut.programs,
        (x, branch, *vectors),
        (hidden, y),
        (x, branch, gate, scale, shift),
        (*cut.sizes, eps),
        BRANCH=branch is not None,
        GATE=kind(gate, gate_table),
        SCALE=kind(scale, scale_table),
        SHIFT=kind(shift, shift_table),
        WEIGHT=weight is not None,
        BIAS=bias is not None,
        CENTER=norm == "layer",
    )
    return hidden, y


def sum_count(sum_norm: bool, sum_gate: bool) -> int:
    """How many sums there are: of dy and dy * normalized, and of dhidden * branch, which is the last."""
    return 2 * sum_norm + sum_gate


def _norm_backward_fake(
    dy, dhidden, hidden, branch, gate, gate_table, scale, scale_table, weight, groups, norm, eps, sums, dtype
):
    shape = (sum_count(sums, branch is not None), hidden.shape[0], groups, hidden.shape[2])
    return *_gradients(hidden, gate, dtype), hidden.new_empty(shape, dtype=torch.float32)


def _gradients(hidden, gate, branch_dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the residual, and of the branch where a gate makes that another one."""
    dbranch = hidden.new_empty(0, dtype=branch_dtype) if gate is None else dense_like(hidden, branch_dtype)
    return dense_like(hidden), dbranch


@opaque("gate_residual_norm_modulate_backward", _norm_backward_fake)
def _norm_backward(
    dy: torch.Tensor,
    dhidden: torch.Tensor | None,
    hidden: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor | None,
    gate_table: torch.Tensor | None,
    scale: torch.Tensor | None,
    scale_table: torch.Tensor | None,
    weight: torch.Tensor | None,
    groups: int,
    norm: str,
    eps: float,
    sum_norm: bool,
    branch_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`dx`, `dbranch` (without a gate it is `dx`: no elements) and the sums over each group, fp32
    [`sum_count`, B, G, D]."""
    dy, dhidden, hidden, branch = as_rows(dy), as_rows(dhidden), as_rows(hidden), as_rows(branch)
    dx, dbranch = _gradients(hidden, gate, branch_dtype)
    sum_gate = branch is not None
    op = "norm_sums" if sum_norm or sum_gate else "norm_backward" if gate is None else "gate_norm_backward"
    cut, count = cut_rows(op, hidden, groups), sum_count(sum_norm, sum_gate)
    shape = (count, cut.batch, groups, cut.sizes[2] if count else 1, hidden.shape[2])
    partials = hidden.new_empty(shape, dtype=torch.float32)
    launch_rows(
        _kernels().norm_backward,
        cut,
        cut.programs,
        (dy, dhidden, hidden, branch, gate, gate_table, scale, scale_table, weight),
        (dx, dbranch, partials),
        (dy, dhidden, hidden, branch, gate, scale),
        (*cut.sizes, eps),
        DHIDDEN=dhidden is not None,
        GATE=kind(gate, gate_table),
        SCALE=kind(scale, scale_table),
        WEIGHT=weight is not None,
        CENTER=norm == "layer",
        SUM_NORM=sum_norm,
        SUM_GATE=sum_gate,
    )
    return dx, dbranch, sum_parts(partials)


class _GateResidualNormModulate(torch.autograd.Function):
    """(hidden, y); `hidden` has no elements where there is no branch."""

    @staticmethod
    def forward(
        ctx, x, branch, gate, gate_table, scale, scale_table, shift, shift_table, weight, bias, norm, eps
    ):
        tensors = (gate, gate_table, scale, scale_table, shift, shift_table, weight, bias)
        hidden, y = _norm(x, branch, *tensors, norm, eps)
        needs_gate = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        ctx.set_materialize_grads(False)
        # The branch is wanted for the gate's gradient alone, shift and its table for their shapes.
        kept = x if branch is None else hidden
        ctx.save_for_backward(kept, branch if needs_gate else None, *tensors)
        ctx.branch_dtype = x.dtype if branch is None else branch.dtype
        ctx.norm, ctx.eps, ctx.has_branch = norm, eps, branch is not None
        return hidden, y

    @staticmethod
    @once_differentiable
    def backward(ctx, dhidden, dy):
        hidden, branch, gate, gate_table, scale, scale_table, shift, shift_table, weight, bias = (
            ctx.saved_tensors
        )
        needs = ctx.needs_input_grad
        if dy is None:
            dy = torch.zeros_like(hidden)
        if not ctx.has_branch:
            dhidden = None
        dx, dbranch, sums = _norm_backward(
            dy,
            dhidden,
            hidden,
            branch,
            gate,
            gate_table,
            scale,
            scale_table,
            weight,
            group_count(gate, scale, shift),
            ctx.norm,
            ctx.eps,
            any(needs[4:10]),
            ctx.branch_dtype,
        )
        if ctx.has_branch and gate is None:
            dbranch = dx.to(ctx.branch_dtype)
        gates, scales, shifts, dweight, dbias = (None, None), (None, None), (None, None), None, None
        if branch is not None:
            gates = modulation_gradients(sums[-1], gate, gate_table, needs[2:4])
        if any(needs[4:10]):
            by_offset, by_gain = sums[0], sums[1]  # of bias * (1 + scale) + shift and of weight * (1 + scale)
            shifts = modulation_gradients(by_offset, shift, shift_table, needs[6:8])
            by_scale = by_gain if weight is None else by_gain * weight.float()
            by_scale = by_scale if bias is None else by_scale + by_offset * bias.float()
            scales = modulation_gradients(by_scale, scale, scale_table, needs[4:6])
            lift = 1.0 if scale is None else 1.0 + scale.float()
            lift = lift if scale_table is None else lift + scale_table.float()
            dweight = (by_gain * lift).sum((0, 1)).to(weight.dtype) if needs[8] else None
            dbias = (by_offset * lift).sum((0, 1)).to(bias.dtype) if needs[9] else None
        dbranch = dbranch if ctx.has_branch and needs[1] else None
        return (dx if needs[0] else None, dbranch, *gates, *scales, *shifts, dweight, dbias, None, None)
