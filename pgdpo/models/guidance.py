"""Classifier-free guidance whose unconditional branch has weights of its own (Diffusion-NPO, arXiv 2505.11245)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch


@contextlib.contextmanager
def negative_branch(
    transformer: torch.nn.Module,
    positive: Callable[[], AbstractContextManager[torch.nn.Module]],
    samples: int,
) -> Iterator[None]:
    """In it `transformer`, as it is, answers the unconditional branch alone; the conditional one is `positive`'s.

    `positive()`: a context with the model that answers there; it may be `transformer` itself with its adapter switched.
    `samples`: of one sampling call, at a guidance above 1. Pipelines ask for both branches in one of two ways: a batch
    of twice `samples`, the unconditional half first (CogVideoX, LTX), or two calls a step, the conditional one first
    (Wan, HunyuanVideo). What is asked beside a doubled batch is conditional too (LTX-2's other guidance).
    """
    negative, calls, doubled = transformer.forward, itertools.count(), False

    def conditional(inputs: dict) -> tuple:
        with positive() as model:
            return (negative if model is transformer else model)(**inputs)

    def forward(**inputs) -> tuple[torch.Tensor, ...]:
        nonlocal doubled
        if len(inputs["hidden_states"]) == samples:
            second = next(calls) % 2 and not doubled
            return negative(**inputs) if second else conditional(inputs)
        doubled = True
        without, with_prompt = halves(inputs, samples)
        answers = zip(negative(**without), conditional(with_prompt), strict=True)
        return tuple(torch.cat(both) for both in answers)

    transformer.forward = forward
    try:
        yield
    finally:
        del transformer.forward


def halves(inputs: dict, samples: int) -> tuple[dict, dict]:
    """The arguments of a doubled batch as those of its two halves; what has no batch (rope) belongs to both."""

    def part(rows: slice) -> dict:
        return {
            name: value[rows]
            if torch.is_tensor(value) and value.dim() and len(value) == 2 * samples
            else value
            for name, value in inputs.items()
        }

    return part(slice(samples)), part(slice(samples, None))


@contextlib.contextmanager
def without_adapter(transformer: torch.nn.Module) -> Iterator[torch.nn.Module]:
    transformer.disable_adapters()
    try:
        yield transformer
    finally:
        transformer.enable_adapters()
