"""Patched models beside the same model untouched, both against float64."""

from __future__ import annotations

import contextlib
import copy
from unittest import mock

import torch
from tiny_models import latents_of, step
from torch.utils._pytree import tree_leaves, tree_map

from pgdpo_kernels import apply_to, explain, revert, set_backend
from pgdpo_kernels.backend import heard


@contextlib.contextmanager
def really_float64():
    """diffusers casts to fp32 wherever it wants more than bf16: a float64 model must not lose by it."""
    to = torch.Tensor.to
    lower = (torch.float32, torch.bfloat16, torch.float16)
    double = lambda x: torch.float64 if isinstance(x, torch.dtype) and x in lower else x  # noqa: E731

    def doubled(function):
        return lambda *args, **kwargs: function(
            *map(double, args), **{name: double(arg) for name, arg in kwargs.items()}
        )

    with torch.device(
        "cpu"
    ):  # from its first use on torch keeps a list of what makes tensors: not of stand-ins
        torch.empty(0)
    tensor = {"float": lambda x: to(x, torch.float64), "to": doubled(to)}
    made = {"arange": doubled(torch.arange), "linspace": doubled(torch.linspace)}
    with mock.patch.multiple(torch.Tensor, **tensor), mock.patch.multiple(torch, **made):
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
    names = ["output", *latents, *(name for name, x in model.named_parameters() if x.requires_grad)]
    exact, eager = exact_step(model, inputs), step(model, inputs)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with set_backend(backend):
        replaced = apply_to(model, strict=True)
        told = {choice.op for choice in explain(model)}
        with heard() as decisions:
            fused = step(model, inputs)
    assert replaced
    assert told == {op for op, *_ in decisions}, "what `explain` reads off the replacements is what is called"
    revert(model)
    assert all(torch.equal(a, b) for a, b in zip(step(model, inputs), eager, strict=True))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [x.dtype for x in fused] == [x.dtype for x in eager]
    ours, theirs = errors(fused, exact), errors(eager, exact)
    bound, one = theirs, torch.finfo(dtype).eps  # one more rounding is allowed
    if any(error > 2 * other + one for error, other in zip(ours, theirs, strict=True)):
        bound = largest(model, inputs, theirs)
    for name, error, other in zip(names, ours, bound, strict=True):
        assert error <= 2 * other + one, (name, error, other)
    ours_total, theirs_total = (sum(x**2 for x in found) ** 0.5 for found in (ours, theirs))
    assert ours_total <= 2 * theirs_total
    return replaced, ours_total, theirs_total


def errors(found, exact) -> list[float]:
    """Relative to the norm of what is exact; to the largest norm where that is 0, as of a bias of keys."""
    norms = [truth.norm().item() for truth in exact]
    scales = (norm if norm > 1e-9 * max(norms) else max(norms) for norm in norms)
    differences = ((x.double() - truth).norm().item() for x, truth in zip(found, exact, strict=True))
    return [difference / scale for difference, scale in zip(differences, scales, strict=True)]


def largest(model, inputs, errors_here: list[float], draws: int = 3) -> list[float]:
    """Eager's largest error of each output and gradient, here and at latents close by.

    A small gradient's error is one draw of a few roundings, most of them outside the ops: eager's may be a lucky one.
    """
    key, found = latents_of(inputs), errors_here
    for _ in range(draws):
        near = tree_map(lambda x: x * (1 + 0.01 * torch.randn_like(x)), inputs[key])
        there = inputs | {key: near}
        found = map(max, found, errors(step(model, there), exact_step(model, there)))
    return list(found)
