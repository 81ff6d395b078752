"""Operators that the dispatcher and `torch.compile` see as one opaque thing, and what autograd wants round them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.autograd import forward_ad

from ._ops import add_op_namespace_prefix, ops

# Kept: with it go its operators.
_library = torch.library.Library(ops.name, "FRAGMENT")
# The kernels read memory by the strides that were checked: a compiler may choose no others. torch's default, said.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def opaque(name: str, fake: Callable) -> Callable[[Callable], torch._ops.OpOverload]:
    """Decorator: a function of tensors and constants as the operator NAME in the namespace of `_ops`.

    `fake` takes the same arguments and gives empty outputs of the right shapes. The function changes none of its
    arguments and returns new tensors alone: nothing looks at that when it runs, `torch.library.opcheck` does in tests.
    It has no gradient: an `autograd.Function` stands around it.
    `torch.library.custom_op` says the same at three times the host time a call: it looks at every argument again, in
    Python, and `register_autograd` wraps that once more.
    """

    def register(function: Callable) -> torch._ops.OpOverload:
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=_TAGS)
        _library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(add_op_namespace_prefix(name), fake, lib=_library)
        return getattr(ops, name).default

    return register


def recorded(function: type[torch.autograd.Function], operator: torch._ops.OpOverload) -> Callable:
    """What to call: the `autograd.Function` where a gradient may be asked for, else the operator that it runs.

    Both take the same arguments. Without the function a call takes 8 us less of the host's time. Forward derivatives
    ask for it too, without `grad` mode: an operator would leave them out without a word, the function says that it has
    none.
    """
    return function.apply if torch.is_grad_enabled() or forward_ad._current_level >= 0 else operator


def once_differentiable(backward: Callable) -> Callable:
    """Decorator of an `autograd.Function`'s backward: who asks for a gradient of its gradients gets a RuntimeError.

    `torch.autograd.function.once_differentiable` forgets what was saved: of gradients that come by another way too, it
    leaves its own part out without a word. It also takes 5 us of the host's time a call.
    """

    @functools.wraps(backward)
    def wrapper(ctx, *grads):
        if not torch.is_grad_enabled():  # as ever, but with `create_graph=True`
            return backward(ctx, *grads)
        return _Last.apply(functools.partial(backward, ctx), len(grads), *grads, *ctx.saved_tensors)

    return wrapper


class _Last(torch.autograd.Function):
    """Gradients that depend, for autograd, on all that they were computed from, but have no gradient."""

    @staticmethod
    def forward(ctx, backward, count, *tensors):
        return backward(*tensors[:count])

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "pgdpo_kernels: fused ops and losses have no gradient of their gradients; with set_backend('eager') the "
            "ops on hidden states and `pair_errors` have"
        )
