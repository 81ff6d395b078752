"""Device functions of the ops on rows of hidden states: pieces, norms, modulation, sums over rows.

A row of D elements is held in two pieces `a` and `b` of A + B >= D, each a power of two: one block of
`next_power_of_2(D)` spills registers at D = 5120.
"""

import triton
import triton.language as tl

from ..jit import rounded


@triton.jit
def rows_of_program(groups, rows, parts, CHUNK: tl.constexpr):
    """The program's number, its sample and group, and the rows of the group that it takes, from one on to another."""
    program = tl.program_id(0).to(tl.int64)
    cell, part = program // parts, program % parts
    row = part * CHUNK
    return program, cell // groups, cell % groups, row, tl.minimum(row + CHUNK, rows)


@triton.jit
def load_pieces(pointer, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """A row in fp32; what lies past D is 0."""
    a = tl.load(pointer + tl.arange(0, A))
    column = A + tl.arange(0, B)
    if A + B == D:  # noqa: SIM108, the two arms are chosen when it is compiled
        b = tl.load(pointer + column)
    else:
        b = tl.load(pointer + column, mask=column < D, other=0.0)
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def load_row(
    pointer, batch, token, batch_step, row_step,
    ALIGN: tl.constexpr, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """A sample's row, by strides in units of ALIGN."""
    return load_pieces(pointer + (batch * batch_step + token * row_step) * ALIGN, D, A, B)


@triton.jit
def store_pieces(
    pointer, a, b, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, EMULATE_BF16: tl.constexpr
):
    a = rounded(a, pointer, EMULATE_BF16).to(pointer.dtype.element_ty)
    b = rounded(b, pointer, EMULATE_BF16).to(pointer.dtype.element_ty)
    tl.store(pointer + tl.arange(0, A), a)
    column = A + tl.arange(0, B)
    if A + B == D:
        tl.store(pointer + column, b)
    else:
        tl.store(pointer + column, b, mask=column < D)


@triton.jit
def add2(u, v, other_u, other_v):
    return u + other_u, v + other_v


@triton.jit
def add3(u, v, w, other_u, other_v, other_w):
    return u + other_u, v + other_v, w + other_w


@triton.jit
def sum_pieces(a, b):
    return tl.sum(a) + tl.sum(b)


@triton.jit
def two_sums(u_a, u_b, v_a, v_b, INTERPRETED: tl.constexpr):
    """Two sums over a row that share their barriers. The interpreter reduces tuples element by element."""
    if INTERPRETED:
        u, v = sum_pieces(u_a, u_b), sum_pieces(v_a, v_b)
    else:
        first_u, first_v = tl.reduce((u_a, v_a), None, add2)
        second_u, second_v = tl.reduce((u_b, v_b), None, add2)
        u, v = first_u + second_u, first_v + second_v
    return u, v


@triton.jit
def three_sums(u_a, u_b, v_a, v_b, w_a, w_b, INTERPRETED: tl.constexpr):
    if INTERPRETED:
        u, v, w = sum_pieces(u_a, u_b), sum_pieces(v_a, v_b), sum_pieces(w_a, w_b)
    else:
        first_u, first_v, first_w = tl.reduce((u_a, v_a, w_a), None, add3)
        second_u, second_v, second_w = tl.reduce((u_b, v_b, w_b), None, add3)
        u, v, w = first_u + second_u, first_v + second_v, first_w + second_w
    return u, v, w


@triton.jit
def mean_of(total, D: tl.constexpr):
    """total / D by the rounded 1 / D, everywhere: forward and backward have the same bits.

    At most one unit in the last place from the true quotient, where a division has half of one, but without a
    division's slow path to branch to: 40 instructions and up to 20 registers less a row. A root follows, and halves it.
    """
    return total * (1.0 / D)


@triton.jit
def reciprocal_root(mean_square, eps):
    """1 / sqrt(mean_square + eps), each step rounded as IEEE asks: one number a row, so exactness costs nothing."""
    return tl.div_rn(1.0, tl.sqrt_rn(mean_square + eps))


@triton.jit
def centered(a, b, CENTER: tl.constexpr, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """The row less its mean; what lies past D stays 0."""
    if CENTER:
        mean = mean_of(sum_pieces(a, b), D)
        a, b = a - mean, b - mean
        if A + B != D:
            b = tl.where(A + tl.arange(0, B) < D, b, 0.0)
    return a, b


@triton.jit
def normalized(a, b, eps, CENTER: tl.constexpr, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """The row over its standard deviation (CENTER) or its root mean square."""
    a, b = centered(a, b, CENTER, D, A, B)
    rstd = reciprocal_root(mean_of(sum_pieces(a * a, b * b), D), eps)
    return a * rstd, b * rstd


@triton.jit
def load_modulation(values, table, KIND: tl.constexpr, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """A scale, shift or gate; with KIND "pair" the sum of a table and an embedding, which nobody stores."""
    a, b = load_pieces(values, D, A, B)
    if KIND == "pair":
        table_a, table_b = load_pieces(table, D, A, B)
        a, b = a + table_a, b + table_b
    return a, b


@triton.jit
def load_gain(
    scale, scale_table, weight,
    SCALE: tl.constexpr, WEIGHT: tl.constexpr, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """weight * (1 + scale): what the normalized row is multiplied by."""
    a, b = tl.full([A], 1.0, tl.float32), tl.full([B], 1.0, tl.float32)
    if SCALE != "none":
        scale_a, scale_b = load_modulation(scale, scale_table, SCALE, D, A, B)
        a, b = 1.0 + scale_a, 1.0 + scale_b
    if WEIGHT:
        weight_a, weight_b = load_pieces(weight, D, A, B)
        a, b = weight_a * a, weight_b * b
    return a, b


@triton.jit
def load_offset(
    scale, scale_table, shift, shift_table, bias,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, BIAS: tl.constexpr,
    D: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """bias * (1 + scale) + shift."""
    a, b = tl.zeros([A], tl.float32), tl.zeros([B], tl.float32)
    if BIAS:
        a, b = load_pieces(bias, D, A, B)
        if SCALE != "none":
            scale_a, scale_b = load_modulation(scale, scale_table, SCALE, D, A, B)
            a, b = a * (1.0 + scale_a), b * (1.0 + scale_b)
    if SHIFT != "none":
        shift_a, shift_b = load_modulation(shift, shift_table, SHIFT, D, A, B)
        a, b = a + shift_a, b + shift_b
    return a, b


@triton.jit(do_not_specialize=["parts"])
def column_sums(
    partials,  # [K, parts, D]
    out,  # [K, D]
    parts,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums over the parts in an order that depends on their number alone."""
    k = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    part = 0
    while part < parts:
        row = part + tl.arange(0, ROWS)
        inside = (row < parts)[:, None] & (column < D)[None, :]
        total += tl.load(partials + (k * parts + row[:, None]) * D + column[None, :], mask=inside, other=0.0)
        part += ROWS
    tl.store(out + k * D + column, tl.sum(total, axis=0), mask=column < D)
