"""The kernels of `qk_norm_rope`, whose programs take rows of q or of k, and of `norm_rope`, which has one tensor.

Programs of q and of k on the same rows are neighbours: they share the rotary table in the cache.
"""

import triton
import triton.language as tl

from ..hidden.row_jit import mean_of, reciprocal_root, two_sums
from .heads_jit import (
    centered_heads,
    load_heads,
    load_tables,
    load_vector,
    means,
    normalized_heads,
    store_heads,
    store_sums,
    turn_heads,
)


@triton.jit
def forward_rows(
    x, weight, bias, cos, sin, out, x_batch, x_row, cos_batch, cos_row, batch, row, end, tokens,
    rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, ROPE: tl.constexpr, HALVES: tl.constexpr,
    SHARED: tl.constexpr, PER_PAIR: tl.constexpr, LATE_TABLES: tl.constexpr, ALIGN: tl.constexpr,
    H: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    weight_a, weight_b = load_vector(weight, HEAD, COLUMNS, H, A, B, HALVES, NORM, WEIGHT)
    bias_a, bias_b = load_vector(bias, HEAD, COLUMNS, H, A, B, HALVES, NORM, BIAS)
    while row < end:
        here = x + (batch * x_batch + row * x_row) * ALIGN
        a, b = load_heads(here, HEAD, COLUMNS, H, A, B, HALVES)
        turned = (row >= rope_start) & (row < rope_end)
        table = (batch * cos_batch + (row - rope_start) * cos_row) * ALIGN
        if ROPE and not LATE_TABLES:  # asked for before the row's sums, whose barriers no load passes
            ce_a, co_a, se_a, so_a, ce_b, co_b, se_b, so_b = load_tables(
                cos + table, sin + table, turned, HEAD, COLUMNS, H, A, B, SHARED, HALVES, PER_PAIR
            )
        if NORM != "none":
            a, b, _, _ = normalized_heads(a, b, eps, HEAD, COLUMNS, H, HALVES, NORM)
        if WEIGHT:
            a, b = a * weight_a, b * weight_b
        if BIAS:
            a, b = a + bias_a, b + bias_b
        if ROPE and LATE_TABLES:
            ce_a, co_a, se_a, so_a, ce_b, co_b, se_b, so_b = load_tables(
                cos + table, sin + table, turned, HEAD, COLUMNS, H, A, B, SHARED, HALVES, PER_PAIR
            )
        if ROPE:
            # Eager rounds between norm and rotation; here both are one fp32 expression.
            a, b = turn_heads(
                a, b, ce_a, co_a, se_a, so_a, ce_b, co_b, se_b, so_b, COLUMNS, A, B, HALVES, False
            )
        there = out + (batch * tokens + row) * (H * HEAD)
        store_heads(there, a, b, HEAD, COLUMNS, H, A, B, HALVES, EMULATE_BF16)
        row += 1


TABLE_SIZES = ["cos_batch", "cos_row", "tokens", "parts", "rope_start", "rope_end"]
ONE_SIZES = ["x_batch", "x_row", *TABLE_SIZES]
BOTH_SIZES = ["q_batch", "q_row", "k_batch", "k_row", *TABLE_SIZES]


@triton.jit(do_not_specialize=ONE_SIZES)
def norm_rope_forward(
    x, weight, bias, cos, sin,
    out,  # [B, N, D]
    x_batch, x_row, cos_batch, cos_row, tokens, parts, rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, ROPE: tl.constexpr, HALVES: tl.constexpr,
    SHARED: tl.constexpr, PER_PAIR: tl.constexpr, LATE_TABLES: tl.constexpr, ALIGN: tl.constexpr,
    CHUNK: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program % parts * CHUNK
    forward_rows(
        x, weight, bias, cos, sin, out, x_batch, x_row, cos_batch, cos_row, program // parts, row,
        tl.minimum(row + CHUNK, tokens), tokens, rope_start, rope_end, eps, NORM, WEIGHT, BIAS, ROPE, HALVES,
        SHARED, PER_PAIR, LATE_TABLES, ALIGN, H, HEAD, COLUMNS, A, B, EMULATE_BF16,
    )  # fmt: skip


@triton.jit(do_not_specialize=BOTH_SIZES)
def qk_forward(
    q, k, q_weight, k_weight, q_bias, k_bias, cos, sin,
    q_out, k_out,  # [B, N, D]
    q_batch, q_row, k_batch, k_row, cos_batch, cos_row, tokens, parts, rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, ROPE: tl.constexpr, HALVES: tl.constexpr,
    SHARED: tl.constexpr, PER_PAIR: tl.constexpr, LATE_TABLES: tl.constexpr, ALIGN: tl.constexpr,
    CHUNK: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    part, batch = (program // 2) % parts, program // 2 // parts
    row = part * CHUNK
    end = tl.minimum(row + CHUNK, tokens)
    if program % 2 == 0:
        forward_rows(
            q, q_weight, q_bias, cos, sin, q_out, q_batch, q_row, cos_batch, cos_row, batch, row, end, tokens,
            rope_start, rope_end, eps, NORM, WEIGHT, BIAS, ROPE, HALVES, SHARED, PER_PAIR, LATE_TABLES, ALIGN,
            H, HEAD, COLUMNS, A, B, EMULATE_BF16,
        )  # fmt: skip
    else:
        forward_rows(
            k, k_weight, k_bias, cos, sin, k_out, k_batch, k_row, cos_batch, cos_row, batch, row, end, tokens,
            rope_start, rope_end, eps, NORM, WEIGHT, BIAS, ROPE, HALVES, SHARED, PER_PAIR, LATE_TABLES, ALIGN,
            H, HEAD, COLUMNS, A, B, EMULATE_BF16,
        )  # fmt: skip


@triton.jit
def backward_rows(
    dy, x, weight, cos, sin, dx, sums, step, dy_batch, dy_row, x_batch, x_row, cos_batch, cos_row,
    batch, row, end, tokens, rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, SUM_WEIGHT: tl.constexpr, SUM_BIAS: tl.constexpr,
    ROPE: tl.constexpr, HALVES: tl.constexpr, SHARED: tl.constexpr, PER_PAIR: tl.constexpr,
    ALIGN: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    zero_a, zero_b = tl.zeros([A, COLUMNS], tl.float32), tl.zeros([B, COLUMNS], tl.float32)
    dweight_a, dweight_b, dbias_a, dbias_b = zero_a, zero_b, zero_a, zero_b
    weight_a, weight_b = load_vector(weight, HEAD, COLUMNS, H, A, B, HALVES, NORM, WEIGHT)
    while row < end:
        slope = dy + (batch * dy_batch + row * dy_row) * ALIGN
        g_a, g_b = load_heads(slope, HEAD, COLUMNS, H, A, B, HALVES)
        if NORM != "none":
            here = x + (batch * x_batch + row * x_row) * ALIGN
            a, b = load_heads(here, HEAD, COLUMNS, H, A, B, HALVES)
        if ROPE:
            turned = (row >= rope_start) & (row < rope_end)
            table = (batch * cos_batch + (row - rope_start) * cos_row) * ALIGN
            ce_a, co_a, se_a, so_a, ce_b, co_b, se_b, so_b = load_tables(
                cos + table, sin + table, turned, HEAD, COLUMNS, H, A, B, SHARED, HALVES, PER_PAIR
            )
            g_a, g_b = turn_heads(
                g_a, g_b, ce_a, co_a, se_a, so_a, ce_b, co_b, se_b, so_b, COLUMNS, A, B, HALVES, True
            )
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
            a, b, rstd_a, rstd_b = normalized_heads(a, b, eps, HEAD, COLUMNS, H, HALVES, NORM)
            if SUM_WEIGHT:
                dweight_a, dweight_b = dweight_a + g_a * a, dweight_b + g_b * b
            if SUM_BIAS:
                dbias_a, dbias_b = dbias_a + g_a, dbias_b + g_b
            if WEIGHT:
                g_a, g_b = g_a * weight_a, g_b * weight_b
            along_a, along_b = means(g_a * a, g_b * b, HEAD, H, HALVES, NORM)
            if NORM == "layer_head":
                g_a, g_b = centered_heads(g_a, g_b, HEAD, COLUMNS, H, HALVES, NORM)
            g_a, g_b = (g_a - a * along_a) * rstd_a, (g_b - b * along_b) * rstd_b
        there = dx + (batch * tokens + row) * (H * HEAD)
        store_heads(there, g_a, g_b, HEAD, COLUMNS, H, A, B, HALVES, EMULATE_BF16)
        row += 1
    if SUM_WEIGHT:
        store_sums(sums, dweight_a, dweight_b, HEAD, COLUMNS, H, A, B, HALVES, NORM)
        sums += step
    if SUM_BIAS:
        store_sums(sums, dbias_a, dbias_b, HEAD, COLUMNS, H, A, B, HALVES, NORM)


@triton.jit(do_not_specialize=["dy_batch", "dy_row", *ONE_SIZES])
def norm_rope_backward(
    dy, x, weight, cos, sin,
    dx,  # [B, N, D]
    sums,  # fp32 [SUM_WEIGHT + SUM_BIAS, B * parts, D or HEAD]
    dy_batch, dy_row, x_batch, x_row, cos_batch, cos_row, tokens, parts, rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, SUM_WEIGHT: tl.constexpr, SUM_BIAS: tl.constexpr,
    ROPE: tl.constexpr, HALVES: tl.constexpr, SHARED: tl.constexpr, PER_PAIR: tl.constexpr,
    ALIGN: tl.constexpr, CHUNK: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program % parts * CHUNK
    WIDTH: tl.constexpr = H * HEAD if NORM == "rms_full" else HEAD
    step = tl.num_programs(0).to(tl.int64) * WIDTH
    backward_rows(
        dy, x, weight, cos, sin, dx, sums + program * WIDTH, step, dy_batch, dy_row, x_batch, x_row,
        cos_batch, cos_row, program // parts, row, tl.minimum(row + CHUNK, tokens), tokens, rope_start,
        rope_end, eps, NORM, WEIGHT, SUM_WEIGHT, SUM_BIAS, ROPE, HALVES, SHARED, PER_PAIR, ALIGN, H, HEAD,
        COLUMNS, A, B, EMULATE_BF16,
    )  # fmt: skip


@triton.jit(do_not_specialize=["dq_batch", "dq_row", "dk_batch", "dk_row", *BOTH_SIZES])
def qk_backward(
    dq_out, dk_out, q, k, q_weight, k_weight, cos, sin,
    dq, dk,  # [B, N, D]
    sums,  # fp32 [2 (q, k), SUM_WEIGHT + SUM_BIAS, B * parts, D or HEAD]
    dq_batch, dq_row, dk_batch, dk_row,
    q_batch, q_row, k_batch, k_row, cos_batch, cos_row, tokens, parts, rope_start, rope_end, eps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, SUM_WEIGHT: tl.constexpr, SUM_BIAS: tl.constexpr,
    ROPE: tl.constexpr, HALVES: tl.constexpr, SHARED: tl.constexpr, PER_PAIR: tl.constexpr,
    ALIGN: tl.constexpr, CHUNK: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr,
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
            NORM, WEIGHT, SUM_WEIGHT, SUM_BIAS, ROPE, HALVES, SHARED, PER_PAIR, ALIGN, H, HEAD, COLUMNS, A, B,
            EMULATE_BF16,
        )  # fmt: skip
    else:
        backward_rows(
            dk_out, k, k_weight, cos, sin, dk, out + (SUM_WEIGHT + SUM_BIAS) * step, step, dk_batch, dk_row,
            k_batch, k_row, cos_batch, cos_row, batch, row, end, tokens, rope_start, rope_end, eps,
            NORM, WEIGHT, SUM_WEIGHT, SUM_BIAS, ROPE, HALVES, SHARED, PER_PAIR, ALIGN, H, HEAD, COLUMNS, A, B,
            EMULATE_BF16,
        )  # fmt: skip
