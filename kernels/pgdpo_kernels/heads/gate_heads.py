"""Attention's heads times scale * sigmoid(logits), a logit for each head of each token, forward and backward."""

from __future__ import annotations

import functools

import torch

from ..backend import takes_triton
from ..checks import check_float, check_number
from ..hidden.rows import MAX_WIDTH, as_rows, check_hidden, cut_rows, launch_rows, obstacle
from ..launch import dense_like, next_power_of_2
from ..library import once_differentiable, opaque, recorded
from ..reference import hidden as eager


def gate_heads(x: torch.Tensor, logits: torch.Tensor, *, scale: float = 2.0) -> torch.Tensor:
    """Each head of x times scale * sigmoid of its logit, in the shape and dtype of x.

    As the attention of LTX-2 writes it: with a scale of 2 a logit of 0 changes nothing.

    Args:
        x: `[B, N, D]` with D = H * head size, bf16, fp16 or fp32; rows may be strided.
        logits: `[B, N, H]`, of a dtype of their own. Their gradient is a sum over the head in fp32.

    Raises:
        TypeError, ValueError: a dtype or a shape is not one of the above.
        RuntimeError: the backend `triton` was asked for and cannot run here.
    """
    op = "gate_heads"
    check_hidden(op, "x", x)
    check_float(op, "logits", logits)
    if logits.shape[:-1] != x.shape[:-1] or logits.shape[-1] == 0 or x.shape[2] % logits.shape[-1]:
        raise ValueError(
            f"{op}: logits must be [B, N, H] with heads that cut [B, N, D] = {tuple(x.shape)}, "
            f"got shape {tuple(logits.shape)}"
        )
    if logits.device != x.device:
        raise ValueError(f"{op}: logits are on {logits.device}, x is on {x.device}")
    check_number(op, "scale", scale)
    heads = logits.shape[2]
    columns, blocked = next_power_of_2(x.shape[2] // heads), obstacle(x)
    if heads * columns > MAX_WIDTH:
        blocked = f"{heads} heads of {x.shape[2] // heads}, padded to {columns}, are beyond {MAX_WIDTH}"
    if not takes_triton(op, x, blocked):
        return eager.gate_heads(x, logits, scale=scale)
    return recorded(_GateHeads, _gate)(x, logits, float(scale))


@functools.cache
def _kernels():
    """Imported once, as in `gate_residual`."""
    from . import gate_heads_kernels

    return gate_heads_kernels


@opaque("gate_heads", lambda x, *_: dense_like(x))
def _gate(x: torch.Tensor, logits: torch.Tensor, scale: float) -> torch.Tensor:
    x, logits = as_rows(x), as_rows(logits)
    out, cut = dense_like(x), cut_rows("gate", x, 1, logits.shape[2])
    kernel, numbers = _kernels().gate_heads_forward, (*cut.sizes[1:], scale)
    launch_rows(kernel, cut, cut.programs, (x, logits), (out,), (x, logits), numbers)
    return out


@opaque("gate_heads_backward", lambda dy, x, logits, scale: (dense_like(x), dense_like(logits)))
def _gate_backward(
    dy: torch.Tensor, x: torch.Tensor, logits: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`dx` and `dlogits`."""
    tensors = dy, x, logits = as_rows(dy), as_rows(x), as_rows(logits)
    outputs, cut = (dense_like(x), dense_like(logits)), cut_rows("gate", x, 1, logits.shape[2])
    kernel, numbers = _kernels().gate_heads_backward, (*cut.sizes[1:], scale)
    launch_rows(kernel, cut, cut.programs, tensors, outputs, tensors, numbers)
    return outputs


class _GateHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, logits, scale):
        ctx.scale = scale
        ctx.save_for_backward(x, logits)
        return _gate(x, logits, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        dx, dlogits = _gate_backward(dy, *ctx.saved_tensors, ctx.scale)
        needs = ctx.needs_input_grad
        return dx if needs[0] else None, dlogits if needs[1] else None, None
