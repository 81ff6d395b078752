"""What all families share: the choice of ops, one replacement and its way back, and the check of sources."""

from __future__ import annotations

import hashlib
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..heads.gate_heads import gate_heads
from ..heads.norm_rope import norm_rope
from ..heads.qk_norm_rope import qk_norm_rope
from ..hidden.gate_residual import gate_residual
from ..hidden.gate_residual_norm_modulate import gate_residual_norm_modulate
from ..hidden.norm_modulate import norm_modulate
from ..reference import hidden as eager


class Unsupported(Exception):
    """Why a model cannot be patched."""


@dataclass(frozen=True)
class Ops:
    """The functions that a patched block calls: fused where chosen, else the eager maths."""

    norm_modulate: Callable
    gate_residual: Callable
    gate_residual_norm_modulate: Callable
    qk_norm_rope: Callable
    norm_rope: Callable
    gate_heads: Callable

    @classmethod
    def choose(cls, names: set[str]) -> Ops:
        return cls(**{name: op if name in names else getattr(eager, name) for name, op in FUSED.items()})

    @classmethod
    def all(cls) -> Ops:
        return cls(**FUSED)

    @property
    def chosen(self) -> set[str]:
        return {name for name in OPS if getattr(self, name) is FUSED[name]}

    @property
    def in_blocks(self) -> bool:
        return bool(self.chosen - IN_ATTENTION)

    @property
    def in_attention(self) -> bool:
        return bool(self.chosen & IN_ATTENTION)


def ops_in(function: Callable, owner: type | None = None) -> set[str]:
    """The ops that a family's function calls, itself or through functions and classes of this package.

    Those of a method that it calls on itself count where `owner` is its class.
    """
    names, seen, todo = set(), set(), [function]
    while todo:
        function = todo.pop()
        seen.add(function)
        called = names_in(function.__code__)
        names |= called & set(OPS)
        enclosed = (cell.cell_contents for cell in function.__closure__ or ())
        own = (vars(kind).get(name) for kind in getattr(owner, "__mro__", ()) for name in called)
        for known in (*(function.__globals__.get(name) for name in called), *own, *enclosed):
            of_class = vars(known).values() if isinstance(known, type) else [known]
            functions = (x for x in of_class if isinstance(x, types.FunctionType) and x not in seen)
            todo += [x for x in functions if x.__module__.startswith(__package__)]
    return names


def names_in(code: types.CodeType) -> set[str]:
    within = (names_in(x) for x in code.co_consts if isinstance(x, types.CodeType))
    return set(code.co_names).union(*within)


IN_ATTENTION = frozenset({"qk_norm_rope", "norm_rope", "gate_heads"})  # what processors call
FUSED = {
    op.__name__: op
    for op in (
        norm_modulate,
        gate_residual,
        gate_residual_norm_modulate,
        qk_norm_rope,
        norm_rope,
        gate_heads,
    )
}
OPS = tuple(FUSED)


@dataclass(frozen=True)
class Forward:
    """Another `forward` for one module."""

    module: nn.Module
    path: str
    function: Callable  # of the module and forward's arguments

    @property
    def calls(self) -> set[str]:
        return ops_in(self.function)

    @property
    def name(self) -> str:
        return f"{self.path}.forward"

    def check(self) -> None:
        if "forward" in self.module.__dict__:
            raise Unsupported(f"{self.name} is replaced already, by a hook or another patch")

    def install(self) -> None:
        self.module.forward = types.MethodType(self.function, self.module)

    def restore(self, original: None) -> None:
        if getattr(self.module.__dict__.get("forward"), "__func__", None) is self.function:
            del self.module.forward


@dataclass(frozen=True)
class Processor:
    """Another attention processor, through diffusers' own setter where the attention has one."""

    module: nn.Module
    path: str
    processor: Callable
    known: tuple[type, ...]  # the classes of processors that it stands in for

    @property
    def calls(self) -> set[str]:
        kind = type(self.processor)
        return ops_in(kind.__call__, kind)

    @property
    def name(self) -> str:
        return f"{self.path}.processor"

    def check(self) -> None:
        if type(self.module.processor) not in self.known:
            raise Unsupported(f"{self.name} is a {type(self.module.processor).__name__}")

    def install(self) -> Callable:
        original = self.module.processor
        hand_over(original, self.processor)
        set_processor(self.module, self.processor)
        return original

    def restore(self, original: Callable) -> None:
        if type(self.module.processor) is type(self.processor):
            hand_over(self.module.processor, original)
            set_processor(self.module, original)


def set_processor(module: nn.Module, processor: Callable) -> None:
    if hasattr(module, "set_processor"):
        module.set_processor(processor)
    else:  # MochiAttention
        module.processor = processor


Replacement = Forward | Processor


def of_blocks(
    model: nn.Module,
    stack: str,
    ops: Ops,
    forwards: dict[type, Callable | None],
    attention: str | None = None,
    processor: type | None = None,
    known: tuple[type, ...] = (),
) -> list[Replacement]:
    """The replacements in a model's blocks: their own `forward`, and the processor of the attention in them.

    Args:
        stack, attention: the paths of the blocks in the model, and of the attention in a block; None for one that
            keeps its processor.
        forwards: the fused forward of every class of blocks; None where a class keeps its own.
        processor: its class, made of `ops`; it stands in for those of `known`.

    Raises:
        Unsupported: a block is of another class.
    """
    found: list[Replacement] = []
    for index, block in enumerate(model.get_submodule(stack)):
        path = f"{stack}.{index}"
        if ops.in_blocks:
            kinds = [kind for kind in forwards if isinstance(block, kind)]
            if not kinds:
                raise Unsupported(f"{path} is a {type(block).__name__}")
            if forwards[kinds[0]] is not None:
                forward = forwards[kinds[0]]
                found.append(Forward(block, path, forward))
        if ops.in_attention and attention is not None:
            module = block.get_submodule(attention)
            found.append(Processor(module, f"{path}.{attention}", processor(ops), known))
    return found


def hand_over(old: Callable, new: Callable) -> None:
    """The attention backend and the context-parallel settings, which diffusers keeps on processors."""
    for name in ("_attention_backend", "_parallel_config"):
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))


def check_sources(sources: dict[Callable, str | tuple[str, ...]]) -> None:
    """Refuse diffusers' code that differs from what was replaced here: a version's number does not tell.

    A function has several digests where versions write the same maths in different words.
    """
    import diffusers

    for function, known in sources.items():
        if digest(function) not in ((known,) if isinstance(known, str) else known):
            raise Unsupported(
                f"{function.__qualname__} of diffusers {diffusers.__version__} is not known here"
            )


def digest(function: Callable) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


def promoted(hidden: torch.Tensor, *modulation: torch.Tensor) -> torch.Tensor:
    """The residual stream in the dtype that `hidden + branch * gate` gives it in eager code."""
    dtype = hidden.dtype
    for tensor in modulation:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return hidden.to(dtype)
