"""What an op launches, written down on a machine without a GPU: kernels, types, constants, grids. Nothing runs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .machine_code import Source

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
TYPES |= {torch.int64: "i64", torch.int32: "i32", torch.bool: "i1"}


@dataclass(frozen=True)
class Launch:
    source: Source
    programs: int
    sizes: dict[str, int]  # bytes of each tensor's elements, by argument


@dataclass
class Record:
    launches: list[Launch] = field(default_factory=list)
    small: int = 0  # PyTorch's own kernels beside them, of a few numbers each


class Unfilled(TorchFunctionMode):
    """A tensor of a gigabyte costs nothing as long as nobody writes into it."""

    EMPTY = {torch.randn: torch.empty, torch.rand: torch.empty, torch.ones_like: torch.empty_like}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in self.EMPTY:
            function = self.EMPTY[function]
            kwargs.pop("generator", None)
        return function(*args, **kwargs)


class SmallKernels(TorchDispatchMode):
    """Counts PyTorch's operations that are neither views nor empty tensors: each is a launch."""

    def __init__(self, record: Record):
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, views = str(function), any(result.alias_info for result in function._schema.returns)
        self.record.small += name.startswith("aten.") and not name.startswith("aten.empty") and not views
        return function(*args, **(kwargs or {}))


def of(prepare: Callable[[], Callable[[], object]]) -> Record:
    """What the function that `prepare` returns launches; what preparing launches is left out."""
    with recording() as before:
        call = prepare()
        del before[:]
        record = Record(before)
        with SmallKernels(record):
            call()
    return record


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Tensors on the CPU pass for a GPU's, and a launch is written down in place of being made."""
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []

    def record(kernel, *args, grid, warmup, **kwargs):
        found.append(written_down(kernel, args, grid, kwargs))

    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(torch.Tensor, "is_cuda", True, create=True),
        Unfilled(),
    ):
        yield found


def written_down(kernel, args: tuple, grid, kwargs: dict) -> Launch:
    """By Triton's rules: a number that may be specialized is a constant where it is 1, aligned where 16 divides it."""
    options = {name: kwargs.pop(name) for name in list(kwargs) if name not in kernel.arg_names}
    given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    types, constants, aligned, sizes = {}, {}, set(), {}
    for parameter in kernel.params:
        name, value = parameter.name, given[parameter.name]
        if isinstance(value, torch.Tensor):
            types[name], sizes[name] = f"*{TYPES[value.dtype]}", value.numel() * value.element_size()
            divides = value.data_ptr() % 16 == 0
        elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
            constants[name], divides = value, False
        elif isinstance(value, float):
            types[name], divides = "fp32", False
        else:
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            divides = value % 16 == 0 and not parameter.do_not_specialize
        if divides:
            aligned.add(name)
    source = Source(
        kernel,
        types,
        constants,
        frozenset(aligned),
        32 * options["num_warps"],
        options.get("enable_fp_fusion", True),
        options.get("maxnreg"),
    )
    return Launch(source, math.prod(grid(given) if callable(grid) else grid), sizes)
