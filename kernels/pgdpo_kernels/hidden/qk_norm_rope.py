"""Query and key norm with rotary embedding in one pass, forward and backward."""

from __future__ import annotations

import functools

import torch

from ..backend import takes_triton
from ..checks import check_float, check_number
from ..launch import dense_like, next_power_of_2
from ..library import once_differentiable, opaque, recorded
from ..reference import hidden as eager
from .rows import (
    LATE_TABLES,
    MAX_WIDTH,
    as_rows,
    check_hidden,
    check_vector,
    cut_rows,
    launch_rows,
    obstacle,
    sum_parts,
)

NORMS = ("rms_full", "rms_head", "layer_head", "none")


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
    rope_start: int = 0,
    rope_len: int | None = None,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm of q and k, then a rotation of neighbouring elements (2i, 2i + 1); `[B, N, D]` each.

    With x the normed element pair: (x0 cos0 - x1 sin0, x1 cos1 + x0 sin1), as diffusers' `apply_rotary_emb`.

    Args:
        q, k: `[B, N, D]` with D = num_heads * head size; rows may be strided, as views of a fused projection.
        q_weight, k_weight, q_bias, k_bias: the norms', `[D]` for `rms_full`, else `[head size]`. q's and k's
            are both given or both None.
        cos, sin: no gradient flows to them; both None for no rotation. `[N', W]`, `[B | 1, N', W]` or
            `[B | 1, N', H | 1, W']`: W is the head size (one table for all heads: Wan, HunyuanVideo,
            CogVideoX) or D (LTX), W' the head size or, with one value per pair, half of it.
        norm: `rms_full` over the whole width (Wan, LTX), `rms_head` per head (HunyuanVideo), `layer_head`
            LayerNorm per head (CogVideoX), or `none`.
        rope_start, rope_len: the tokens that are turned, N' of them; by default all from `rope_start` on.

    Raises:
        TypeError, ValueError: a dtype, a shape or the norm is not one of the above.
        RuntimeError: the backend `triton` was asked for and cannot run here.
    """
    op = "qk_norm_rope"
    check_hidden(op, "q", q)
    check_hidden(op, "k", k)
    batch, tokens, width = q.shape
    if k.shape != q.shape or k.dtype != q.dtype:
        raise ValueError(f"{op}: q and k must be alike, got {tuple(q.shape)} and {tuple(k.shape)}")
    if num_heads < 1 or width % num_heads or width // num_heads % 2:
        raise ValueError(f"{op}: {num_heads} heads do not cut a width of {width} into even sizes")
    if norm not in NORMS:
        raise ValueError(f"{op}: norm must be one of {NORMS}, got {norm!r}")
    head = width // num_heads
    for name, a, b in (("weight", q_weight, k_weight), ("bias", q_bias, k_bias)):
        check_vector(op, f"q_{name}", a, width if norm == "rms_full" else head)
        check_vector(op, f"k_{name}", b, width if norm == "rms_full" else head)
        if (a is None) != (b is None) or (a is not None and norm == "none"):
            raise ValueError(f"{op}: q_{name} and k_{name} go together, and with a norm")
    check_number(op, "eps", eps, least=0)
    rope_len = tokens - rope_start if rope_len is None else rope_len
    if rope_start < 0 or rope_len < 0 or rope_start + rope_len > tokens:
        raise ValueError(f"{op}: {rope_len} tokens from {rope_start} on are not within {tokens}")
    table = rotary(op, cos, sin, (batch, rope_len, num_heads, head))
    blocked = obstacle(q, q_weight, k_weight, q_bias, k_bias, *table)
    if num_heads * next_power_of_2(head) > MAX_WIDTH:
        blocked = f"{num_heads} heads of {head}, padded to {next_power_of_2(head)}, are beyond {MAX_WIDTH}"
    if not takes_triton(op, q, blocked):
        names = dict(num_heads=num_heads, q_bias=q_bias, k_bias=k_bias, norm=norm, eps=eps)
        names |= dict(rope_start=rope_start, rope_len=rope_len)
        return eager.qk_norm_rope(q, k, q_weight, k_weight, *table, **names)
    weights = (q_weight, k_weight, q_bias, k_bias)
    run = recorded(_QKNormRope, _qk)
    return run(q, k, *weights, *table, num_heads, norm, rope_start, rope_len, float(eps))


def rotary(op, cos, sin, shape) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Both tables as views `[B | 1, N', H | 1, head size or half]`."""
    if (cos is None) != (sin is None):
        raise ValueError(f"{op}: cos and sin go together")
    if cos is None:
        return None, None
    batch, tokens, heads, head = shape
    check_float(op, "cos", cos)
    check_float(op, "sin", sin)
    if cos.shape != sin.shape or cos.stride() != sin.stride() or cos.dtype != sin.dtype:
        cos, sin = cos.contiguous(), sin.to(cos.dtype).contiguous()
    views = [eager.rotary_table(table.detach(), head, heads) for table in (cos, sin)]
    for view in views:
        fits = view.dim() == 4 and view.shape[0] in (1, batch) and view.shape[1] == tokens
        if not fits or view.shape[2] not in (1, heads) or view.shape[3] not in (head, head // 2):
            raise ValueError(
                f"{op}: cos and sin must be [N', W], [B | 1, N', W] or [B | 1, N', H | 1, W'] for N' = {tokens} "
                f"tokens of {heads} heads of {head}; got {tuple(cos.shape)} and {tuple(sin.shape)}"
            )
    return tuple(
        view
        if view.stride(3) == 1 and view.stride(2) in (0, view.shape[3]) or view.shape[2] == 1
        else view.contiguous()
        for view in views
    )


@functools.cache
def _kernels():
    """Imported once, as in `gate_residual`."""
    from . import qk_norm_rope_kernels

    return qk_norm_rope_kernels


def launch_qk(kernel, cut, tensors, outputs, strided, cos, weight, settings, **constants) -> None:
    """Forward and backward differ in what they read and write."""
    _, norm, rope_start, rope_len, eps = settings
    numbers = (*cut.sizes[1:], rope_start, rope_start + rope_len, eps)
    launch_rows(
        kernel,
        cut,
        2 * cut.programs,
        tensors,
        outputs,
        (*strided, cos),
        numbers,
        NORM=norm,
        WEIGHT=weight is not None,
        ROPE=cos is not None,
        SHARED=cos is None or cos.shape[2] == 1,
        HALF=cos is not None and cos.shape[3] < cut.constants["HEAD"],
        **constants,
    )


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
    rope_start: int,
    rope_len: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = as_rows(q), as_rows(k)
    outputs = (dense_like(q), dense_like(k))
    tensors = (q, k, q_weight, k_weight, q_bias, k_bias, cos, sin)
    settings = (num_heads, norm, rope_start, rope_len, eps)
    cut = cut_rows("qk_forward", q, 1, num_heads)
    constants = {"BIAS": q_bias is not None, "LATE_TABLES": q.shape[2] <= LATE_TABLES}
    launch_qk(_kernels().qk_forward, cut, tensors, outputs, (q, k), cos, q_weight, settings, **constants)
    return outputs


def sum_width(q: torch.Tensor, num_heads: int, norm: str) -> int:
    return q.shape[2] if norm == "rms_full" else q.shape[2] // num_heads


def _qk_backward_fake(dq_out, dk_out, *rest):
    num_heads, norm, _, _, _, sum_weight, sum_bias = rest[6:]
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
    cut = cut_rows("qk_sums" if count else "qk_backward", q, 1, num_heads)
    shape = (2, count, cut.programs if count else 1, sum_width(q, num_heads, norm))
    sums = q.new_empty(shape, dtype=torch.float32)
    grads = (dq_out, dk_out, q, k)
    tensors, outputs = (*grads, q_weight, k_weight, cos, sin), (dq, dk, sums)
    settings = (num_heads, norm, rope_start, rope_len, eps)
    constants = {"SUM_WEIGHT": sum_weight, "SUM_BIAS": sum_bias}
    launch_qk(_kernels().qk_backward, cut, tensors, outputs, grads, cos, q_weight, settings, **constants)
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
        return (dq if needs[0] else None, dk if needs[1] else None, *vectors, *[None] * 7)
