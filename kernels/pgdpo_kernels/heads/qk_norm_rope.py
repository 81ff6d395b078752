"""Query and key norm with rotary embedding in one pass, forward and backward."""

from __future__ import annotations

import torch

from ..backend import takes_triton
from ..hidden.rows import LATE_TABLES, as_rows, check_hidden, cut_rows, sum_parts
from ..launch import dense_like
from ..library import once_differentiable, opaque, recorded
from ..reference import hidden as eager
from .rows_of_heads import checked, kernels, launch_heads, sum_width


def qk_norm_rope(
    q: torch.Tensor,  # [B, N, D]
    k: torch.Tensor,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    *,
    num_heads: int,
    q_bias: torch.Tensor | None = None,
    k_bias: torch.Tensor | None = None,
    norm: str = "rms_full",
    rope: str = "neighbours",
    rope_start: int = 0,
    rope_len: int | None = None,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm of q and k, then a rotation of pairs of elements within each head; `[B, N, D]` each.

    With (x0, x1) a pair of the normed head: (x0 cos0 - x1 sin0, x1 cos1 + x0 sin1), as diffusers' `apply_rotary_emb`.
    `norm_rope` does one of the two, where they are of different lengths or have tables of their own.

    Args:
        q, k: `[B, N, D]` with D = num_heads * head size; rows may be strided, as views of a fused projection.
        q_weight, k_weight, q_bias, k_bias: the norms', `[D]` for `rms_full`, else `[head size]`. q's and k's
            are both given or both None.
        cos, sin: no gradient flows to them; both None for no rotation. `[N', W]`, `[B | 1, N', W]` or
            `[B | 1, N', H | 1, W']`: W is the head size (one table for all heads: Wan, HunyuanVideo,
            CogVideoX) or D (LTX), W' the head size or, with one value per pair, half of it.
        norm: `rms_full` over the whole width (Wan, LTX), `rms_head` per head (HunyuanVideo), `layer_head`
            LayerNorm per head (CogVideoX), or `none`.
        rope: which elements of a head are pairs: `neighbours` (2i, 2i + 1), or `halves` (i, i + half the head size),
            as in LTX-2's split form, CogView4 and Cosmos.
        rope_start, rope_len: the tokens that are turned, N' of them; by default all from `rope_start` on.

    Raises:
        TypeError, ValueError: a dtype, a shape, the norm or the rope is not one of the above.
        RuntimeError: the backend `triton` was asked for and cannot run here.
    """
    op = "qk_norm_rope"
    check_hidden(op, "q", q)
    check_hidden(op, "k", k)
    if k.shape != q.shape or k.dtype != q.dtype:
        raise ValueError(f"{op}: q and k must be alike, got {tuple(q.shape)} and {tuple(k.shape)}")
    for name, a, b in (("weight", q_weight, k_weight), ("bias", q_bias, k_bias)):
        if (a is None) != (b is None):
            raise ValueError(f"{op}: q_{name} and k_{name} go together")
    vectors = {"q_weight": q_weight, "k_weight": k_weight, "q_bias": q_bias, "k_bias": k_bias}
    settings = (num_heads, norm, rope, rope_start, rope_len, eps)
    table, settings, blocked = checked(op, q, vectors, cos, sin, settings)
    if not takes_triton(op, q, blocked):
        names = dict(num_heads=num_heads, q_bias=q_bias, k_bias=k_bias, norm=norm, rope=rope, eps=eps)
        names |= dict(rope_start=rope_start, rope_len=settings[4])
        return eager.qk_norm_rope(q, k, q_weight, k_weight, *table, **names)
    return recorded(_QKNormRope, _qk)(q, k, *vectors.values(), *table, *settings)


@opaque("qk_norm_rope", lambda q, k, *_: (dense_like(q), dense_like(k)))
def _qk(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    q_bias: torch.Tensor | None,
    k_bias: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    norm: str,
    rope: str,
    rope_start: int,
    rope_len: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = as_rows(q), as_rows(k)
    outputs = (dense_like(q), dense_like(k))
    tensors = (q, k, q_weight, k_weight, q_bias, k_bias, cos, sin)
    settings = (num_heads, norm, rope, rope_start, rope_len, eps)
    cut = cut_rows("qk_forward", q, 1, num_heads, rope == "halves")
    constants = {"BIAS": q_bias is not None, "LATE_TABLES": q.shape[2] <= LATE_TABLES}
    launch_heads(kernels().qk_forward, cut, 2, tensors, outputs, (q, k), cos, q_weight, settings, **constants)
    return outputs


def _qk_backward_fake(dq_out, dk_out, *rest):
    num_heads, norm, _, _, _, _, sum_weight, sum_bias = rest[6:]
    dq, dk = dense_like(dq_out), dense_like(dk_out)
    shape = (2, sum_weight + sum_bias, sum_width(dq_out, num_heads, norm))
    return dq, dk, dq.new_empty(shape, dtype=torch.float32)


@opaque("qk_norm_rope_backward", _qk_backward_fake)
def _qk_backward(
    dq_out: torch.Tensor,
    dk_out: torch.Tensor,
    q: torch.Tensor | None,
    k: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`dq`, `dk`, and for q and k the sums that are asked for, of weight and bias, fp32 [2, 0 to 2, D or head size]."""
    dq_out, dk_out = as_rows(dq_out), as_rows(dk_out)
    q, k = (dq_out, dk_out) if q is None else (as_rows(q), as_rows(k))
    dq, dk = dense_like(q), dense_like(k)
    count = sum_weight + sum_bias
    cut = cut_rows("qk_sums" if count else "qk_backward", q, 1, num_heads, rope == "halves")
    shape = (2, count, cut.programs if count else 1, sum_width(q, num_heads, norm))
    sums = q.new_empty(shape, dtype=torch.float32)
    grads = (dq_out, dk_out, q, k)
    tensors, outputs = (*grads, q_weight, k_weight, cos, sin), (dq, dk, sums)
    settings = (num_heads, norm, rope, rope_start, rope_len, eps)
    constants = {"SUM_WEIGHT": sum_weight, "SUM_BIAS": sum_bias}
    launch_heads(kernels().qk_backward, cut, 2, tensors, outputs, grads, cos, q_weight, settings, **constants)
    return dq, dk, sum_parts(sums)


class _QKNormRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, q_weight, k_weight, q_bias, k_bias, cos, sin, *settings):
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        normed = (q, k) if settings[1] != "none" else (None, None)
        ctx.save_for_backward(*normed, q_weight, k_weight, q_bias, k_bias, cos, sin)
        return _qk(q, k, q_weight, k_weight, q_bias, k_bias, cos, sin, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx, dq_out, dk_out):
        q, k, q_weight, k_weight, q_bias, k_bias, cos, sin = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if dq_out is None:
            dq_out = torch.zeros_like(dk_out)
        if dk_out is None:
            dk_out = torch.zeros_like(dq_out)
        sum_weight, sum_bias = any(needs[2:4]), any(needs[4:6])
        dq, dk, sums = _qk_backward(
            dq_out, dk_out, q, k, q_weight, k_weight, cos, sin, *ctx.settings, sum_weight, sum_bias
        )
        vectors = [None] * 4
        for index, vector in enumerate((q_weight, k_weight, q_bias, k_bias)):
            if needs[2 + index]:
                of_bias, of_k = divmod(index, 2)
                vectors[index] = sums[of_k, of_bias and int(sum_weight)].to(vector.dtype)
        return (dq if needs[0] else None, dk if needs[1] else None, *vectors, *[None] * 8)
