"""What the ops on rows of heads share on the host: checks, rotary tables, what a kernel is told of them."""

from __future__ import annotations

import functools

import torch

from ..checks import check_float, check_number
from ..hidden.rows import MAX_WIDTH, check_vector, held_heads, launch_rows, obstacle
from ..reference import hidden as eager

NORMS = ("rms_full", "rms_head", "layer_head", "none")
ROPES = (
    "neighbours",
    "halves",
)  # which elements of a head are turned together: (2i, 2i + 1) or (i, i + half)

Settings = tuple[int, str, str, int, int, float]  # num_heads, norm, rope, rope_start, rope_len, eps
Table = tuple[torch.Tensor | None, torch.Tensor | None]


def checked(
    op: str,
    x: torch.Tensor,
    vectors: dict[str, torch.Tensor | None],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    settings: tuple[int, str, str, int, int | None, float],
) -> tuple[Table, Settings, str | None]:
    """The tables as the kernels take them, the settings with a `rope_len`, and why no kernel can take this.

    Raises:
        TypeError, ValueError: what is wrong with an argument; `vectors` by their names.
    """
    num_heads, norm, rope, rope_start, rope_len, eps = settings
    batch, tokens, width = x.shape
    if num_heads < 1 or width % num_heads or width // num_heads % 2:
        raise ValueError(f"{op}: {num_heads} heads do not cut a width of {width} into even sizes")
    if norm not in NORMS:
        raise ValueError(f"{op}: norm must be one of {NORMS}, got {norm!r}")
    if rope not in ROPES:
        raise ValueError(f"{op}: rope must be one of {ROPES}, got {rope!r}")
    head = width // num_heads
    for name, vector in vectors.items():
        if vector is not None and norm == "none":
            raise ValueError(f"{op}: {name} goes with a norm, got norm 'none'")
        check_vector(op, name, vector, width if norm == "rms_full" else head)
    check_number(op, "eps", eps, least=0)
    rope_len = tokens - rope_start if rope_len is None else rope_len
    if rope_start < 0 or rope_len < 0 or rope_start + rope_len > tokens:
        raise ValueError(f"{op}: {rope_len} tokens from {rope_start} on are not within {tokens}")
    table = rotary(op, cos, sin, (batch, rope_len, num_heads, head))
    blocked = obstacle(x, *vectors.values(), *table) or too_many(num_heads, head, rope == "halves")
    return table, (num_heads, norm, rope, rope_start, rope_len, float(eps)), blocked


@functools.lru_cache(1024)
def too_many(num_heads: int, head: int, halves: bool) -> str | None:
    """Why a kernel cannot hold a row of these heads."""
    columns, a, b = held_heads(num_heads, head, halves)
    if halves and 2 * a * columns > MAX_WIDTH:
        return f"{num_heads} heads of {head} in halves, held as {a} of {2 * columns}, are beyond {MAX_WIDTH}"
    if not halves and num_heads * columns > MAX_WIDTH:
        return f"{num_heads} heads of {head}, padded to {columns}, are beyond {MAX_WIDTH}"
    return None


def rotary(op: str, cos, sin, shape: tuple[int, int, int, int]) -> Table:
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
def kernels():
    """Imported once, as in `gate_residual`."""
    from . import qk_norm_rope_kernels

    return qk_norm_rope_kernels


def launch_heads(
    kernel, cut, members, tensors, outputs, strided, cos, weight, settings: Settings, **constants
) -> None:
    """Of `members` tensors, each row of which is a program's or one of its rows; cos is strided as well."""
    _, norm, rope, rope_start, rope_len, eps = settings
    numbers = (*cut.sizes[1:], rope_start, rope_start + rope_len, eps)
    launch_rows(
        kernel,
        cut,
        members * cut.programs,
        tensors,
        outputs,
        (*strided, cos),
        numbers,
        NORM=norm,
        WEIGHT=weight is not None,
        ROPE=cos is not None,
        HALVES=rope == "halves",
        SHARED=cos is None or cos.shape[2] == 1,
        PER_PAIR=cos is not None and cos.shape[3] < cut.constants["HEAD"],
        **constants,
    )


def sum_width(x: torch.Tensor, num_heads: int, norm: str) -> int:
    """Elements of a norm's weight."""
    return x.shape[2] if norm == "rms_full" else x.shape[2] // num_heads
