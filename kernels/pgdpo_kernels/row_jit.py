"""Device functions of the ops on rows of hidden states: pieces, norms, modulation, sums over rows.

A row of D elements is held in two pieces `a` and `b` of A + B >= D, each a power of two: one block of
`next_power_of_2(D)` spills registers at D = 5120.
"""

import triton
import triton.language as tl


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
def rounded(value, pointer, EMULATE_BF16: tl.constexpr):
    """fp32 that holds what a store to `pointer` will hold, rounded to nearest even.

    Triton's interpreter truncates to bf16: EMULATE_BF16 rounds by hand there.
    """
    if EMULATE_BF16 and pointer.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits = tl.where(value != value, bits, (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536)
        value = bits.to(tl.float32, bitcast=True)
    else:
        value = value.to(pointer.dtype.element_ty).to(tl.float32)
    return value


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
def sum_pieces(a, b):
    return tl.sum(a, axis=0) + tl.sum(b, axis=0)


@triton.jit
def normalized(a, b, eps, CENTER: tl.constexpr, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """The row over its standard deviation (CENTER) or its root mean square, and the reciprocal of that."""
    if CENTER:
        mean = sum_pieces(a, b) / D
        a, b = a - mean, b - mean
        if A + B != D:
            b = tl.where(A + tl.arange(0, B) < D, b, 0.0)
    rstd = 1.0 / tl.sqrt(sum_pieces(a * a, b * b) / D + eps)
    return a * rstd, b * rstd, rstd


@triton.jit
def norm_gradient(g_a, g_b, n_a, n_b, rstd, CENTER: tl.constexpr, D: tl.constexpr):
    """The gradient by the row, from that by the normalized row `n`. The pieces' padding is not kept 0."""
    along = sum_pieces(g_a * n_a, g_b * n_b) / D
    x_a, x_b = g_a - n_a * along, g_b - n_b * along
    if CENTER:
        mean = sum_pieces(g_a, g_b) / D
        x_a, x_b = x_a - mean, x_b - mean
    return x_a * rstd, x_b * rstd


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
