"""The kernels of `gate_residual`. Groups, parts and strides as in `norm_kernels`."""

import triton
import triton.language as tl

from .row_jit import load_modulation, load_row, rows_of_program, store_pieces

SIZES = ["x_batch", "x_row", "branch_batch", "branch_row", "gate_batch", "gate_group", "groups", "rows"]
SIZES += ["parts"]


@triton.jit(do_not_specialize=SIZES)
def gate_forward(
    x, branch, gate, gate_table,
    hidden,  # [B, N, D]
    x_batch, x_row, branch_batch, branch_row, gate_batch, gate_group, groups, rows, parts,
    GATE: tl.constexpr,
    ALIGN: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program, batch, group, row, end = rows_of_program(groups, rows, parts, CHUNK)
    gate += (batch * gate_batch + group * gate_group) * ALIGN
    gate_a, gate_b = load_modulation(gate, gate_table, GATE, D, A, B)
    while row < end:
        token = group * rows + row
        a, b = load_row(x, batch, token, x_batch, x_row, ALIGN, D, A, B)
        branch_a, branch_b = load_row(branch, batch, token, branch_batch, branch_row, ALIGN, D, A, B)
        out = ((batch * groups) * rows + token) * D
        a, b = a + branch_a * gate_a, b + branch_b * gate_b
        store_pieces(hidden + out, a, b, D, A, B, EMULATE_BF16)
        row += 1


@triton.jit(do_not_specialize=SIZES)
def gate_backward(
    x,  # the gradient by the hidden state, which is also that by the residual
    branch, gate, gate_table,
    dbranch,  # [B, N, D]
    sums,  # fp32 [B * groups, parts, D], of x * branch
    x_batch, x_row, branch_batch, branch_row, gate_batch, gate_group, groups, rows, parts,
    GATE: tl.constexpr,
    SUM_GATE: tl.constexpr,
    ALIGN: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program, batch, group, row, end = rows_of_program(groups, rows, parts, CHUNK)
    gate += (batch * gate_batch + group * gate_group) * ALIGN
    gate_a, gate_b = load_modulation(gate, gate_table, GATE, D, A, B)
    sum_a, sum_b = tl.zeros([A], tl.float32), tl.zeros([B], tl.float32)
    while row < end:
        token = group * rows + row
        a, b = load_row(x, batch, token, x_batch, x_row, ALIGN, D, A, B)
        out = ((batch * groups) * rows + token) * D
        store_pieces(dbranch + out, a * gate_a, b * gate_b, D, A, B, EMULATE_BF16)
        if SUM_GATE:
            branch_a, branch_b = load_row(branch, batch, token, branch_batch, branch_row, ALIGN, D, A, B)
            sum_a, sum_b = sum_a + a * branch_a, sum_b + b * branch_b
        row += 1
    if SUM_GATE:
        store_pieces(sums + program * D, sum_a, sum_b, D, A, B, False)
