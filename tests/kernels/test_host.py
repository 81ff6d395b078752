"""What the host does for a call of an op, counted in calls of Python and C: the same on any machine."""

import sys

import pytest
import torch
from kernel_inputs import DEVICE

from benchmarks.ops import host
from pgdpo_kernels import set_backend

# Calls at most, forward and backward.
BOUNDS = {
    "norm_modulate": (130, 116),
    "gate_residual": (86, 107),
    "gate_residual_norm_modulate": (148, 148),
    "gate_residual_norm_modulate of (table, embedding)": (172, 148),
    "qk_norm_rope": (148, 146),
    "pair_errors": (174, 167),
    "diffusion_dpo_loss": (300, 135),
    "noise_pair": (73, None),
}


def counted(call):
    """How many functions are called, of Python and of C, and what comes of it."""
    count = 0

    def add(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(add)
    try:
        result = call()
    finally:
        sys.setprofile(None)
    return count - 1, result  # but for setprofile


@pytest.mark.parametrize("op", BOUNDS)
def test_calls_of_the_host(op, monkeypatch):
    """
    | op | with `custom_op` and `register_autograd` (a509660) | when the bounds were set |
    |---|---|---|
    | norm_modulate | 238, 193 | 124, 111 |
    | gate_residual | 169, 168 | 80, 102 |
    | gate_residual_norm_modulate | 258, 225 | 142, 143 |
    | the same of (table, embedding) | 282, 225 | 166, 143 |
    | qk_norm_rope | 249, 224 | 142, 141 |
    | pair_errors | 217, 183 | 168, 162 |
    | diffusion_dpo_loss | 370, 145 | 294, 130 |
    | noise_pair | 102 | 67 |

    Forward and backward, torch 2.13; with 2.11 backward has 4 to 7 less, forward before 2 less. On a GPU backward runs
    in a thread of its own, which is not counted.
    """
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.runtime.jit.KernelInterface, "__getitem__", host.no_launch)
    call, leaf = host.calls(DEVICE)[op]
    with set_backend("triton"):
        slopes = [torch.ones_like(output) for output in call()]
        if leaf.requires_grad:
            torch.autograd.grad(call(), leaf, slopes)
        forward, outputs = counted(call)
        assert forward <= BOUNDS[op][0]
        if leaf.requires_grad:
            backward, _ = counted(lambda: torch.autograd.grad(outputs, leaf, slopes))
            assert backward <= BOUNDS[op][1]
