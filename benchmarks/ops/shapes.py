"""Latents `[2B, C, F, H, W]` from 64 kB to 1 GB a tensor, and the cases of ops that read three of them.

Wan 480p, 81 frames, is 16 x 21 x 60 x 104.
"""

from collections.abc import Callable

import torch

from ..gpu.driver import driver
from ..gpu.harness import Case, backward, compiled, forward

WAN = (16, 21, 60, 104)
SHAPES = [
    ((2, 16, 1, 32, 32), torch.bfloat16),
    ((2, 16, 4, 64, 64), torch.bfloat16),
    ((2, 16, 16, 64, 64), torch.bfloat16),
    ((2, *WAN), torch.bfloat16),
    ((16, *WAN), torch.bfloat16),
    ((64, *WAN), torch.bfloat16),
    ((32, *WAN), torch.float32),
    ((256, *WAN), torch.bfloat16),
]
TINY = [((4, 2, 2, 3, 5), torch.bfloat16), ((6, 2, 2, 3, 5), torch.float32)]  # for the interpreter


def pair_cases(
    op: str, fused: Callable, eager: Callable, shapes: list[tuple] = SHAPES, launches: int = 2
) -> list[Case]:
    """Both directions of functions of (prediction, target, reference) on every shape.

    Either direction moves three tensors: forward reads prediction, target and reference; backward reads the first two
    and writes the gradient.

    Args:
        launches: of the fused forward pass.
    """
    return [
        Case(
            op=op,
            direction=direction,
            shape=shape,
            dtype=dtype,
            moved=3 * torch.Size(shape).numel() * dtype.itemsize,
            launches=count,
            make=predictions(shape, dtype),
            variants={
                "fused": timing(fused),
                "eager": timing(eager),
                "compile": lambda inputs, timing=timing: timing(compiled(eager))(inputs),
            },
        )
        for shape, dtype in shapes
        for direction, count, timing in (("forward", launches, forward), ("backward", 1, backward))
    ]


def predictions(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[int], tuple]:
    def allocate(seed):
        device = driver().name
        generator = torch.Generator(device).manual_seed(seed)
        pred, target, ref = (
            torch.randn(shape, dtype=dtype, device=device, generator=generator) for _ in "ptr"
        )
        return pred.requires_grad_(), target, ref

    return allocate
