"""Switch the fused ops on in a diffusers transformer, one instance at a time, and off again.

A file in one of the folders here has SOURCES, the diffusers functions that it stands in for with digests of their
code, and `replacements(model, ops)`; `known` says for each class which file it is, or why there is none.
"""

from __future__ import annotations

import copy
import importlib
import logging
import types
import warnings
from collections.abc import Iterable

from torch import nn

from .known import FAMILIES, REASONS
from .replace import OPS, Ops, Replacement, Unsupported, check_sources

__all__ = ["apply_to", "revert"]

logger = logging.getLogger("pgdpo_kernels")
STATE = "_pgdpo_kernels_replaced"


def apply_to(model: nn.Module, *, ops: str | Iterable[str] = "all", strict: bool = False) -> list[str]:
    """Replace the element-wise half of a diffusers transformer's blocks by the fused ops.

    Works on this instance alone, before or after a peft adapter is added to it or FSDP2 shards it, and keeps
    parameters, state dict and hooks as they are. Patching again replaces the earlier choice. `set_backend` still
    decides between Triton and eager maths in every call.

    Args:
        model: a transformer of diffusers whose class `known.FAMILIES` lists, also inside a PeftModel, a `.module`
            wrapper or torch.compile's.
        ops: `all`, or names out of norm_modulate, gate_residual, gate_residual_norm_modulate, qk_norm_rope, norm_rope,
            gate_heads.
        strict: raise where the model cannot be patched; by default it stays untouched, with a warning.

    Returns:
        What was replaced, such as `blocks.0.forward` and `blocks.0.attn1.processor`; also logged.

    Raises:
        ValueError: an unknown name in `ops`.
        TypeError: strict, and the model's class or diffusers' code of it is not one that is known here, or its
            blocks are wrapped already.
    """
    chosen = set(OPS) if ops == "all" else {ops} if isinstance(ops, str) else set(ops)
    if chosen - set(OPS):
        raise ValueError(f"unknown ops {sorted(chosen - set(OPS))}; there are {', '.join(OPS)}")
    revert(model)
    model = unwrapped(model)
    try:
        found = plan(model, Ops.choose(chosen))
    except Unsupported as reason:
        if strict:
            raise TypeError(f"cannot patch {type(model).__name__}: {reason}") from None
        warnings.warn(f"{type(model).__name__} is left as it is: {reason}", stacklevel=2)
        return []
    setattr(model, STATE, (chosen, Installed((item, item.install()) for item in found)))
    names = [item.name for item in found]
    logger.info("%s: %d replaced: %s", type(model).__name__, len(names), ", ".join(names))
    return names


class Installed(list):
    """Replacements with what was there before. They go along with a copy, but not into a pickle."""

    def __deepcopy__(self, memo: dict) -> Installed:
        return Installed(copy.deepcopy(pair, memo) for pair in self)

    def __reduce__(self):
        raise TypeError(
            "a patched model can't be pickled: revert(model) before, and apply_to(model) in the process that loads it"
        )


def revert(model: nn.Module) -> None:
    """Give the instance back what `apply_to` replaced; nothing happens where nothing was."""
    model = unwrapped(model)
    _, installed = model.__dict__.pop(STATE, (set(), []))
    for item, original in reversed(installed):
        item.restore(original)


def replaced(model: nn.Module) -> list[tuple[Replacement, set[str]]]:
    """What `apply_to` replaced in this instance, and the ops that are called there; empty where nothing was."""
    chosen, installed = unwrapped(model).__dict__.get(STATE, (set(), []))
    return [(item, item.calls & chosen) for item, _ in installed]


def plan(model: nn.Module, ops: Ops) -> list[Replacement]:
    name = written_class(model).__name__
    if name not in FAMILIES or not written_class(model).__module__.startswith("diffusers."):
        raise Unsupported(
            REASONS.get(name, "it is none of diffusers' transformers that the ops are known to fit")
        )
    family = importlib.import_module(f".{FAMILIES[name]}", __name__)
    check_sources(family.SOURCES)
    found = family.replacements(model, ops)
    for item in found:
        item.check()
    return found


def written_class(model: nn.Module) -> type:
    """Its class as someone wrote it: `fully_shard` gives the instance one that torch makes of that."""
    return next((kind for kind in type(model).__mro__ if not kind.__module__.startswith("torch.")), nn.Module)


def unwrapped(model: nn.Module) -> nn.Module:
    """The diffusers model inside peft's, DeepSpeed's, DDP's or torch.compile's wrapper."""
    while written_class(model).__name__ not in FAMILIES:
        if isinstance(getattr(model, "get_base_model", None), types.MethodType):
            inner = model.get_base_model()
        else:
            inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module) or inner is model:
            break
        model = inner
    return model
