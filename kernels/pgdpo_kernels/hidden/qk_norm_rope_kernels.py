"""The kernels of `qk_norm_rope`: a row is a tile of heads, and a program takes rows of q or of k.

Programs of q and of k on the same rows are neighbours: they share the rotary table in the cache. The heads of
a row are held in two tiles `a` and `b` of A + B >= H heads, each a power of two.
"""

import triton
import triton.language as tl

from ..jit import rounded
from .row_jit import reciprocal_root, sum_pieces, two_sums


@triton.jit
def offsets(FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr):
    return (FIRST + tl.arange(0, HEADS))[:, None] * HEAD + tl.arange(0, HEAD)[None, :]


@triton.jit
def load_tile(pointer, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, H: tl.constexpr):
    if FIRST + HEADS > H:
        inside = (FIRST + tl.arange(0, HEADS))[:, None] < H
        x = tl.load(pointer + offsets(FIRST, HEADS, HEAD), mask=inside, other=0.0)
    else:
        x = tl.load(pointer + offsets(FIRST, HEADS, HEAD))
    return x.to(tl.float32)


@triton.jit
def store_tile(
    pointer, x, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, H: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    x = rounded(x, pointer, EMULATE_BF16).to(pointer.dtype.element_ty)
    if FIRST + HEADS > H:
        inside = (FIRST + tl.arange(0, HEADS))[:, None] < H
        tl.store(pointer + offsets(FIRST, HEADS, HEAD), x, mask=inside)
    else:
        tl.store(pointer + offsets(FIRST, HEADS, HEAD), x)


@triton.jit
def load_vector(
    pointer, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, H: tl.constexpr,
    NORM: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """A norm's weight or bias: the row's own, or one head's that all share."""
    if not GIVEN:
        x = tl.zeros([HEADS, HEAD], tl.float32)
    elif NORM == "rms_full":
        x = load_tile(pointer, FIRST, HEADS, HEAD, H)
    else:  # every head reads it: a tile's loads are 128 bits, one vector's would be 16
        x = tl.load(pointer + tl.arange(0, HEADS)[:, None] * 0 + tl.arange(0, HEAD)[None, :]).to(tl.float32)
    return x


@triton.jit
def load_table(
    pointer, turned, outside, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, H: tl.constexpr,
    SHARED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """cos or sin of the even and of the odd elements; `outside` where the token is not turned."""
    WIDTH: tl.constexpr = HEAD // 2 if HALF else HEAD
    ROWS: tl.constexpr = 1 if SHARED else HEADS
    inside = (FIRST + tl.arange(0, ROWS))[:, None] < tl.where(turned, H, 0)
    x = tl.load(pointer + offsets(0 if SHARED else FIRST, ROWS, WIDTH), mask=inside, other=outside)
    x = x.to(tl.float32)
    if HALF:
        even, odd = x, x
    else:
        even, odd = tl.split(tl.reshape(x, [ROWS, HEAD // 2, 2]))
    return even, odd


@triton.jit
def load_tables(
    cos, sin, table, turned, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, H: tl.constexpr,
    SHARED: tl.constexpr, HALF: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """What `turn` takes. Asked for before a row's sums, whose barriers no load passes."""
    if ROPE:
        cos_even, cos_odd = load_table(cos + table, turned, 1.0, FIRST, HEADS, HEAD, H, SHARED, HALF)
        sin_even, sin_odd = load_table(sin + table, turned, 0.0, FIRST, HEADS, HEAD, H, SHARED, HALF)
    else:
        cos_even, cos_odd, sin_even, sin_odd = 1.0, 1.0, 0.0, 0.0
    return cos_even, cos_odd, sin_even, sin_odd


@triton.jit
def turn(
    x, cos_even, cos_odd, sin_even, sin_odd, HEADS: tl.constexpr, HEAD: tl.constexpr, BACK: tl.constexpr
):
    """Rotate neighbouring elements, or (BACK) apply the transpose."""
    even, odd = tl.split(tl.reshape(x, [HEADS, HEAD // 2, 2]))
    if BACK:
        new_even, new_odd = even * cos_even + odd * sin_odd, odd * cos_odd - even * sin_even
    else:
        new_even, new_odd = even * cos_even - odd * sin_even, odd * cos_odd + even * sin_odd
    return tl.reshape(tl.join(new_even, new_odd), [HEADS, HEAD])


@triton.jit
def means(a, b, HEAD: tl.constexpr, H: tl.constexpr, NORM: tl.constexpr):
    """Over the whole row (a number for both tiles) or over each head."""
    if NORM == "rms_full":
        total = sum_pieces(a, b) / (H * HEAD)
        mean_a, mean_b = total, total
    else:
        mean_a, mean_b = tl.sum(a, axis=1)[:, None] / HEAD, tl.sum(b, axis=1)[:, None] / HEAD
    return mean_a, mean_b


@triton.jit
def normalized_heads(a, b, eps, HEAD: tl.constexpr, H: tl.constexpr, NORM: tl.constexpr):
    if NORM == "layer_head":
        mean_a, mean_b = means(a, b, HEAD, H, NORM)
        a, b = a - mean_a, b - mean_b
    square_a, square_b = means(a * a, b * b, HEAD, H, NORM)
    rstd_a, rstd_b = reciprocal_root(square_a, eps), reciprocal_root(square_b, eps)
    return a * rstd_a, b * rstd_b, rstd_a, rstd_b


@triton.jit
def forward_rows(
    x, weight, bias, cos, sin, out, x_batch, x_row, cos_batch, cos_row, batch, row, end, tokens,
    rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, ROPE: tl.constexpr, SHARED: tl.constexpr,
    HALF: tl.constexpr, ALIGN: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    weight_a = load_vector(weight, 0, A, HEAD, H, NORM, WEIGHT)
    weight_b = load_vector(weight, A, B, HEAD, H, NORM, WEIGHT)
    bias_a, bias_b = (
        load_vector(bias, 0, A, HEAD, H, NORM, BIAS),
        load_vector(bias, A, B, HEAD, H, NORM, BIAS),
    )
    while row < end:
        a = load_tile(x + (batch * x_batch + row * x_row) * ALIGN, 0, A, HEAD, H)
        b = load_tile(x + (batch * x_batch + row * x_row) * ALIGN, A, B, HEAD, H)
        turned = (row >= rope_start) & (row < rope_end)
        table = (batch * cos_batch + (row - rope_start) * cos_row) * ALIGN
        ce_a, co_a, se_a, so_a = load_tables(cos, sin, table, turned, 0, A, HEAD, H, SHARED, HALF, ROPE)
        ce_b, co_b, se_b, so_b = load_tables(cos, sin, table, turned, A, B, HEAD, H, SHARED, HALF, ROPE)
        if NORM != "none":
            a, b, _, _ = normalized_heads(a, b, eps, HEAD, H, NORM)
        if WEIGHT:
            a, b = a * weight_a, b * weight_b
        if BIAS:
            a, b = a + bias_a, b + bias_b
        if ROPE:
            # Eager rounds between norm and rotation; here both are one fp32 expression.
            a = turn(a, ce_a, co_a, se_a, so_a, A, HEAD, False)
            b = turn(b, ce_b, co_b, se_b, so_b, B, HEAD, False)
        store_tile(out + (batch * tokens + row) * (H * HEAD), a, 0, A, HEAD, H, EMULATE_BF16)
        store_tile(out + (batch * tokens + row) * (H * HEAD), b, A, B, HEAD, H, EMULATE_BF16)
        row += 1


FORWARD_SIZES = ["q_batch", "q_row", "k_batch", "k_row", "cos_batch", "cos_row", "tokens", "parts"]
FORWARD_SIZES += ["rope_start", "rope_end"]


@triton.jit(do_not_specialize=FORWARD_SIZES)
def qk_forward(
    q, k, q_weight, k_weight, q_bias, k_bias, cos, sin,
    q_out, k_out,  # [B, N, D]
    q_batch, q_row, k_batch, k_row, cos_batch, cos_row, tokens, parts, rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, ROPE: tl.constexpr, SHARED: tl.constexpr,
    HALF: tl.constexpr, ALIGN: tl.constexpr, CHUNK: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    part, batch = (program // 2) % parts, program // 2 // parts
    row = part * CHUNK
    end = tl.minimum(row + CHUNK, tokens)
    if program % 2 == 0:
        forward_rows(
            q, q_weight, q_bias, cos, sin, q_out, q_batch, q_row, cos_batch, cos_row, batch, row, end, tokens,
            rope_start, rope_end, eps, NORM, WEIGHT, BIAS, ROPE, SHARED, HALF, ALIGN, H, HEAD, A, B,
            EMULATE_BF16,
        )  # fmt: skip
    else:
        forward_rows(
            k, k_weight, k_bias, cos, sin, k_out, k_batch, k_row, cos_batch, cos_row, batch, row, end, tokens,
            rope_start, rope_end, eps, NORM, WEIGHT, BIAS, ROPE, SHARED, HALF, ALIGN, H, HEAD, A, B,
            EMULATE_BF16,
        )  # fmt: skip


@triton.jit
def backward_rows(
    dy, x, weight, cos, sin, dx, sums, step, dy_batch, dy_row, x_batch, x_row, cos_batch, cos_row,
    batch, row, end, tokens, rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, SUMS: tl.constexpr, ROPE: tl.constexpr, SHARED: tl.constexpr,
    HALF: tl.constexpr, ALIGN: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    zero_a, zero_b = tl.zeros([A, HEAD], tl.float32), tl.zeros([B, HEAD], tl.float32)
    dweight_a, dweight_b, dbias_a, dbias_b = zero_a, zero_b, zero_a, zero_b
    weight_a = load_vector(weight, 0, A, HEAD, H, NORM, WEIGHT)
    weight_b = load_vector(weight, A, B, HEAD, H, NORM, WEIGHT)
    while row < end:
        g_a = load_tile(dy + (batch * dy_batch + row * dy_row) * ALIGN, 0, A, HEAD, H)
        g_b = load_tile(dy + (batch * dy_batch + row * dy_row) * ALIGN, A, B, HEAD, H)
        if NORM != "none":
            a = load_tile(x + (batch * x_batch + row * x_row) * ALIGN, 0, A, HEAD, H)
            b = load_tile(x + (batch * x_batch + row * x_row) * ALIGN, A, B, HEAD, H)
        turned = (row >= rope_start) & (row < rope_end)
        table = (batch * cos_batch + (row - rope_start) * cos_row) * ALIGN
        ce_a, co_a, se_a, so_a = load_tables(cos, sin, table, turned, 0, A, HEAD, H, SHARED, HALF, ROPE)
        ce_b, co_b, se_b, so_b = load_tables(cos, sin, table, turned, A, B, HEAD, H, SHARED, HALF, ROPE)
        if ROPE:
            g_a = turn(g_a, ce_a, co_a, se_a, so_a, A, HEAD, True)
            g_b = turn(g_b, ce_b, co_b, se_b, so_b, B, HEAD, True)
        if NORM == "rms_full":
            t_a, t_b = g_a, g_b
            if WEIGHT:
                t_a, t_b = g_a * weight_a, g_b * weight_b
            # Of the row as it is, so that both sums are taken in one go.
            square, along = two_sums(a * a, b * b, t_a * a, t_b * b, EMULATE_BF16)
            rstd = reciprocal_root(square / (H * HEAD), eps)
            a, b = a * rstd, b * rstd
            if SUMS:
                dweight_a, dweight_b = dweight_a + g_a * a, dweight_b + g_b * b
                dbias_a, dbias_b = dbias_a + g_a, dbias_b + g_b
            along = along * rstd / (H * HEAD)
            g_a, g_b = (t_a - a * along) * rstd, (t_b - b * along) * rstd
        elif NORM != "none":
            a, b, rstd_a, rstd_b = normalized_heads(a, b, eps, HEAD, H, NORM)
            if SUMS:
                dweight_a, dweight_b = dweight_a + g_a * a, dweight_b + g_b * b
                dbias_a, dbias_b = dbias_a + g_a, dbias_b + g_b
            if WEIGHT:
                g_a, g_b = g_a * weight_a, g_b * weight_b
            along_a, along_b = means(g_a * a, g_b * b, HEAD, H, NORM)
            if NORM == "layer_head":
                mean_a, mean_b = means(g_a, g_b, HEAD, H, NORM)
                g_a, g_b = g_a - mean_a, g_b - mean_b
            g_a, g_b = (g_a - a * along_a) * rstd_a, (g_b - b * along_b) * rstd_b
        store_tile(dx + (batch * tokens + row) * (H * HEAD), g_a, 0, A, HEAD, H, EMULATE_BF16)
        store_tile(dx + (batch * tokens + row) * (H * HEAD), g_b, A, B, HEAD, H, EMULATE_BF16)
        row += 1
    if SUMS:
        if NORM == "rms_full":
            store_tile(sums, dweight_a, 0, A, HEAD, H, False)
            store_tile(sums, dweight_b, A, B, HEAD, H, False)
            store_tile(sums + step, dbias_a, 0, A, HEAD, H, False)
            store_tile(sums + step, dbias_b, A, B, HEAD, H, False)
        else:
            tl.store(sums + tl.arange(0, HEAD), tl.sum(dweight_a, axis=0) + tl.sum(dweight_b, axis=0))
            tl.store(sums + step + tl.arange(0, HEAD), tl.sum(dbias_a, axis=0) + tl.sum(dbias_b, axis=0))


BACKWARD_SIZES = ["dq_batch", "dq_row", "dk_batch", "dk_row", *FORWARD_SIZES]


@triton.jit(do_not_specialize=BACKWARD_SIZES)
def qk_backward(
    dq_out, dk_out, q, k, q_weight, k_weight, cos, sin,
    dq, dk,  # [B, N, D]
    sums,  # fp32 [2 (q, k), 2 (weight, bias), B * parts, D or HEAD]
    dq_batch, dq_row, dk_batch, dk_row,
    q_batch, q_row, k_batch, k_row, cos_batch, cos_row, tokens, parts, rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, SUMS: tl.constexpr, ROPE: tl.constexpr, SHARED: tl.constexpr,
    HALF: tl.constexpr, ALIGN: tl.constexpr, CHUNK: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, EMULATE_BF16: tl.constexpr,
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
            NORM, WEIGHT, SUMS, ROPE, SHARED, HALF, ALIGN, H, HEAD, A, B, EMULATE_BF16,
        )  # fmt: skip
    else:
        backward_rows(
            dk_out, k, k_weight, cos, sin, dk, out + 2 * step, step, dk_batch, dk_row, k_batch, k_row,
            cos_batch, cos_row, batch, row, end, tokens, rope_start, rope_end, eps,
            NORM, WEIGHT, SUMS, ROPE, SHARED, HALF, ALIGN, H, HEAD, A, B, EMULATE_BF16,
        )  # fmt: skip
