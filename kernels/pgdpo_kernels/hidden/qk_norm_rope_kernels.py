"""The kernels of `qk_norm_rope`: a row is a tile of heads, and a program takes rows of q or of k.

Programs of q and of k on the same rows are neighbours: they share the rotary table in the cache. The heads of
a row are held in two tiles `a` and `b` of A + B >= H heads, each a power of two.
"""

import triton
import triton.language as tl

from ..jit import rounded
from .row_jit import mean_of, reciprocal_root, sum_pieces, two_sums


@triton.jit
def offsets(FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr):
    return (FIRST + tl.arange(0, HEADS))[:, None] * HEAD + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def inside_tile(FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr, heads):
    inside = (FIRST + tl.arange(0, HEADS))[:, None] < heads
    if COLUMNS != HEAD:
        inside = inside & (tl.arange(0, COLUMNS)[None, :] < HEAD)
    return inside


@triton.jit
def load_tile(
    pointer, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr,
    H: tl.constexpr,
):  # fmt: skip
    if FIRST + HEADS > H or COLUMNS != HEAD:
        inside = inside_tile(FIRST, HEADS, HEAD, COLUMNS, H)
        x = tl.load(pointer + offsets(FIRST, HEADS, HEAD, COLUMNS), mask=inside, other=0.0)
    else:
        x = tl.load(pointer + offsets(FIRST, HEADS, HEAD, COLUMNS))
    return x.to(tl.float32)


