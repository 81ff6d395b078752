"""Operators that the dispatcher and `torch.compile` see as one opaque thing."""

from __future__ import annotations

from collections.abc import Callable

import torch

NAMESPACE = "pgdpo"
# Kept: with it go its operators.
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def opaque(name: str, fake: Callable) -> Callable[[Callable], torch._ops.OpOverload]:
    """Decorator: a function of tensors and constants as the operator NAME of `torch.ops`, in our namespace.

    `fake` takes the same arguments and gives empty outputs of the right shapes. The function changes none of its
    arguments and returns new tensors alone. It has no gradient: an `autograd.Function` stands around it.
    `torch.library.custom_op` says the same at three times the host time a call: it looks at every argument again, in
    Python, and `register_autograd` wraps that once more.
    """

    def register(function: Callable) -> torch._ops.OpOverload:
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
        return getattr(getattr(torch.ops, NAMESPACE), name).default

    return register
