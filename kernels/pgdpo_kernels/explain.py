"""Which backend each op takes, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from .backend import VARIABLE, forced, heard
from .heads.gate_heads import gate_heads
from .heads.norm_rope import norm_rope
from .heads.qk_norm_rope import qk_norm_rope
from .hidden.gate_residual import gate_residual
from .hidden.gate_residual_norm_modulate import gate_residual_norm_modulate
from .hidden.norm_modulate import norm_modulate
from .patch import Unsupported, plan, replaced, unwrapped
from .patch.replace import Ops, Replacement


@dataclass(frozen=True)
class Choice:
    """What one op takes."""

    op: str
    backend: str  # "triton", "eager", or "raises" where "triton" was asked for and can't be had
    why: str
    count: int = 1  # calls, or of a model without inputs places that call it
    where: str = ""  # the first place, of a model


class Explanation(tuple[Choice, ...]):
    """A `Choice` for each op and reason; printed as a table, with `note` below it."""

    note: str = ""

    @classmethod
    def of(cls, choices: Iterable[Choice], note: str = "") -> Explanation:
        out = cls(choices)
        out.note = note
        return out

    def __str__(self) -> str:
        rows = [(c.op, c.backend, f"{c.count}x" if c.count > 1 else "", c.where, c.why) for c in self]
        columns = [column for column in zip(*rows, strict=True) if any(column)]
        widths = [max(map(len, column)) for column in columns]
        rows = zip(*columns, strict=True)
        lines = ["  ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, self.note] if self.note else lines)

    __repr__ = __str__


def explain(target: nn.Module | Callable, *args: object, **kwargs: object) -> Explanation:
    """Which backend each op takes, and why.

    Args:
        target: an op of this package with the arguments of a call, of which nothing is computed; or a model that
            `apply_to` has patched. With a forward's arguments the model is run once, without gradients, and its calls
            are counted; without, each place that `apply_to` replaced is judged by its parameters' device and width.

    Raises:
        TypeError: neither a module nor one of the ops.
        What the op raises of arguments that don't fit.
    """
    if isinstance(target, nn.Module):
        return _of_model(target, args, kwargs)
    if not getattr(target, "__module__", "").startswith(__package__):
        raise TypeError(f"explain: expected a model or an op of {__package__}, got {target!r}")
    return Explanation.of(_merged((choice, "") for choice in _of_call(target, *args, **kwargs)))


def _of_call(op: Callable, *args: object, **kwargs: object) -> list[tuple[str, str, str]]:
    """Of a call on tensors without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, heard() as decisions:

        def fake(x: torch.Tensor) -> torch.Tensor:
            return mode.from_tensor(x) if x.is_floating_point() and not x.is_meta else x

        op(*tree_map_only(torch.Tensor, fake, args), **tree_map_only(torch.Tensor, fake, kwargs))
    return [_choice(*decision) for decision in decisions]


def _choice(op: str, backend: str, device: torch.device, obstacle: str | None) -> tuple[str, str, str]:
    if backend == "eager":
        return op, "eager", "set_backend('eager')" if forced() else f"{VARIABLE}=eager"
    if obstacle is not None:
        return op, "raises" if backend == "triton" else "eager", obstacle
    return op, "triton", f"on {device}" + ("" if device.type == "cuda" else ", in Triton's interpreter")


def _merged(found: Iterable[tuple[tuple[str, str, str], str]]) -> list[Choice]:
    count, first = Counter(), {}
    for choice, where in found:
        count[choice] += 1
        first.setdefault(choice, where)
    return [Choice(*choice, n, first[choice]) for choice, n in count.items()]


def _of_model(model: nn.Module, args: tuple, kwargs: dict) -> Explanation:
    inner = unwrapped(model)
    places = replaced(inner)
    if not places:
        try:
            plan(inner, Ops.all())
        except Unsupported as reason:
            return Explanation.of((), f"{type(inner).__name__} is left as it is: {reason}")
        return Explanation.of((), f"{type(inner).__name__} is not patched: apply_to(model) does it")
    if args or kwargs:
        with torch.no_grad(), heard() as decisions:
            model(*args, **kwargs)
        return Explanation.of(_merged((_choice(*decision), "") for decision in decisions))
    called = ((item, op) for item, ops in places for op in sorted(ops))
    return Explanation.of(
        _merged((choice, item.name) for item, op in called for choice in _of_place(item, op))
    )


def _of_place(item: Replacement, op: str) -> list[tuple[str, str, str]]:
    """Of hidden states as wide as the first linear layer there, where its weights are."""
    linear = next(x for x in item.module.modules() if hasattr(x, "in_features"))
    x = torch.empty(1, 1, linear.in_features, device=next(item.module.parameters()).device)
    if op in PROBES:
        return _of_call(PROBES[op], x)
    heads = item.module.heads if hasattr(item.module, "heads") else item.module.num_heads
    return _of_call(PROBES_OF_HEADS[op], x, heads)


# One call of each with modulation.
PROBES = {
    "norm_modulate": lambda x: norm_modulate(x, x, x),
    "gate_residual": lambda x: gate_residual(x, x, x),
    "gate_residual_norm_modulate": lambda x: gate_residual_norm_modulate(x, x, x, x, x),
}
PROBES_OF_HEADS = {
    "qk_norm_rope": lambda x, heads: qk_norm_rope(x, x, num_heads=heads, norm="none"),
    "norm_rope": lambda x, heads: norm_rope(x, num_heads=heads, norm="none"),
    "gate_heads": lambda x, heads: gate_heads(x, x[..., :heads]),
}