@triton.jit
def store_tile(
    pointer, x, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr,
    H: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    x = rounded(x, pointer, EMULATE_BF16).to(pointer.dtype.element_ty)
    if FIRST + HEADS > H or COLUMNS != HEAD:
        inside = inside_tile(FIRST, HEADS, HEAD, COLUMNS, H)
        tl.store(pointer + offsets(FIRST, HEADS, HEAD, COLUMNS), x, mask=inside)
    else:
        tl.store(pointer + offsets(FIRST, HEADS, HEAD, COLUMNS), x)


@triton.jit
def load_vector(
    pointer, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr,
    H: tl.constexpr, NORM: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """A norm's weight or bias: the row's own, or one head's that all share."""
    if not GIVEN:
        x = tl.zeros([HEADS, COLUMNS], tl.float32)
    elif NORM == "rms_full":
        x = load_tile(pointer, FIRST, HEADS, HEAD, COLUMNS, H)
    else:  # every head reads it: a tile's loads are 128 bits, one vector's would be 16
        place = tl.arange(0, HEADS)[:, None] * 0 + tl.arange(0, COLUMNS)[None, :]
        if COLUMNS != HEAD:
            x = tl.load(pointer + place, mask=place < HEAD, other=0.0).to(tl.float32)
        else:
            x = tl.load(pointer + place).to(tl.float32)
    return x


@triton.jit
def load_table(
    pointer, turned, outside, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr,
    COLUMNS: tl.constexpr, H: tl.constexpr, SHARED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """cos or sin of the even and of the odd elements; `outside` where the token is not turned."""
    WIDTH: tl.constexpr = HEAD // 2 if HALF else HEAD
    WIDE: tl.constexpr = COLUMNS // 2 if HALF else COLUMNS
    ROWS: tl.constexpr = 1 if SHARED else HEADS
    inside = inside_tile(FIRST, ROWS, WIDTH, WIDE, tl.where(turned, H, 0))
    x = tl.load(pointer + offsets(0 if SHARED else FIRST, ROWS, WIDTH, WIDE), mask=inside, other=outside)
    x = x.to(tl.float32)
    if HALF:
        even, odd = x, x
    else:
        even, odd = tl.split(tl.reshape(x, [ROWS, COLUMNS // 2, 2]))
    return even, odd


@triton.jit
def load_tables(
    cos, sin, turned, HEAD: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, SHARED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """What `turn` takes of a row's cos and sin for the tiles `a` and `b`."""
    ce_a, co_a = load_table(cos, turned, 1.0, 0, A, HEAD, COLUMNS, H, SHARED, HALF)
    se_a, so_a = load_table(sin, turned, 0.0, 0, A, HEAD, COLUMNS, H, SHARED, HALF)
    ce_b, co_b = load_table(cos, turned, 1.0, A, B, HEAD, COLUMNS, H, SHARED, HALF)
    se_b, so_b = load_table(sin, turned, 0.0, A, B, HEAD, COLUMNS, H, SHARED, HALF)
    return ce_a, co_a, se_a, so_a, ce_b, co_b, se_b, so_b


@triton.jit
def turn(
    x, cos_even, cos_odd, sin_even, sin_odd, HEADS: tl.constexpr, COLUMNS: tl.constexpr, BACK: tl.constexpr
):
    """Rotate neighbouring elements, or (BACK) apply the transpose."""
    even, odd = tl.split(tl.reshape(x, [HEADS, COLUMNS // 2, 2]))
    if BACK:
        new_even, new_odd = even * cos_even + odd * sin_odd, odd * cos_odd - even * sin_even
    else:
        new_even, new_odd = even * cos_even - odd * sin_even, odd * cos_odd + even * sin_odd
    return tl.reshape(tl.join(new_even, new_odd), [HEADS, COLUMNS])


@triton.jit
def means(a, b, HEAD: tl.constexpr, H: tl.constexpr, NORM: tl.constexpr):
    """Over the whole row (a number for both tiles) or over each head."""
    if NORM == "rms_full":
        total = mean_of(sum_pieces(a, b), H * HEAD)
        mean_a, mean_b = total, total
    else:
        mean_a = mean_of(tl.sum(a, axis=1)[:, None], HEAD)
        mean_b = mean_of(tl.sum(b, axis=1)[:, None], HEAD)
    return mean_a, mean_b


@triton.jit
def centered_heads(a, b, HEAD: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, NORM: tl.constexpr):
    """Each head less its mean; what lies past a head stays 0."""
    mean_a, mean_b = means(a, b, HEAD, H, NORM)
    a, b = a - mean_a, b - mean_b
    if COLUMNS != HEAD:
        inside = tl.arange(0, COLUMNS)[None, :] < HEAD
        a, b = tl.where(inside, a, 0.0), tl.where(inside, b, 0.0)
    return a, b


@triton.jit
def normalized_heads(
    a, b, eps, HEAD: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, NORM: tl.constexpr
):
    if NORM == "layer_head":
        a, b = centered_heads(a, b, HEAD, COLUMNS, H, NORM)
    square_a, square_b = means(a * a, b * b, HEAD, H, NORM)
    rstd_a, rstd_b = reciprocal_root(square_a, eps), reciprocal_root(square_b, eps)
    return a * rstd_a, b * rstd_b, rstd_a, rstd_b


@triton.jit
def forward_rows(
    x, weight, bias, cos, sin, out, x_batch, x_row, cos_batch, cos_row, batch, row, end, tokens,
    rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, ROPE: tl.constexpr, SHARED: tl.constexpr,
    HALF: tl.constexpr, LATE_TABLES: tl.constexpr, ALIGN: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr,
    COLUMNS: tl.constexpr, A: tl.constexpr, B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    weight_a = load_vector(weight, 0, A, HEAD, COLUMNS, H, NORM, WEIGHT)
    weight_b = load_vector(weight, A, B, HEAD, COLUMNS, H, NORM, WEIGHT)
    bias_a, bias_b = (
        load_vector(bias, 0, A, HEAD, COLUMNS, H, NORM, BIAS),
        load_vector(bias, A, B, HEAD, COLUMNS, H, NORM, BIAS),
    )
    while row < end:
        a = load_tile(x + (batch * x_batch + row * x_row) * ALIGN, 0, A, HEAD, COLUMNS, H)
        b = load_tile(x + (batch * x_batch + row * x_row) * ALIGN, A, B, HEAD, COLUMNS, H)
        turned = (row >= rope_start) & (row < rope_end)
        table = (batch * cos_batch + (row - rope_start) * cos_row) * ALIGN
        if ROPE and not LATE_TABLES:  # asked for before the row's sums, whose barriers no load passes
            ce_a, co_a, se_a, so_a, ce_b, co_b, se_b, so_b = load_tables(
                cos + table, sin + table, turned, HEAD, COLUMNS, H, A, B, SHARED, HALF
            )
        if NORM != "none":
            a, b, _, _ = normalized_heads(a, b, eps, HEAD, COLUMNS, H, NORM)
        if WEIGHT:
            a, b = a * weight_a, b * weight_b
        if BIAS:
            a, b = a + bias_a, b + bias_b
        if ROPE and LATE_TABLES:
            ce_a, co_a, se_a, so_a, ce_b, co_b, se_b, so_b = load_tables(
                cos + table, sin + table, turned, HEAD, COLUMNS, H, A, B, SHARED, HALF
            )
        if ROPE:
            # Eager rounds between norm and rotation; here both are one fp32 expression.
            a = turn(a, ce_a, co_a, se_a, so_a, A, COLUMNS, False)
            b = turn(b, ce_b, co_b, se_b, so_b, B, COLUMNS, False)
        store_tile(out + (batch * tokens + row) * (H * HEAD), a, 0, A, HEAD, COLUMNS, H, EMULATE_BF16)
        store_tile(out + (batch * tokens + row) * (H * HEAD), b, A, B, HEAD, COLUMNS, H, EMULATE_BF16)
        row += 1


FORWARD_SIZES = ["q_batch", "q_row", "k_batch", "k_row", "cos_batch", "cos_row", "tokens", "parts"]
FORWARD_SIZES += ["rope_start", "rope_end"]


@triton.jit(do_not_specialize=FORWARD_SIZES)
def qk_forward(
    q, k, q_weight, k_weight, q_bias, k_bias, cos, sin,
    q_out, k_out,  # [B, N, D]
    q_batch, q_row, k_batch, k_row, cos_batch, cos_row, tokens, parts, rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, ROPE: tl.constexpr, SHARED: tl.constexpr,
    HALF: tl.constexpr, LATE_TABLES: tl.constexpr, ALIGN: tl.constexpr, CHUNK: tl.constexpr, H: tl.constexpr,
    HEAD: tl.constexpr, COLUMNS: tl.constexpr, A: tl.constexpr, B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    part, batch = (program // 2) % parts, program // 2 // parts
    row = part * CHUNK
    end = tl.minimum(row + CHUNK, tokens)
    if program % 2 == 0:
        forward_rows(
            q, q_weight, q_bias, cos, sin, q_out, q_batch, q_row, cos_batch, cos_row, batch, row, end, tokens,
            rope_start, rope_end, eps, NORM, WEIGHT, BIAS, ROPE, SHARED, HALF, LATE_TABLES, ALIGN, H, HEAD,
            COLUMNS, A, B, EMULATE_BF16,
        )  # fmt: skip
    else:
        forward_rows(
            k, k_weight, k_bias, cos, sin, k_out, k_batch, k_row, cos_batch, cos_row, batch, row, end, tokens,
            rope_start, rope_end, eps, NORM, WEIGHT, BIAS, ROPE, SHARED, HALF, LATE_TABLES, ALIGN, H, HEAD,
            COLUMNS, A, B, EMULATE_BF16,
        )  # fmt: skip


@triton.jit
def store_sums(
    sums, a, b, NORM: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """A program's sums for a weight or bias: the row's, or those of its heads, which share one."""
    if NORM == "rms_full":
        store_tile(sums, a, 0, A, HEAD, COLUMNS, H, False)
        store_tile(sums, b, A, B, HEAD, COLUMNS, H, False)
    else:
        if A + B > H:  # without eps a head that is not there has no norm
            b = tl.where((A + tl.arange(0, B))[:, None] < H, b, 0.0)
        total = tl.sum(a, axis=0) + tl.sum(b, axis=0)
        column = tl.arange(0, COLUMNS)
        if COLUMNS != HEAD:
            tl.store(sums + column, total, mask=column < HEAD)
        else:
            tl.store(sums + column, total)


@triton.jit
def backward_rows(
    dy, x, weight, cos, sin, dx, sums, step, dy_batch, dy_row, x_batch, x_row, cos_batch, cos_row,
    batch, row, end, tokens, rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, SUM_WEIGHT: tl.constexpr, SUM_BIAS: tl.constexpr,
    ROPE: tl.constexpr, SHARED: tl.constexpr, HALF: tl.constexpr, ALIGN: tl.constexpr, H: tl.constexpr,
    HEAD: tl.constexpr, COLUMNS: tl.constexpr, A: tl.constexpr, B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    zero_a, zero_b = tl.zeros([A, COLUMNS], tl.float32), tl.zeros([B, COLUMNS], tl.float32)
    dweight_a, dweight_b, dbias_a, dbias_b = zero_a, zero_b, zero_a, zero_b
    weight_a = load_vector(weight, 0, A, HEAD, COLUMNS, H, NORM, WEIGHT)
    weight_b = load_vector(weight, A, B, HEAD, COLUMNS, H, NORM, WEIGHT)
    while row < end:
        g_a = load_tile(dy + (batch * dy_batch + row * dy_row) * ALIGN, 0, A, HEAD, COLUMNS, H)
        g_b = load_tile(dy + (batch * dy_batch + row * dy_row) * ALIGN, A, B, HEAD, COLUMNS, H)
        if NORM != "none":
            a = load_tile(x + (batch * x_batch + row * x_row) * ALIGN, 0, A, HEAD, COLUMNS, H)
            b = load_tile(x + (batch * x_batch + row * x_row) * ALIGN, A, B, HEAD, COLUMNS, H)
        if ROPE:
            turned = (row >= rope_start) & (row < rope_end)
            table = (batch * cos_batch + (row - rope_start) * cos_row) * ALIGN
            ce_a, co_a, se_a, so_a, ce_b, co_b, se_b, so_b = load_tables(
                cos + table, sin + table, turned, HEAD, COLUMNS, H, A, B, SHARED, HALF
            )
            g_a = turn(g_a, ce_a, co_a, se_a, so_a, A, COLUMNS, True)
            g_b = turn(g_b, ce_b, co_b, se_b, so_b, B, COLUMNS, True)
        if NORM == "rms_full":
            t_a, t_b = g_a, g_b
            if WEIGHT:
                t_a, t_b = g_a * weight_a, g_b * weight_b
            # Of the row as it is, so that both sums are taken in one go.
            square, along = two_sums(a * a, b * b, t_a * a, t_b * b, EMULATE_BF16)
            rstd = reciprocal_root(mean_of(square, H * HEAD), eps)
            a, b = a * rstd, b * rstd
            if SUM_WEIGHT:
                dweight_a, dweight_b = dweight_a + g_a * a, dweight_b + g_b * b
            if SUM_BIAS:
                dbias_a, dbias_b = dbias_a + g_a, dbias_b + g_b
            along = mean_of(along * rstd, H * HEAD)
            g_a, g_b = (t_a - a * along) * rstd, (t_b - b * along) * rstd
        elif NORM != "none":
            a, b, rstd_a, rstd_b = normalized_heads(a, b, eps, HEAD, COLUMNS, H, NORM)
            if SUM_WEIGHT:
                dweight_a, dweight_b = dweight_a + g_a * a, dweight_b + g_b * b
            if SUM_BIAS:
                dbias_a, dbias_b = dbias_a + g_a, dbias_b + g_b
            if WEIGHT:
                g_a, g_b = g_a * weight_a, g_b * weight_b
            along_a, along_b = means(g_a * a, g_b * b, HEAD, H, NORM)
            if NORM == "layer_head":
                g_a, g_b = centered_heads(g_a, g_b, HEAD, COLUMNS, H, NORM)
            g_a, g_b = (g_a - a * along_a) * rstd_a, (g_b - b * along_b) * rstd_b
        store_tile(dx + (batch * tokens + row) * (H * HEAD), g_a, 0, A, HEAD, COLUMNS, H, EMULATE_BF16)
        store_tile(dx + (batch * tokens + row) * (H * HEAD), g_b, A, B, HEAD, COLUMNS, H, EMULATE_BF16)
        row += 1
    if SUM_WEIGHT:
        store_sums(sums, dweight_a, dweight_b, NORM, HEAD, COLUMNS, H, A, B)
        sums += step
    if SUM_BIAS:
        store_sums(sums, dbias_a, dbias_b, NORM, HEAD, COLUMNS, H, A, B)


BACKWARD_SIZES = ["dq_batch", "dq_row", "dk_batch", "dk_row", *FORWARD_SIZES]


@triton.jit(do_not_specialize=BACKWARD_SIZES)
def qk_backward(
    dq_out, dk_out, q, k, q_weight, k_weight, cos, sin,
    dq, dk,  # [B, N, D]
    sums,  # fp32 [2 (q, k), SUM_WEIGHT + SUM_BIAS, B * parts, D or HEAD]
    dq_batch, dq_row, dk_batch, dk_row,
    q_batch, q_row, k_batch, k_row, cos_batch, cos_row, tokens, parts, rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, SUM_WEIGHT: tl.constexpr, SUM_BIAS: tl.constexpr,
    ROPE: tl.constexpr, SHARED: tl.constexpr, HALF: tl.constexpr, ALIGN: tl.constexpr, CHUNK: tl.constexpr,
    H: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    part, batch = (program // 2) % parts, program // 2 // parts
    row = part * CHUNK
    end = tl.minimum(row + CHUNK, tokens)
    WIDTH: tl.constexpr = H * HEAD if NORM == "rms_full" else HEAD
    step = (tl.num_programs(0) // 2).to(tl.int64) * WIDTH
    out = sums + (program // 2) * WIDTH
    if program % 2 == 0:
        backward_rows(
            dq_out, q, q_weight, cos, sin, dq, out, step, dq_batch, dq_row, q_batch, q_row, cos_batch,
            cos_row, batch, row, end, tokens, rope_start, rope_end, eps,
            NORM, WEIGHT, SUM_WEIGHT, SUM_BIAS, ROPE, SHARED, HALF, ALIGN, H, HEAD, COLUMNS, A, B,
            EMULATE_BF16,
        )  # fmt: skip
    else:
        backward_rows(
            dk_out, k, k_weight, cos, sin, dk, out + (SUM_WEIGHT + SUM_BIAS) * step, step, dk_batch, dk_row,
            k_batch, k_row, cos_batch, cos_row, batch, row, end, tokens, rope_start, rope_end, eps,
            NORM, WEIGHT, SUM_WEIGHT, SUM_BIAS, ROPE, SHARED, HALF, ALIGN, H, HEAD, COLUMNS, A, B,
            EMULATE_BF16,
        )  # fmt: skip
