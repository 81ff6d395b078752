"""Where a step can be broken off: the transformer's blocks, each of which tells when it has run, forward or backward.

Blocks, because a micro-batch of a 14B model takes most of a minute, and its backward pass most of that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

_told: list[Callable[[], None]] = []


def tell_of_blocks(transformer: torch.nn.Module) -> None:
    """Let the repeated blocks tell those that `each_block` entered; the whole transformer where it names none.

    Outside of what is compiled: a compiled block calls its hooks inside, where they would be traced.
    """
    names = getattr(transformer, "_repeated_blocks", None) or ()
    blocks = [module for module in transformer.modules() if type(module).__name__ in names]
    for block in blocks or [transformer]:
        if block._compiled_call_impl is None:
            block.register_forward_hook(_after_forward)
        else:
            block._compiled_call_impl = _telling(block._compiled_call_impl)


@contextlib.contextmanager
def each_block(tell: Callable[[], None]) -> Iterator[None]:
    """While entered, `tell` is called after each block's forward (also where it is recomputed) and before each
    backward: in the same order on all ranks of a run. What it raises leaves the forward or backward pass."""
    _told.append(tell)
    try:
        yield
    finally:
        _told.remove(tell)


def _telling(call: Callable) -> Callable:
    def told(*args, **kwargs):
        output = call(*args, **kwargs)
        _after_forward(None, args, output)
        return output

    return told


def _after_forward(_block: object, _inputs: object, output: torch.Tensor | tuple) -> None:
    if not _told:
        return
    _tell()
    for tensor in output if isinstance(output, tuple) else (output,):
        if tensor.requires_grad:
            tensor.register_hook(_tell)
            return


def _tell(_gradient: torch.Tensor | None = None) -> None:
    for tell in list(_told):
        tell()
