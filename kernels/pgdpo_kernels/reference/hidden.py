"""The eager maths of the ops on hidden states, as diffusers 0.42 writes it in its transformer blocks.

A modulation in fp32 (Wan) lifts the whole expression to fp32, one in bf16 (CogVideoX, HunyuanVideo) leaves it
in bf16, with a rounding after every step: PyTorch's type promotion says which.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

Modulation = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None


def vectors(value: Modulation, tokens: int) -> torch.Tensor | None:
    """The modulation as one tensor that broadcasts over `[B, N, D]`."""
    if value is None:
        return None
    if isinstance(value, tuple):
        table, embedding = value
        embedding = embedding.unsqueeze(1) if embedding.dim() == 2 else embedding
        value = table.float().reshape(-1) + embedding.float()
    value = value.unsqueeze(1) if value.dim() == 2 else value
    if value.shape[1] not in (1, tokens):
        value = value.repeat_interleave(tokens // value.shape[1], 1)
    return value


def normalize(x, weight, bias, norm: str, eps: float) -> torch.Tensor:
    """LayerNorm or RMSNorm of the last dimension, in the dtype of x."""
    weight, bias = (None if v is None else v.to(x.dtype) for v in (weight, bias))
    if norm == "layer":
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    y = F.rms_norm(x, x.shape[-1:], weight, eps)
    return y if bias is None else y + bias


def norm_modulate(x, scale=None, shift=None, *, weight=None, bias=None, norm="layer", eps=1e-6):
    """norm(x) * (1 + scale) + shift, in the dtype of x."""
    scale, shift = vectors(scale, x.shape[1]), vectors(shift, x.shape[1])
    dtype = x.dtype
    for value in (scale, shift):
        dtype = dtype if value is None else torch.promote_types(dtype, value.dtype)
    y = normalize(x.to(dtype), weight, bias, norm, eps)
    y = y if scale is None else y * (1 + scale)
    y = y if shift is None else y + shift
    return y.to(x.dtype)


def gate_residual(residual, branch, gate=None):
    """residual + branch * gate, in the dtype of the residual."""
    gate = vectors(gate, residual.shape[1])
    if gate is not None:
        residual, dtype = residual.to(torch.promote_types(residual.dtype, gate.dtype)), residual.dtype
        return (residual + branch * gate).to(dtype)
    return (residual + branch).to(residual.dtype)


def gate_residual_norm_modulate(
    residual, branch, gate=None, scale=None, shift=None, *, weight=None, bias=None, norm="layer", eps=1e-6
):
    hidden = gate_residual(residual, branch, gate)
    return hidden, norm_modulate(hidden, scale, shift, weight=weight, bias=bias, norm=norm, eps=eps)


def gate_heads(x, logits, *, scale=2.0):
    """Each head times scale * sigmoid of its logit."""
    gates = scale * torch.sigmoid(logits)
    return (x.unflatten(2, (logits.shape[2], -1)) * gates.unsqueeze(-1)).flatten(2).to(x.dtype)


def qk_norm_rope(
    q, k, q_weight=None, k_weight=None, cos=None, sin=None, *, num_heads, q_bias=None, k_bias=None, **options
):  # fmt: skip
    """`norm_rope` of q and of k."""
    return tuple(
        norm_rope(x, weight, cos, sin, num_heads=num_heads, bias=bias, **options)
        for x, weight, bias in ((q, q_weight, q_bias), (k, k_weight, k_bias))
    )


def norm_rope(
    x, weight=None, cos=None, sin=None, *, num_heads,
    bias=None, norm="rms_full", rope="neighbours", rope_start=0, rope_len=None, eps=1e-6,
):  # fmt: skip
    """Norm, then rotation of pairs of elements within each head."""
    heads = x.unflatten(2, (num_heads, -1))
    if norm == "rms_full":
        heads = normalize(x, weight, bias, "rms", eps).unflatten(2, (num_heads, -1))
    elif norm != "none":
        heads = normalize(heads, weight, bias, norm.removesuffix("_head"), eps)
    if cos is None:
        return heads.flatten(2)
    end = x.shape[1] if rope_len is None else rope_start + rope_len
    cos, sin = (rotary_table(table, heads.shape[-1], num_heads).float() for table in (cos, sin))
    turned = heads[:, rope_start:end]
    if cos.shape[-1] < heads.shape[-1]:
        cos, sin = (twice(table, rope) for table in (cos, sin))
    turned = (turned.float() * cos + quarter_turn(turned, rope).float() * sin).to(x.dtype)
    if rope_start or end < x.shape[1]:  # with nothing to put beside it, a copy that no model's code makes
        turned = torch.cat([heads[:, :rope_start], turned, heads[:, end:]], dim=1)
    return turned.flatten(2)


def twice(table: torch.Tensor, rope: str) -> torch.Tensor:
    """One value per pair, for both of its elements."""
    return table.repeat_interleave(2, -1) if rope == "neighbours" else torch.cat([table, table], -1)


def quarter_turn(heads: torch.Tensor, rope: str) -> torch.Tensor:
    """(-x1, x0) for each pair (x0, x1)."""
    if rope == "neighbours":
        real, imaginary = heads.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([-imaginary, real], dim=-1).flatten(3)
    real, imaginary = heads.chunk(2, dim=-1)
    return torch.cat([-imaginary, real], dim=-1)


def rotary_table(table: torch.Tensor, head_dim: int, num_heads: int) -> torch.Tensor:
    """A table of any form that `qk_norm_rope` takes as a view `[B | 1, N, H | 1, head_dim or half of it]`."""
    if table.dim() == 2:
        table = table.unsqueeze(0)
    if table.dim() == 3:
        shared = table.shape[-1] in (head_dim, head_dim // 2)
        table = table.unsqueeze(2) if shared else table.unflatten(2, (num_heads, -1))
    return table
