"""LayerNorm or RMSNorm with modulation in one pass, forward and backward."""

from __future__ import annotations

import torch

from ..backend import takes_triton
from ..reference import hidden as eager
from .gate_residual_norm_modulate import gate_norm, norm_arguments
from .rows import Modulation, check_groups, check_hidden, obstacle


def norm_modulate(
    x: torch.Tensor,  # [B, N, D]
    scale: Modulation = None,
    shift: Modulation = None,
    *,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-6,
) -> torch.Tensor:
    """norm(x) * (1 + scale) + shift, in the shape and dtype of x.

    Backward reads x again and keeps nothing else of its size.

    Args:
        x: `[B, N, D]`, bf16, fp16 or fp32; rows may be strided.
        scale, shift, weight, bias, norm: as in `gate_residual_norm_modulate`.

    Raises:
        TypeError, ValueError, RuntimeError: as `gate_residual_norm_modulate`.
    """
    op = "norm_modulate"
    check_hidden(op, "x", x)
    norms = norm_arguments(op, x, scale, shift, weight, bias, norm, eps)
    check_groups(op, norms[:2], norms[2:4])
    if not takes_triton(op, x, obstacle(x, *norms[:6])):
        return eager.norm_modulate(x, scale, shift, weight=weight, bias=bias, norm=norm, eps=eps)
    return gate_norm(x, None, None, None, *norms)[1]
