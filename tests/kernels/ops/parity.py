"""Patched models beside the same model untouched, both against float64."""

from __future__ import annotations

import contextlib
import copy
from unittest import mock

import torch
from tiny_models import latents_of, step
from torch.utils._pytree import tree_leaves, tree_map

from pgdpo_kernels import apply_to, revert, set_backend


@contextlib.contextmanager
def really_float64():
    """diffusers casts to fp32 wherever it wants more than bf16: a float64 model must not lose by it."""
    to = torch.Tensor.to
    lower = (torch.float32, torch.bfloat16, torch.float16)
    double = lambda x: torch.float64 if isinstance(x, torch.dtype) and x in lower else x  # noqa: E731

    def keep_to(x, *args, **kwargs):
        return to(x, *map(double, args), **{name: double(arg) for name, arg in kwargs.items()})

    keep = lambda x: keep_to(x, torch.float32)  # noqa: E731
    with mock.patch.object(torch.Tensor, "float", keep), mock.patch.object(torch.Tensor, "to", keep_to):
        yield


def exact_step(model, inputs):
    exact = lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x  # noqa: E731
    doubles = tree_map(exact, inputs)
    with really_float64():
        return step(copy.deepcopy(model).double(), doubles)


def check_parity(model, inputs, dtype, backend: str) -> tuple[list[str], float, float]:
    """Output and every gradient against float64: at most twice eager's error, and back to eager's bits.

    Returns what was replaced, and the total relative errors of the patched and of the untouched model.
    """
    latents = ["latents"] * len(tree_leaves(inputs[latents_of(inputs)]))
    names = ["output", *latents, *(name for name, _ in model.named_parameters())]
    exact, eager = exact_step(model, inputs), step(model, inputs)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with set_backend(backend):
        replaced = apply_to(model, strict=True)
        fused = step(model, inputs)
    assert replaced
    ours_total, theirs_total = 0.0, 0.0
    for name, ours, theirs, truth in zip(names, fused, eager, exact, strict=True):
        assert ours.dtype == theirs.dtype, name
        scale = max(truth.norm().item(), 1e-3)
        error, bound = ((x.double() - truth).norm().item() / scale for x in (ours, theirs))
        # A small gradient's error is one draw of a few roundings, most of them outside the ops: one more is allowed.
        assert error <= 2 * bound + torch.finfo(dtype).eps, (name, error, bound, scale)
        ours_total, theirs_total = ours_total + error**2, theirs_total + bound**2
    assert ours_total <= 2**2 * theirs_total
    revert(model)
    assert all(torch.equal(a, b) for a, b in zip(step(model, inputs), eager, strict=True))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    return replaced, ours_total**0.5, theirs_total**0.5
