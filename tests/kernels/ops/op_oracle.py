"""The ops in float64, row by row as the papers write them, and the inputs that tests give them."""

from __future__ import annotations

import math

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def spread(value, tokens: int) -> torch.Tensor | float:
    """One vector per token, from any form of a modulation."""
    if value is None:
        return 0.0
    if isinstance(value, tuple):
        return spread(value[1], tokens) + value[0].reshape(-1)
    if value.dim() == 2:
        value = value[:, None]
    index = torch.arange(tokens, device=value.device) * value.shape[1] // tokens
    return value[:, index]


def standardize(x, norm: str, eps: float):
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)


def eps_of(elements: int) -> float:
    """Of rows of so many elements. Over two, a LayerNorm's gradient is eps / (variance + eps) of its terms.

    With a small eps one fp32 rounding of those is more than the gradient, and two exact ways to write it down differ by
    more than `assert_no_worse` allows in 5% of tensors of 12 rows.
    """
    return 1.0 if elements == 2 else 1e-5


def norm_modulate(x, scale=None, shift=None, weight=None, bias=None, norm="layer", eps=1e-6):
    y = standardize(x, norm, eps)
    y = y * (1.0 if weight is None else weight) + (0.0 if bias is None else bias)
    return y + y * spread(scale, x.shape[1]) + spread(shift, x.shape[1])


def gate_residual(residual, branch, gate=None):
    return residual + branch * (1.0 if gate is None else spread(gate, residual.shape[1]))


def qk_norm_rope(q, k, q_weight, k_weight, q_bias, k_bias, angles, num_heads, **options):
    """`norm_rope` of both."""
    return tuple(
        norm_rope(x, weight, bias, angles, num_heads, **options)
        for x, weight, bias in ((q, q_weight, q_bias), (k, k_weight, k_bias))
    )


def norm_rope(
    x, weight, bias, angles, num_heads, norm, rope="neighbours", rope_start=0, rope_len=None, eps=1e-6
):
    """`angles` [1 | B, N', H | 1, head / 2]: the rotation as a product of complex numbers."""
    shape, head = x.shape, x.shape[2] // num_heads
    if norm.endswith("head"):
        x = x.unflatten(2, (num_heads, head))
    if norm != "none":
        x = standardize(x, norm.split("_")[0], eps)
    x = x * (1.0 if weight is None else weight) + (0.0 if bias is None else bias)
    x = x.reshape(*shape[:2], num_heads, head)
    if angles is not None:
        end = shape[1] if rope_len is None else rope_start + rope_len
        first, second = {
            "neighbours": (slice(0, None, 2), slice(1, None, 2)),
            "halves": (slice(0, head // 2), slice(head // 2, None)),
        }[rope]
        part = x[:, rope_start:end]
        numbers = torch.complex(part[..., first], part[..., second])
        numbers = numbers * torch.polar(torch.ones_like(angles), angles)
        turned = torch.empty_like(part)
        turned[..., first], turned[..., second] = numbers.real, numbers.imag
        x = torch.cat([x[:, :rope_start], turned, x[:, end:]], 1)
    return x.flatten(2)


def gate_heads(x, logits, scale=2.0):
    """Head by head."""
    size = x.shape[2] // logits.shape[2]
    parts = [
        x[..., h * size : (h + 1) * size] * scale / (1 + torch.exp(-logits[..., h : h + 1]))
        for h in range(logits.shape[2])
    ]
    return torch.cat(parts, 2)


def doubled(value):
    if isinstance(value, tuple):
        return tuple(doubled(item) for item in value)
    return value.detach().double().requires_grad_() if isinstance(value, torch.Tensor) else value


def leaves(values) -> list[torch.Tensor]:
    out = []
    for value in values:
        if isinstance(value, (tuple, list)):
            out += leaves(value)
        elif isinstance(value, torch.Tensor):
            out.append(value)
    return out


def results(function, inputs, seed: int = 0) -> list[torch.Tensor]:
    """Outputs and the gradients by every leaf of `inputs`, for a fixed random cotangent."""
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(seed)
    slopes = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
    wanted = [leaf for leaf in leaves(inputs) if leaf.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, wanted, slopes)]


def assert_no_worse(fused, eager, exact, factor: float = 2.0) -> None:
    """The fused error against float64 is at most twice eager's own, plus a rounding of the largest number."""
    assert len(fused) == len(eager) == len(exact)
    for index, (ours, theirs, truth) in enumerate(zip(fused, eager, exact, strict=True)):
        assert ours.shape == truth.shape, index
        scale = truth.abs().max().item()
        bound = factor * (theirs.double() - truth).abs().max().item() + 4e-7 * max(scale, 1e-3)
        if ours.dtype != torch.float32:
            bound += torch.finfo(ours.dtype).eps * scale
        error = (ours.double() - truth).abs().max().item()
        assert math.isfinite(error), index
        assert error <= bound, (index, error, bound)
