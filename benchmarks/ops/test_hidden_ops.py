"""The ops on hidden states at the shapes of real models, against diffusers' maths, eager and compiled."""

from __future__ import annotations

import functools
import importlib.util

import pytest
import torch

from pgdpo_kernels import (
    gate_heads,
    gate_residual,
    gate_residual_norm_modulate,
    norm_modulate,
    norm_rope,
    qk_norm_rope,
)
from pgdpo_kernels.reference import hidden as eager

from ..conftest import run
from ..gpu.driver import driver
from ..gpu.harness import Case, compiled, forward

# Tokens of 81 frames (CogVideoX: 49) and the hidden size, its heads, and how q and k are normed.
MODELS = {
    "Wan-1.3B 480p": (32760, 1536, 12, "rms_full"),
    "Wan-14B 480p": (32760, 5120, 40, "rms_full"),
    "Wan-14B 720p": (75600, 5120, 40, "rms_full"),
    "HunyuanVideo 720p": (75600, 3072, 24, "rms_head"),
    "CogVideoX-5B 480p": (17550, 3072, 48, "layer_head"),
    "LTX-2B 480p": (4290, 2048, 32, "rms_full"),
    "LTX-2B 720p": (9680, 2048, 32, "rms_full"),
}
HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None
TINY = {"tiny": (2, 64, 4, "rms_full")}  # for the interpreter


def modulate(ops, x, scale, shift, *_):
    return (ops.norm_modulate(x, scale, shift),)


def gate(ops, branch, residual, gate_, *_):
    return (ops.gate_residual(residual, branch, gate_),)


def gate_norm(ops, branch, residual, gate_, scale, shift, *_):
    return ops.gate_residual_norm_modulate(residual, branch, gate_, scale, shift)


def rope(heads, norm):
    def turn(ops, q, k, *weights_and_tables):
        return ops.qk_norm_rope(q, k, *weights_and_tables, num_heads=heads, norm=norm)

    return turn


class Fused:
    norm_modulate = staticmethod(norm_modulate)
    gate_residual = staticmethod(gate_residual)
    gate_residual_norm_modulate = staticmethod(gate_residual_norm_modulate)
    qk_norm_rope = staticmethod(qk_norm_rope)
    norm_rope = staticmethod(norm_rope)
    gate_heads = staticmethod(gate_heads)


@functools.cache
def bound(function, ops):
    """One function object a variant, so that `torch.compile` keeps what it compiled."""

    def call(*inputs):
        return function(ops, *inputs)

    return call


def backward(function):
    """The gradients by every input that wants one: parameters are frozen, as under LoRA, but in one form."""

    def prepare(inputs):
        outputs = function(*inputs)
        wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
        ones = [torch.ones_like(output) for output in outputs]
        return lambda: torch.autograd.grad(outputs, wanted, ones, retain_graph=True)

    return prepare


def make(tokens, width, hidden, vectors, head=None, norm=None):
    """`hidden` tensors [1, N, D] that want gradients, then `vectors` [1, 1, D], or norm weights and tables."""

    def allocate(seed):
        device = driver().name
        generator = torch.Generator(device).manual_seed(seed)
        random = functools.partial(torch.randn, device=device, generator=generator)
        rows = [random(1, tokens, width, dtype=torch.bfloat16).requires_grad_() for _ in range(hidden)]
        if head is None:
            return (*rows, *(random(1, 6, width).chunk(6, dim=1)[i] for i in range(vectors)))
        weights = [random(width if norm == "rms_full" else head, dtype=torch.bfloat16) for _ in "qk"]
        angles = random(tokens, head // 2).repeat_interleave(2, -1)
        return (*rows, *weights, angles.cos(), angles.sin())

    return allocate


def case(op, function, sizes, direction, tensors, allocate, extra=0, form="", liger=None, launches=1) -> Case:
    """`tensors` of the hidden states' size are read or written, and `extra` bytes.

    Args:
        liger: Liger-Kernel's function of the same inputs, timed where it is installed.
    """
    tokens, width, *_ = sizes
    timing = forward if direction == "forward" else backward
    beside = {"liger": lambda inputs: timing(liger)(inputs)} if liger and HAS_LIGER else {}
    return Case(
        op=op,
        direction=direction,
        shape=(1, tokens, width),
        dtype=torch.bfloat16,
        moved=tensors * tokens * width * 2 + extra,
        launches=launches,
        make=allocate,
        variants={
            "fused": lambda inputs: timing(bound(function, Fused))(inputs),
            "eager": lambda inputs: timing(bound(function, eager))(inputs),
            "compile": lambda inputs: timing(compiled(bound(function, eager)))(inputs),
            **beside,
        },
        form=form,
    )


def model_cases(sizes: tuple[int, int, int, str]) -> list[Case]:
    tokens, width, heads, norm = sizes
    head = width // heads
    out = []
    for op, function, allocate, tensors, extra in (
        ("norm_modulate", modulate, make(tokens, width, 1, 2), (2, 3), 0),
        ("gate_residual", gate, make(tokens, width, 2, 1), (3, 2), 0),
        ("gate_residual_norm_modulate", gate_norm, make(tokens, width, 2, 3), (4, 5), 0),
        ("qk_norm_rope", rope(heads, norm), make(tokens, width, 2, 0, head, norm), (4, 6), 8 * tokens * head),
    ):
        for direction, count in zip(("forward", "backward"), tensors, strict=True):
            out.append(case(op, function, sizes, direction, count, allocate, extra))
    return out


def cases(models: dict[str, tuple] = MODELS) -> list[Case]:
    return [one for sizes in models.values() for one in model_cases(sizes)]


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["fused", "eager", "compile"])
def test_hidden_ops(benchmark, case, variant):
    run(benchmark, case, variant)
