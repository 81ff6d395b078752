"""Argument checks that every op shares. They read shapes and dtypes alone, never data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def check_float(op: str, name: str, tensor: torch.Tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be bfloat16, float16 or float32, got {tensor.dtype}")


def check_pairs(op: str, name: str, tensor: torch.Tensor) -> int:
    """The number of pairs B of a `[2B, ...]` tensor, chosen half first."""
    check_samples(op, name, tensor, "[2B, ...] with the chosen half first", of=2)
    return tensor.shape[0] // 2


def check_samples(op: str, name: str, tensor: torch.Tensor, meaning: str = "[N, ...]", of: int = 1) -> None:
    """A sample a row, some multiple of `of`, each with elements."""
    check_float(op, name, tensor)
    if tensor.dim() < 2 or tensor.shape[0] == 0 or tensor.shape[0] % of:
        raise ValueError(
            f"{op}: {name} must be {meaning}, of rank 2 or more, got shape {tuple(tensor.shape)}"
        )
    if tensor.numel() == 0:
        raise ValueError(f"{op}: {name} has no elements, its shape is {tuple(tensor.shape)}")


def check_like(
    op: str,
    name: str,
    tensor: torch.Tensor,
    other: str,
    like: torch.Tensor,
    shape: Sequence[int] | None = None,
) -> None:
    """On the device of `like`, and of its shape or of the one that is said."""
    check_float(op, name, tensor)
    shape = like.shape if shape is None else shape
    if tensor.shape != shape:
        raise ValueError(
            f"{op}: {name} must have the shape of {other}, {tuple(shape)}, got {tuple(tensor.shape)}"
        )
    if tensor.device != like.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, {other} on {like.device}")


def check_per_pair(
    op: str,
    name: str,
    tensor: torch.Tensor | None,
    shape: tuple[int, ...],
    meaning: str,
    device: torch.device,
) -> None:
    """A small tensor of one number per pair, or per pair and segment; None passes."""
    if tensor is None:
        return
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must be {meaning} = {tuple(shape)}, got shape {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, the errors are on {device}")


def check_number(op: str, name: str, value: float, *, above: float | None = None, least: float | None = None):
    """A finite number, greater than `above` or at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    low = above is not None and value <= above or least is not None and value < least
    if low or not -math.inf < value < math.inf:  # finite, as torch.compile can trace it with `dynamic=True`
        bound = f"above {above}" if above is not None else f"of {least} or more" if least is not None else ""
        raise ValueError(f"{op}: {name} must be a finite number {bound}".rstrip() + f", got {value}")
