"""Device functions on rows of H heads of HEAD elements, each row held in two tiles `a` and `b`.

Where neighbours are turned, `a` holds the first A heads and `b` the B after them. Where halves of heads are (HALVES),
`a` holds the first half of each head and `b` the second, so that a thread has both elements of what it turns, and
A = B >= H. A, B and COLUMNS, which hold the elements of a head or of its half, are powers of two.
"""

import triton
import triton.language as tl

from ..hidden.row_jit import mean_of, reciprocal_root, sum_pieces
from ..jit import rounded


@triton.jit
def offsets(FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr):
    return (FIRST + tl.arange(0, HEADS))[:, None] * HEAD + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def inside_tile(FIRST: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr, heads):
    inside = (FIRST + tl.arange(0, HEADS))[:, None] < heads
    if COLUMNS != WIDE:
        inside = inside & (tl.arange(0, COLUMNS)[None, :] < WIDE)
    return inside


@triton.jit
def load_tile(
    pointer, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, WIDE: tl.constexpr,
    COLUMNS: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """In fp32, WIDE elements of each head; what lies past them and past the last head is 0."""
    if FIRST + HEADS > H or COLUMNS != WIDE:
        inside = inside_tile(FIRST, HEADS, WIDE, COLUMNS, H)
        x = tl.load(pointer + offsets(FIRST, HEADS, HEAD, COLUMNS), mask=inside, other=0.0)
    else:
        x = tl.load(pointer + offsets(FIRST, HEADS, HEAD, COLUMNS))
    return x.to(tl.float32)


@triton.jit
def load_heads(
    pointer, HEAD: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    HALVES: tl.constexpr,
):  # fmt: skip
    if HALVES:
        a = load_tile(pointer, 0, A, HEAD, HEAD // 2, COLUMNS, H)
        b = load_tile(pointer + HEAD // 2, 0, B, HEAD, HEAD // 2, COLUMNS, H)
    else:
        a = load_tile(pointer, 0, A, HEAD, HEAD, COLUMNS, H)
        b = load_tile(pointer, A, B, HEAD, HEAD, COLUMNS, H)
    return a, b


@triton.jit
def store_tile(
    pointer, x, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, WIDE: tl.constexpr,
    COLUMNS: tl.constexpr, H: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    x = rounded(x, pointer, EMULATE_BF16).to(pointer.dtype.element_ty)
    if FIRST + HEADS > H or COLUMNS != WIDE:
        inside = inside_tile(FIRST, HEADS, WIDE, COLUMNS, H)
        tl.store(pointer + offsets(FIRST, HEADS, HEAD, COLUMNS), x, mask=inside)
    else:
        tl.store(pointer + offsets(FIRST, HEADS, HEAD, COLUMNS), x)


@triton.jit
def store_heads(
    pointer, a, b, HEAD: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, HALVES: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    if HALVES:
        store_tile(pointer, a, 0, A, HEAD, HEAD // 2, COLUMNS, H, EMULATE_BF16)
        store_tile(pointer + HEAD // 2, b, 0, B, HEAD, HEAD // 2, COLUMNS, H, EMULATE_BF16)
    else:
        store_tile(pointer, a, 0, A, HEAD, HEAD, COLUMNS, H, EMULATE_BF16)
        store_tile(pointer, b, A, B, HEAD, HEAD, COLUMNS, H, EMULATE_BF16)


@triton.jit
def load_shared(pointer, HEADS: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """One head's vector for every head of a tile: a tile's loads are 128 bits, one vector's would be 16."""
    place = tl.arange(0, HEADS)[:, None] * 0 + tl.arange(0, COLUMNS)[None, :]
    if COLUMNS != WIDE:  # noqa: SIM108, the two arms are chosen when it is compiled
        x = tl.load(pointer + place, mask=place < WIDE, other=0.0)
    else:
        x = tl.load(pointer + place)
    return x.to(tl.float32)


@triton.jit
def load_vector(
    pointer, HEAD: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    HALVES: tl.constexpr, NORM: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """A norm's weight or bias: the row's own, or one head's that all share."""
    if not GIVEN:
        a, b = tl.zeros([A, COLUMNS], tl.float32), tl.zeros([B, COLUMNS], tl.float32)
    elif NORM == "rms_full":
        a, b = load_heads(pointer, HEAD, COLUMNS, H, A, B, HALVES)
    elif HALVES:
        a = load_shared(pointer, A, HEAD // 2, COLUMNS)
        b = load_shared(pointer + HEAD // 2, B, HEAD // 2, COLUMNS)
    else:
        a = load_shared(pointer, A, HEAD, COLUMNS)
        b = load_shared(pointer, B, HEAD, COLUMNS)
    return a, b


@triton.jit
def load_angles(
    pointer, turned, outside, FIRST: tl.constexpr, HEADS: tl.constexpr, STEP: tl.constexpr,
    WIDE: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """A tile of cos or sin, of STEP numbers a head; `outside` where the token is not turned."""
    ROWS: tl.constexpr = 1 if SHARED else HEADS
    inside = inside_tile(FIRST, ROWS, WIDE, COLUMNS, tl.where(turned, H, 0))
    x = tl.load(pointer + offsets(0 if SHARED else FIRST, ROWS, STEP, COLUMNS), mask=inside, other=outside)
    return x.to(tl.float32)


@triton.jit
def load_table(
    pointer, turned, outside, FIRST: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr,
    COLUMNS: tl.constexpr, H: tl.constexpr, SHARED: tl.constexpr, HALVES: tl.constexpr,
    PER_PAIR: tl.constexpr,
):  # fmt: skip
    """cos or sin of the first and of the second elements of what is turned. PER_PAIR: both have the same."""
    STEP: tl.constexpr = HEAD // 2 if PER_PAIR else HEAD
    if HALVES:
        even = load_angles(pointer, turned, outside, FIRST, HEADS, STEP, HEAD // 2, COLUMNS, H, SHARED)
        odd = even
        if not PER_PAIR:
            pointer += HEAD // 2
            odd = load_angles(pointer, turned, outside, FIRST, HEADS, STEP, HEAD // 2, COLUMNS, H, SHARED)
    elif PER_PAIR:
        even = load_angles(pointer, turned, outside, FIRST, HEADS, STEP, STEP, COLUMNS // 2, H, SHARED)
        odd = even
    else:
        x = load_angles(pointer, turned, outside, FIRST, HEADS, STEP, STEP, COLUMNS, H, SHARED)
        even, odd = tl.split(tl.reshape(x, [1 if SHARED else HEADS, COLUMNS // 2, 2]))
    return even, odd


@triton.jit
def load_tables(
    cos, sin, turned, HEAD: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, SHARED: tl.constexpr, HALVES: tl.constexpr, PER_PAIR: tl.constexpr,
):  # fmt: skip
    """What `turn_heads` takes of a row's cos and sin: of halves one set, which stands for both tiles."""
    ce_a, co_a = load_table(cos, turned, 1.0, 0, A, HEAD, COLUMNS, H, SHARED, HALVES, PER_PAIR)
    se_a, so_a = load_table(sin, turned, 0.0, 0, A, HEAD, COLUMNS, H, SHARED, HALVES, PER_PAIR)
    if HALVES:
        ce_b, co_b, se_b, so_b = ce_a, co_a, se_a, so_a
    else:
        ce_b, co_b = load_table(cos, turned, 1.0, A, B, HEAD, COLUMNS, H, SHARED, HALVES, PER_PAIR)
        se_b, so_b = load_table(sin, turned, 0.0, A, B, HEAD, COLUMNS, H, SHARED, HALVES, PER_PAIR)
    return ce_a, co_a, se_a, so_a, ce_b, co_b, se_b, so_b


@triton.jit
def turn(even, odd, cos_even, cos_odd, sin_even, sin_odd, BACK: tl.constexpr):
    """Rotate (even, odd), or (BACK) apply the transpose."""
    if BACK:
        new_even, new_odd = even * cos_even + odd * sin_odd, odd * cos_odd - even * sin_even
    else:
        new_even, new_odd = even * cos_even - odd * sin_even, odd * cos_odd + even * sin_odd
    return new_even, new_odd


@triton.jit
def turn_neighbours(
    x, cos_even, cos_odd, sin_even, sin_odd, HEADS: tl.constexpr, COLUMNS: tl.constexpr, BACK: tl.constexpr
):
    even, odd = tl.split(tl.reshape(x, [HEADS, COLUMNS // 2, 2]))
    even, odd = turn(even, odd, cos_even, cos_odd, sin_even, sin_odd, BACK)
    return tl.reshape(tl.join(even, odd), [HEADS, COLUMNS])


@triton.jit
def turn_heads(
    a, b, ce_a, co_a, se_a, so_a, ce_b, co_b, se_b, so_b, COLUMNS: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, HALVES: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    if HALVES:
        a, b = turn(a, b, ce_a, co_a, se_a, so_a, BACK)
    else:
        a = turn_neighbours(a, ce_a, co_a, se_a, so_a, A, COLUMNS, BACK)
        b = turn_neighbours(b, ce_b, co_b, se_b, so_b, B, COLUMNS, BACK)
    return a, b


@triton.jit
def means(a, b, HEAD: tl.constexpr, H: tl.constexpr, HALVES: tl.constexpr, NORM: tl.constexpr):
    """Over the whole row (a number for both tiles) or over each head."""
    if NORM == "rms_full":
        total = mean_of(sum_pieces(a, b), H * HEAD)
        mean_a, mean_b = total, total
    elif HALVES:
        total = mean_of((tl.sum(a, axis=1) + tl.sum(b, axis=1))[:, None], HEAD)
        mean_a, mean_b = total, total
    else:
        mean_a = mean_of(tl.sum(a, axis=1)[:, None], HEAD)
        mean_b = mean_of(tl.sum(b, axis=1)[:, None], HEAD)
    return mean_a, mean_b


@triton.jit
def centered_heads(
    a, b, HEAD: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, HALVES: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """Each head less its mean; what lies past a head stays 0."""
    mean_a, mean_b = means(a, b, HEAD, H, HALVES, NORM)
    a, b = a - mean_a, b - mean_b
    WIDE: tl.constexpr = HEAD // 2 if HALVES else HEAD
    if COLUMNS != WIDE:
        inside = tl.arange(0, COLUMNS)[None, :] < WIDE
        a, b = tl.where(inside, a, 0.0), tl.where(inside, b, 0.0)
    return a, b


@triton.jit
def normalized_heads(
    a, b, eps, HEAD: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, HALVES: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    if NORM == "layer_head":
        a, b = centered_heads(a, b, HEAD, COLUMNS, H, HALVES, NORM)
    square_a, square_b = means(a * a, b * b, HEAD, H, HALVES, NORM)
    rstd_a, rstd_b = reciprocal_root(square_a, eps), reciprocal_root(square_b, eps)
    return a * rstd_a, b * rstd_b, rstd_a, rstd_b


@triton.jit
def store_sums(
    sums, a, b, HEAD: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, HALVES: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """A program's sums for a weight or bias: the row's, or those of its heads, which share one."""
    if NORM == "rms_full":
        store_heads(sums, a, b, HEAD, COLUMNS, H, A, B, HALVES, False)
    elif HALVES:
        store_columns(sums, over_heads(a, 0, A, H), HEAD // 2, COLUMNS)
        store_columns(sums + HEAD // 2, over_heads(b, 0, B, H), HEAD // 2, COLUMNS)
    else:
        store_columns(sums, over_heads(a, 0, A, H) + over_heads(b, A, B, H), HEAD, COLUMNS)


@triton.jit
def over_heads(x, FIRST: tl.constexpr, HEADS: tl.constexpr, H: tl.constexpr):
    if FIRST + HEADS > H:  # without eps a head that is not there has no norm
        x = tl.where((FIRST + tl.arange(0, HEADS))[:, None] < H, x, 0.0)
    return tl.sum(x, axis=0)


@triton.jit
def store_columns(pointer, x, WIDE: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    if COLUMNS != WIDE:
        tl.store(pointer + column, x, mask=column < WIDE)
    else:
        tl.store(pointer + column, x)
