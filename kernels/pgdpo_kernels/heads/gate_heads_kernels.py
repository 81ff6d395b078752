"""The kernels of `gate_heads`: a row is a tile of heads, and each has a logit."""

import triton
import triton.language as tl

from ..jit import rounded
from .heads_jit import load_heads, store_heads

SIZES = ["x_batch", "x_row", "logits_batch", "logits_row", "tokens", "parts"]


@triton.jit
def load_gates(pointer, FIRST: tl.constexpr, HEADS: tl.constexpr, H: tl.constexpr):
    """sigmoid(logits) of a tile's heads, a column."""
    head = FIRST + tl.arange(0, HEADS)
    logits = tl.load(pointer + head, mask=head < H, other=0.0).to(tl.float32)
    return (1.0 / (1.0 + tl.exp(-logits)))[:, None]


@triton.jit
def store_slopes(
    pointer, dot, gate, scale, FIRST: tl.constexpr, HEADS: tl.constexpr, H: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    """The gradient by a tile's logits, of `dot` [HEADS], which is that by scale * sigmoid."""
    gate = tl.reshape(gate, [HEADS])
    head = FIRST + tl.arange(0, HEADS)
    slopes = rounded(dot * scale * gate * (1.0 - gate), pointer, EMULATE_BF16)
    tl.store(pointer + head, slopes.to(pointer.dtype.element_ty), mask=head < H)


@triton.jit(do_not_specialize=SIZES)
def gate_heads_forward(
    x, logits,
    out,  # [B, N, D]
    x_batch, x_row, logits_batch, logits_row, tokens, parts, scale,
    ALIGN: tl.constexpr, CHUNK: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    batch, row = program // parts, program % parts * CHUNK
    end = tl.minimum(row + CHUNK, tokens)
    while row < end:
        a, b = load_heads(x + (batch * x_batch + row * x_row) * ALIGN, HEAD, COLUMNS, H, A, B, False)
        here = logits + (batch * logits_batch + row * logits_row) * ALIGN
        a, b = a * (scale * load_gates(here, 0, A, H)), b * (scale * load_gates(here, A, B, H))
        there = out + (batch * tokens + row) * (H * HEAD)
        store_heads(there, a, b, HEAD, COLUMNS, H, A, B, False, EMULATE_BF16)
        row += 1


@triton.jit(do_not_specialize=["dy_batch", "dy_row", *SIZES])
def gate_heads_backward(
    dy, x, logits,
    dx,  # [B, N, D]
    dlogits,  # [B, N, H]
    dy_batch, dy_row, x_batch, x_row, logits_batch, logits_row, tokens, parts, scale,
    ALIGN: tl.constexpr, CHUNK: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    batch, row = program // parts, program % parts * CHUNK
    end = tl.minimum(row + CHUNK, tokens)
    while row < end:
        g_a, g_b = load_heads(dy + (batch * dy_batch + row * dy_row) * ALIGN, HEAD, COLUMNS, H, A, B, False)
        a, b = load_heads(x + (batch * x_batch + row * x_row) * ALIGN, HEAD, COLUMNS, H, A, B, False)
        here = logits + (batch * logits_batch + row * logits_row) * ALIGN
        gate_a, gate_b = load_gates(here, 0, A, H), load_gates(here, A, B, H)
        place = batch * tokens + row
        slopes = dlogits + place * H
        store_slopes(slopes, tl.sum(g_a * a, axis=1), gate_a, scale, 0, A, H, EMULATE_BF16)
        store_slopes(slopes, tl.sum(g_b * b, axis=1), gate_b, scale, A, B, H, EMULATE_BF16)
        g_a, g_b = g_a * (scale * gate_a), g_b * (scale * gate_b)
        store_heads(dx + place * (H * HEAD), g_a, g_b, HEAD, COLUMNS, H, A, B, False, EMULATE_BF16)
        row += 1
