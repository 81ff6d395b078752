"""`qk_norm_rope` of one tensor: queries and keys of different lengths, of different heads, with tables of their own."""

from __future__ import annotations

import torch

from ..backend import takes_triton
from ..hidden.rows import LATE_TABLES, as_rows, check_hidden, cut_rows, sum_parts
from ..launch import dense_like
from ..library import once_differentiable, opaque, recorded
from ..reference import hidden as eager
from .rows_of_heads import checked, kernels, launch_heads, sum_width


def norm_rope(
    x: torch.Tensor,  # [B, N, D]
    weight: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    *,
    num_heads: int,
    bias: torch.Tensor | None = None,
    norm: str = "rms_full",
    rope: str = "neighbours",
    rope_start: int = 0,
    rope_len: int | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Norm of x, then a rotation of pairs of elements within each head, `[B, N, D]`.

    Queries or keys alone, as in cross-attention and where keys have fewer heads; both at once are `qk_norm_rope`'s,
    whose rows share a table's reads.

    Args:
        x: `[B, N, D]` with D = num_heads * head size; rows may be strided.
        weight, bias: the norm's, `[D]` for `rms_full`, else `[head size]`.
        cos, sin, norm, rope, rope_start, rope_len: as in `qk_norm_rope`.

    Raises:
        TypeError, ValueError, RuntimeError: as `qk_norm_rope`.
    """
    op = "norm_rope"
    check_hidden(op, "x", x)
    settings = (num_heads, norm, rope, rope_start, rope_len, eps)
    table, settings, blocked = checked(op, x, {"weight": weight, "bias": bias}, cos, sin, settings)
    if not takes_triton(op, x, blocked):
        names = dict(num_heads=num_heads, bias=bias, norm=norm, rope=rope, eps=eps)
        return eager.norm_rope(x, weight, *table, rope_start=rope_start, rope_len=settings[4], **names)
    return recorded(_NormRope, _norm_rope)(x, weight, bias, *table, *settings)


@opaque("norm_rope", lambda x, *_: dense_like(x))
def _norm_rope(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    norm: str,
    rope: str,
    rope_start: int,
    rope_len: int,
    eps: float,
) -> torch.Tensor:
    x = as_rows(x)
    out, tensors = dense_like(x), (x, weight, bias, cos, sin)
    settings = (num_heads, norm, rope, rope_start, rope_len, eps)
    cut = cut_rows("qk_forward", x, 1, num_heads, rope == "halves")
    constants = {"BIAS": bias is not None, "LATE_TABLES": x.shape[2] <= LATE_TABLES}
    kernel = kernels().norm_rope_forward
    launch_heads(kernel, cut, 1, tensors, (out,), (x,), cos, weight, settings, **constants)
    return out


def _backward_fake(dy, *rest):
    num_heads, norm, _, _, _, _, sum_weight, sum_bias = rest[4:]
    shape = (sum_weight + sum_bias, sum_width(dy, num_heads, norm))
    return dense_like(dy), dy.new_empty(shape, dtype=torch.float32)


@opaque("norm_rope_backward", _backward_fake)
def _norm_rope_backward(
    dy: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    norm: str,
    rope: str,
    rope_start: int,
    rope_len: int,
    eps: float,
    sum_weight: bool,
    sum_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`dx`, and the sums that are asked for, of weight and bias, fp32 [0 to 2, D or head size]."""
    dy = as_rows(dy)
    x = dy if x is None else as_rows(x)
    count = sum_weight + sum_bias
    cut = cut_rows("qk_sums" if count else "qk_backward", x, 1, num_heads, rope == "halves")
    shape = (count, cut.programs if count else 1, sum_width(x, num_heads, norm))
    dx, sums = dense_like(x), x.new_empty(shape, dtype=torch.float32)
    settings = (num_heads, norm, rope, rope_start, rope_len, eps)
    tensors, constants = (dy, x, weight, cos, sin), {"SUM_WEIGHT": sum_weight, "SUM_BIAS": sum_bias}
    kernel = kernels().norm_rope_backward
    launch_heads(kernel, cut, 1, tensors, (dx, sums), (dy, x), cos, weight, settings, **constants)
    return dx, sum_parts(sums)


class _NormRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, cos, sin, *settings):
        ctx.settings = settings
        ctx.save_for_backward(x if settings[1] != "none" else None, weight, bias, cos, sin)
        return _norm_rope(x, weight, bias, cos, sin, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, cos, sin = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx, sums = _norm_rope_backward(dy, x, weight, cos, sin, *ctx.settings, *needs[1:3])
        dweight = sums[0].to(weight.dtype) if needs[1] else None
        dbias = sums[int(needs[1])].to(bias.dtype) if needs[2] else None
        return dx if needs[0] else None, dweight, dbias, *[None] * 8
