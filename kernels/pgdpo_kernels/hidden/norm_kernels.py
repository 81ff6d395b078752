"""The kernels of `norm_modulate` and `gate_residual_norm_modulate`: the former is the latter without a branch.

Rows come in groups that share one scale, shift and gate: a sample, a frame or a single token. A program takes
one part of a group and holds the group's vectors in registers. Strides are in units of ALIGN elements.
"""

import triton
import triton.language as tl

from ..jit import rounded
from .row_jit import (
    centered,
    load_gain,
    load_modulation,
    load_offset,
    load_row,
    mean_of,
    normalized,
    reciprocal_root,
    rows_of_program,
    store_pieces,
    three_sums,
    two_sums,
)

FORWARD_SIZES = ["x_batch", "x_row", "branch_batch", "branch_row", "gate_batch", "gate_group", "scale_batch"]
FORWARD_SIZES += ["scale_group", "shift_batch", "shift_group", "groups", "rows", "parts"]


@triton.jit(do_not_specialize=FORWARD_SIZES)
def norm_forward(
    x, branch, gate, gate_table, scale, scale_table, shift, shift_table, weight, bias,
    hidden,  # x + branch * gate, [B, N, D]
    y,
    x_batch, x_row, branch_batch, branch_row,
    gate_batch, gate_group, scale_batch, scale_group, shift_batch, shift_group,
    groups,  # of a sample
    rows,  # of a group
    parts,  # of a group
    eps,
    BRANCH: tl.constexpr,
    GATE: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    CENTER: tl.constexpr,
    ALIGN: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program, batch, group, row, end = rows_of_program(groups, rows, parts, CHUNK)
    first = group * rows

    scale += (batch * scale_batch + group * scale_group) * ALIGN
    shift += (batch * shift_batch + group * shift_group) * ALIGN
    gain_a, gain_b = load_gain(scale, scale_table, weight, SCALE, WEIGHT, D, A, B)
    offset_a, offset_b = load_offset(
        scale, scale_table, shift, shift_table, bias, SCALE, SHIFT, BIAS, D, A, B
    )
    if GATE != "none":
        gate += (batch * gate_batch + group * gate_group) * ALIGN
        gate_a, gate_b = load_modulation(gate, gate_table, GATE, D, A, B)

    while row < end:
        token = first + row
        out = ((batch * groups) * rows + token) * D
        a, b = load_row(x, batch, token, x_batch, x_row, ALIGN, D, A, B)
        if BRANCH:
            branch_a, branch_b = load_row(branch, batch, token, branch_batch, branch_row, ALIGN, D, A, B)
            if GATE != "none":
                branch_a, branch_b = branch_a * gate_a, branch_b * gate_b
            # Backward has the stored hidden state alone: the norm is of that.
            a = rounded(a + branch_a, hidden, EMULATE_BF16)
            b = rounded(b + branch_b, hidden, EMULATE_BF16)
            store_pieces(hidden + out, a, b, D, A, B, EMULATE_BF16)
        n_a, n_b = normalized(a, b, eps, CENTER, D, A, B)
        n_a, n_b = n_a * gain_a + offset_a, n_b * gain_b + offset_b
        store_pieces(y + out, n_a, n_b, D, A, B, EMULATE_BF16)
        row += 1


BACKWARD_SIZES = ["dy_batch", "dy_row", "dhidden_batch", "dhidden_row", "hidden_batch", "hidden_row"]
BACKWARD_SIZES += ["branch_batch", "branch_row", "gate_batch", "gate_group", "scale_batch", "scale_group"]
BACKWARD_SIZES += ["groups", "rows", "parts"]


@triton.jit(do_not_specialize=BACKWARD_SIZES)
def norm_backward(
    dy, dhidden, hidden, branch, gate, gate_table, scale, scale_table, weight,
    dx,  # [B, N, D]
    dbranch,
    sums,  # fp32 [2 * SUM_NORM + SUM_GATE, B * groups, parts, D]: of dy, of dy * normalized; of dx * branch
    dy_batch, dy_row, dhidden_batch, dhidden_row, hidden_batch, hidden_row, branch_batch, branch_row,
    gate_batch, gate_group, scale_batch, scale_group,
    groups, rows, parts, eps,
    DHIDDEN: tl.constexpr,
    GATE: tl.constexpr,
    SCALE: tl.constexpr,
    WEIGHT: tl.constexpr,
    CENTER: tl.constexpr,
    SUM_NORM: tl.constexpr,  # sums for scale, shift, weight and bias
    SUM_GATE: tl.constexpr,  # and for the gate: reads the branch
    ALIGN: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program, batch, group, row, end = rows_of_program(groups, rows, parts, CHUNK)
    first = group * rows

    scale += (batch * scale_batch + group * scale_group) * ALIGN
    gain_a, gain_b = load_gain(scale, scale_table, weight, SCALE, WEIGHT, D, A, B)
    if GATE != "none":
        gate += (batch * gate_batch + group * gate_group) * ALIGN
    zero_a, zero_b = tl.zeros([A], tl.float32), tl.zeros([B], tl.float32)
    shift_a, shift_b, scale_a, scale_b, sum_a, sum_b = zero_a, zero_b, zero_a, zero_b, zero_a, zero_b

    while row < end:
        token = first + row
        out = ((batch * groups) * rows + token) * D
        a, b = load_row(hidden, batch, token, hidden_batch, hidden_row, ALIGN, D, A, B)
        g_a, g_b = load_row(dy, batch, token, dy_batch, dy_row, ALIGN, D, A, B)
        if DHIDDEN:  # asked for before the sums, whose barriers no load passes
            h_a, h_b = load_row(dhidden, batch, token, dhidden_batch, dhidden_row, ALIGN, D, A, B)
        a, b = centered(a, b, CENTER, D, A, B)
        t_a, t_b = g_a * gain_a, g_b * gain_b
        # The three sums of a row's gradient in one go: along the normalized row n = a * rstd it is n * rstd * sum(t a).
        if CENTER:
            square, along, mean = three_sums(a * a, b * b, t_a * a, t_b * b, t_a, t_b, EMULATE_BF16)
        else:
            square, along = two_sums(a * a, b * b, t_a * a, t_b * b, EMULATE_BF16)
            mean = 0.0
        rstd = reciprocal_root(mean_of(square, D), eps)
        n_a, n_b = a * rstd, b * rstd
        along, mean = mean_of(along * rstd, D), mean_of(mean, D)
        if SUM_NORM:
            shift_a, shift_b = shift_a + g_a, shift_b + g_b
            scale_a, scale_b = scale_a + g_a * n_a, scale_b + g_b * n_b
        x_a, x_b = (t_a - n_a * along - mean) * rstd, (t_b - n_b * along - mean) * rstd
        if DHIDDEN:
            x_a, x_b = x_a + h_a, x_b + h_b
        store_pieces(dx + out, x_a, x_b, D, A, B, EMULATE_BF16)
        if GATE != "none":
            # Read here, for each row: held from the start it takes the registers of another program's row.
            gate_a, gate_b = load_modulation(gate, gate_table, GATE, D, A, B)
            store_pieces(dbranch + out, x_a * gate_a, x_b * gate_b, D, A, B, EMULATE_BF16)
            if SUM_GATE:
                b_a, b_b = load_row(branch, batch, token, branch_batch, branch_row, ALIGN, D, A, B)
                sum_a, sum_b = sum_a + x_a * b_a, sum_b + x_b * b_b
        row += 1

    step = (tl.num_programs(0).to(tl.int64)) * D
    if SUM_NORM:
        store_pieces(sums + program * D, shift_a, shift_b, D, A, B, False)
        store_pieces(sums + step + program * D, scale_a, scale_b, D, A, B, False)
        sums += 2 * step
    if SUM_GATE:
        store_pieces(sums + program * D, sum_a, sum_b, D, A, B, False)
