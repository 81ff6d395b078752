"""How every kernel is launched, what it writes into, and the power of two that a block is of."""

from __future__ import annotations

from collections.abc import Iterable

import torch

WARP = 64 if torch.version.hip else 32  # threads: of AMD's data-centre GPUs, of NVIDIA's


def launch(
    kernel,
    grid: tuple[int, ...],
    tensors: Iterable[torch.Tensor | None],
    outputs: Iterable[torch.Tensor],
    numbers: Iterable[float],
    *,
    threads: int,
    fp_fusion: bool = True,
    **constants: object,
) -> None:
    """Run a kernel whose arguments are the tensors that it reads, those that it writes, numbers and constants.

    The first tensor is always given, and its device is the kernel's. It stands in for those that are None: their
    constants tell the kernel not to read them.
    """
    first, *rest = tensors
    with torch.cuda.device_of(first):
        kernel[grid](
            first,
            *[first if tensor is None else tensor for tensor in rest],
            *outputs,
            *numbers,
            **constants,
            num_warps=threads // WARP or 1,
            enable_fp_fusion=fp_fusion,
        )


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def dense_like(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Empty and contiguous, whatever the strides of x."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
